//! Retained values in the store, and what of them is in memory.
//!
//! The store has them all; a topic's place keeps its own as long as it is in memory itself. The reads here are single
//! values and small pages, which an embedded engine answers at once.

use super::{Refusal, Topics};
use crate::{
    permit::Action,
    principal::Principal,
    publication::{Change, Publication},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};
use tavi_store::{NameRange, Op, Owner, PageBound, Read, Record, StoreError, Table};
use tavi_wire::topic::{check_topic, is_filter, matches};

/// A topic's retained value, as far as it is in memory.
#[derive(Debug, Default)]
pub(super) enum Kept {
    /// Only the store knows.
    #[default]
    InStore,
    /// There is none.
    Absent,
    /// This one.
    Here(Arc<Publication>),
}

impl Kept {
    fn known(&self) -> Option<Option<Arc<Publication>>> {
        match self {
            Kept::InStore => None,
            Kept::Absent => Some(None),
            Kept::Here(publication) => Some(Some(publication.clone())),
        }
    }

    /// A change that landed; what is large stays in the store.
    pub(super) fn of(publication: &Arc<Publication>) -> Kept {
        match publication.change {
            Change::Clear => Kept::Absent,
            Change::Value if publication.weight() > LARGE => Kept::InStore,
            Change::Value => Kept::Here(publication.clone()),
        }
    }
}

/// A value with more bytes, all that it carries taken in, is not kept in memory.
pub(super) const LARGE: usize = 64 * 1024;
/// What is read at a time.
const PAGE: PageBound = PageBound { rows: 128, bytes: 256 * 1024 };

/// So many pages are read for one answer.
const LIST_PAGES: usize = 8;

/// A part of what somebody may retrieve.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// In topic order.
    pub values: Vec<Arc<Publication>>,
    /// Behind which name the list may go on; `None`: that is all.
    pub next: Option<Box<str>>,
}

/// A part of what a filter finds.
pub(super) struct Page {
    /// In topic order.
    pub(super) values: Vec<Arc<Publication>>,
    /// Behind which name the next part begins; `None` at the end.
    pub(super) next: Option<Box<str>>,
}

impl Topics {
    /// A topic's retained value, for whoever asked the access model. Reads the store if it is not in memory.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn kept_value(&self, topic: &str) -> Result<Option<Arc<Publication>>, StoreError> {
        let now = self.clock.now_ms();
        Ok(self.kept(topic)?.filter(|p| !p.expired(now)))
    }

    pub(super) fn kept(&self, topic: &str) -> Result<Option<Arc<Publication>>, StoreError> {
        let known = self.places.known(topic).and_then(|place| place.state.lock().kept.known());
        if let Some(known) = known {
            return Ok(known);
        }
        let forgotten = self.places.forgotten();
        let found = self.read_kept(topic)?;
        if let Some(publication) = found.as_ref().filter(|_| forgotten == self.places.forgotten()) {
            self.remember(publication);
        }
        Ok(found)
    }

    pub(super) fn read_kept(&self, topic: &str) -> Result<Option<Arc<Publication>>, StoreError> {
        let record = at_once(self.store.load(&Owner::topic(topic), Table::Retained, ""))?;
        record.map(|record| decode(topic, record)).transpose()
    }

    fn remember(&self, publication: &Arc<Publication>) {
        let place = self.places.at(&publication.topic);
        let mut state = place.state.lock();
        // What is open may be in the store already, but has not landed.
        let landed = !state.open.iter().any(|open| open.publication.retain);
        if landed && matches!(state.kept, Kept::InStore) && publication.id >= state.retained_id {
            state.kept = Kept::of(publication);
            state.retained_id = publication.id;
            self.places.charge(&place, &state, publication.topic.len());
        }
    }

    /// A part of what a legal filter finds, from behind the name `after`.
    pub(super) fn page(&self, filter: &str, after: Option<&str>) -> Result<Page, StoreError> {
        if !is_filter(filter) {
            let wanted = after.is_none_or(|after| after < filter);
            let found = if wanted { self.read_kept(filter)? } else { None };
            return Ok(Page { values: found.into_iter().collect(), next: None });
        }
        let names = NameRange { prefix: literal_prefix(filter), after };
        let rows = at_once(self.store.walk(Table::Retained, names, PAGE))?;
        let mut next = rows.last().map(|(name, _)| name.clone());
        let (mut values, mut skipped) = (Vec::new(), None::<String>);
        for (name, record) in rows {
            if skipped.as_deref().is_some_and(|to| *name <= *to) {
                continue;
            }
            if matches(filter, &name) {
                values.push(decode(&name, record)?);
            } else {
                skipped = skip(filter, &name).or(skipped);
            }
        }
        if let Some(to) = skipped.filter(|to| next.as_deref().is_some_and(|next| next < to.as_str())) {
            next = Some(to.into());
        }
        Ok(Page { values, next })
    }

    /// At most `limit` retained values of topics behind `after` that `who` may retrieve, in topic order. Looks only
    /// where the access model lets `who` read anything, and at no more than some pages: [`Listing::next`] tells where
    /// to go on.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn listed(&self, who: &Principal, after: Option<&str>, limit: usize) -> Result<Listing, StoreError> {
        let (mut found, mut end) = (BTreeMap::new(), None::<Box<str>>);
        for filter in self.permit.reach(who, Action::Retrieve) {
            let stopped = self.list_into(&mut found, who, (&filter, after, limit))?;
            // What is behind the first stop may lack values of the filter that stopped there.
            end = [end, stopped].into_iter().flatten().min();
        }
        let mut values: Vec<_> = found.into_values().collect();
        values.retain(|p| end.as_deref().is_none_or(|end| *p.topic <= *end));
        if values.len() > limit {
            values.truncate(limit);
            end = values.last().map(|p| Box::from(&*p.topic));
        }
        Ok(Listing { values, next: end })
    }

    /// As [`Topics::listed`], until there are `limit` values or no more; others have their turns between.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn listed_whole(
        &self,
        who: &Principal,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        let mut all = self.listed(who, after, limit)?;
        while let Some(next) = all.next.take_if(|_| all.values.len() < limit) {
            tokio::task::yield_now().await;
            let more = self.listed(who, Some(&next), limit - all.values.len())?;
            all.values.extend(more.values);
            all.next = more.next;
        }
        Ok(all)
    }

    /// Gives where it stopped, unless that was the end.
    fn list_into(
        &self,
        found: &mut BTreeMap<Arc<str>, Arc<Publication>>,
        who: &Principal,
        (filter, after, limit): (&str, Option<&str>, usize),
    ) -> Result<Option<Box<str>>, StoreError> {
        let (mut count, mut after) = (0, after.map(Box::<str>::from));
        let now = self.clock.now_ms();
        for _ in 0..LIST_PAGES {
            let page = self.page(filter, after.as_deref())?;
            for publication in page.values {
                if publication.expired(now) {
                    self.met(&publication);
                } else if self.permit.may(who, Action::Retrieve, &publication.topic) {
                    count += 1;
                    found.insert(publication.topic.clone(), publication);
                }
            }
            after = page.next;
            if after.is_none() || count > limit {
                break;
            }
        }
        Ok(after)
    }

    /// The newer of a topic's retained and latest value, for GET and an observation's first notification. `None` if
    /// there is none or it was cleared.
    ///
    /// # Errors
    /// An illegal topic, an asker who may not retrieve it, or a store that cannot be read.
    pub fn value(&self, who: &Principal, topic: &str) -> Result<Option<Arc<Publication>>, Refusal> {
        self.ask_retrieve(who, topic)?;
        Ok(self.newest_value(topic)?)
    }

    /// The same for whoever asked the access model.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn newest_value(&self, topic: &str) -> Result<Option<Arc<Publication>>, StoreError> {
        let latest = self.places.known(topic).and_then(|place| place.state.lock().latest.clone());
        let newer = [self.kept(topic)?, latest].into_iter().flatten().max_by_key(|p| p.id);
        let now = self.clock.now_ms();
        Ok(newer.filter(|p| p.change == Change::Value && !p.expired(now)))
    }

    /// A topic's retained value.
    ///
    /// # Errors
    /// As for [`Topics::value`].
    pub fn retained_value(&self, who: &Principal, topic: &str) -> Result<Option<Arc<Publication>>, Refusal> {
        self.ask_retrieve(who, topic)?;
        Ok(self.kept_value(topic)?)
    }

    fn ask_retrieve(&self, who: &Principal, topic: &str) -> Result<(), Refusal> {
        check_topic(topic).map_err(Refusal::IllegalTopic)?;
        if self.permit.may(who, Action::Retrieve, topic) {
            return Ok(());
        }
        self.permit.log_refusal(who, Action::Retrieve, topic);
        Err(Refusal::Forbidden)
    }
}

/// What the store has to do for a retained change. It compares ids too: an older one that comes late is ignored.
pub(super) fn retained_op(publication: &Publication) -> Op {
    let (table, item, id) = (Table::Retained, Box::from(""), publication.id);
    match publication.change {
        // What nobody else needs is not kept with the value.
        Change::Value if !publication.rendered.is_shared => {
            Op::PutNewer { table, item, id, value: publication.encode() }
        }
        Change::Value => Op::PutNewer { table, item, id, value: publication.stored().clone() },
        Change::Clear => Op::DeleteOlder { table, item, id },
    }
}

/// Embedded engines answer when they are asked; for a store over the network this thread waits.
pub(super) fn at_once<T>(mut read: Read<'_, T>) -> Result<T, StoreError> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(answer) = read.as_mut().poll(&mut Context::from_waker(&waker)) {
            return answer;
        }
        thread::park();
    }
}

pub(super) fn decode(topic: &str, record: Record) -> Result<Arc<Publication>, StoreError> {
    let damaged = || StoreError::Corrupt(format!("retained value of {topic:?}").into());
    Publication::decode(record.value).map(Arc::new).ok_or_else(damaged)
}

/// The part of a filter before its first wildcard level, without its slash: "a/#" matches "a" too.
fn literal_prefix(filter: &str) -> &str {
    let end = filter.find(['+', '#']).unwrap_or(filter.len());
    filter[..end].trim_end_matches('/')
}

/// A name behind which the next match of `filter` stands, if `name` is none: whole branches are passed over. `None`:
/// the next name may be one.
fn skip(filter: &str, name: &str) -> Option<String> {
    let mut at = 0;
    for want in filter.split('/') {
        if want == "#" || at > name.len() {
            return None;
        }
        let branch = &name[..at];
        let level = name[at..].split('/').next().unwrap_or_default();
        if want != "+" && level != want {
            return skip_to(branch, want, &name[at..]);
        }
        at += level.len() + 1;
    }
    // It has more levels than the filter.
    Some(format!("{}/{}", &name[..at - 1], behind_all()))
}

/// Under `branch` only the level `want` is of interest, and `rest` stands elsewhere. Names are in the order of their
/// bytes, in which "a-b" and "a.b" stand before "a/b".
fn skip_to(branch: &str, want: &str, rest: &str) -> Option<String> {
    if rest < want {
        let last = want.chars().next_back()?;
        let before = (0..u32::from(last)).rev().find_map(char::from_u32)?;
        let head = &want[..want.len() - last.len_utf8()];
        return Some(format!("{branch}{head}{before}{}", behind_all()));
    }
    let within = format!("{want}/{}", behind_all());
    if rest < within.as_str() {
        Some(format!("{branch}{want}.{}", behind_all()))
    } else {
        Some(format!("{branch}{}", behind_all()))
    }
}

/// Stands behind every level, since a level has at most 255 bytes.
fn behind_all() -> String {
    "\u{10ffff}".repeat(64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn level() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["a", "b", "a!", "a-b", "a.", "a0", "", "\u{10ffff}", "ab", "é"])
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![3 => level(), 2 => Just("+")];
        (prop::collection::vec(level, 1..4), any::<bool>())
            .prop_map(|(levels, hash)| levels.join("/") + if hash { "/#" } else { "" })
            .prop_filter("not empty", |filter| !filter.is_empty())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn no_match_is_passed_over(
            filter in filter(),
            names in prop::collection::btree_set(prop::collection::vec(level(), 1..4).prop_map(|l| l.join("/")), 0..40)
        ) {
            let (mut found, mut after) = (Vec::new(), None::<String>);
            for name in names.iter().filter(|name| name.starts_with(literal_prefix(&filter))) {
                if after.as_ref().is_some_and(|after| name <= after) {
                    continue;
                }
                if matches(&filter, name) {
                    found.push(name.clone());
                } else if let Some(to) = skip(&filter, name) {
                    prop_assert!(to > *name);
                    after = Some(to);
                }
            }
            let all: Vec<String> = names.iter().filter(|name| matches(&filter, name)).cloned().collect();
            prop_assert_eq!(found, all);
        }
    }

    #[test]
    fn branches_without_a_match_are_left_out() {
        assert!(skip("d/+/state", "d/1/attributes").unwrap().as_str() < "d/1/state");
        assert!(skip("d/+/state", "d/1/up/t").unwrap().as_str() > "d/1/zzz");
        assert!(skip("d/+/state", "d/1/up/t").unwrap().as_str() < "d/2");
        assert!(skip("d/+", "d/1/up/t").unwrap().as_str() < "d/2");
        assert_eq!(skip("d/+/state", "d/1"), None);
    }
}
