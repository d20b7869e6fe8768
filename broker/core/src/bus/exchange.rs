//! The links' end of the words: seats that are elsewhere, their mirrors here, and answers that are awaited.

use super::{Bus, NodeId, Word, word::NoSeat};
use crate::{
    backlog::Bound, envelope::Envelope, homes::SeatId, inbox::Inbox, link::Link, mailbox::Closed, ticket::Ticket,
};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tavi_store::{Commit, CommitSlot, IdSource, StoreError};
use tavi_xmpp_proto::{
    element::Element,
    jid::{BareJid, Jid},
    ns,
    stanza::{
        PresenceType::{Available, Error, Probe, Unavailable},
        StanzaType,
    },
};
use tokio::sync::oneshot;

/// What this node has open with others.
pub(crate) struct Exchange {
    pub(super) bus: Arc<dyn Bus>,
    numbers: AtomicU64,
    answers: Mutex<HashMap<u64, (NodeId, CommitSlot)>>,
    mirrors: Mutex<HashMap<u64, Mirror>>,
    pub(super) home: super::guest::Reception,
}

/// What a seat elsewhere owes to its link here.
struct Mirror {
    node: NodeId,
    inbox: Arc<Inbox>,
    attaching: Option<oneshot::Sender<Result<u64, NoSeat>>>,
}

/// The home's window bounds what lies in a mirror.
const OPEN: Bound = Bound { items: usize::MAX, bytes: usize::MAX };

impl Exchange {
    pub(crate) fn new(bus: Arc<dyn Bus>) -> Exchange {
        Exchange {
            bus,
            numbers: AtomicU64::new(1),
            answers: Mutex::default(),
            mirrors: Mutex::default(),
            home: super::guest::Reception::default(),
        }
    }

    pub(crate) fn bus(&self) -> &dyn Bus {
        &*self.bus
    }

    /// A seat for a client whose owner is home elsewhere.
    pub(crate) async fn attach(self: &Arc<Self>, node: NodeId, jid: Jid, ids: Arc<IdSource>) -> Result<Link, NoSeat> {
        let link = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (inbox, (attaching, attached)) = (Arc::new(Inbox::new(OPEN, ids)), oneshot::channel());
        self.mirrors.lock().insert(link, Mirror { node, inbox: inbox.clone(), attaching: Some(attaching) });
        self.bus.send(node, Word::Attach { link, jid: jid.clone() });
        match attached.await {
            Ok(Ok(number)) => {
                let far = Far { exchange: self.clone(), node, link };
                Ok(Link::far(far, (SeatId { owner: jid.to_bare(), number }, jid), inbox))
            }
            refused => {
                self.mirrors.lock().remove(&link);
                Err(refused.ok().and_then(Result::err).unwrap_or(NoSeat::Unavailable))
            }
        }
    }

    /// A stanza for somebody who is home elsewhere. It goes at once, so that it keeps its order.
    pub(crate) fn route(&self, node: NodeId, envelope: Envelope) -> Ticket {
        // Presence that changes no subscription is kept nowhere: nobody waits for it.
        if let StanzaType::Presence(Available | Unavailable | Probe | Error) = envelope.head().type_ {
            self.bus.send(node, Word::Route { number: 0, envelope });
            return Ticket::done();
        }
        let mut ticket = Ticket::done();
        ticket.wait_for(self.ask(node, |number| Word::Route { number, envelope }));
        ticket
    }

    /// A headline for somebody who may be home elsewhere.
    pub(crate) fn notify(&self, to: &BareJid, envelope: Envelope) {
        if let Some(node) = self.bus.away(to) {
            self.bus.send(node, Word::Notice { envelope });
        }
    }

    /// Says something that is answered when all that must be durable is.
    pub(super) fn ask(&self, node: NodeId, word: impl FnOnce(u64) -> Word) -> Commit {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (slot, commit) = Commit::pending();
        self.answers.lock().insert(number, (node, slot));
        self.bus.send(node, word(number));
        commit
    }

    /// A node has gone: nothing that was asked of it is answered, and links to seats there are cut. Their clients find
    /// the seats again wherever they are home then.
    pub(super) fn departed(&self, node: NodeId) {
        let unanswered: Vec<_> = self.answers.lock().extract_if(|_, (asked, _)| *asked == node).collect();
        for (_, (_, slot)) in unanswered {
            slot.resolve(Err(StoreError::Unavailable("its home has gone".into())));
        }
        let cut: Vec<_> = self.mirrors.lock().extract_if(|_, mirror| mirror.node == node).collect();
        // Whoever waits for a seat has none.
        cut.into_iter().for_each(|(_, mirror)| mirror.inbox.close(Closed::Gone));
    }

    /// Words of a home to links and askers here. A word for somebody who has gone is left out.
    pub(super) fn hear(&self, word: Word) {
        match word {
            Word::Attached { link, seat } => {
                let attaching = self.mirrors.lock().get_mut(&link).and_then(|mirror| mirror.attaching.take());
                // Whoever wanted it may have gone.
                attaching.into_iter().for_each(|attaching| _ = attaching.send(seat));
            }
            Word::Answered { number, saved } => {
                let result = if saved { Ok(()) } else { Err(StoreError::Unavailable("at its home".into())) };
                self.answers.lock().remove(&number).into_iter().for_each(|(_, slot)| slot.resolve(result.clone()));
            }
            Word::Deliver { link, place, mut envelope } => {
                envelope.meta.place = place;
                // Only a closed one takes nothing; its home keeps what is not acknowledged.
                self.mirror(link).into_iter().for_each(|inbox| drop(inbox.landed(place, envelope.clone())));
            }
            Word::Close { link, why } => self.mirror(link).into_iter().for_each(|inbox| inbox.close(why)),
            other => tracing::warn!(?other, "a word for nobody"),
        }
    }

    fn mirror(&self, link: u64) -> Option<Arc<Inbox>> {
        self.mirrors.lock().get(&link).map(|mirror| mirror.inbox.clone())
    }
}

/// The way of a link to its seat elsewhere.
#[derive(Clone)]
pub(crate) struct Far {
    exchange: Arc<Exchange>,
    node: NodeId,
    link: u64,
}

impl Far {
    pub(crate) fn sent(&self, envelope: Envelope) -> Ticket {
        let link = self.link;
        if self.exchange.mirror(link).is_none() {
            return Ticket::failed(StoreError::Unavailable("its home has gone".into()));
        }
        self.ask(|number| Word::Sent { link, number, envelope })
    }

    pub(crate) fn manage(&self, window: Bound) {
        self.say(Word::Manage { link: self.link, window });
    }

    pub(crate) fn acked(&self, places: Vec<u64>) {
        if !places.is_empty() {
            self.say(Word::Acked { link: self.link, places });
        }
    }

    pub(crate) fn detach(&self, gone: bool) {
        self.say(Word::Detach { link: self.link, gone });
    }

    pub(crate) fn begin(&self, requests: &[Element]) {
        let requests = requests.iter().map(|request| request.to_xml(ns::CLIENT).into()).collect();
        self.say(Word::Begin { link: self.link, requests });
    }

    /// All that was not acknowledged is the home's from now on.
    pub(crate) fn end(&self, mirror: &Inbox) -> Ticket {
        mirror.close(Closed::Gone);
        if self.exchange.mirrors.lock().remove(&self.link).is_none() {
            // Its home has gone, and has ended it.
            return Ticket::done();
        }
        let link = self.link;
        self.ask(|number| Word::End { link, number })
    }

    fn ask(&self, word: impl FnOnce(u64) -> Word) -> Ticket {
        let mut ticket = Ticket::done();
        ticket.wait_for(self.exchange.ask(self.node, word));
        ticket
    }

    fn say(&self, word: Word) {
        self.exchange.bus.send(self.node, word);
    }
}

#[cfg(test)]
mod tests;
