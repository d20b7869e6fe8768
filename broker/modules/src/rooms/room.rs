//! One room (XEP-0045) as a state machine without IO: a stanza goes in, what is sent and what is saved comes out.
//! This file has who is in the room; `message.rs` what is said, `admin.rs` and `owner.rs` who decides what.

use super::{
    config::Config,
    history::{History, Wish},
    kept,
    relay::Relay,
    wire::{self, Note, Reader},
};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use tavi_core::Envelope;
use tavi_store::Op;
use tavi_xmpp_proto::{
    BareJid, Condition, Element, Jid, MessageType, PresenceType, Stanza, StanzaError, StanzaType, error::ErrorType, ns,
    stanza::Head,
};

/// What rooms may hold.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions in one room; owners and admins get in beyond that, up to ten more (XEP-0045 §7.2.9).
    pub occupants: usize,
    /// The longest nick in bytes.
    pub nick_bytes: usize,
    /// What a presence in a room may carry, in bytes.
    pub presence_bytes: usize,
    /// Messages of the history in memory.
    pub history_items: usize,
    /// The same in bytes.
    pub history_bytes: usize,
    /// Affiliations of one room.
    pub affiliations: usize,
    /// Rooms that one account may have made.
    pub rooms_per_account: usize,
    /// Rooms in all.
    pub rooms: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            occupants: 1_000,
            nick_bytes: 128,
            presence_bytes: 8 * 1_024,
            history_items: 50,
            history_bytes: 256 * 1_024,
            affiliations: 1_000,
            rooms_per_account: 20,
            rooms: 10_000,
        }
    }
}

/// Sessions of owners and admins beyond [`Limits::occupants`].
const RESERVE: usize = 10;
/// Open invitations, and requests between occupants, that a room remembers.
pub(super) const MAX_OPEN: usize = 256;

/// What somebody is to a room for good (XEP-0045 §5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Affiliation {
    Outcast,
    #[default]
    None,
    Member,
    Admin,
    Owner,
}

impl Affiliation {
    const ALL: [(Affiliation, &'static str); 5] = [
        (Affiliation::Outcast, "outcast"),
        (Affiliation::None, "none"),
        (Affiliation::Member, "member"),
        (Affiliation::Admin, "admin"),
        (Affiliation::Owner, "owner"),
    ];

    pub(super) fn name(self) -> &'static str {
        Affiliation::ALL[self as usize].1
    }

    pub(super) fn from_name(name: &str) -> Option<Affiliation> {
        Affiliation::ALL.iter().find(|(_, known)| *known == name).map(|(affiliation, _)| *affiliation)
    }
}

/// What an occupant may do for as long as it is in the room (XEP-0045 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    None,
    Visitor,
    Participant,
    Moderator,
}

impl Role {
    const ALL: [(Role, &'static str); 4] = [
        (Role::None, "none"),
        (Role::Visitor, "visitor"),
        (Role::Participant, "participant"),
        (Role::Moderator, "moderator"),
    ];

    pub(super) fn name(self) -> &'static str {
        Role::ALL[self as usize].1
    }

    pub(super) fn from_name(name: &str) -> Option<Role> {
        Role::ALL.iter().find(|(_, known)| *known == name).map(|(role, _)| *role)
    }
}

/// One client of an occupant.
pub(super) struct Session {
    pub(super) jid: Jid,
    /// Its presence as the room shows it: from the occupant, without what only the room may say.
    presence: Envelope,
}

/// A nick in the room, and whose it is; one account may have it in several sessions (XEP-0045 §7.2.8).
pub(super) struct Occupant {
    /// `ROOM/NICK`.
    pub(super) jid: Jid,
    pub(super) user: BareJid,
    pub(super) role: Role,
    /// The newest last: its presence is the occupant's.
    pub(super) sessions: Vec<Session>,
}

impl Occupant {
    pub(super) fn nick(&self) -> &str {
        self.jid.resource().unwrap_or_default()
    }

    fn newest(&self) -> &Session {
        // An occupant without a session is taken out at once.
        &self.sessions[self.sessions.len() - 1]
    }
}

/// What the room is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) text: String,
    /// Who said so, and when; nobody ever did without it.
    pub(super) set: Option<(Jid, u64)>,
}

/// One stanza in its turn: what is sent, in this order, when what is saved has been saved.
pub(super) struct Turn<'a> {
    pub(super) env: &'a Envelope,
    /// Milliseconds since 1970.
    pub(super) now_ms: u64,
    /// Drawn for this turn: the place of what is said in it.
    pub(super) id: u64,
    pub(super) out: Vec<Envelope>,
    pub(super) ops: Vec<Op>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(env: &'a Envelope, now_ms: u64, id: u64) -> Turn<'a> {
        Turn { env, now_ms, id, out: Vec::new(), ops: Vec::new() }
    }

    pub(super) fn send(&mut self, head: Head, children: impl IntoIterator<Item = Element>) {
        self.out.push(Stanza::new(head, children).into());
    }

    pub(super) fn reply(&mut self, payload: Option<Element>) {
        self.out.push(Stanza::iq_result(self.env.head(), payload).into());
    }
}

/// Which occupant, and which of its sessions.
pub(super) type Seat = (usize, usize);

/// Everything about one room.
pub(super) struct Room {
    pub(super) jid: BareJid,
    pub(super) address: Jid,
    pub(super) creator: BareJid,
    pub(super) config: Config,
    /// Made, but neither configured nor taken as it is: only its owner gets in (XEP-0045 §10.1).
    pub(super) locked: bool,
    pub(super) destroyed: bool,
    /// With the moment at which each was given, milliseconds since 1970.
    pub(super) affiliations: BTreeMap<BareJid, (Affiliation, u64)>,
    pub(super) occupants: Vec<Occupant>,
    pub(super) subject: Subject,
    pub(super) history: History,
    /// Who was invited by whom.
    pub(super) invited: VecDeque<(BareJid, BareJid)>,
    pub(super) relay: Relay,
    pub(super) limits: Limits,
}

impl Room {
    /// A room that somebody makes by entering it: locked, and theirs (XEP-0045 §10.1.1).
    pub(super) fn made(jid: &BareJid, creator: &BareJid, limits: Limits, now_ms: u64) -> Room {
        let affiliations = BTreeMap::from([(creator.clone(), (Affiliation::Owner, now_ms))]);
        let config = Config::default();
        Room { locked: true, affiliations, ..Room::kept(jid, (creator.clone(), config), limits) }
    }

    /// A room that is there, with nobody in it yet.
    pub(super) fn kept(jid: &BareJid, (creator, config): (BareJid, Config), limits: Limits) -> Room {
        Room {
            jid: jid.clone(),
            address: jid.into(),
            creator,
            config,
            locked: false,
            destroyed: false,
            affiliations: BTreeMap::new(),
            occupants: Vec::new(),
            subject: Subject::default(),
            history: History::default(),
            invited: VecDeque::new(),
            relay: Relay::default(),
            limits,
        }
    }

    /// Deals with a stanza. Who is refused is told, and then nothing else has happened.
    pub(super) fn handle(&mut self, turn: &mut Turn<'_>) {
        let done = match turn.env.head().type_ {
            StanzaType::Presence(type_) => self.presence(type_, turn),
            StanzaType::Message(type_) => self.message(type_, turn),
            StanzaType::Iq(type_) => self.iq(type_, turn),
        };
        if let Err(error) = done {
            turn.out.extend(wire::refusal(turn.env, &error));
        }
    }

    /// Nobody is in it who would miss it: it ends.
    pub(super) fn is_over(&self) -> bool {
        self.destroyed || (self.occupants.is_empty() && (self.locked || !self.config.persistent))
    }

    pub(super) fn affiliation(&self, user: &BareJid) -> Affiliation {
        self.affiliations.get(user).map(|(affiliation, _)| *affiliation).unwrap_or_default()
    }

    /// An affiliation that was given before this account was made was another one's: a name alone inherits nothing.
    pub(super) fn forget_namesake(&mut self, user: &BareJid, born_ms: u64) -> Option<Op> {
        let (affiliation, given_ms) = *self.affiliations.get(user)?;
        // A name that is banned stays banned.
        if given_ms >= born_ms || affiliation == Affiliation::Outcast {
            return None;
        }
        self.affiliations.remove(user);
        self.config.persistent.then(|| kept::unaffiliated(user))
    }

    pub(super) fn seat(&self, session: &Jid) -> Option<Seat> {
        let at = |occupant: &Occupant| occupant.sessions.iter().position(|s| s.jid == *session);
        self.occupants.iter().enumerate().find_map(|(n, occupant)| Some((n, at(occupant)?)))
    }

    pub(super) fn find(&self, occupant: &Jid) -> Option<usize> {
        self.occupants.iter().position(|there| there.jid == *occupant)
    }

    /// The role that an affiliation comes with (XEP-0045 §5.1.2).
    pub(super) fn first_role(&self, affiliation: Affiliation) -> Role {
        match affiliation {
            Affiliation::Owner | Affiliation::Admin => Role::Moderator,
            Affiliation::None if self.config.moderated => Role::Visitor,
            _ => Role::Participant,
        }
    }

    fn presence(&mut self, type_: PresenceType, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        let Some((from, to)) = turn.env.from().zip(turn.env.to()) else { return Ok(()) };
        match (type_, self.seat(from)) {
            (PresenceType::Available, seat) => self.came(from, to, seat, turn),
            // Whatever nick it names: a session that ends says so to each that it had here.
            (PresenceType::Unavailable, Some(seat)) => {
                self.left(seat, turn);
                Ok(())
            }
            (PresenceType::Error, Some(_)) => {
                self.failed(from, turn);
                Ok(())
            }
            // XEP-0045 §17.3: one without a role is ignored; probes and subscriptions mean nothing here.
            _ => Ok(()),
        }
    }

    fn came(&mut self, from: &Jid, to: &Jid, seat: Option<Seat>, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        self.check_nick(to)?;
        if turn.env.stanza.raw().len() > self.limits.presence_bytes {
            let why = format!("a presence in a room has at most {} bytes", self.limits.presence_bytes);
            return Err(StanzaError::new(Condition::PolicyViolation).text(why));
        }
        let muc = turn.env.element(ns::MUC, "x");
        match (seat, muc) {
            (Some(seat), Some(muc)) if self.occupants[seat.0].jid == *to => self.again(seat, &muc, turn),
            (Some(seat), None) if self.occupants[seat.0].jid == *to => self.changed(seat, turn),
            (Some(seat), _) => return self.renamed(seat, to, turn),
            (None, Some(muc)) => return self.enter(from, to, &muc, turn),
            (None, None) => turn.out.push(stranger(from, to)),
        }
        Ok(())
    }

    /// XEP-0045 §17.1: a nick is there, and is not invisible.
    fn check_nick(&self, to: &Jid) -> Result<(), StanzaError> {
        let refused = |why: String| Err(StanzaError::new(Condition::JidMalformed).text(why));
        match to.resource() {
            None => refused("who enters a room says under which nick: ROOM/NICK".into()),
            Some(nick) if nick.trim().is_empty() => refused("a nick has to be seen".into()),
            Some(nick) if nick.len() > self.limits.nick_bytes => {
                refused(format!("a nick has at most {} bytes", self.limits.nick_bytes))
            }
            Some(_) => Ok(()),
        }
    }

    /// XEP-0045 §7.2: who may come in, and what they are told, in this order: who is there, themselves, the history,
    /// the subject.
    fn enter(&mut self, from: &Jid, to: &Jid, muc: &Element, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        let user = from.to_bare();
        let affiliation = self.affiliation(&user);
        self.admit(affiliation, muc)?;
        let index = match self.find(to) {
            Some(index) if self.occupants[index].user != user => {
                return Err(StanzaError::new(Condition::Conflict).text("somebody else has this nick"));
            }
            found => found,
        };
        let session = Session { jid: from.clone(), presence: shown(turn.env, to) };
        let first = index.is_none();
        let index = index.unwrap_or(self.occupants.len());
        if first {
            let role = self.first_role(affiliation);
            self.occupants.push(Occupant { jid: to.clone(), user, role, sessions: Vec::new() });
        }
        self.occupants[index].sessions.push(session);
        let seat = (index, self.occupants[index].sessions.len() - 1);
        self.show_others(seat, turn);
        let fresh = self.locked && self.occupants.len() == 1 && first;
        self.show(index, &self.entry_codes(fresh), &mut turn.out);
        self.recount(from, &Wish::read(muc, turn.now_ms), turn);
        Ok(())
    }

    /// XEP-0045 §7.2.5 to §7.2.10.
    fn admit(&self, affiliation: Affiliation, muc: &Element) -> Result<(), StanzaError> {
        let refused = |condition: Condition, why: &str| Err(StanzaError::new(condition).text(why));
        let trusted = affiliation >= Affiliation::Admin;
        let full = self.limits.occupants + if trusted { RESERVE } else { 0 };
        let password = muc.get_child(ns::MUC, "password").map(Element::text_content).unwrap_or_default();
        if self.locked && affiliation != Affiliation::Owner {
            refused(Condition::ItemNotFound, "the room is not open yet")
        } else if affiliation == Affiliation::Outcast {
            refused(Condition::Forbidden, "you are banned from this room")
        } else if self.config.members_only && affiliation < Affiliation::Member {
            refused(Condition::RegistrationRequired, "only members enter this room")
        } else if !self.config.password.is_empty() && password != self.config.password {
            refused(Condition::NotAuthorized, "this room asks for a password")
        } else if self.occupants.iter().map(|occupant| occupant.sessions.len()).sum::<usize>() >= full {
            let error = StanzaError::new(Condition::ServiceUnavailable).with_type(ErrorType::Wait);
            Err(error.text(format!("at most {} may be in this room", self.limits.occupants)))
        } else {
            Ok(())
        }
    }

    /// XEP-0045 §15.6: it is oneself; who is here can be seen by all; the room is new.
    fn entry_codes(&self, fresh: bool) -> Vec<u16> {
        let mut codes = vec![110];
        codes.extend(self.config.open_jids.then_some(100));
        codes.extend(fresh.then_some(201));
        codes
    }

    /// XEP-0045 §17.3: who enters again has lost something, and gets all of it.
    fn again(&mut self, seat: Seat, muc: &Element, turn: &mut Turn<'_>) {
        let jid = self.occupants[seat.0].sessions[seat.1].jid.clone();
        let news = self.take_presence(seat, turn.env);
        self.show_others(seat, turn);
        if news {
            self.show(seat.0, &self.entry_codes(false), &mut turn.out);
        } else {
            let note = self.note(seat.0, &[], &[110]);
            let own = with(&self.occupants[seat.0].newest().presence, note.write(Reader::Itself));
            turn.out.push(own.readdressed(jid.clone()));
        }
        self.recount(&jid, &Wish::read(muc, turn.now_ms), turn);
    }

    /// XEP-0045 §7.7.
    fn changed(&mut self, seat: Seat, turn: &mut Turn<'_>) {
        self.take_presence(seat, turn.env);
        self.show(seat.0, &[110], &mut turn.out);
    }

    /// Notes a session's presence, which is its occupant's from now on; whether it says anything new.
    fn take_presence(&mut self, (index, at): Seat, env: &Envelope) -> bool {
        let occupant = &mut self.occupants[index];
        let mut session = occupant.sessions.remove(at);
        let old = std::mem::replace(&mut session.presence, shown(env, &occupant.jid));
        let news = old.stanza.raw() != session.presence.stanza.raw();
        occupant.sessions.push(session);
        news
    }

    /// XEP-0045 §7.6: the occupant, in all of its sessions, has another nick.
    fn renamed(&mut self, seat: Seat, to: &Jid, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        if self.find(to).is_some() {
            return Err(StanzaError::new(Condition::Conflict).text("somebody has this nick already"));
        }
        self.take_presence(seat, turn.env);
        let note = Note { nick: to.resource(), ..self.note(seat.0, &[303], &[110]) };
        self.tell(seat.0, &gone(&self.occupants[seat.0]), note, &mut turn.out);
        let occupant = &mut self.occupants[seat.0];
        occupant.jid = to.clone();
        for session in &mut occupant.sessions {
            session.presence.head_mut().from = Some(to.clone());
        }
        self.show(seat.0, &[110], &mut turn.out);
        Ok(())
    }

    /// XEP-0045 §7.14. While another session of the nick stays, the others see that one.
    fn left(&mut self, (index, at): Seat, turn: &mut Turn<'_>) {
        let goodbye = Envelope { stanza: turn.env.stanza.clone(), meta: Default::default() };
        let mut goodbye = shown(&goodbye, &self.occupants[index].jid);
        goodbye.head_mut().type_ = StanzaType::Presence(PresenceType::Unavailable);
        if self.occupants[index].sessions.len() == 1 {
            let note = Note { role: Role::None, ..self.note(index, &[], &[110]) };
            self.tell(index, &goodbye, note, &mut turn.out);
            self.occupants.remove(index);
            return;
        }
        let session = self.occupants[index].sessions.remove(at);
        let note = Note { role: Role::None, jid: &session.jid, ..self.note(index, &[], &[110]) };
        turn.out.push(with(&goodbye, note.write(Reader::Itself)).readdressed(session.jid.clone()));
        self.show(index, &[110], &mut turn.out);
    }

    /// XEP-0045 §11.1, §18.1.2: what was sent to this session came back; the room goes on without it.
    pub(super) fn failed(&mut self, session: &Jid, turn: &mut Turn<'_>) {
        let gone_for = [
            Condition::Gone,
            Condition::ItemNotFound,
            Condition::RecipientUnavailable,
            Condition::Redirect,
            Condition::RemoteServerNotFound,
            Condition::RemoteServerTimeout,
        ];
        let error = turn.env.element(ns::CLIENT, "error").map(|error| StanzaError::from_element(&error));
        if error.is_some_and(|error| gone_for.contains(&error.condition)) {
            self.drop_session(session, turn);
        }
    }

    /// A session is found to be gone without having said so.
    pub(super) fn drop_session(&mut self, session: &Jid, turn: &mut Turn<'_>) {
        let Some((index, at)) = self.seat(session) else { return };
        if self.occupants[index].sessions.len() > 1 {
            let lost = self.occupants[index].sessions.remove(at);
            let note = Note { role: Role::None, jid: &lost.jid, ..self.note(index, &[333], &[110]) };
            turn.out
                .push(with(&gone(&self.occupants[index]), note.write(Reader::Itself)).readdressed(lost.jid.clone()));
            return self.show(index, &[110], &mut turn.out);
        }
        let note = Note { role: Role::None, ..self.note(index, &[333], &[110]) };
        self.tell(index, &gone(&self.occupants[index]), note, &mut turn.out);
        self.occupants.remove(index);
    }

    /// Takes an occupant out, whatever sessions it has.
    pub(super) fn expel(&mut self, index: usize, why: Expulsion<'_>, out: &mut Vec<Envelope>) {
        let Expulsion { code, actor, reason } = why;
        let codes = [code];
        let note = Note { role: Role::None, actor, reason, ..self.note(index, &codes, &[110]) };
        self.tell(index, &gone(&self.occupants[index]), note, out);
        self.occupants.remove(index);
    }

    /// Who is in the room already, told to a newcomer.
    fn show_others(&self, (index, at): Seat, turn: &mut Turn<'_>) {
        let newcomer = &self.occupants[index].sessions[at].jid;
        let reader = self.reader(index);
        for (n, occupant) in self.occupants.iter().enumerate().filter(|(n, _)| *n != index) {
            let fragment = self.note(n, &[], &[]).write(reader);
            turn.out.push(with(&occupant.newest().presence, fragment).readdressed(newcomer.clone()));
        }
    }

    /// XEP-0045 §7.2.11 to §7.2.16.
    fn recount(&self, to: &Jid, wish: &Wish, turn: &mut Turn<'_>) {
        turn.out.extend(self.history.told(wish).map(|line| line.readdressed(to.clone())));
        turn.out.push(self.subject_message().readdressed(to.clone()));
    }

    /// The subject as it is told to who enters.
    fn subject_message(&self) -> Envelope {
        let from = self.subject.set.as_ref().map_or(&self.address, |(by, _)| by);
        let head = Head::message(MessageType::Groupchat).from(from.clone());
        let subject = Element::new(ns::CLIENT, "subject").text(self.subject.text.clone());
        let mut env: Envelope = Stanza::new(head, [subject]).into();
        if let Some((_, time_ms)) = self.subject.set {
            env.add_delay(self.jid.as_str(), time_ms);
        }
        env
    }

    /// An occupant's presence, told to all.
    pub(super) fn show(&self, index: usize, own_codes: &[u16], out: &mut Vec<Envelope>) {
        self.tell(index, &self.occupants[index].newest().presence, self.note(index, &[], own_codes), out);
    }

    /// The same with more to it.
    pub(super) fn show_noted(&self, index: usize, note: Note<'_>, out: &mut Vec<Envelope>) {
        self.tell(index, &self.occupants[index].newest().presence, note, out);
    }

    pub(super) fn note<'a>(&'a self, index: usize, codes: &'a [u16], own_codes: &'a [u16]) -> Note<'a> {
        let occupant = &self.occupants[index];
        let (affiliation, jid) = (self.affiliation(&occupant.user), &occupant.newest().jid);
        Note { affiliation, role: occupant.role, jid, nick: None, actor: None, reason: None, codes, own_codes }
    }

    fn reader(&self, index: usize) -> Reader {
        let sees = self.config.open_jids || self.occupants[index].role == Role::Moderator;
        if sees { Reader::Sees } else { Reader::SeesNot }
    }

    /// Tells all of an occupant: three texts at most, whoever reads them. Itself last when it is there, so that it knows
    /// when it has heard all (XEP-0045 §7.2.2); first when it goes (§7.14, §8.2).
    fn tell(&self, index: usize, base: &Envelope, note: Note<'_>, out: &mut Vec<Envelope>) {
        let own = with(base, note.write(Reader::Itself));
        let own = self.occupants[index].sessions.iter().map(|session| own.readdressed(session.jid.clone()));
        let going = base.head().type_ == StanzaType::Presence(PresenceType::Unavailable);
        if going {
            out.extend(own.clone());
        }
        let texts = [Reader::Sees, Reader::SeesNot].map(|reader| with(base, note.write(reader)));
        for (n, occupant) in self.occupants.iter().enumerate().filter(|(n, _)| *n != index) {
            let text = &texts[usize::from(self.reader(n) == Reader::SeesNot)];
            out.extend(occupant.sessions.iter().map(|session| text.readdressed(session.jid.clone())));
        }
        if !going {
            out.extend(own);
        }
    }

    /// All sessions in the room.
    pub(super) fn everybody(&self) -> impl Iterator<Item = &Jid> {
        self.occupants.iter().flat_map(|occupant| occupant.sessions.iter().map(|session| &session.jid))
    }
}

/// Why somebody has to go.
#[derive(Clone, Copy, Default)]
pub(super) struct Expulsion<'a> {
    /// XEP-0045 §15.6.
    pub(super) code: u16,
    pub(super) actor: Option<&'a str>,
    pub(super) reason: Option<&'a str>,
}

/// A presence as the room shows it: from the occupant, without what only a room may say (XEP-0045 §17.3).
fn shown(env: &Envelope, occupant: &Jid) -> Envelope {
    let mut shown: Envelope = env.stanza.clone().into();
    shown.drop_children(|child| child.is(ns::MUC, "x") || child.is(ns::MUC_USER, "x"));
    let head = shown.head_mut();
    (head.from, head.to) = (Some(occupant.clone()), None);
    shown
}

/// An occupant goes without a word of its own.
fn gone(occupant: &Occupant) -> Envelope {
    Stanza::new(Head::presence(PresenceType::Unavailable).from(occupant.jid.clone()), None).into()
}

fn with(base: &Envelope, fragment: Bytes) -> Envelope {
    let mut env = base.clone();
    env.add_fragment(fragment);
    env
}

/// XEP-0045 §7.2.17: who is not in the room and thinks so is told.
pub(super) fn stranger(from: &Jid, to: &Jid) -> Envelope {
    let item = Element::new(ns::MUC_USER, "item").attr("affiliation", "none").attr("role", "none");
    let item = item.child(Element::new(ns::MUC_USER, "reason").text("You are not in the room."));
    let x = Element::new(ns::MUC_USER, "x").child(item).children([110, 307, 333].map(wire::status));
    Stanza::new(Head::presence(PresenceType::Unavailable).from(to.clone()).to(from.clone()), [x]).into()
}
