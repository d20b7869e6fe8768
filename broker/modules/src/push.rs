//! An account's contacts as they change: saved, and pushed to the sessions that asked for the roster (RFC 6121 §2.1.6).

use crate::contacts::{Contact, contacts, contacts_mut};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tavi_core::{Account, AccountState, Effects, Ev};
use tavi_xmpp_proto::{
    BareJid, Element, Stanza, ns,
    stanza::{Head, IqType},
};

/// A locked account whose contacts change.
pub(crate) struct Book<'a> {
    pub(crate) account: &'a Arc<Account>,
    pub(crate) state: &'a mut AccountState,
    pub(crate) fx: &'a mut Effects,
}

impl<'a> Book<'a> {
    pub(crate) fn of<'b>(ev: &'b mut Ev<'a>) -> Book<'b> {
        Book { account: ev.account, state: ev.state, fx: ev.fx }
    }

    /// Changes a contact (made if there is none) and saves it; tells the sessions if they can see the difference.
    /// A contact that was a mere request is gone with the request.
    pub(crate) fn change(&mut self, jid: &BareJid, change: impl FnOnce(&mut Contact)) {
        let before = self.item(jid);
        let contact = contacts_mut(self.state).entry(jid);
        change(contact);
        let op = if contact.added || contact.request.is_some() { contact.save(jid) } else { Contact::delete(jid) };
        if !contact.added && contact.request.is_none() {
            contacts_mut(self.state).remove(jid);
        }
        self.fx.save_now(self.account, self.state, vec![op]);
        match self.item(jid) {
            Some(after) if before.as_ref() != Some(&after) => self.push(after),
            _ => {}
        }
    }

    /// Forgets a contact; tells the sessions if it was listed (RFC 6121 §2.5.2).
    pub(crate) fn remove(&mut self, jid: &BareJid) {
        let listed = self.item(jid).is_some();
        contacts_mut(self.state).remove(jid);
        self.fx.save_now(self.account, self.state, vec![Contact::delete(jid)]);
        if listed {
            self.push(Element::new(ns::ROSTER, "item").attr("jid", jid.to_string()).attr("subscription", "remove"));
        }
    }

    fn item(&self, jid: &BareJid) -> Option<Element> {
        contacts(self.state).get(jid).filter(|contact| contact.listed()).map(|contact| contact.to_item(jid))
    }

    fn push(&mut self, item: Element) {
        let query = Element::new(ns::ROSTER, "query").child(item);
        for session in self.state.sessions.iter().filter(|session| session.interested) {
            // RFC 6121 §2.1.6: from the account itself; a client ignores pushes from anybody else.
            let head = Head::iq(IqType::Set, &id()).from(&self.account.jid).to(session.jid.clone());
            self.fx.deliver(session, Stanza::new(head, [query.clone()]));
        }
    }
}

/// The id of a push, which no other has.
pub(crate) fn id() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    format!("push-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}
