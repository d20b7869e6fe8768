//! Retained values: what is kept of each topic, read in the order of their topics and page by page.
//!
//! A subscriber neither misses a value that is being saved when it comes, nor gets an older one after a newer: each
//! value is compared under its topic's lock, just when it is handed out, with what has landed and what is open.

use super::{Topics, kept::Kept, place::State};
use crate::{permit::Action, principal::Principal, publication::Publication};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};
use tavi_store::StoreError;
use tavi_wire::topic::{is_filter, matches};

/// The retained values that a filter finds, in the order of their topics: as many as there are, a page at a time in
/// memory, and no lock is held between two of them.
///
/// Each value is the newest one when it is given, so it has to be passed on before what is delivered afterwards. What
/// the subscriber was sent as a publication since it subscribed is left out. A topic whose value is just being saved is
/// waited for.
#[derive(Clone)]
pub struct RetainedStream {
    topics: Arc<Topics>,
    filter: Arc<str>,
    /// On whose behalf; `None`: nobody has to be asked.
    who: Option<Principal>,
    /// The change with which the subscriber came; 0 for a mere reader.
    since: u64,
    page: VecDeque<Arc<Publication>>,
    /// How often places had been forgotten when the page was read.
    forgotten: u64,
    /// Topics whose value was being saved at the beginning: they may have none yet.
    saving: BTreeSet<Arc<str>>,
    after: Option<Box<str>>,
    begun: bool,
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
    pub(super) fn new(topics: &Arc<Topics>, filter: &str, who: Option<&Principal>, since: u64) -> RetainedStream {
        RetainedStream {
            saving: if since > 0 { topics.saving.matching(filter) } else { BTreeSet::new() },
            topics: topics.clone(),
            filter: filter.into(),
            who: who.cloned(),
            since,
            page: VecDeque::new(),
            forgotten: 0,
            after: None,
            begun: false,
            ended: false,
        }
    }

    /// Begins behind a topic, where an earlier stream of this filter left off.
    #[must_use]
    pub fn behind(mut self, topic: Arc<str>) -> RetainedStream {
        self.saving.retain(|saving| *saving > topic);
        self.after = Some((*topic).into());
        self
    }

    /// The filter.
    pub fn filter(&self) -> &str {
        &self.filter
    }

    /// The next value; `None` at the end. Pending while a value is being saved, and between two pages, so that nobody
    /// else waits for a long list.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Arc<Publication>>, StoreError>> {
        let mut next = None;
        let take = &mut |publication: &Arc<Publication>| next.replace(publication.clone()).is_none();
        let given = self.poll_one(cx, (Hold::Known, take));
        given.map_ok(|_| next)
    }

    /// Gives the next value to `take`, under its topic's lock: what is published later is delivered later. False at the
    /// end, or if `take` gave false, since it had no room; then the value is not passed over.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn poll_give(&mut self, cx: &mut Context<'_>, take: &mut Take<'_>) -> Poll<Result<bool, StoreError>> {
        self.poll_one(cx, (Hold::Always, take))
    }

    fn poll_one(
        &mut self,
        cx: &mut Context<'_>,
        (hold, take): (Hold, &mut Take<'_>),
    ) -> Poll<Result<bool, StoreError>> {
        loop {
            let Some(topic) = self.next_topic() else {
                if self.ended {
                    return Poll::Ready(Ok(false));
                }
                if self.turn_page()? {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                continue;
            };
            let place = match hold {
                Hold::Always => Some(self.topics.places.at(&topic)),
                Hold::Known => self.topics.places.known(&topic),
            };
            let mut state = place.as_ref().map(|place| place.state.lock());
            let Poll::Ready(found) = self.current(&topic, state.as_deref_mut(), cx)? else { return Poll::Pending };
            let given = found.filter(|p| self.may_have(p)).map(|p| take(&p));
            drop(state);
            if given == Some(false) {
                return Poll::Ready(Ok(false));
            }
            self.pass(&topic);
            if given == Some(true) {
                return Poll::Ready(Ok(true));
            }
        }
    }

    /// Whether all was given.
    pub fn is_at_end(&self) -> bool {
        self.ended && self.next_topic().is_none()
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

    /// Reads the next page; gives whether others should have their turn first.
    fn turn_page(&mut self) -> Result<bool, StoreError> {
        self.forgotten = self.topics.places.forgotten();
        let page = self.topics.page(&self.filter, self.after.as_deref())?;
        self.page = page.values.into();
        self.ended = page.next.is_none();
        self.after = page.next;
        Ok(std::mem::replace(&mut self.begun, true) && !self.ended)
    }

    /// The newest retained value of a topic, if the subscriber has had no part in it; pending while one is being saved.
    fn current(
        &self,
        topic: &str,
        state: Option<&mut State>,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Arc<Publication>>, StoreError>> {
        let found = state.map_or(Found::AsRead, |state| state.owed(self.since, cx));
        let as_read = || self.page.front().filter(|p| *p.topic == *topic).cloned();
        Poll::Ready(Ok(match found {
            Found::Saving => return Poll::Pending,
            Found::Nothing => None,
            Found::Value(publication) => Some(publication),
            // Nothing landed since the page was read, unless what was known of it has been forgotten meanwhile.
            Found::AsRead if self.forgotten == self.topics.places.forgotten() => as_read(),
            Found::AsRead => self.topics.read_kept(topic)?,
            Found::Unless(open) => self.topics.read_kept(topic)?.filter(|p| !open.contains(&p.id)),
        }))
    }

    fn may_have(&self, publication: &Arc<Publication>) -> bool {
        // Reading what is retained is an action of its own (semantics.md, permissions).
        let both = [Action::Subscribe, Action::Retrieve];
        let may = |who| both.iter().all(|action| self.topics.permit.may(who, *action, &publication.topic));
        self.who.as_ref().is_none_or(may) && !self.is_expired(publication)
    }

    fn is_expired(&self, publication: &Arc<Publication>) -> bool {
        let expired = publication.expired(self.topics.clock.now_ms());
        if expired {
            self.topics.met(publication);
        }
        expired
    }
}

/// Takes a value; false: there is no room for it.
type Take<'a> = dyn FnMut(&Arc<Publication>) -> bool + 'a;

/// Which topics are locked while their value is given.
#[derive(Clone, Copy)]
enum Hold {
    /// Those that are in memory anyway.
    Known,
    /// All.
    Always,
}

/// What memory knows of the retained value that a subscriber is owed.
enum Found {
    /// It is just being saved.
    Saving,
    /// There is none, or the subscriber got it as a publication.
    Nothing,
    /// This.
    Value(Arc<Publication>),
    /// What the store has.
    AsRead,
    /// What the store has, but not if it is one of these: they are delivered when they land.
    Unless(Vec<u64>),
}

impl State {
    fn owed(&mut self, since: u64, cx: &Context<'_>) -> Found {
        if self.open.iter().any(|open| open.is_missed(since)) {
            if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                self.waiting.push(cx.waker().clone());
            }
            return Found::Saving;
        }
        let has_part = since > 0 && self.retained_seen >= since;
        match &self.kept {
            _ if has_part => Found::Nothing,
            Kept::Absent => Found::Nothing,
            Kept::Here(publication) => Found::Value(publication.clone()),
            Kept::InStore if self.open.is_empty() && self.retained_id == 0 => Found::AsRead,
            Kept::InStore => {
                let retained = self.open.iter().filter(|open| open.publication.retain);
                Found::Unless(retained.map(|open| open.publication.id).collect())
            }
        }
    }
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
