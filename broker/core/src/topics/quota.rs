//! What the retained values of each person, device and bot take, and how much that may be.
//!
//! It is counted in memory: anew after each start, by the first round of [`Tidy`](super::Tidy), and with each value that
//! is begun. Who wrote a topic's value last pays for it. What is being saved in the very moment in which a
//! topic is counted may be counted twice or not at all, until the next start.

use super::{Draft, Refusal, Topics, kept::Kept, place::State};
use crate::{
    principal::Principal,
    publication::{Change, ContentType, Properties, Publication},
};
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// How much one person, device or bot may keep in topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Topics with a retained value.
    pub topics: u64,
    /// Bytes of these values, of what MQTT's properties say of them, and of the topics' names.
    pub bytes: u64,
}

impl Default for Quota {
    fn default() -> Quota {
        Quota { topics: 1_000_000, bytes: 1 << 30 }
    }
}

/// Somebody keeps as much as one may keep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverQuota {
    /// In topics.
    #[error(
        "{who} has {most} topics with a retained value, as many as one may have: clear some, or let the operator raise \
         retained_topics under [limits]"
    )]
    Topics {
        /// Who.
        who: Box<str>,
        /// How many one may have.
        most: u64,
    },
    /// In bytes.
    #[error(
        "the retained values of {who} would take more than {most} bytes, the most that one may keep: clear some, or let \
         the operator raise retained_bytes under [limits]"
    )]
    Bytes {
        /// Who.
        who: Box<str>,
        /// How many bytes one may have.
        most: u64,
    },
}

/// What somebody's values take.
#[derive(Debug, Default)]
pub(super) struct Purse {
    topics: AtomicU64,
    bytes: AtomicU64,
    /// The log knows that it is full.
    told: AtomicBool,
}

/// Who pays for a topic's value.
#[derive(Debug, Default)]
pub(super) enum Paid {
    /// Only the store knows.
    #[default]
    Unknown,
    /// There is none.
    Nobody,
    /// Somebody, for the value with this id.
    By { purse: Arc<Purse>, bytes: u64, id: u64 },
}

impl Paid {
    fn bytes(&self) -> u64 {
        if let Paid::By { bytes, .. } = self { *bytes } else { 0 }
    }

    fn is_by(&self, payer: &Arc<Purse>) -> bool {
        matches!(self, Paid::By { purse, .. } if Arc::ptr_eq(purse, payer))
    }

    fn put_in(&self) {
        if let Paid::By { purse, bytes, .. } = self {
            purse.topics.fetch_add(1, Relaxed);
            purse.bytes.fetch_add(*bytes, Relaxed);
        }
    }

    fn take_out(&self) {
        if let Paid::By { purse, bytes, .. } = self {
            let less = |count: &AtomicU64, by| _ = count.fetch_update(Relaxed, Relaxed, |n| Some(n.saturating_sub(by)));
            less(&purse.topics, 1);
            less(&purse.bytes, *bytes);
            purse.told.store(false, Relaxed);
        }
    }
}

/// The purses of all.
pub(super) struct Purses {
    by_subject: Mutex<HashMap<Box<str>, Arc<Purse>>>,
    quota: RwLock<Quota>,
    /// What was counted since the start; `None`: all.
    counting: Mutex<Option<Counting>>,
}

#[derive(Default)]
struct Counting {
    /// The topics up to this name,
    upto: Box<str>,
    /// and these, whose values were written meanwhile.
    ahead: HashSet<Box<str>>,
}

impl Counting {
    fn has(&self, topic: &str) -> bool {
        topic <= &*self.upto || self.ahead.contains(topic)
    }
}

impl Default for Purses {
    fn default() -> Purses {
        Purses {
            by_subject: Mutex::default(),
            quota: RwLock::default(),
            counting: Mutex::new(Some(Counting::default())),
        }
    }
}

impl Purses {
    fn of(&self, who: &Principal) -> Arc<Purse> {
        self.by_subject.lock().entry_ref(who.subject()).or_default().clone()
    }

    fn counts(&self, topic: &str) -> bool {
        self.counting.lock().as_ref().is_none_or(|counting| counting.has(topic))
    }

    /// A topic's value is counted from now on; gives whether the former one was.
    fn count(&self, topic: &str) -> bool {
        let mut counting = self.counting.lock();
        let Some(counting) = counting.as_mut() else { return true };
        let had = counting.has(topic);
        if !had {
            counting.ahead.insert(topic.into());
        }
        had
    }

    fn pays(&self, publication: &Publication) -> Paid {
        let Publication { topic, payload, content_type, properties, item, .. } = publication;
        let bytes = size((topic, payload), content_type.as_ref(), item.as_deref(), properties.as_deref());
        Paid::By { purse: self.of(&publication.from), bytes, id: publication.id }
    }

    fn room(&self, who: &Principal, (before, bytes): (&Paid, u64)) -> Result<(), OverQuota> {
        let (purse, quota) = (self.of(who), *self.quota.read());
        let (mine, more) = (before.is_by(&purse), bytes.saturating_sub(before.bytes()));
        let more = if mine { more } else { bytes };
        let full = if !mine && purse.topics.load(Relaxed) >= quota.topics {
            OverQuota::Topics { who: who.subject().into(), most: quota.topics }
        } else if more > 0 && purse.bytes.load(Relaxed) + more > quota.bytes {
            OverQuota::Bytes { who: who.subject().into(), most: quota.bytes }
        } else {
            return Ok(());
        };
        if !purse.told.swap(true, Relaxed) {
            tracing::warn!(%who, "refused: {full}");
        }
        Err(full)
    }
}

fn size(
    (topic, payload): (&str, &Bytes),
    content_type: Option<&ContentType>,
    item: Option<&str>,
    properties: Option<&Properties>,
) -> u64 {
    let texts = content_type.map_or(0, |t| t.len()) + item.map_or(0, str::len);
    (topic.len() + payload.len() + texts + properties.map_or(0, Properties::len)) as u64
}

/// Whether somebody may go beyond the quota.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// No.
    Quota,
    /// What the broker itself writes, and what was taken in before.
    None,
}

impl Topics {
    /// How much one may keep.
    pub fn set_quota(&self, quota: Quota) {
        *self.purses.quota.write() = quota;
    }

    /// How many topics with a retained value, and how many bytes, somebody pays for, as far as they are counted.
    pub fn kept_by(&self, who: &Principal) -> (u64, u64) {
        let purse = self.purses.of(who);
        (purse.topics.load(Relaxed), purse.bytes.load(Relaxed))
    }

    /// Whoever begins a retained change pays for it, if there is room; the topic's lock is held. Gives what is paid once
    /// the change has its id.
    pub(super) fn pay(
        &self,
        state: &mut State,
        (who, draft): (&Principal, &Draft),
        bound: Bound,
    ) -> Result<(), Refusal> {
        if matches!(state.paid, Paid::Unknown) {
            let kept = match &state.kept {
                Kept::Here(publication) => Some(publication.clone()),
                Kept::Absent => None,
                Kept::InStore => self.read_kept(&draft.topic)?,
            };
            state.paid = kept.map_or(Paid::Nobody, |publication| self.purses.pays(&publication));
        }
        if bound == Bound::Quota && draft.change == Change::Value {
            let Draft { topic, payload, content_type, properties, item, .. } = draft;
            let bytes = size((topic, payload), content_type.as_ref(), item.as_deref(), properties.as_deref());
            self.purses.room(who, (&state.paid, bytes)).map_err(Refusal::OverQuota)?;
        }
        Ok(())
    }

    /// A retained change was begun; the topic's lock is held.
    pub(super) fn paid(&self, state: &mut State, publication: &Publication, fresh: bool) {
        if !fresh {
            // It may be older than what stands there.
            state.paid = Paid::Unknown;
            return;
        }
        let now = match publication.change {
            Change::Value => self.purses.pays(publication),
            Change::Clear => Paid::Nobody,
        };
        let before = std::mem::replace(&mut state.paid, now);
        if self.purses.count(&publication.topic) {
            before.take_out();
        }
        state.paid.put_in();
    }

    /// Counts values that were read, as the first since the start; behind them `next` is read, if anything is.
    pub(super) fn count(&self, read: &[Arc<Publication>], next: Option<&str>) {
        let mut now = self.purses.counting.lock();
        let Some(counting) = now.as_mut() else { return };
        let fresh = read.iter().filter(|publication| !counting.has(&publication.topic));
        fresh.for_each(|publication| self.purses.pays(publication).put_in());
        match next {
            Some(next) => counting.upto = next.into(),
            None => *now = None,
        }
    }

    /// An expired value was deleted.
    pub(super) fn unpaid(&self, publication: &Publication) {
        let place = self.places.known(&publication.topic);
        let mut state = place.as_ref().map(|place| place.state.lock());
        if let Some(state) = state.as_mut() {
            if matches!(&state.kept, Kept::Here(kept) if kept.id == publication.id) {
                state.kept = Kept::Absent;
            }
            match &state.paid {
                Paid::Unknown => {}
                Paid::By { id, .. } if *id == publication.id => state.paid = Paid::Nobody,
                // A newer value has taken its place, also here.
                _ => return,
            }
        }
        if self.purses.counts(&publication.topic) {
            self.purses.pays(publication).take_out();
        }
    }
}
