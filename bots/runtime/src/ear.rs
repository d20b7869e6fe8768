//! How a bot hears topics: its subscriptions, what waits for its handlers, and its right to publish.

use crate::{
    engine::{Gate, Script},
    filter::intersect,
    store::{delete_publication, put_publication},
};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc};
use tavi_core::{
    Action, Mailbox, Node, Overflow, Permit, Principal, Publication, Qos, SubOptions, Subscriber,
    mailbox::{Pushed, Weigh},
    topics::Rows,
};
use tavi_store::{Op, Owner, SharedStore};
use tavi_wire::topic::check_topic;
use tavi_xmpp_proto::jid::BareJid;

/// How many publications wait for one bot.
const MAX_WAITING: usize = 4_096;
/// How many bytes wait for one bot.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// A publication that waits for its handlers.
pub struct Waiting(pub Arc<Publication>);

impl Weigh for Waiting {
    fn weight(&self) -> usize {
        self.0.weight()
    }

    fn droppable(&self) -> bool {
        !lasting(&self.0)
    }
}

/// Whether a publication has a row until its handlers have run: its publisher was told that it arrived.
pub fn lasting(publication: &Publication) -> bool {
    publication.qos >= Qos::AtLeastOnce
}

/// A bot as a subscriber of topics.
pub struct Ear {
    id: u64,
    principal: Principal,
    owner: Owner,
    store: SharedStore,
    mailbox: Mailbox<Waiting>,
    heard: Mutex<BTreeSet<String>>,
    /// Filters whose refusal is in the log.
    refused: Mutex<BTreeSet<String>>,
}

impl Ear {
    /// One that hears nothing yet.
    pub fn new(node: &Node, principal: Principal, owner: Owner) -> Arc<Ear> {
        Arc::new(Ear {
            id: node.parts.topics.next_subscriber(),
            principal,
            owner,
            store: node.parts.store.clone(),
            mailbox: Mailbox::new(MAX_WAITING, MAX_WAITING_BYTES),
            heard: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    /// What waits for the handlers.
    pub fn mailbox(&self) -> &Mailbox<Waiting> {
        &self.mailbox
    }

    /// Listens to what the script's handlers want, as far as it is granted now. Called again after each change of the
    /// script and of the grants.
    pub fn listen(self: &Arc<Self>, node: &Node, script: &Script) {
        let wanted: BTreeSet<String> =
            script.topics.iter().flat_map(|handler| self.granted(&node.parts.permit, &handler.filter)).collect();
        let subscriber: Arc<dyn Subscriber> = self.clone();
        let mut heard = self.heard.lock();
        for gone in heard.difference(&wanted) {
            node.parts.topics.unsubscribe(self.id, gone);
        }
        let options = SubOptions { qos: Qos::AtLeastOnce, no_local: true, ..SubOptions::default() };
        let subscribe = |filter: &String| node.parts.topics.subscribe(&subscriber, filter, options).is_ok();
        *heard = wanted.into_iter().filter(|filter| heard.contains(filter) || subscribe(filter)).collect();
    }

    /// Hears nothing any more.
    pub fn close(&self, node: &Node) {
        for filter in std::mem::take(&mut *self.heard.lock()) {
            node.parts.topics.unsubscribe(self.id, &filter);
        }
    }

    /// The filter, or those parts of it that the bot may hear.
    fn granted(&self, permit: &Permit, filter: &str) -> Vec<String> {
        if permit.may_filter(&self.principal, Action::Subscribe, filter) {
            self.refused.lock().remove(filter);
            return vec![filter.into()];
        }
        let grants = permit.list(Some(self.principal.subject()));
        let grants = grants.iter().filter(|grant| grant.actions.has(Action::Subscribe));
        let parts: Vec<String> = grants.filter_map(|grant| intersect(filter, &grant.filter)).collect();
        if self.refused.lock().insert(filter.into()) {
            permit.log_refusal(&self.principal, Action::Subscribe, filter);
            tracing::info!(bot = %self.principal, filter, hears = ?parts, "a topic handler hears what is granted");
        }
        parts
    }
}

impl Subscriber for Ear {
    fn id(&self) -> u64 {
        self.id
    }

    fn principal(&self) -> &Principal {
        &self.principal
    }

    fn store(&self, publication: &Arc<Publication>, _: &[SubOptions]) -> Option<Rows> {
        lasting(publication)
            .then(|| (self.owner.clone(), vec![put_publication(publication), Op::Drawn { id: publication.id }]))
    }

    fn deliver(&self, publication: &Arc<Publication>, _: &[SubOptions]) {
        match self.mailbox.push(Waiting(publication.clone()), Overflow::DropOldest) {
            Pushed::Queued => {}
            Pushed::Dropped(count) => tracing::warn!(bot = %self.principal, count, "a bot is too slow for its topics"),
            Pushed::Refused(Waiting(lost)) => {
                tracing::warn!(bot = %self.principal, topic = %lost.topic, "a bot is too slow for its topics");
                // Nobody waits for this: if it is lost with the power, the handler runs after the restart.
                drop(self.store.commit(&self.owner, vec![delete_publication(lost.id)]));
            }
        }
    }
}

/// What the grants to a bot's JID allow its script.
pub struct Granted {
    /// The access model.
    pub permit: Arc<Permit>,
    /// The bot.
    pub principal: Principal,
}

impl Gate for Granted {
    fn publish(&self, topic: &str) -> Result<(), String> {
        check_topic(topic).map_err(|error| format!("{topic:?} is no legal topic: {error}"))?;
        if self.permit.may(&self.principal, Action::Publish, topic) {
            return Ok(());
        }
        self.permit.log_refusal(&self.principal, Action::Publish, topic);
        let who = &self.principal;
        Err(format!(
            "{who} may not publish to {topic:?}; this would allow it: tavi-fleet grant add {who} publish '{topic}'"
        ))
    }

    fn address(&self, jid: &str) -> Result<(), String> {
        match jid.parse::<BareJid>() {
            Ok(bare) if bare.local().is_some() => Ok(()),
            Ok(_) => Err(format!("{jid:?} is a host, not a person")),
            Err(error) => Err(format!("{jid:?} is no bare JID: {error}")),
        }
    }
}
