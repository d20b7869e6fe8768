//! Retained values: what is kept of each topic, read in the order of their topics and page by page.
//!
//! A subscriber neither misses a value that is being saved when it comes, nor gets an older one after a newer: each
//! value is compared under its topic's lock, just when it is handed out, with what has landed and what is open.

use super::Topics;
use crate::{
    permit::Action,
    principal::Principal,
    publication::{Change, Publication},
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    future::poll_fn,
    ops::Bound,
    sync::Arc,
    task::{Context, Poll},
};
use tavi_store::StoreError;
use tavi_wire::topic::{is_filter, matches};

/// Topics of one page of a stream.
const PAGE: usize = 256;

/// The retained values that a filter finds, in the order of their topics: as many as there are, a page at a time in
/// memory, and no lock is held between two of them.
///
/// Each value is the newest one when it is given, so it has to be passed on before what is delivered afterwards. What
/// the subscriber was sent as a publication since it subscribed is left out. A topic whose value is just being saved is
/// waited for.
pub struct RetainedStream {
    topics: Arc<Topics>,
    filter: Arc<str>,
    who: Principal,
    /// The change with which the subscriber came.
    since: u64,
    page: VecDeque<Arc<Publication>>,
    /// Topics whose value was being saved at the beginning: they may have none yet.
    saving: BTreeSet<Arc<str>>,
    after: Option<Arc<str>>,
    ended: bool,
}

impl fmt::Debug for RetainedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetainedStream")
            .field("filter", &self.filter)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

impl RetainedStream {
    pub(super) fn new(topics: &Arc<Topics>, filter: &str, who: &Principal, since: u64) -> RetainedStream {
        RetainedStream {
            saving: topics.saving.matching(filter),
            topics: topics.clone(),
            filter: filter.into(),
            who: who.clone(),
            since,
            page: VecDeque::new(),
            after: None,
            ended: false,
        }
    }

    /// The next value; `None` at the end. Pending while a value is being saved, and between two pages, so that nobody
    /// else waits for a long list.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Arc<Publication>>, StoreError>> {
        loop {
            let Some(topic) = self.next_topic() else {
                if self.ended {
                    return Poll::Ready(Ok(None));
                }
                if self.turn_page()? {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                continue;
            };
            let Poll::Ready(found) = self.topics.retained_for(&topic, self.since, cx) else { return Poll::Pending };
            self.pass(&topic);
            if let Some(publication) = found.filter(|p| self.may_have(p)) {
                return Poll::Ready(Ok(Some(publication)));
            }
        }
    }

    /// The next value; `None` at the end.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn next(&mut self) -> Result<Option<Arc<Publication>>, StoreError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The smaller of the next topic that has a value and the next that is going to have one.
    fn next_topic(&self) -> Option<Arc<str>> {
        let kept = self.page.front().map(|p| &p.topic);
        // What is behind the page comes with the next one.
        let coming = self.saving.first().filter(|topic| self.ended || kept.is_some_and(|kept| topic <= &kept));
        coming.into_iter().chain(kept).min().cloned()
    }

    fn pass(&mut self, topic: &Arc<str>) {
        self.saving.remove(topic);
        if self.page.front().is_some_and(|p| p.topic == *topic) {
            self.page.pop_front();
        }
    }

    /// Reads the next page; gives whether it may not be the last.
    fn turn_page(&mut self) -> Result<bool, StoreError> {
        self.page = self.topics.kept.page(&self.filter, self.after.as_deref(), PAGE).into();
        self.ended = self.page.len() < PAGE;
        let first = self.after.is_none();
        self.after = self.page.back().map(|p| p.topic.clone());
        Ok(!first && !self.ended)
    }

    fn may_have(&self, publication: &Publication) -> bool {
        // Reading what is retained is an action of its own (semantics.md, permissions).
        let both = [Action::Subscribe, Action::Retrieve];
        both.iter().all(|action| self.topics.permit.may(&self.who, *action, &publication.topic))
            && !publication.expired(self.topics.clock.now_ms())
    }
}

impl Topics {
    /// What a subscriber who came with change `since` is owed of a topic's retained value: the newest that it has no
    /// part in; pending while one is being saved.
    fn retained_for(&self, topic: &str, since: u64, cx: &Context<'_>) -> Poll<Option<Arc<Publication>>> {
        let Some(place) = self.places.known(topic) else { return Poll::Ready(self.kept.get(topic)) };
        let mut state = place.state.lock();
        if state.open.iter().any(|open| open.is_missed(since)) {
            if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.waiting.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        Poll::Ready(if state.retained_seen >= since { None } else { self.kept.get(topic) })
    }
}

/// The retained values.
#[derive(Default)]
pub(super) struct Kept {
    values: RwLock<BTreeMap<Arc<str>, Arc<Publication>>>,
}

impl Kept {
    pub(super) fn insert(&self, publication: Arc<Publication>) {
        self.values.write().insert(publication.topic.clone(), publication);
    }

    pub(super) fn get(&self, topic: &str) -> Option<Arc<Publication>> {
        self.values.read().get(topic).cloned()
    }

    /// Takes in a change that landed.
    pub(super) fn change(&self, publication: &Arc<Publication>) {
        let mut values = self.values.write();
        if values.get(&publication.topic).is_some_and(|now| now.id > publication.id) {
            return;
        }
        match publication.change {
            Change::Value => values.insert(publication.topic.clone(), publication.clone()),
            Change::Clear => values.remove(&publication.topic),
        };
    }

    /// At most `limit` values of topics behind `after` that the filter matches, in topic order.
    pub(super) fn page(&self, filter: &str, after: Option<&str>, limit: usize) -> Vec<Arc<Publication>> {
        let values = self.values.read();
        if !is_filter(filter) {
            let wanted = after.is_none_or(|after| after < filter);
            return values.get(filter).filter(|_| wanted).cloned().into_iter().collect();
        }
        let prefix = literal_prefix(filter);
        let start = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let near = values.range::<str, _>((start, Bound::Unbounded)).take_while(|(topic, _)| topic.starts_with(prefix));
        near.filter(|(topic, _)| matches(filter, topic)).take(limit).map(|(_, p)| p.clone()).collect()
    }

    /// The topics behind `after`, as long as `wanted` takes more.
    pub(super) fn topics(&self, after: Option<&str>, limit: usize, wanted: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        let values = self.values.read();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let topics = values.range::<str, _>((start, Bound::Unbounded)).map(|(topic, _)| topic);
        topics.filter(|topic| wanted(topic)).take(limit).cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.values.read().len()
    }
}

/// The part of a filter before its first wildcard level, with its slash.
fn literal_prefix(filter: &str) -> &str {
    let end = filter.find(['+', '#']).unwrap_or(filter.len());
    // "a/#" matches "a" too, so the last slash is not part of what all matches begin with.
    filter[..end].trim_end_matches('/')
}

/// The topics whose retained value is being saved.
#[derive(Default)]
pub(super) struct Saving {
    topics: Mutex<BTreeMap<Arc<str>, usize>>,
}

impl Saving {
    pub(super) fn enter(&self, topic: &Arc<str>) {
        *self.topics.lock().entry(topic.clone()).or_default() += 1;
    }

    pub(super) fn leave(&self, topic: &str) {
        let mut topics = self.topics.lock();
        let Some(count) = topics.get_mut(topic) else { return };
        *count -= 1;
        if *count == 0 {
            topics.remove(topic);
        }
    }

    /// Those that a filter matches.
    pub(super) fn matching(&self, filter: &str) -> BTreeSet<Arc<str>> {
        let topics = self.topics.lock();
        if !is_filter(filter) {
            return topics.get_key_value(filter).map(|(topic, _)| topic.clone()).into_iter().collect();
        }
        topics.keys().filter(|topic| matches(filter, topic)).cloned().collect()
    }
}
