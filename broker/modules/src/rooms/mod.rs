//! Multi-User Chat (XEP-0045): rooms on a host of their own.
//!
//! `Room` is one room without IO; this file has the service: it finds or makes the room of a stanza, lets it have its
//! turn, saves what it wants saved and sends what it wants sent, in one order for everybody.

mod admin;
mod config;
mod history;
mod kept;
mod message;
mod owner;
mod relay;
mod room;
mod wire;

use crate::{
    ROOMS, disco,
    pubsub::listing::{Page, set},
};
use parking_lot::Mutex;
use room::{Affiliation, Room, Turn};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use tavi_core::{
    Effect, Effects, Envelope, Parts, Registry,
    hooks::{BoxFuture, Service, TwoOwners, Xep},
    principal::Host,
};
use tavi_store::{Owner, Row, StoreError, Table};
use tavi_xmpp_proto::{
    BareJid, Condition, Element, IqType, Jid, Kind, MessageType, PresenceType, Stanza, StanzaError, StanzaType, ns,
};

pub use room::Limits;

/// The line of the table of extensions.
const XEP: Xep = Xep { number: 45, name: "Multi-User Chat", version: "1.35.5", module: "rooms" };
/// Messages of rooms have their place in them.
const STANZA_IDS: Xep = Xep { number: 359, name: "Unique and Stable Stanza IDs", version: "0.7.0", module: "rooms" };
/// Whether one is still in a room.
const SELF_PING: Xep =
    Xep { number: 410, name: "MUC Self-Ping (Schrödinger's Chat)", version: "1.1.0", module: "rooms" };

/// XEP-0045 §6.2: what the service says of itself.
const FEATURES: [&str; 6] =
    [ns::DISCO_INFO, ns::DISCO_ITEMS, ns::PING, ns::RSM, ns::MUC, "http://jabber.org/protocol/muc#stable_id"];
/// Rooms without occupants that stay in memory.
const IDLE: usize = 256;
/// Rooms in one answer.
const LISTED: usize = 200;
/// Rows of one page at the start.
const PAGE: usize = 1_000;

/// Registers it.
///
/// # Errors
/// If the host has an owner already.
pub fn register(registry: &mut Registry, parts: &Parts, limits: Limits) -> Result<(), TwoOwners> {
    [XEP, STANZA_IDS, SELF_PING].into_iter().for_each(|xep| registry.xep(xep));
    FEATURES.iter().for_each(|var| registry.feature(ROOMS, var));
    registry.service(ROOMS, Arc::new(Rooms::new(parts, limits)))
}

/// The service that owns the rooms' host.
struct Rooms {
    parts: Parts,
    limits: Limits,
    table: Mutex<Directory>,
}

/// All rooms that there are, and those of them that are in memory.
#[derive(Default)]
struct Directory {
    loaded: HashMap<BareJid, Arc<Mutex<Room>>>,
    known: BTreeMap<BareJid, Entry>,
    made: HashMap<BareJid, usize>,
    /// So many rooms are in memory when idle ones go next.
    sweep_at: usize,
}

/// What is known of a room that need not be in memory.
#[derive(Clone, PartialEq, Eq)]
struct Entry {
    creator: BareJid,
    name: String,
    public: bool,
}

impl Service for Rooms {
    fn serve(&self, env: Envelope) -> BoxFuture<'_, Effects> {
        Box::pin(async move {
            let mut fx = Effects::default();
            let room = env.to().filter(|to| to.local().is_some()).map(Jid::to_bare);
            let done = match room {
                None => self.host(&env, &mut fx),
                Some(room) => self.turn(&room, &env, &mut fx).await,
            };
            if let Some(refusal) = done.err().and_then(|error| wire::refusal(&env, &error)) {
                fx.push(Effect::Route(refusal));
            }
            fx
        })
    }

    fn start(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async {
            let mut after: Option<(Owner, Box<str>)> = None;
            loop {
                let from = after.as_ref().map(|(owner, item)| (owner, &**item));
                let rows = self.parts.store.scan(Table::Room, from, PAGE).await?;
                let Some(last) = rows.last() else { return Ok(()) };
                after = Some((last.owner.clone(), last.item.clone()));
                let mut table = self.table.lock();
                rows.iter().filter(|row| &*row.item == kept::CONFIG).for_each(|row| table.take_up(row));
            }
        })
    }
}

impl Rooms {
    fn new(parts: &Parts, limits: Limits) -> Rooms {
        Rooms { parts: parts.clone(), limits, table: Mutex::default() }
    }

    /// A room's turn with a stanza for it or for one of its occupants.
    async fn turn(&self, jid: &BareJid, env: &Envelope, fx: &mut Effects) -> Result<(), StanzaError> {
        let found = match self.find(jid).await.map_err(unavailable)? {
            None => self.make(jid, env)?,
            found => found,
        };
        let Some(room) = found else {
            absent(env)?.into_iter().for_each(|answer| fx.push(Effect::Route(answer)));
            return Ok(());
        };
        let born = self.born(&room, env).await.map_err(unavailable)?;
        let mut room = room.lock();
        let now_ms = self.parts.clock.now_ms();
        let mut turn = Turn::new(env, now_ms, self.parts.ids.next(now_ms));
        turn.ops.extend(born.and_then(|(user, born_ms)| room.forget_namesake(&user, born_ms)));
        match self.lost(env) {
            Some(session) => room.drop_session(session, &mut turn),
            None => room.handle(&mut turn),
        }
        self.table.lock().note(&room);
        if !turn.ops.is_empty() {
            fx.save(kept::owner(jid), turn.ops);
        }
        turn.out.into_iter().for_each(|env| fx.push(Effect::Route(env)));
        Ok(())
    }

    /// The room in memory; one that was kept is read when somebody first asks for it.
    async fn find(&self, jid: &BareJid) -> Result<Option<Arc<Mutex<Room>>>, StoreError> {
        {
            let table = self.table.lock();
            if let Some(room) = table.loaded.get(jid) {
                return Ok(Some(room.clone()));
            }
            if !table.known.contains_key(jid) {
                return Ok(None);
            }
        }
        let Some(room) = kept::load(&self.parts.store, jid, &self.limits).await? else { return Ok(None) };
        Ok(Some(self.table.lock().load(room)))
    }

    /// XEP-0045 §10.1.1: whoever enters a room that is not there makes it, if they may.
    fn make(&self, jid: &BareJid, env: &Envelope) -> Result<Option<Arc<Mutex<Room>>>, StanzaError> {
        let enters = env.head().type_ == StanzaType::Presence(PresenceType::Available) && env.has(ns::MUC, "x");
        let Some(from) = env.from().filter(|_| enters) else { return Ok(None) };
        if self.parts.hosts.find(from.domain()) != Some(Host::Main) {
            let why = format!("rooms are made by accounts of {}", self.parts.hosts.domain());
            return Err(StanzaError::new(Condition::NotAllowed).text(why));
        }
        let mut table = self.table.lock();
        let creator = from.to_bare();
        let (own, all) = (table.made.get(&creator).copied().unwrap_or(0), table.known.len());
        let full = |what: String| Err(StanzaError::new(Condition::ResourceConstraint).text(what));
        if own >= self.limits.rooms_per_account {
            return full(format!(
                "you have made {own} rooms, as many as an account may: destroy one that is not needed"
            ));
        }
        if all >= self.limits.rooms {
            return full(format!("there are {all} rooms here, as many as there may be"));
        }
        Ok(Some(table.load(Room::made(jid, &creator, self.limits.clone(), self.parts.clock.now_ms()))))
    }

    /// When the sender's account was made, if the room has an affiliation for that name.
    async fn born(&self, room: &Mutex<Room>, env: &Envelope) -> Result<Option<(BareJid, u64)>, StoreError> {
        let Some(user) = env.from().map(Jid::to_bare) else { return Ok(None) };
        if self.parts.hosts.find(user.domain()) != Some(Host::Main) {
            return Ok(None);
        }
        {
            let room = room.lock();
            let inside = room.occupants.iter().any(|occupant| occupant.user == user);
            if inside || room.affiliation(&user) == Affiliation::None {
                return Ok(None);
            }
        }
        let account = self.parts.store.load(&Owner::account(user.as_str()), Table::Account, "").await?;
        let born_ms = account.and_then(|row| std::str::from_utf8(&row.value).ok()?.parse().ok());
        Ok(born_ms.map(|born_ms| (user, born_ms)))
    }

    /// The session of ours that an error came back for, if it has ended: what does not want a message is not gone.
    fn lost<'a>(&self, env: &'a Envelope) -> Option<&'a Jid> {
        let from = env.from().filter(|from| !from.is_bare() && env.head().type_.is_error())?;
        self.parts.hosts.find(from.domain())?;
        let error = StanzaError::from_element(&env.element(ns::CLIENT, "error")?);
        if env.stanza.kind() != Kind::Message || error.condition != Condition::ServiceUnavailable {
            return None;
        }
        let account = self.parts.homes.known(&from.to_bare());
        let there = account.is_some_and(|account| account.at_home(|state| state.session_at(from).is_some()));
        (!there).then_some(from)
    }

    /// What the service itself is asked.
    fn host(&self, env: &Envelope, fx: &mut Effects) -> Result<(), StanzaError> {
        let unknown = || Err(Condition::ServiceUnavailable.into());
        match env.head().type_ {
            StanzaType::Iq(IqType::Get) => {
                let payload = env.stanza.parse_child(0)?;
                let answer = match (payload.ns(), payload.get_attr("node")) {
                    (ns::DISCO_INFO | ns::DISCO_ITEMS, Some(_)) => return Err(Condition::ItemNotFound.into()),
                    (ns::DISCO_INFO, None) => {
                        Some(disco::info([disco::identity("conference", "text", "Rooms")], FEATURES))
                    }
                    (ns::DISCO_ITEMS, None) => Some(self.listed(&payload)?),
                    (ns::PING, _) => None,
                    _ => return unknown(),
                };
                fx.route(Stanza::iq_result(env.head(), answer));
                Ok(())
            }
            StanzaType::Presence(_) => Ok(()),
            _ => unknown(),
        }
    }

    /// XEP-0045 §6.3: the rooms that are for everybody to see, page by page (XEP-0059).
    fn listed(&self, query: &Element) -> Result<Element, StanzaError> {
        let page = Page::read(query)?;
        let table = self.table.lock();
        let behind = |jid: &BareJid| page.after.as_deref().is_none_or(|after| jid.as_str() > after);
        let mut rooms = table.known.iter().filter(|(jid, entry)| entry.public && behind(jid));
        let found: Vec<_> = rooms.by_ref().take(page.max.min(LISTED)).collect();
        let items = found.iter().map(|(jid, entry)| {
            let name = if entry.name.is_empty() { jid.local().unwrap_or_default() } else { &entry.name };
            Element::new(ns::DISCO_ITEMS, "item").attr("jid", jid.to_string()).attr("name", name.to_owned())
        });
        let query = Element::new(ns::DISCO_ITEMS, "query").children(items);
        let names: Vec<Arc<str>> = found.iter().map(|(jid, _)| jid.as_str().into()).collect();
        Ok(query.child_opt((page.asked || rooms.next().is_some()).then(|| set(&names))))
    }
}

impl Directory {
    /// A room that the store has.
    fn take_up(&mut self, row: &Row) {
        let jid = row.owner.name().parse::<BareJid>().ok();
        match jid.zip(config::Config::of_row(&row.record.value)) {
            Some((jid, (creator, config))) => {
                self.list(&jid, Entry { creator, name: config.name, public: config.public });
            }
            None => tracing::error!(room = row.owner.name(), "the settings of a room can not be read"),
        }
    }

    fn list(&mut self, jid: &BareJid, entry: Entry) {
        let creator = entry.creator.clone();
        if self.known.insert(jid.clone(), entry).is_none() {
            *self.made.entry(creator).or_default() += 1;
        }
    }

    /// Has a room in memory.
    fn load(&mut self, room: Room) -> Arc<Mutex<Room>> {
        if self.loaded.len() >= self.sweep_at.max(IDLE) {
            // Those that nobody is in can be read again.
            let idle = |room: &Arc<Mutex<Room>>| {
                let alone = Arc::strong_count(room) == 1;
                alone && room.try_lock().is_some_and(|room| room.occupants.is_empty())
            };
            self.loaded.retain(|_, room| !idle(room));
            self.sweep_at = 2 * self.loaded.len();
        }
        self.note(&room);
        let jid = room.jid.clone();
        let room = Arc::new(Mutex::new(room));
        self.loaded.insert(jid, room.clone());
        room
    }

    /// A room has had its turn.
    fn note(&mut self, room: &Room) {
        if room.is_over() {
            self.loaded.remove(&room.jid);
            if let Some(entry) = self.known.remove(&room.jid) {
                self.unmake(&entry.creator);
            }
            return;
        }
        let (name, public) = (room.config.name.as_str(), room.config.public);
        let same = |entry: &Entry| entry.name == name && entry.public == public;
        if !self.known.get(&room.jid).is_some_and(same) {
            self.list(&room.jid, Entry { creator: room.creator.clone(), name: name.into(), public });
        }
    }

    fn unmake(&mut self, creator: &BareJid) {
        let Some(made) = self.made.get_mut(creator) else { return };
        *made -= 1;
        if *made == 0 {
            self.made.remove(creator);
        }
    }
}

/// A stanza for a room that is not there.
fn absent(env: &Envelope) -> Result<Option<Envelope>, StanzaError> {
    let Some((from, to)) = env.from().zip(env.to()) else { return Ok(None) };
    let nothing = || Err(StanzaError::new(Condition::ItemNotFound).text("there is no such room"));
    match env.head().type_ {
        StanzaType::Presence(PresenceType::Available) => {
            let thinks_so = !from.is_bare() && !to.is_bare();
            Ok(thinks_so.then(|| room::stranger(from, to)))
        }
        StanzaType::Iq(IqType::Get | IqType::Set) if !to.is_bare() => Err(relay::stranger(env)),
        StanzaType::Iq(IqType::Get | IqType::Set) => nothing(),
        StanzaType::Message(type_) if type_ != MessageType::Error => nothing(),
        _ => Ok(None),
    }
}

fn unavailable(error: StoreError) -> StanzaError {
    StanzaError::new(Condition::InternalServerError).text(error.to_string())
}

#[cfg(test)]
mod tests;
