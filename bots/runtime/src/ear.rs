//! How a bot hears topics: its subscriptions, what waits for its handlers, and its right to publish.

use crate::{
    engine::{Gate, Script},
    filter::intersect,
    store::{Rows, put_publication},
};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc};
use tavi_core::{
    Action, Mailbox, Node, Overflow, Permit, Principal, Publication, Qos, SubOptions, Subscriber, Ticket,
    mailbox::{Pushed, Weigh},
    principal::Hosts,
    topics,
};
use tavi_store::{Op, Owner, StoreError};
use tavi_wire::topic::check_topic;
use tavi_xmpp_proto::jid::BareJid;
use tokio::sync::Notify;

/// How many publications wait for one bot.
const MAX_WAITING: usize = 4_096;
/// How many bytes wait for one bot.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// With fewer lasting publications in hand than this, the next page is read from the store.
const FEW: usize = 256;

/// Publications that were read from the store.
type Page = Vec<Arc<Publication>>;

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
    mailbox: Mailbox<Waiting>,
    lasting: Mutex<Lasting>,
    more: Notify,
    heard: Mutex<BTreeSet<String>>,
    /// Filters whose refusal is in the log.
    refused: Mutex<BTreeSet<String>>,
}

/// Where the lasting publications are that have rows in the store, by id.
struct Lasting {
    /// They wait in memory or run.
    in_hand: BTreeSet<u64>,
    /// They are being saved. A row may be there already, but what its topic had before comes first, and it is delivered.
    coming: BTreeSet<u64>,
    /// What began to be saved since the store is being read: the page may have it.
    begun: Option<BTreeSet<u64>>,
    /// How many lie in the store only, since it was last known that none does.
    late: Option<u64>,
}

impl Ear {
    /// One that hears nothing yet.
    pub fn new(node: &Node, principal: Principal, owner: Owner) -> Arc<Ear> {
        Ear::bounded(node, (principal, owner), (MAX_WAITING, MAX_WAITING_BYTES))
    }

    /// One in whose memory so many publications wait, of so many bytes.
    fn bounded(node: &Node, (principal, owner): (Principal, Owner), (items, bytes): (usize, usize)) -> Arc<Ear> {
        // A former process may have left some.
        let late = Some(0);
        Arc::new(Ear {
            id: node.parts.topics.next_subscriber(),
            principal,
            owner,
            mailbox: Mailbox::new(items, bytes),
            lasting: Mutex::new(Lasting { in_hand: BTreeSet::new(), coming: BTreeSet::new(), begun: None, late }),
            more: Notify::new(),
            heard: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    /// What waits for the handlers.
    pub fn mailbox(&self) -> &Mailbox<Waiting> {
        &self.mailbox
    }

    /// Ready when there may be more for [`Ear::late`].
    pub async fn more(&self) {
        self.more.notified().await;
    }

    /// Has the store looked through for what a former process left.
    pub fn look(&self) {
        self.more.notify_one();
    }

    /// What waits in memory and the next publications of those that found no room there, oldest first; none while enough
    /// are in hand.
    pub async fn late(&self, rows: &Rows) -> Vec<Arc<Publication>> {
        let Some((mark, skip)) = self.lasting.lock().read() else { return Vec::new() };
        // No lasting one comes into the mailbox now, so what waits there is older than what is read.
        let mut publications: Vec<_> =
            self.mailbox.take().into_iter().map(|Waiting(publication)| publication).collect();
        let page = rows.publications(&skip).await;
        match self.lasting.lock().found(mark, page) {
            Ok((found, more)) => {
                publications.extend(found);
                if more {
                    self.more.notify_one();
                }
            }
            Err(error) => tracing::error!(bot = %self.principal, %error, "publications wait for the next start"),
        }
        publications
    }

    /// The handlers of a publication have run and its row is gone.
    pub fn done(&self, id: u64) {
        let mut lasting = self.lasting.lock();
        lasting.in_hand.remove(&id);
        if lasting.in_hand.len() < FEW && lasting.late.is_some() {
            self.more.notify_one();
        }
    }

    /// Takes a lasting publication if it may wait in memory. Behind one that could not, none may: they would run in
    /// the wrong order.
    fn keep(&self, publication: &Arc<Publication>) {
        let mut lasting = self.lasting.lock();
        lasting.coming.remove(&publication.id);
        let has_room = lasting.late.is_none()
            && !matches!(self.mailbox.push(Waiting(publication.clone()), Overflow::DropOldest), Pushed::Refused(_));
        if has_room {
            lasting.in_hand.insert(publication.id);
            return;
        }
        lasting.late = Some(lasting.late.unwrap_or(0) + 1);
        self.more.notify_one();
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
        // What is retained is no news to a script, unless it is just being saved.
        let subscribe = |filter: &String| {
            let coming = node.parts.topics.listen(&subscriber, filter, options);
            coming.map(|ticket| self.clone().hear_of(ticket)).is_ok()
        };
        *heard = wanted.into_iter().filter(|filter| heard.contains(filter) || subscribe(filter)).collect();
    }

    /// Has delivered what was being saved when it began to listen.
    fn hear_of(self: Arc<Self>, coming: Ticket) {
        if coming.is_ready() {
            return;
        }
        tokio::spawn(async move {
            if let Err(error) = coming.complete().await {
                tracing::error!(bot = %self.principal, %error, "what was being saved when a bot began to listen is lost to it");
            }
        });
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
        let grants = grants.iter().filter(|grant| grant.rights.allows(Action::Subscribe));
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

    fn store(&self, publication: &Arc<Publication>, _: &[SubOptions]) -> Option<topics::Rows> {
        if !lasting(publication) {
            return None;
        }
        self.lasting.lock().begin(publication.id);
        Some((self.owner.clone(), vec![put_publication(publication), Op::Drawn { id: publication.id }]))
    }

    fn deliver(&self, publication: &Arc<Publication>, _: &[SubOptions]) {
        if lasting(publication) {
            return self.keep(publication);
        }
        match self.mailbox.push(Waiting(publication.clone()), Overflow::DropOldest) {
            Pushed::Queued => {}
            Pushed::Dropped(count) => tracing::warn!(bot = %self.principal, count, "a bot is too slow for its topics"),
            Pushed::Refused(Waiting(lost)) => {
                tracing::warn!(bot = %self.principal, topic = %lost.topic, "a bot is too slow for its topics");
            }
        }
    }

    fn abandon(&self, publication: &Arc<Publication>) {
        self.lasting.lock().coming.remove(&publication.id);
    }
}

impl Lasting {
    fn begin(&mut self, id: u64) {
        self.coming.insert(id);
        self.begun.iter_mut().for_each(|begun| _ = begun.insert(id));
    }

    /// Begins to read the store, if there is something to find: gives the mark that it is late by, and what not to take.
    fn read(&mut self) -> Option<(u64, BTreeSet<u64>)> {
        let mark = self.late.filter(|_| self.in_hand.len() < FEW)?;
        self.begun = Some(BTreeSet::new());
        Some((mark, &self.in_hand | &self.coming))
    }

    /// Takes what was read, but for what comes later; tells whether there may be more.
    fn found(&mut self, mark: u64, page: Result<Page, StoreError>) -> Result<(Page, bool), StoreError> {
        let begun = self.begun.take().unwrap_or_default();
        let mut found = page?;
        let more = !found.is_empty() || self.late != Some(mark);
        if !more {
            self.late = None;
        }
        found.retain(|publication| !begun.contains(&publication.id));
        self.in_hand.extend(found.iter().map(|publication| publication.id));
        Ok((found, more))
    }
}

/// What the grants to a bot's JID allow its script.
pub struct Granted {
    /// The access model.
    pub permit: Arc<Permit>,
    /// Who is who.
    pub hosts: Arc<Hosts>,
    /// The bot.
    pub principal: Principal,
}

impl Granted {
    /// Whether the person, and not only the bot, may do it.
    fn person_may(&self, person: &str, action: Action, topic: &str) -> bool {
        let principal = person.parse::<BareJid>().ok().and_then(|jid| self.hosts.principal(&jid));
        principal.is_some_and(|principal| self.permit.may(&principal, action, topic))
    }

    fn refusal(who: &str, topic: &str) -> String {
        format!("{who} may not publish to {topic:?}; this would allow it: tavi-fleet grant add {who} publish '{topic}'")
    }
}

impl Gate for Granted {
    fn publish(&self, asker: Option<&str>, topic: &str) -> Result<(), String> {
        check_topic(topic).map_err(|error| format!("{topic:?} is no legal topic: {error}"))?;
        if !self.permit.may(&self.principal, Action::Publish, topic) {
            self.permit.log_refusal(&self.principal, Action::Publish, topic);
            return Err(Self::refusal(self.principal.subject(), topic));
        }
        match asker {
            Some(person) if !self.person_may(person, Action::Publish, topic) => {
                let bot = &self.principal;
                tracing::info!(%bot, person, topic, "refused: the bot may publish there, but not for this person");
                Err(Self::refusal(person, topic))
            }
            _ => Ok(()),
        }
    }

    fn hear(&self, person: &str, topic: &str) -> bool {
        self.person_may(person, Action::Subscribe, topic)
    }

    fn address(&self, jid: &str) -> Result<(), String> {
        match jid.parse::<BareJid>() {
            Ok(bare) if bare.local().is_some() => Ok(()),
            Ok(_) => Err(format!("{jid:?} is a host, not a person")),
            Err(error) => Err(format!("{jid:?} is no bare JID: {error}")),
        }
    }
}

#[cfg(test)]
#[path = "ear_tests.rs"]
mod tests;
