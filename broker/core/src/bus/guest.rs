//! The home's end of the words: sessions whose links are elsewhere, and stanzas that come from other homes.

use super::{NodeId, Word, word::NoSeat};
use crate::{
    backlog::Bound,
    envelope::Envelope,
    hooks::BoxFuture,
    link::Link,
    node::{Attached, Node},
    ticket::{Ticket, TicketQueue},
};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, Waker},
};
use tavi_xmpp_proto::{
    element::Element,
    jid::{BareJid, Jid},
    ns,
};

/// What may be on its way to a link elsewhere and not acknowledged, until the client asks for a window of its own.
const WINDOW: Bound = Bound { items: 256, bytes: 1 << 20 };
/// About what is taken for a link at once, in bytes.
const AT_ONCE: usize = 64 * 1024;

/// What a home holds for other nodes.
#[derive(Default)]
pub(crate) struct Reception {
    guests: Mutex<HashMap<(NodeId, u64), Guest>>,
    lanes: Mutex<HashMap<(NodeId, Lane), Waiting>>,
    /// How often a node has departed.
    departures: Mutex<HashMap<NodeId, u64>>,
    pub(super) owed: super::owed::Owed,
}

/// A session whose link is elsewhere.
struct Guest {
    link: Link,
    _attached: Attached,
}

/// What keeps its order: the stanzas of one link, or those of one sender.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Lane {
    Link(u64),
    From(BareJid),
}

/// What waits in a lane; a lane that is there is being served.
#[derive(Default)]
struct Waiting {
    items: VecDeque<(u64, Heard)>,
    waker: Option<Waker>,
}

enum Heard {
    Sent(Envelope),
    Route(Envelope),
    End,
}

impl Node {
    /// A word from another node.
    pub fn hear(&self, from: NodeId, word: Word) {
        match word {
            Word::Attach { link, jid } => {
                let since = self.departures(from);
                tokio::spawn(self.clone().admit((from, since), link, jid));
            }
            Word::Sent { link, number, envelope } => {
                self.enqueue((from, Lane::Link(link)), number, Heard::Sent(envelope));
            }
            Word::End { link, number } => self.enqueue((from, Lane::Link(link)), number, Heard::End),
            Word::Route { number, envelope } => {
                let Some(sender) = envelope.from().map(Jid::to_bare) else { return self.answer(from, number, true) };
                self.enqueue((from, Lane::From(sender)), number, Heard::Route(envelope));
            }
            Word::Manage { link, window } => self.with_guest((from, link), |link| link.manage(window)),
            Word::Acked { link, places } => self.with_guest((from, link), |link| link.acked(&places)),
            Word::Detach { link, gone: true } => self.with_guest((from, link), Link::detach),
            Word::Detach { link, gone: false } => self.with_guest((from, link), Link::attach),
            Word::Begin { link, requests } => {
                let read = |request: &bytes::Bytes| Element::parse(request, ns::CLIENT).ok();
                let requests: Vec<Element> = requests.iter().filter_map(read).collect();
                self.with_guest((from, link), |link| link.begin(&requests));
            }
            Word::Notice { envelope } => {
                if let Some(to) = envelope.to().cloned() {
                    // Whoever is not there misses it.
                    let _ = self.parts.homes.notify_here(&to, envelope);
                }
            }
            Word::Owe { seat, options, publication } => self.owe(from, seat, (options, publication)),
            Word::Keep { number, seat, id } => self.keep(from, number, (seat, id)),
            Word::Land { seat, id, saved } => self.lands(from, (seat, id), saved),
            Word::Pass { seat, options, publication } => self.pass(&seat, (options, publication)),
            answer => self.router.exchange.hear(answer),
        }
    }

    /// A node has gone, with the links that its clients had there: their sessions end, and what they did not acknowledge
    /// goes to others or is kept. To be said once for each time that it goes, before its successor is heard.
    pub fn departed(&self, node: NodeId) {
        *self.home().departures.lock().entry(node).or_default() += 1;
        let guests: Vec<u64> =
            self.home().guests.lock().keys().filter(|(of, _)| *of == node).map(|(_, n)| *n).collect();
        guests.into_iter().for_each(|number| self.dismiss(node, number));
        self.land_for(node);
        self.router.exchange.departed(node);
    }

    /// Ends a guest's session, behind all that it has sent; nobody waits for the answer.
    fn dismiss(&self, node: NodeId, number: u64) {
        self.enqueue((node, Lane::Link(number)), 0, Heard::End);
    }

    fn departures(&self, node: NodeId) -> u64 {
        self.home().departures.lock().get(&node).copied().unwrap_or_default()
    }

    pub(super) fn home(&self) -> &Reception {
        &self.router.exchange.home
    }

    fn say(&self, to: NodeId, word: Word) {
        self.router.exchange.bus.send(to, word);
    }

    /// Nobody waits for what has no number.
    pub(super) fn answer(&self, to: NodeId, number: u64, saved: bool) {
        if number != 0 {
            self.say(to, Word::Answered { number, saved });
        }
    }

    fn with_guest(&self, guest: (NodeId, u64), act: impl Fn(&Link)) {
        // Not under the lock: what is done may reach other guests.
        let link = self.home().guests.lock().get(&guest).map(|guest| guest.link.clone());
        link.iter().for_each(act);
    }

    /// Gives a client elsewhere its seat, and tells its node from then on what it is owed.
    async fn admit(self, (node, since): (NodeId, u64), number: u64, jid: Jid) {
        let seated = match self.router.exchange.bus.away(&jid.to_bare()) {
            None => self.bind_here(&jid).await,
            Some(_) => Err(NoSeat::Unavailable),
        };
        let (link, attached) = match seated {
            Ok(seated) => seated,
            Err(why) => return self.say(node, Word::Attached { link: number, seat: Err(why) }),
        };
        link.keep_in_flight(WINDOW);
        self.home().guests.lock().insert((node, number), Guest { link: link.clone(), _attached: attached });
        if self.departures(node) != since {
            self.dismiss(node, number);
        }
        self.say(node, Word::Attached { link: number, seat: Ok(link.seat().number) });
        self.deliver(node, number, &link).await;
    }

    async fn deliver(&self, node: NodeId, number: u64, link: &Link) {
        let mut taken = Vec::new();
        loop {
            if let Err(why) = poll_fn(|cx| link.poll_deliver(cx, AT_ONCE, &mut taken)).await {
                return self.say(node, Word::Close { link: number, why });
            }
            link.flush_notes();
            for (place, envelope) in taken.drain(..) {
                self.say(node, Word::Deliver { link: number, place, envelope });
            }
        }
    }

    fn enqueue(&self, key: (NodeId, Lane), number: u64, heard: Heard) {
        let mut lanes = self.home().lanes.lock();
        if let Some(lane) = lanes.get_mut(&key) {
            lane.items.push_back((number, heard));
            lane.waker.take().into_iter().for_each(Waker::wake);
            return;
        }
        lanes.insert(key.clone(), Waiting { items: VecDeque::from([(number, heard)]), waker: None });
        drop(lanes);
        tokio::spawn(self.clone().serve(key));
    }

    /// Routes what comes in one lane, one after the other, and answers in that order, until the lane is empty.
    async fn serve(self, key: (NodeId, Lane)) {
        let (mut routing, mut open) = (None, TicketQueue::default());
        poll_fn(|cx| self.poll_lane(cx, &key, &mut routing, &mut open)).await;
    }

    fn poll_lane(
        &self,
        cx: &mut Context<'_>,
        key: &(NodeId, Lane),
        routing: &mut Option<(u64, BoxFuture<'static, Ticket>)>,
        open: &mut TicketQueue<u64>,
    ) -> Poll<()> {
        loop {
            while let Poll::Ready(Some((number, result))) = open.poll_next(cx) {
                self.answer(key.0, number, result.is_ok());
            }
            if let Some((number, route)) = routing {
                let Poll::Ready(ticket) = route.as_mut().poll(cx) else { return Poll::Pending };
                match key.1 {
                    Lane::Link(_) => open.push(ticket, *number, 0),
                    Lane::From(_) => self.complete(key.0, *number, ticket),
                }
                *routing = None;
                continue;
            }
            if open.is_full() {
                return Poll::Pending;
            }
            let mut lanes = self.home().lanes.lock();
            let Some(lane) = lanes.get_mut(key) else { return Poll::Ready(()) };
            match lane.items.pop_front() {
                Some((number, heard)) => {
                    drop(lanes);
                    *routing = Some((number, self.begin(key, heard)));
                }
                None if open.is_empty() => {
                    lanes.remove(key);
                    return Poll::Ready(());
                }
                None => {
                    lane.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }

    /// Each on its own: two homes that ask each other would wait for ever if an answer waited for those before it. What
    /// is delivered has its place already.
    fn complete(&self, node: NodeId, number: u64, ticket: Ticket) {
        let home = self.clone();
        tokio::spawn(async move {
            let saved = ticket.complete().await.is_ok();
            home.answer(node, number, saved);
        });
    }

    fn begin(&self, (node, lane): &(NodeId, Lane), heard: Heard) -> BoxFuture<'static, Ticket> {
        let guest = |number: &u64| (*node, *number);
        match (heard, lane) {
            (Heard::Sent(envelope), Lane::Link(number)) => {
                let link = self.home().guests.lock().get(&guest(number)).map(|guest| guest.link.clone());
                link.map_or_else(|| Box::pin(async { Ticket::done() }) as BoxFuture<'_, _>, |link| link.sent(envelope))
            }
            (Heard::End, Lane::Link(number)) => {
                let gone = self.home().guests.lock().remove(&guest(number));
                Box::pin(async move {
                    match gone {
                        Some(guest) => guest.link.end(Vec::new()).await,
                        None => Ticket::done(),
                    }
                })
            }
            (Heard::Route(envelope), _) => {
                let router = self.router.clone();
                Box::pin(async move { router.arrived(envelope).await })
            }
            _ => Box::pin(async { Ticket::done() }),
        }
    }
}
