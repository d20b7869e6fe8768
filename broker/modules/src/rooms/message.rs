//! What is said in a room (XEP-0045 §7.3 to §7.5, §7.8, §8.1).

use super::{
    kept,
    room::{Affiliation, MAX_OPEN, Role, Room, Turn},
    wire,
};
use tavi_core::Envelope;
use tavi_xmpp_proto::{BareJid, Condition, Element, Jid, MessageType, StanzaError, ns, stanza::Head};

/// The longest subject in bytes.
const MAX_SUBJECT: usize = 4_096;
/// Invitations in one message.
const MAX_INVITED: usize = 20;

impl Room {
    pub(super) fn message(&mut self, type_: MessageType, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        let Some((from, to)) = turn.env.from().zip(turn.env.to()) else { return Ok(()) };
        match (type_, to.is_bare()) {
            // XEP-0045 §18.1.2. Other errors tell nobody anything: who does not want a message is not to be found out.
            (MessageType::Error, _) => {
                self.failed(from, turn);
                Ok(())
            }
            // XEP-0045 §7.5: the recipient would take it for one to all.
            (MessageType::Groupchat, false) => {
                Err(StanzaError::new(Condition::BadRequest).text("a message to one occupant is not of type groupchat"))
            }
            (MessageType::Groupchat, true) => self.say(from, turn),
            (_, false) => self.whisper(from, to, turn),
            (_, true) => self.letters(from, turn),
        }
    }

    /// XEP-0045 §7.4.
    fn say(&mut self, from: &Jid, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        let (index, _) = self.seat(from).ok_or_else(stranger)?;
        let occupant = &self.occupants[index];
        let (nick, role) = (occupant.jid.clone(), occupant.role);
        if role < Role::Participant {
            return Err(StanzaError::new(Condition::Forbidden).text("you have no voice in this room"));
        }
        // XEP-0045 §7.2.15: only a message without a body changes the subject.
        let subject = turn.env.element(ns::CLIENT, "subject").filter(|_| !turn.env.has(ns::CLIENT, "body"));
        let is_subject = subject.is_some();
        if let Some(subject) = subject {
            self.set_subject(subject.text_content(), (&nick, role), turn)?;
        }
        let said = said(turn.env, &nick, (self.jid.as_str(), turn.id));
        if !is_subject && is_kept(turn.env) {
            let bounds = (self.limits.history_items, self.limits.history_bytes);
            self.history.push(self.jid.as_str(), &said, turn.now_ms, bounds);
            if self.config.persistent {
                turn.ops.push(kept::said(turn.id, &from.to_bare(), &said));
            }
        }
        turn.out.extend(self.everybody().map(|session| said.readdressed(session.clone())));
        Ok(())
    }

    /// XEP-0045 §8.1.
    fn set_subject(&mut self, text: String, (by, role): (&Jid, Role), turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        if role < Role::Moderator && !self.config.open_subject {
            return Err(StanzaError::new(Condition::Forbidden).text("only moderators change the subject here"));
        }
        if text.len() > MAX_SUBJECT {
            let why = format!("a subject has at most {MAX_SUBJECT} bytes");
            return Err(StanzaError::new(Condition::NotAcceptable).text(why));
        }
        (self.subject.text, self.subject.set) = (text, Some((by.clone(), turn.now_ms)));
        if self.config.persistent {
            turn.ops.push(kept::subject(&self.subject));
        }
        Ok(())
    }

    /// XEP-0045 §7.5: to all sessions of one occupant.
    fn whisper(&mut self, from: &Jid, to: &Jid, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        let (index, _) = self.seat(from).ok_or_else(stranger)?;
        let nobody = || StanzaError::new(Condition::ItemNotFound).text("nobody has this nick");
        let recipient = self.find(to).ok_or_else(nobody)?;
        let mut told: Envelope = turn.env.stanza.clone().into();
        told.drop_children(|child| child.is(ns::MUC_USER, "x"));
        told.head_mut().from = Some(self.occupants[index].jid.clone());
        told.add(&Element::new(ns::MUC_USER, "x"));
        let sessions = self.occupants[recipient].sessions.iter();
        turn.out.extend(sessions.map(|session| told.readdressed(session.jid.clone())));
        Ok(())
    }

    /// XEP-0045 §7.8.2: invitations and answers to them. Other messages to the room are not for it.
    fn letters(&mut self, from: &Jid, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        let letter = turn.env.element(ns::MUC_USER, "x");
        let named = |name: &str| -> Vec<Element> {
            let letters = letter.iter().flat_map(Element::elements);
            letters.filter(|letter| letter.is(ns::MUC_USER, name)).take(MAX_INVITED).cloned().collect()
        };
        let (invitations, declined) = (named("invite"), named("decline"));
        if let Some(decline) = declined.first() {
            return self.decline(from, decline, turn);
        }
        if invitations.is_empty() {
            return Err(StanzaError::new(Condition::BadRequest).text("messages to a room are of type groupchat"));
        }
        self.invite(from, &invitations, turn)
    }

    fn invite(&mut self, from: &Jid, invitations: &[Element], turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        let (index, _) = self.seat(from).ok_or_else(stranger)?;
        let inviter = &self.occupants[index];
        let affiliation = self.affiliation(&inviter.user);
        if inviter.role < Role::Participant || (self.config.members_only && affiliation < Affiliation::Admin) {
            return Err(StanzaError::new(Condition::Forbidden).text("you may not invite to this room"));
        }
        let (user, address) = (inviter.user.clone(), inviter.jid.clone());
        let invitees: Option<Vec<Jid>> =
            invitations.iter().map(|invitation| invitation.get_attr("to")?.parse().ok()).collect();
        let nobody = || StanzaError::new(Condition::JidMalformed).text("an invitation names whom it is for");
        for (invitee, invitation) in invitees.ok_or_else(nobody)?.iter().zip(invitations) {
            if self.config.members_only && self.affiliation(&invitee.to_bare()) == Affiliation::None {
                self.affiliate(&invitee.to_bare(), Affiliation::Member, turn)?;
            }
            self.remember((invitee.to_bare(), user.clone()));
            let head = Head::message(MessageType::Normal).from(self.address.clone()).to(invitee.clone());
            turn.send(head, [wire::invitation(&address, reason(invitation), &self.config.password)]);
        }
        Ok(())
    }

    /// Only who was invited can answer, and only whoever invited them gets it: a room is nobody's way around a refusal.
    fn decline(&mut self, from: &Jid, decline: &Element, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        let invitee = from.to_bare();
        let open = self.invited.iter().position(|(invited, _)| *invited == invitee);
        let nobody = || StanzaError::new(Condition::ItemNotFound).text("you were not invited to this room");
        let (_, inviter) = open.and_then(|at| self.invited.remove(at)).ok_or_else(nobody)?;
        let head = Head::message(MessageType::Normal).from(self.address.clone()).to(&inviter);
        turn.send(head, [wire::declined(&invitee, reason(decline))]);
        Ok(())
    }

    fn remember(&mut self, invitation: (BareJid, BareJid)) {
        if !self.invited.contains(&invitation) {
            self.invited.push_back(invitation);
        }
        if self.invited.len() > MAX_OPEN {
            self.invited.pop_front();
        }
    }
}

fn reason(letter: &Element) -> Option<String> {
    letter.get_child(ns::MUC_USER, "reason").map(Element::text_content)
}

/// XEP-0045 §7.4: who is not in the room does not speak in it.
fn stranger() -> StanzaError {
    StanzaError::new(Condition::NotAcceptable).text("you are not in this room")
}

/// A message as everybody gets it: from the occupant, with its place in the room (XEP-0359 §3), without what only the
/// room may say of it.
fn said(env: &Envelope, nick: &Jid, (room, id): (&str, u64)) -> Envelope {
    let mut said: Envelope = env.stanza.clone().into();
    said.drop_children(|child| child.is(ns::MUC_USER, "x") || child.is(ns::MUC, "x"));
    let of_room = |element: &Element| {
        let by = if element.name() == "delay" { element.get_attr("from") } else { element.get_attr("by") };
        by.is_some_and(|by| by == room)
    };
    said.drop_elements(|child| child.is(ns::STANZA_ID, "stanza-id") || child.is(ns::DELAY, "delay"), of_room);
    let head = said.head_mut();
    (head.from, head.to) = (Some(nick.clone()), None);
    said.add_fragment(wire::stanza_id(room, id));
    said
}

/// What somebody who comes later is told (XEP-0334 §4): a body or a wish to be kept, and no wish not to be.
fn is_kept(env: &Envelope) -> bool {
    let refused = env.has(ns::HINTS, "no-store") || env.has(ns::HINTS, "no-permanent-store");
    !refused && (env.has(ns::CLIENT, "body") || env.has(ns::HINTS, "store") || env.has(ns::REACTIONS, "reactions"))
}
