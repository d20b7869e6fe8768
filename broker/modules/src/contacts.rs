//! Contacts and their subscriptions (RFC 6121 §2): a part of an account's state.

use bytes::Bytes;
use std::{collections::HashMap, sync::LazyLock};
use tavi_core::{AccountPart, AccountState, hooks::BoxFuture};
use tavi_store::{Expect, Op, Owner, SharedStore, StoreError, Table};
use tavi_xmpp_proto::{element::Element, jid::BareJid, ns};

/// Who sees whose presence (RFC 6121 §2.1.2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// The account sees the contact's presence.
    pub to: bool,
    /// The contact sees the account's presence.
    pub from: bool,
}

impl Subscription {
    /// `none`, `to`, `from` or `both`.
    pub fn name(self) -> &'static str {
        match (self.to, self.from) {
            (false, false) => "none",
            (true, false) => "to",
            (false, true) => "from",
            (true, true) => "both",
        }
    }

    fn parse(name: &str) -> Subscription {
        Subscription { to: matches!(name, "to" | "both"), from: matches!(name, "from" | "both") }
    }
}

/// One contact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// The name that the account gave it.
    pub name: Option<String>,
    /// Its groups.
    pub groups: Vec<String>,
    /// Who sees whom.
    pub subscription: Subscription,
    /// The account asked to see it and waits for the answer (`ask='subscribe'`).
    pub ask: bool,
    /// It asked to see the account: its `<presence type='subscribe'/>`, kept until answered (RFC 6121 §3.1.3).
    pub request: Option<Bytes>,
    /// The account approved it beforehand (RFC 6121 §3.4).
    pub approved: bool,
    /// The account itself added it; tells a contact without name and groups from a mere request.
    pub added: bool,
}

impl Contact {
    /// Whether it stands in the roster that clients see: a mere request from outside does not (RFC 6121 §3.1.3).
    pub fn listed(&self) -> bool {
        let s = self.subscription;
        s.to || s.from || self.ask || self.approved || self.added || self.request.is_none()
    }

    /// The `<item/>` of RFC 6121 §2.1.2.
    pub fn to_item(&self, jid: &BareJid) -> Element {
        let groups = self.groups.iter().map(|group| Element::new(ns::ROSTER, "group").text(group.clone()));
        Element::new(ns::ROSTER, "item")
            .attr("jid", jid.to_string())
            .attr_opt("name", self.name.clone())
            .attr("subscription", self.subscription.name())
            .attr_opt("ask", self.ask.then_some("subscribe"))
            .attr_opt("approved", self.approved.then_some("true"))
            .children(groups)
    }

    /// Name and groups of a client's `<item/>`.
    pub fn take_item(&mut self, item: &Element) {
        self.name = item.get_attr("name").filter(|name| !name.is_empty()).map(str::to_owned);
        let groups = item.elements().filter(|child| child.is(ns::ROSTER, "group"));
        self.groups = groups.map(Element::text_content).filter(|group| !group.is_empty()).collect();
    }

    /// The operation that saves it.
    pub fn save(&self, jid: &BareJid) -> Op {
        let mut item = self.to_item(jid);
        if let Some(request) = &self.request {
            let text = String::from_utf8_lossy(request).into_owned();
            item.push(Element::new(ns::ROSTER, "request").text(text));
        }
        if self.added {
            item.push(Element::new(ns::ROSTER, "added"));
        }
        let value = item.to_xml(ns::ROSTER).into();
        Op::Put { table: Table::Roster, item: jid.as_str().into(), value, expect: Expect::Any }
    }

    /// The operation that removes it.
    pub fn delete(jid: &BareJid) -> Op {
        Op::Delete { table: Table::Roster, item: jid.as_str().into(), expect: Expect::Any }
    }

    fn load(value: &[u8]) -> Option<Contact> {
        let item = Element::parse(value, ns::ROSTER).ok()?;
        let request = item.get_child(ns::ROSTER, "request").map(|r| Bytes::from(r.text_content()));
        let mut contact = Contact {
            subscription: Subscription::parse(item.get_attr("subscription").unwrap_or_default()),
            ask: item.get_attr("ask").is_some(),
            approved: item.get_attr("approved").is_some(),
            added: item.get_child(ns::ROSTER, "added").is_some(),
            request,
            ..Contact::default()
        };
        contact.take_item(&item);
        Some(contact)
    }
}

/// An account's contacts.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    contacts: HashMap<BareJid, Contact>,
}

/// Rows that are read at once.
const PAGE: usize = 1000;

impl AccountPart for Roster {
    fn load<'a>(store: &'a SharedStore, owner: &'a Owner) -> BoxFuture<'a, Result<Roster, StoreError>> {
        Box::pin(async move {
            let (mut roster, mut after) = (Roster::default(), None::<Box<str>>);
            loop {
                let rows = store.list(owner, Table::Roster, after.as_deref(), PAGE).await?;
                let Some((last, _)) = rows.last() else { return Ok(roster) };
                after = Some(last.clone());
                rows.iter().for_each(|(item, record)| roster.take_row(item, &record.value));
            }
        })
    }
}

/// The contacts of an account.
pub fn contacts(state: &AccountState) -> &Roster {
    // Only an account of a node without this module has none.
    static NONE: LazyLock<Roster> = LazyLock::new(Roster::default);
    state.part().unwrap_or(&NONE)
}

/// The contacts of an account, to be changed.
pub(crate) fn contacts_mut(state: &mut AccountState) -> &mut Roster {
    state.part_mut()
}

impl Roster {
    /// Takes one stored row; damaged ones are reported by the store's check and left out here.
    fn take_row(&mut self, jid: &str, value: &[u8]) {
        if let (Ok(jid), Some(contact)) = (jid.parse(), Contact::load(value)) {
            self.contacts.insert(jid, contact);
        }
    }

    /// A contact.
    pub fn get(&self, jid: &BareJid) -> Option<&Contact> {
        self.contacts.get(jid)
    }

    /// A contact, made if there is none.
    pub fn entry(&mut self, jid: &BareJid) -> &mut Contact {
        self.contacts.entry(jid.clone()).or_default()
    }

    /// Removes a contact.
    pub fn remove(&mut self, jid: &BareJid) -> Option<Contact> {
        self.contacts.remove(jid)
    }

    /// All contacts.
    pub fn iter(&self) -> impl Iterator<Item = (&BareJid, &Contact)> {
        self.contacts.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.contacts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.contacts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contact_is_read_back_as_it_was_saved() {
        let jid: BareJid = "juliet@localhost".parse().unwrap();
        let contact = Contact {
            name: Some("Jule <3".into()),
            groups: vec!["Capulets".into(), "a&b".into()],
            subscription: Subscription { to: true, from: false },
            ask: true,
            request: Some("<presence type='subscribe'/>".into()),
            approved: false,
            added: true,
        };
        let Op::Put { value, .. } = contact.save(&jid) else { panic!("a contact is saved with a put") };
        assert_eq!(Contact::load(&value), Some(contact));
    }
}
