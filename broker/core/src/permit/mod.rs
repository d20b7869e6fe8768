//! The one answer of the access model: may this principal do this there? Deny by default.

mod grant;
mod rules;

pub use grant::{EVERYONE, Grant, GrantError, normal_subject};
pub use tavi_wire::grant::{Action, Actions, Rights};

use crate::{
    lines::{Lines, shown},
    principal::Principal,
};
use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use rules::{Question, Rules};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};
use tavi_store::{Commit, Expect, Op, Owner, SharedStore, StoreError, Table, limits::MAX_PAGE};

static REFUSALS: Lines = Lines::new();

/// How many grants one subject may have, unless the configuration says something else.
pub const DEFAULT_QUOTA: usize = 1_000;
/// Subjects are spread over so many tables, each with a lock of its own.
const SHARDS: usize = 64;

/// The access model of a node. A change acts at once, on live sessions too, and costs as much as its subject has rules.
pub struct Permit {
    shards: [RwLock<HashMap<Box<str>, Arc<Rules>>>; SHARDS],
    hasher: RandomState,
    /// The rules of all accounts, which are asked for most.
    everyone: ArcSwap<Rules>,
    generation: AtomicU64,
    changes: Mutex<Changes>,
    quota: AtomicUsize,
    /// All grants by id; held while something is changed.
    all: Mutex<BTreeMap<u64, Arc<Grant>>>,
    store: SharedStore,
}

/// The grants that were added or removed of late.
#[derive(Default)]
struct Changes {
    /// Each with the generation that it brought.
    late: VecDeque<(u64, Arc<Grant>)>,
    /// Up to this generation nothing is remembered.
    forgotten: u64,
}

/// So many changed grants are remembered.
const CHANGES: usize = 1_024;

impl Permit {
    /// Reads the grants of the store.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn load(store: SharedStore) -> Result<Permit, StoreError> {
        let mut all = BTreeMap::new();
        let (owner, mut after) = (grants_owner(), None::<Box<str>>);
        loop {
            let page = store.list(&owner, Table::Grant, after.as_deref(), MAX_PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            let grants = page.iter().filter_map(|(id, record)| Grant::decode(id, &record.value));
            all.extend(grants.map(|grant| (grant.id, Arc::new(grant))));
        }
        let permit = Permit::empty(store);
        let mut by_subject: HashMap<&str, Rules> = HashMap::new();
        for grant in all.values() {
            let rules = by_subject.remove(&*grant.subject).unwrap_or_default();
            by_subject.insert(&grant.subject, rules.with_own(grant.clone()));
        }
        by_subject.into_iter().for_each(|(subject, rules)| permit.put(subject, rules, Vec::new()));
        *permit.all.lock() = all;
        Ok(permit)
    }

    fn empty(store: SharedStore) -> Permit {
        Permit {
            shards: std::array::from_fn(|_| RwLock::default()),
            hasher: RandomState::new(),
            everyone: ArcSwap::default(),
            generation: AtomicU64::new(1),
            changes: Mutex::default(),
            quota: AtomicUsize::new(DEFAULT_QUOTA),
            all: Mutex::default(),
            store,
        }
    }

    /// Grows with each change of the grants: what was decided under an older one must be asked again.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether a grant that `concerns` was added or removed after generation `since`, up to `now`; also if that is not
    /// remembered any more.
    pub fn changed(&self, since: u64, now: u64, concerns: impl Fn(&Grant) -> bool) -> bool {
        let changes = self.changes.lock();
        let late = changes.late.iter().rev().take_while(|(generation, _)| *generation > since);
        since < changes.forgotten || late.filter(|(generation, _)| *generation <= now).any(|(_, grant)| concerns(grant))
    }

    /// Whether `who` may do `action` on the topic.
    pub fn may(&self, who: &Principal, action: Action, topic: &str) -> bool {
        if writes(action) && is_brokers(topic) {
            return false;
        }
        self.ask(who, topic, |question| question.may(action, topic))
    }

    /// Whether `who` may do `action` on every topic that the filter can match, but for those that are denied: they are
    /// left out when it comes to them.
    pub fn may_filter(&self, who: &Principal, action: Action, filter: &str) -> bool {
        if !filter.contains(['+', '#']) {
            return self.may(who, action, filter);
        }
        self.ask(who, filter, |question| question.may_filter(action, filter))
    }

    /// Filters that together cover every topic on which `who` may do `action`, but for denied ones; some may lie within
    /// others.
    pub fn reach(&self, who: &Principal, action: Action) -> Vec<Box<str>> {
        let mut reach: Vec<Box<str>> = own_filter(who).into_iter().collect();
        let rules = subject(who).map(|subject| self.rules(subject)).unwrap_or_default();
        reach.extend(rules.allowed(action).map(Box::from));
        if matches!(who, Principal::Account(_)) {
            reach.extend(self.everyone.load().allowed(action).map(Box::from));
        }
        reach.sort_unstable();
        reach.dedup();
        reach
    }

    /// The grants of one subject or of all, in the order of their ids.
    pub fn list(&self, subject: Option<&str>) -> Vec<Grant> {
        let Some(subject) = subject else { return self.all.lock().values().map(|grant| (**grant).clone()).collect() };
        let mut grants: Vec<Grant> = self.rules(subject).all().map(|grant| (**grant).clone()).collect();
        grants.sort_by_key(|grant| grant.id);
        grants
    }

    /// At most `limit` grants behind id `after`, in the order of their ids.
    pub fn page(&self, after: u64, limit: usize) -> Vec<Grant> {
        let all = self.all.lock();
        let behind = all.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
        behind.take(limit).map(|(_, grant)| (**grant).clone()).collect()
    }

    /// How many grants one subject may have.
    pub fn set_quota(&self, most: usize) {
        self.quota.store(most, Ordering::Relaxed);
    }

    /// Whether a subject may have one grant more.
    ///
    /// # Errors
    /// [`GrantError::Quota`], which tells how many it has and what to do.
    pub fn room_for(&self, subject: &str) -> Result<(), GrantError> {
        let most = self.quota.load(Ordering::Relaxed);
        if self.rules(subject).len() < most { Ok(()) } else { Err(GrantError::Quota { subject: subject.into(), most }) }
    }

    /// Adds a rule; it acts at once, and is durable when the commit resolves. The same rule twice is one. Refused as
    /// not storable where [`Permit::room_for`] says no.
    pub fn add(&self, grant: Grant) -> Commit {
        let mut all = self.all.lock();
        let rules = self.rules(&grant.subject);
        if rules.all().any(|standing| standing.is_same(&grant)) {
            return Commit::ready(Ok(()));
        }
        if let Err(error) = self.room_for(&grant.subject) {
            return Commit::ready(Err(StoreError::Invalid(error.to_string().into())));
        }
        let op = Op::Put { table: Table::Grant, item: item(grant.id), value: grant.encode(), expect: Expect::Any };
        let grant = Arc::new(grant);
        self.put(&grant.subject, rules.with(grant.clone()), vec![grant.clone()]);
        all.insert(grant.id, grant);
        self.store.commit(&grants_owner(), vec![op])
    }

    /// Removes the rules that `which` picks of all; gives them. It acts at once, and is durable when the commit resolves.
    pub fn remove(&self, which: impl Fn(&Grant) -> bool) -> (Vec<Grant>, Commit) {
        let mut all = self.all.lock();
        let removed = all.values().filter(|grant| which(grant)).cloned().collect();
        self.take_out(&mut all, removed)
    }

    /// As [`Permit::remove`], of one subject: it looks at no others.
    pub fn remove_subject(&self, subject: &str) -> (Vec<Grant>, Commit) {
        let mut all = self.all.lock();
        let removed = self.rules(subject).all().cloned().collect();
        self.take_out(&mut all, removed)
    }

    /// As [`Permit::remove`], the one with this id.
    pub fn remove_id(&self, id: u64) -> (Option<Grant>, Commit) {
        let mut all = self.all.lock();
        let removed = all.get(&id).cloned().into_iter().collect();
        let (removed, commit) = self.take_out(&mut all, removed);
        (removed.into_iter().next(), commit)
    }

    fn take_out(&self, all: &mut BTreeMap<u64, Arc<Grant>>, removed: Vec<Arc<Grant>>) -> (Vec<Grant>, Commit) {
        let mut by_subject: HashMap<&str, Vec<Arc<Grant>>> = HashMap::new();
        for grant in &removed {
            all.remove(&grant.id);
            by_subject.entry(&grant.subject).or_default().push(grant.clone());
        }
        for (subject, mut grants) in by_subject {
            grants.sort_unstable_by_key(|grant| grant.id);
            let is_among = |grant: &Grant| grants.binary_search_by_key(&grant.id, |grant| grant.id).is_ok();
            self.put(subject, self.rules(subject).without(is_among), grants);
        }
        let delete = |g: &Arc<Grant>| Op::Delete { table: Table::Grant, item: item(g.id), expect: Expect::Any };
        // In steps, the last of which is durable behind the others.
        let steps = removed.chunks(MAX_PAGE).map(|step| step.iter().map(delete).collect());
        let commits = steps.map(|ops: Vec<Op>| self.store.commit(&grants_owner(), ops));
        let commit = commits.last().unwrap_or_else(|| Commit::ready(Ok(())));
        (removed.iter().map(|grant| (**grant).clone()).collect(), commit)
    }

    /// Logs a refusal with the grant that would have allowed it, unless there are too many.
    pub fn log_refusal(&self, who: &Principal, action: Action, filter: &str) {
        REFUSALS.write(|| tracing::info!("{}", refusal(who, action, shown(filter))));
    }

    fn ask(&self, who: &Principal, name: &str, answer: impl FnOnce(Question<'_>) -> bool) -> bool {
        let is_own = is_own(who, name);
        let everyone = matches!(who, Principal::Account(_)).then(|| self.everyone.load());
        let everyone = everyone.as_ref().map(|rules| &***rules);
        let none = Rules::default();
        let Some(subject) = subject(who) else { return answer(Question { is_own, rules: &none, everyone }) };
        let shard = self.shard(subject).read();
        answer(Question { is_own, rules: shard.get(subject).map_or(&none, |rules| &**rules), everyone })
    }

    fn rules(&self, subject: &str) -> Arc<Rules> {
        if subject == EVERYONE {
            return self.everyone.load_full();
        }
        self.shard(subject).read().get(subject).cloned().unwrap_or_default()
    }

    /// `changed` are the grants that make the difference; `all` is held.
    fn put(&self, subject: &str, rules: Rules, changed: Vec<Arc<Grant>>) {
        if subject == EVERYONE {
            self.everyone.store(Arc::new(rules));
        } else if rules.len() == 0 {
            self.shard(subject).write().remove(subject);
        } else {
            self.shard(subject).write().insert(subject.into(), Arc::new(rules));
        }
        let mut changes = self.changes.lock();
        let generation = self.generation() + 1;
        changes.late.extend(changed.into_iter().map(|grant| (generation, grant)));
        while changes.late.len() > CHANGES {
            changes.forgotten = changes.late.pop_front().map_or(generation, |(generation, _)| generation);
        }
        drop(changes);
        self.generation.store(generation, Ordering::Release);
    }

    fn shard(&self, subject: &str) -> &RwLock<HashMap<Box<str>, Arc<Rules>>> {
        &self.shards[self.hasher.hash_one(subject) as usize % SHARDS]
    }
}

/// What the log says of a refusal. The name is the asker's choice: it must neither begin a line of the log nor end a word
/// in the operator's shell.
fn refusal(who: &Principal, action: Action, filter: &str) -> String {
    let name = action.name();
    let refused = format!("refused: {who} may not {name} {filter:?}");
    if writes(action) && is_brokers(filter) {
        refused + ", only the broker writes it"
    } else if filter.contains(|c: char| c == '\'' || c.is_control()) {
        refused
    } else {
        let would = "if no deny rule stands against it, this would allow it";
        format!("{refused}; {would}: tavi-fleet grant add {who} {name} '{filter}'")
    }
}

fn grants_owner() -> Owner {
    Owner::system("grants")
}

fn item(id: u64) -> Box<str> {
    format!("{id:020}").into()
}

fn writes(action: Action) -> bool {
    matches!(action, Action::Publish | Action::Delete | Action::Create)
}

/// Topics that only the broker writes: `$…` and a device's `state`.
fn is_brokers(topic: &str) -> bool {
    topic.starts_with('$')
        || topic.strip_prefix("d/").and_then(|rest| rest.split_once('/')).is_some_and(|(_, name)| name == "state")
}

fn subject(who: &Principal) -> Option<&str> {
    match who {
        Principal::Account(jid) | Principal::Device(jid) | Principal::Bot(jid) => Some(jid.as_str()),
        Principal::Anon { loopback: true } => Some(grant::ANON),
        Principal::Anon { loopback: false } => None,
    }
}

/// The filter of the topics that are somebody's without any grant.
pub fn own_filter(who: &Principal) -> Option<Box<str>> {
    match who {
        Principal::Device(jid) => jid.local().map(|id| format!("d/{id}/#").into()),
        Principal::Account(jid) => jid.local().map(|local| format!("u/{}/#", escape_level(local)).into()),
        Principal::Bot(_) | Principal::Anon { .. } => None,
    }
}

/// Whether a topic, or all that a filter can match, is somebody's without any grant: `d/<id>/#` or `u/<local-part>/#`.
fn is_own(who: &Principal, name: &str) -> bool {
    let rest = match who {
        Principal::Device(jid) => jid.local().and_then(|id| name.strip_prefix("d/")?.strip_prefix(id)),
        Principal::Account(jid) => jid.local().and_then(|local| strip_escaped(name.strip_prefix("u/")?, local)),
        Principal::Bot(_) | Principal::Anon { .. } => None,
    };
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What stands behind the escaped local part in front.
fn strip_escaped<'a>(name: &'a str, local: &str) -> Option<&'a str> {
    let mut one = [0; 4];
    local.chars().try_fold(name, |rest, c| rest.strip_prefix(escape(c).unwrap_or_else(|| c.encode_utf8(&mut one))))
}

fn escape(c: char) -> Option<&'static str> {
    match c {
        '%' => Some("%25"),
        '+' => Some("%2B"),
        '#' => Some("%23"),
        '$' => Some("%24"),
        _ => None,
    }
}

/// A local part as a topic level: `% + # $` percent-encoded. A local part holds no `/`.
pub fn escape_level(local: &str) -> String {
    local.chars().fold(String::with_capacity(local.len()), |mut out, c| {
        match escape(c) {
            Some(escaped) => out.push_str(escaped),
            None => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests;
