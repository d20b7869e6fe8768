//! The home of sessions whose links are on other nodes: each link's words in, each seat's words out. Whoever carries them
//! keeps their order, link by link, and loses none while the link is there.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::Fault;
use crate::hub::{Hub, Parting};
use crate::link::{Line, Said, Word};
use crate::packet::{Connect, Disconnect, Reason};
use crate::sitting::Sitting;
use crate::words::{Attach, ToLink, ToSeat};

/// Words that wait for one link before its seat says no more.
const SAID: usize = 64;

/// A link, by a number that its own node gave it.
pub type Guest = u64;

type Entering = Pin<Box<dyn Future<Output = Result<(Sitting, bool, Vec<u16>), Reason>> + Send>>;

/// All links that are elsewhere.
pub struct Reception {
    hub: Arc<Hub>,
    guests: BTreeMap<Guest, Visit>,
}

/// One link.
struct Visit {
    stage: Stage,
    heard: VecDeque<(Word, usize)>,
    said: VecDeque<ToLink>,
    /// It has gone.
    parting: Option<Parting>,
}

enum Stage {
    Entering(Entering),
    Seated(Box<Sitting>),
    /// What was said last may still have to be carried.
    Over,
}

struct Queue<'a>(&'a mut VecDeque<ToLink>);

impl Line for Queue<'_> {
    fn say(&mut self, said: Said) -> bool {
        self.0.push_back(ToLink::Said(said));
        true
    }

    fn is_full(&self) -> bool {
        self.0.len() >= SAID
    }
}

impl Reception {
    /// Of the sessions of this hub.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub, guests: BTreeMap::new() }
    }

    /// Hears a word. What makes no sense, such as words of somebody who has gone, is left out.
    pub fn hear(&mut self, guest: Guest, word: ToSeat) {
        match (word, self.guests.get_mut(&guest)) {
            (ToSeat::Attach(attach), None) => {
                let stage = Stage::Entering(Box::pin(enter(self.hub.clone(), attach)));
                let visit = Visit { stage, heard: VecDeque::new(), said: VecDeque::new(), parting: None };
                self.guests.insert(guest, visit);
            }
            (ToSeat::Word(word, size), Some(visit)) if visit.parting.is_none() => visit.heard.push_back((word, size)),
            (ToSeat::Detach(parting), Some(visit)) => {
                visit.parting.get_or_insert(parting);
            }
            _ => {}
        }
    }

    /// Whether a link may say more: its seat heeds what it said. If not, its node keeps what comes.
    pub fn has_room(&self, guest: Guest) -> bool {
        self.guests.get(&guest).is_none_or(|visit| visit.heard.len() < SAID)
    }

    /// The next word for a link.
    pub fn next_said(&mut self, guest: Guest) -> Option<ToLink> {
        let visit = self.guests.get_mut(&guest)?;
        let said = visit.said.pop_front();
        if visit.is_done() {
            self.guests.remove(&guest);
        }
        said
    }

    /// Heeds what was heard, and says what there is to say. The context is woken when there may be more.
    pub fn poll(&mut self, cx: &mut Context<'_>) {
        for visit in self.guests.values_mut() {
            visit.poll(&self.hub, cx);
        }
        self.guests.retain(|_, visit| !visit.is_done());
    }
}

impl Visit {
    fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Over) && (self.said.is_empty() || self.parting.is_some())
    }

    fn poll(&mut self, hub: &Hub, cx: &mut Context<'_>) {
        if let Stage::Entering(entering) = &mut self.stage {
            let Poll::Ready(entered) = entering.as_mut().poll(cx) else { return };
            self.stage = match entered {
                Ok((sitting, present, held)) => {
                    self.said.push_back(ToLink::Attached(present, held));
                    Stage::Seated(Box::new(sitting))
                }
                Err(reason) => {
                    self.said.push_back(ToLink::Refused(reason));
                    Stage::Over
                }
            };
        }
        let Stage::Seated(sitting) = &mut self.stage else { return };
        sitting.set_time(hub.now());
        let mut line = Queue(&mut self.said);
        match attend(sitting, &mut self.heard, &mut line, cx) {
            Ok(None) => {}
            Ok(Some(disconnect)) => {
                let in_order = disconnect.reason == Reason::SUCCESS;
                return self.end(if in_order { Parting::InOrder } else { Parting::Cut });
            }
            Err(fault) => {
                self.said.push_back(ToLink::Close(fault.reason()));
                return self.end(Parting::Cut);
            }
        }
        // What it said before it went is heeded first.
        if let (Some(parting), true) = (self.parting, self.heard.is_empty()) {
            self.end(parting);
        }
    }

    fn end(&mut self, parting: Parting) {
        if let Stage::Seated(sitting) = std::mem::replace(&mut self.stage, Stage::Over) {
            sitting.leave(parting);
        }
    }
}

/// Heeds words and says others until there is nothing more to do just now.
fn attend(
    sitting: &mut Sitting,
    heard: &mut VecDeque<(Word, usize)>,
    line: &mut Queue<'_>,
    cx: &mut Context<'_>,
) -> Result<Option<Disconnect>, Fault> {
    loop {
        while !sitting.is_full()
            && let Some((word, size)) = heard.pop_front()
        {
            if let Some(disconnect) = sitting.take(word, size, line)? {
                return Ok(Some(disconnect));
            }
        }
        match sitting.poll(cx, line) {
            Poll::Ready(done) => done?,
            Poll::Pending => return Ok(None),
        }
        if line.is_full() {
            // It goes on when its words have been carried.
            return Ok(None);
        }
    }
}

/// As for a client of this node, after its login.
async fn enter(hub: Arc<Hub>, attach: Attach) -> Result<(Sitting, bool, Vec<u16>), Reason> {
    let Attach { subject, client_id, version, clean, expiry, receive_maximum, will } = attach;
    let jid = subject.parse().map_err(|_| Reason::NOT_AUTHORIZED)?;
    let principal = hub.node().parts.hosts.principal(&jid).ok_or(Reason::NOT_AUTHORIZED)?;
    let mut connect = Connect {
        version,
        client_id,
        clean,
        keep_alive: 0,
        expiry,
        receive_maximum,
        maximum_packet: u32::MAX,
        auth_method: false,
        will,
        user: None,
        password: None,
    };
    let entered = hub.enter(&principal, &mut connect).await?;
    let sitting = Sitting::new(hub.clone(), entered.place, version);
    if let Err(error) = entered.ticket.complete().await {
        tracing::error!(%error, "an MQTT session could not be saved");
        sitting.leave(Parting::InOrder);
        return Err(Reason::UNAVAILABLE);
    }
    Ok((sitting, entered.session_present, entered.held))
}
