//! Requests from one occupant to another (XEP-0045 §17.4) and to oneself (XEP-0410): neither learns the other's address.

use super::room::{MAX_OPEN, Room, Turn};
use std::collections::VecDeque;
use tavi_core::Envelope;
use tavi_xmpp_proto::{BareJid, Condition, IqType, Jid, StanzaError, ns};

/// A request that waits for its answer.
struct Open {
    /// The id that the answer will have.
    id: u64,
    /// Who may answer.
    from: BareJid,
    /// The session that asked, its id of the request, and whom it asked.
    asker: Jid,
    asked: Jid,
    its_id: Box<str>,
}

/// The requests on their way; of too many the oldest get no answer.
#[derive(Default)]
pub(super) struct Relay(VecDeque<Open>);

impl Room {
    /// An IQ to `ROOM/NICK`.
    pub(super) fn relay(&mut self, type_: IqType, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        let Some((from, to)) = turn.env.from().zip(turn.env.to()) else { return Ok(()) };
        if matches!(type_, IqType::Result | IqType::Error) {
            self.answered(from, turn);
            return Ok(());
        }
        let Some((index, _)) = self.seat(from) else { return Err(stranger(turn.env)) };
        let nobody = || StanzaError::new(Condition::ItemNotFound).text("nobody has this nick");
        let asked = self.find(to).ok_or_else(nobody)?;
        if asked == index && turn.env.has(ns::PING, "ping") {
            // XEP-0410 §3.3.
            turn.reply(None);
            return Ok(());
        }
        self.ask((index, asked), from, turn);
        Ok(())
    }

    fn ask(&mut self, (asker, asked): (usize, usize), from: &Jid, turn: &mut Turn<'_>) {
        let (asker, asked) = (&self.occupants[asker], &self.occupants[asked]);
        // XEP-0045 §17.4: an account's own data is its server's to give.
        let of_account = turn.env.has(ns::VCARD, "vCard") || turn.env.has(ns::PUBSUB, "pubsub");
        let Some(session) = asked.sessions.last() else { return };
        let to: Jid = if of_account { (&asked.user).into() } else { session.jid.clone() };
        let mut request: Envelope = turn.env.stanza.clone().into();
        let head = request.head_mut();
        let its_id = head.id.replace(turn.id.to_string().into()).unwrap_or_default();
        (head.from, head.to) = (Some(asker.jid.clone()), Some(to));
        let open =
            Open { id: turn.id, from: asked.user.clone(), asker: from.clone(), asked: asked.jid.clone(), its_id };
        self.relay.0.push_back(open);
        if self.relay.0.len() > MAX_OPEN {
            self.relay.0.pop_front();
        }
        turn.out.push(request);
    }

    fn answered(&mut self, from: &Jid, turn: &mut Turn<'_>) {
        let id = turn.env.head().id.as_deref().and_then(|id| id.parse::<u64>().ok());
        let fits = |open: &Open| Some(open.id) == id && open.from == from.bare();
        let Some(open) = self.relay.0.iter().position(fits).and_then(|at| self.relay.0.remove(at)) else { return };
        let mut answer: Envelope = turn.env.stanza.clone().into();
        let head = answer.head_mut();
        (head.from, head.to, head.id) = (Some(open.asked), Some(open.asker), Some(open.its_id));
        turn.out.push(answer);
    }
}

/// XEP-0045 §6.6, XEP-0410 §3.2: what an occupant is asked by somebody outside.
pub(super) fn stranger(env: &Envelope) -> StanzaError {
    let disco = env.has(ns::DISCO_INFO, "query") || env.has(ns::DISCO_ITEMS, "query");
    StanzaError::new(if disco { Condition::BadRequest } else { Condition::NotAcceptable })
        .text("you are not in this room")
}
