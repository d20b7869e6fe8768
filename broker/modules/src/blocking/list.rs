//! Whom an account does not want to have to do with: a part of its state, one stored row for each.

use std::{collections::BTreeSet, sync::LazyLock};
use tavi_core::{AccountPart, AccountState, hooks::BoxFuture};
use tavi_store::{Expect, Op, Owner, SharedStore, StoreError, Table};
use tavi_xmpp_proto::{BareJid, Jid};

/// Rows that are read at once.
const PAGE: usize = 1000;

/// An account's block list.
#[derive(Clone, Debug, Default)]
pub struct BlockList {
    /// Whose it is.
    own: Option<BareJid>,
    items: BTreeSet<Box<str>>,
}

impl AccountPart for BlockList {
    fn load<'a>(store: &'a SharedStore, owner: &'a Owner) -> BoxFuture<'a, Result<BlockList, StoreError>> {
        Box::pin(async move {
            let mut list = BlockList { own: owner.name().parse().ok(), items: BTreeSet::new() };
            let mut after = None::<Box<str>>;
            loop {
                let rows = store.list(owner, Table::Block, after.as_deref(), PAGE).await?;
                let Some((last, _)) = rows.last() else { return Ok(list) };
                after = Some(last.clone());
                list.items.extend(rows.into_iter().map(|(item, _)| item));
            }
        })
    }
}

/// The block list of an account.
pub fn block_list(state: &AccountState) -> &BlockList {
    // Only an account of a node without this module has none.
    static NONE: LazyLock<BlockList> = LazyLock::new(BlockList::default);
    state.part().unwrap_or(&NONE)
}

impl BlockList {
    /// Whether this address is blocked (XEP-0191 §5): it itself, its account or its domain. Never one's own account
    /// (§4), nor the server that one is on, without which nobody is there.
    pub fn covers(&self, jid: &Jid) -> bool {
        !self.items.is_empty() && self.has_one_of([jid.as_str(), jid.bare(), jid.domain()])
    }

    /// The same for an account.
    pub fn covers_account(&self, jid: &BareJid) -> bool {
        !self.items.is_empty() && self.has_one_of([jid.as_str(), jid.as_str(), jid.domain()])
    }

    fn has_one_of(&self, [full, bare, domain]: [&str; 3]) -> bool {
        let is_exempt = self.own.as_ref().is_some_and(|own| own.as_str() == bare || own.domain() == full);
        !is_exempt && [full, bare, domain].iter().any(|jid| self.items.contains(*jid))
    }

    /// Whether this very address stands in it.
    pub fn contains(&self, jid: &Jid) -> bool {
        self.items.contains(jid.as_str())
    }

    /// What stands in it, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.items.iter().map(|item| &**item)
    }

    /// How much stands in it.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nobody is blocked.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds an address; what is to be saved, if it is new.
    pub(super) fn add(&mut self, jid: &Jid) -> Option<Op> {
        let item: Box<str> = jid.as_str().into();
        let put = Op::Put { table: Table::Block, item: item.clone(), value: Default::default(), expect: Expect::Any };
        self.items.insert(item).then_some(put)
    }

    /// Takes an address out; what is to be saved, if it was there.
    pub(super) fn remove(&mut self, jid: &str) -> Option<Op> {
        let delete = Op::Delete { table: Table::Block, item: jid.into(), expect: Expect::Any };
        self.items.remove(jid).then_some(delete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jid(text: &str) -> Jid {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_its_account_and_its_domain_are_matched_and_nothing_else() {
        let cases: [(&str, &[&str], &[&str]); 4] = [
            ("romeo@elsewhere/orchard", &["romeo@elsewhere/orchard"], &["romeo@elsewhere", "romeo@elsewhere/home"]),
            (
                "romeo@elsewhere",
                &["romeo@elsewhere", "romeo@elsewhere/home"],
                &["elsewhere", "elsewhere/romeo", "mercutio@elsewhere", "romeo@other", "romeo@sub.elsewhere"],
            ),
            ("elsewhere/x", &["elsewhere/x"], &["elsewhere", "elsewhere/y", "romeo@elsewhere/x"]),
            (
                "elsewhere",
                &["elsewhere", "elsewhere/x", "romeo@elsewhere", "romeo@elsewhere/home"],
                &["sub.elsewhere", "romeo@sub.elsewhere", "elsewhere.net"],
            ),
        ];
        for (item, covered, free) in cases {
            let mut list = BlockList::default();
            assert!(list.add(&jid(item)).is_some() && list.add(&jid(item)).is_none());
            covered.iter().for_each(|one| assert!(list.covers(&jid(one)), "{item} blocks {one}"));
            free.iter().for_each(|one| assert!(!list.covers(&jid(one)), "{item} does not block {one}"));
            for account in covered.iter().chain(free).map(|one| jid(one)).filter(Jid::is_bare) {
                assert_eq!(list.covers_account(&account.to_bare()), list.covers(&account), "{account}");
            }
        }
    }

    #[test]
    fn nobody_blocks_himself_or_the_server_under_him() {
        let mut list = BlockList { own: Some("juliet@localhost".parse().unwrap()), items: BTreeSet::new() };
        for item in ["juliet@localhost", "localhost", "juliet@localhost/balcony", "localhost/x"] {
            list.add(&jid(item));
        }
        for free in ["juliet@localhost", "juliet@localhost/balcony", "localhost"] {
            assert!(!list.covers(&jid(free)), "{free}");
        }
        assert!(list.covers(&jid("romeo@localhost")) && list.covers(&jid("localhost/x")));
    }
}
