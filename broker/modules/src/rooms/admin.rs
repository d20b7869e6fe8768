//! Who may do what in a room: roles by nick, affiliations by address, and their lists (XEP-0045 §8, §9, §10.3 to §10.8).

use super::{
    kept,
    room::{Affiliation, Expulsion, Role, Room, Turn},
};
use tavi_core::Envelope;
use tavi_xmpp_proto::{BareJid, Condition, Element, IqType, Jid, StanzaError, ns};

/// Changes in one request.
const MAX_ITEMS: usize = 100;

/// One `<item/>` of a request, checked as far as it stands alone.
enum Change {
    Role { nick: Jid, role: Role, reason: Option<String> },
    Affiliation { user: BareJid, affiliation: Affiliation, reason: Option<String> },
}

/// Who asks: an occupant, or somebody with an affiliation who is not here.
struct Actor {
    user: BareJid,
    affiliation: Affiliation,
    role: Role,
    nick: Option<String>,
}

impl Room {
    /// An IQ to the room or to an occupant.
    pub(super) fn iq(&mut self, type_: IqType, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        let Some((from, to)) = turn.env.from().zip(turn.env.to()) else { return Ok(()) };
        if !to.is_bare() || matches!(type_, IqType::Result | IqType::Error) {
            return self.relay(type_, turn);
        }
        let payload = turn.env.stanza.parse_child(0)?;
        let is_set = type_ == IqType::Set;
        match (payload.ns(), payload.name(), is_set) {
            (ns::DISCO_INFO, "query", false) => turn.reply(Some(self.info(payload.get_attr("node"))?)),
            (ns::DISCO_ITEMS, "query", false) => turn.reply(Some(self.items(from, payload.get_attr("node"))?)),
            (ns::PING, "ping", false) => turn.reply(None),
            (ns::MUC_ADMIN, "query", false) => turn.reply(Some(self.list(from, &payload)?)),
            (ns::MUC_ADMIN, "query", true) => self.change(from, &payload, turn)?,
            (ns::MUC_OWNER, "query", false) => turn.reply(Some(self.settings(from)?)),
            (ns::MUC_OWNER, "query", true) => self.own(from, &payload, turn)?,
            _ => return Err(Condition::ServiceUnavailable.into()),
        }
        Ok(())
    }

    fn actor(&self, from: &Jid) -> Actor {
        let user = from.to_bare();
        let occupant = self.seat(from).map(|(index, _)| &self.occupants[index]);
        Actor {
            affiliation: self.affiliation(&user),
            role: occupant.map_or(Role::None, |occupant| occupant.role),
            nick: occupant.map(|occupant| occupant.nick().to_owned()),
            user,
        }
    }

    /// XEP-0045 §8.5, §9.2, §9.5, §9.8, §10.5, §10.8.
    fn list(&self, from: &Jid, query: &Element) -> Result<Element, StanzaError> {
        let actor = self.actor(from);
        let item = query.get_child(ns::MUC_ADMIN, "item").ok_or(Condition::BadRequest)?;
        let items: Vec<Element> = match wanted(item)? {
            (Some(role), None) => self.of_role(role, &actor)?,
            (None, Some(affiliation)) => self.of_affiliation(affiliation, &actor)?,
            _ => return Err(Condition::BadRequest.into()),
        };
        Ok(Element::new(ns::MUC_ADMIN, "query").children(items))
    }

    fn of_role(&self, role: Role, actor: &Actor) -> Result<Vec<Element>, StanzaError> {
        let may = if role == Role::Moderator {
            actor.affiliation >= Affiliation::Admin
        } else {
            actor.role == Role::Moderator
        };
        if !may {
            return Err(forbidden());
        }
        let found = self.occupants.iter().filter(|occupant| occupant.role == role);
        let item = |occupant: &super::room::Occupant| {
            let affiliation = self.affiliation(&occupant.user).name();
            let item = Element::new(ns::MUC_ADMIN, "item").attr("affiliation", affiliation).attr("role", role.name());
            let jid = occupant.sessions.last().map(|session| session.jid.to_string());
            item.attr("nick", occupant.nick().to_owned()).attr_opt("jid", jid)
        };
        Ok(found.map(item).collect())
    }

    fn of_affiliation(&self, wanted: Affiliation, actor: &Actor) -> Result<Vec<Element>, StanzaError> {
        // XEP-0045 §5.2.1: members see who else is one, where addresses are no secret.
        let as_member = wanted == Affiliation::Member && self.config.open_jids && self.config.members_only;
        let least = if as_member { Affiliation::Member } else { Affiliation::Admin };
        if actor.affiliation < least {
            return Err(forbidden());
        }
        let found = self.affiliations.iter().filter(|(_, (affiliation, _))| *affiliation == wanted);
        let item = |user: &BareJid| {
            let nick = self.occupants.iter().find(|occupant| occupant.user == *user);
            let item = Element::new(ns::MUC_ADMIN, "item").attr("affiliation", wanted.name());
            item.attr("jid", user.to_string()).attr_opt("nick", nick.map(|occupant| occupant.nick().to_owned()))
        };
        Ok(found.map(|(user, _)| item(user)).collect())
    }

    /// All of it or nothing: each change is allowed before the first one is made.
    fn change(&mut self, from: &Jid, query: &Element, turn: &mut Turn<'_>) -> Result<(), StanzaError> {
        let actor = self.actor(from);
        let items = query.elements().filter(|item| item.is(ns::MUC_ADMIN, "item"));
        let changes: Vec<Change> = items.map(|item| self.read(item)).collect::<Result<_, _>>()?;
        if changes.is_empty() || changes.len() > MAX_ITEMS {
            return Err(
                StanzaError::new(Condition::BadRequest).text(format!("1 to {MAX_ITEMS} changes in one request"))
            );
        }
        changes.iter().try_for_each(|change| self.allow(change, &actor))?;
        self.keep_an_owner(&changes)?;
        self.keep_room(&changes)?;
        for change in changes {
            match change {
                Change::Role { nick, role, reason } => self.set_role(&nick, role, (&actor, reason), &mut turn.out),
                Change::Affiliation { user, affiliation, reason } => {
                    self.affiliate(&user, affiliation, turn)?;
                    self.follow(&user, affiliation, (&actor, reason), &mut turn.out);
                }
            }
        }
        turn.reply(None);
        Ok(())
    }

    fn read(&self, item: &Element) -> Result<Change, StanzaError> {
        let reason = item.get_child(ns::MUC_ADMIN, "reason").map(Element::text_content);
        let nick = item.get_attr("nick").map(|nick| self.address.with_resource(nick));
        let nick = nick.transpose().map_err(|_| Condition::BadRequest)?;
        let jid = item.get_attr("jid").map(|jid| jid.parse::<Jid>().map(|jid| jid.to_bare()));
        let jid = jid.transpose().map_err(|_| StanzaError::new(Condition::JidMalformed))?;
        match (wanted(item)?, nick, jid) {
            ((Some(role), None), Some(nick), _) => Ok(Change::Role { nick, role, reason }),
            ((None, Some(affiliation)), _, Some(user)) => Ok(Change::Affiliation { user, affiliation, reason }),
            ((None, Some(affiliation)), Some(nick), None) => {
                let index = self.find(&nick).ok_or(Condition::ItemNotFound)?;
                Ok(Change::Affiliation { user: self.occupants[index].user.clone(), affiliation, reason })
            }
            // XEP-0045 §17.4: one of the two, and whose.
            _ => {
                Err(StanzaError::new(Condition::BadRequest)
                    .text("an item changes a nick's role or a user's affiliation"))
            }
        }
    }

    fn allow(&self, change: &Change, actor: &Actor) -> Result<(), StanzaError> {
        match change {
            Change::Role { nick, role, .. } => self.allow_role(nick, *role, actor),
            Change::Affiliation { user, affiliation, .. } => self.allow_affiliation(user, *affiliation, actor),
        }
    }

    /// XEP-0045 §8.2 to §8.4, §9.6, §9.7.
    fn allow_role(&self, nick: &Jid, role: Role, actor: &Actor) -> Result<(), StanzaError> {
        let admin = actor.affiliation >= Affiliation::Admin;
        if actor.role < Role::Moderator && !admin {
            return Err(forbidden());
        }
        let nobody = || StanzaError::new(Condition::ItemNotFound).text("nobody has this nick");
        let occupant = &self.occupants[self.find(nick).ok_or_else(nobody)?];
        let affiliation = self.affiliation(&occupant.user);
        if role == Role::Moderator && !admin {
            return Err(forbidden());
        }
        // Who is an admin is a moderator; and nobody acts against somebody above.
        let stays = affiliation >= Affiliation::Admin && role != Role::None && role < Role::Moderator;
        let above = affiliation > actor.affiliation || (occupant.role == Role::Moderator && !admin);
        if stays || (above && role < occupant.role) { Err(not_allowed()) } else { Ok(()) }
    }

    /// XEP-0045 §5.2.2: owners decide about owners and admins, admins about the others.
    fn allow_affiliation(&self, user: &BareJid, to: Affiliation, actor: &Actor) -> Result<(), StanzaError> {
        let now = self.affiliation(user);
        if actor.affiliation < Affiliation::Admin {
            return Err(forbidden());
        }
        // XEP-0045 §9.1.
        if *user == actor.user && to == Affiliation::Outcast {
            return Err(StanzaError::new(Condition::Conflict).text("nobody bans themselves"));
        }
        let high = now.max(to) >= Affiliation::Admin;
        if high && actor.affiliation < Affiliation::Owner { Err(not_allowed()) } else { Ok(()) }
    }

    /// XEP-0045 §10.2: a room has an owner.
    fn keep_an_owner(&self, changes: &[Change]) -> Result<(), StanzaError> {
        let mut owners: Vec<&BareJid> = self.having(Affiliation::Owner).collect();
        for change in changes {
            if let Change::Affiliation { user, affiliation, .. } = change {
                owners.retain(|owner| *owner != user);
                owners.extend((*affiliation == Affiliation::Owner).then_some(user));
            }
        }
        if owners.is_empty() {
            return Err(StanzaError::new(Condition::Conflict).text("a room needs an owner"));
        }
        Ok(())
    }

    fn keep_room(&self, changes: &[Change]) -> Result<(), StanzaError> {
        let named = |change: &&Change| {
            matches!(change, Change::Affiliation { user, affiliation, .. }
                if *affiliation != Affiliation::None && !self.affiliations.contains_key(user))
        };
        let more = changes.iter().filter(named).count();
        if more > 0 { self.check_affiliations(more) } else { Ok(()) }
    }

    fn check_affiliations(&self, more: usize) -> Result<(), StanzaError> {
        if self.affiliations.len() + more <= self.limits.affiliations {
            return Ok(());
        }
        let why = format!("a room has at most {} affiliations", self.limits.affiliations);
        Err(StanzaError::new(Condition::ResourceConstraint).text(why))
    }

    fn having(&self, wanted: Affiliation) -> impl Iterator<Item = &BareJid> {
        let found = self.affiliations.iter().filter(move |(_, (affiliation, _))| *affiliation == wanted);
        found.map(|(user, _)| user)
    }

    /// Notes an affiliation; who is in the room with it is not told here.
    pub(super) fn affiliate(
        &mut self,
        user: &BareJid,
        affiliation: Affiliation,
        turn: &mut Turn<'_>,
    ) -> Result<(), StanzaError> {
        if affiliation == Affiliation::None {
            self.affiliations.remove(user);
        } else {
            if !self.affiliations.contains_key(user) {
                self.check_affiliations(1)?;
            }
            self.affiliations.insert(user.clone(), (affiliation, turn.now_ms));
        }
        if self.config.persistent {
            turn.ops.push(kept::affiliation(user, affiliation, turn.now_ms));
        }
        Ok(())
    }

    fn set_role(&mut self, nick: &Jid, role: Role, by: (&Actor, Option<String>), out: &mut Vec<Envelope>) {
        // A change before this one may have taken the occupant out.
        let Some(index) = self.find(nick) else { return };
        if role == Role::None {
            let why = Expulsion { code: 307, actor: by.0.nick.as_deref(), reason: by.1.as_deref() };
            return self.expel(index, why, out);
        }
        self.occupants[index].role = role;
        self.show_change(index, by, out);
    }

    /// XEP-0045 §5.1.2, §9.1 to §9.4: what an affiliation means for its occupants.
    fn follow(
        &mut self,
        user: &BareJid,
        affiliation: Affiliation,
        by: (&Actor, Option<String>),
        out: &mut Vec<Envelope>,
    ) {
        let barred = match affiliation {
            Affiliation::Outcast => Some(301),
            Affiliation::None if self.config.members_only => Some(321),
            _ => None,
        };
        let role = self.first_role(affiliation);
        for index in (0..self.occupants.len()).rev() {
            if self.occupants[index].user != *user {
                continue;
            }
            if let Some(code) = barred {
                self.expel(index, Expulsion { code, actor: by.0.nick.as_deref(), reason: by.1.as_deref() }, out);
                continue;
            }
            self.occupants[index].role = role;
            self.show_change(index, (by.0, by.1.clone()), out);
        }
    }

    fn show_change(&self, index: usize, (actor, reason): (&Actor, Option<String>), out: &mut Vec<Envelope>) {
        let note = self.note(index, &[], &[110]);
        self.show_noted(
            index,
            super::wire::Note { actor: actor.nick.as_deref(), reason: reason.as_deref(), ..note },
            out,
        );
    }

    /// XEP-0045 §10.2: who is no member of a members-only room has to go.
    pub(super) fn expel_strangers(&mut self, out: &mut Vec<Envelope>) {
        for index in (0..self.occupants.len()).rev() {
            if self.affiliation(&self.occupants[index].user) < Affiliation::Member {
                self.expel(index, Expulsion { code: 322, ..Expulsion::default() }, out);
            }
        }
    }
}

/// The role or the affiliation that an item names.
fn wanted(item: &Element) -> Result<(Option<Role>, Option<Affiliation>), StanzaError> {
    let unknown = || StanzaError::new(Condition::BadRequest);
    let role = item.get_attr("role").map(|name| Role::from_name(name).ok_or_else(unknown)).transpose()?;
    let affiliation = item.get_attr("affiliation").map(|name| Affiliation::from_name(name).ok_or_else(unknown));
    Ok((role, affiliation.transpose()?))
}

fn forbidden() -> StanzaError {
    StanzaError::new(Condition::Forbidden).text("you may not do this in this room")
}

/// XEP-0045 §8.2: against somebody above.
fn not_allowed() -> StanzaError {
    StanzaError::new(Condition::NotAllowed).text("this is for somebody with a higher affiliation")
}
