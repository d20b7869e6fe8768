//! The one answer of the access model: may this principal do this there? Deny by default.

use crate::principal::Principal;
use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tavi_store::{Commit, Expect, Op, Owner, SharedStore, StoreError, Table};
use tavi_wire::topic::{check_filter, covers, covers_together, matches};

/// What somebody may want to do with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read the retained value, items, GET.
    Retrieve,
    /// SUBSCRIBE, Observe, pubsub subscribe. OCF's `notify`.
    Subscribe,
    /// PUBLISH, will, PUT, POST. OCF's `update`.
    Publish,
    /// Clear a topic's values.
    Delete,
    /// Create a node.
    Create,
    /// Call an operation.
    Invoke,
}

const NAMES: [(Action, &str); 8] = [
    (Action::Retrieve, "retrieve"),
    (Action::Subscribe, "subscribe"),
    (Action::Publish, "publish"),
    (Action::Delete, "delete"),
    (Action::Create, "create"),
    (Action::Invoke, "invoke"),
    (Action::Subscribe, "notify"),
    (Action::Publish, "update"),
];

impl Action {
    /// Its name in grants.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].1
    }
}

/// A set of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions(u8);

impl Actions {
    /// All six.
    pub const ALL: Actions = Actions(0b11_1111);

    /// The set with `action` added.
    pub fn with(self, action: Action) -> Actions {
        Actions(self.0 | 1 << action as u8)
    }

    /// Whether `action` is in it.
    pub fn has(self, action: Action) -> bool {
        self.0 & 1 << action as u8 != 0
    }
}

impl fmt::Display for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = NAMES[..6].iter().filter(|(a, _)| self.has(*a)).map(|(_, name)| *name).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Actions {
    type Err = GrantError;

    fn from_str(list: &str) -> Result<Actions, GrantError> {
        list.split(',').map(str::trim).try_fold(Actions::default(), |set, word| {
            let found = NAMES.iter().find(|(_, name)| *name == word);
            found.map(|(action, _)| set.with(*action)).ok_or_else(|| GrantError::Action(word.into()))
        })
    }
}

/// Why a grant is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// An unknown action.
    #[error("{0:?} is no action: use retrieve, subscribe, publish, delete, create, invoke")]
    Action(Box<str>),
    /// The filter is not one.
    #[error("{0:?} is no valid topic filter")]
    Filter(Box<str>),
    /// The subject is none.
    #[error("{0:?} is no subject: use a JID such as juliet@localhost, @everyone, or anon-clear")]
    Subject(Box<str>),
}

/// One rule: a subject may do these actions on what the filter matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its id, for removal.
    pub id: u64,
    /// A bare JID, `@group` or `anon-clear`.
    pub subject: Box<str>,
    /// What.
    pub actions: Actions,
    /// Where: an MQTT topic filter.
    pub filter: Box<str>,
}

impl Grant {
    /// A checked rule; `subject` is a bare JID in normal form, `@everyone` or `anon-clear`.
    ///
    /// # Errors
    /// If the subject or the filter is none.
    pub fn new(id: u64, subject: &str, actions: Actions, filter: &str) -> Result<Grant, GrantError> {
        check_filter(filter).map_err(|_| GrantError::Filter(filter.into()))?;
        let subject = normal_subject(subject).ok_or_else(|| GrantError::Subject(subject.into()))?;
        Ok(Grant { id, subject, actions, filter: filter.into() })
    }

    fn encode(&self) -> Bytes {
        format!("{}\n{}\n{}", self.subject, self.actions, self.filter).into()
    }

    fn decode(id: &str, value: &[u8]) -> Option<Grant> {
        let mut fields = std::str::from_utf8(value).ok()?.splitn(3, '\n');
        let (subject, actions, filter) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Grant {
            id: id.parse().ok()?,
            subject: subject.into(),
            actions: actions.parse().ok()?,
            filter: filter.into(),
        })
    }
}

fn normal_subject(subject: &str) -> Option<Box<str>> {
    if subject == "anon-clear" || subject == EVERYONE {
        return Some(subject.into());
    }
    let jid: tavi_xmpp_proto::jid::BareJid = subject.parse().ok()?;
    jid.local().map(|_| jid.as_str().into())
}

/// The group of all accounts.
pub const EVERYONE: &str = "@everyone";

type Rules = HashMap<Box<str>, Vec<Grant>>;

/// The access model of a node. Reads take no lock; a change acts at once, on live sessions too.
pub struct Permit {
    rules: ArcSwap<Rules>,
    generation: AtomicU64,
    change: Mutex<()>,
    store: SharedStore,
}

impl Permit {
    /// Reads the grants of the store.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn load(store: SharedStore) -> Result<Permit, StoreError> {
        let mut rules = Rules::new();
        let (owner, mut after) = (grants_owner(), None::<Box<str>>);
        loop {
            let page = store.list(&owner, Table::Grant, after.as_deref(), 1000).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for grant in page.iter().filter_map(|(id, record)| Grant::decode(id, &record.value)) {
                rules.entry(grant.subject.clone()).or_default().push(grant);
            }
        }
        Ok(Permit { rules: ArcSwap::from_pointee(rules), generation: AtomicU64::new(1), change: Mutex::new(()), store })
    }

    /// Grows with each change of the grants: what was decided under an older one must be asked again.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether `who` may do `action` on the topic.
    pub fn may(&self, who: &Principal, action: Action, topic: &str) -> bool {
        if writes(action) && is_brokers(topic) {
            return false;
        }
        own_filter(who, |own| matches(own, topic))
            || self.any_grant(who, |grant| grant.actions.has(action) && matches(&grant.filter, topic))
    }

    /// Whether `who` may do `action` on every topic that the filter can match.
    pub fn may_filter(&self, who: &Principal, action: Action, filter: &str) -> bool {
        if !filter.contains(['+', '#']) {
            return self.may(who, action, filter);
        }
        let single = own_filter(who, |own| covers(own, filter))
            || self.any_grant(who, |grant| grant.actions.has(action) && covers(&grant.filter, filter));
        single || self.together(who, action, filter)
    }

    /// Filters that together cover every topic on which `who` may do `action`; some may lie within others.
    pub fn reach(&self, who: &Principal, action: Action) -> Vec<Box<str>> {
        let rules = self.rules.load();
        let granted = subjects(who).into_iter().flatten().filter_map(|s| rules.get(s)).flatten();
        let granted = granted.filter(|grant| grant.actions.has(action)).map(|grant| grant.filter.clone());
        let mut reach: Vec<Box<str>> = own_filter_text(who).map(Into::into).into_iter().chain(granted).collect();
        reach.sort_unstable();
        reach.dedup();
        reach
    }

    /// The grants of one subject or of all.
    pub fn list(&self, subject: Option<&str>) -> Vec<Grant> {
        let rules = self.rules.load();
        let mut all: Vec<Grant> = rules
            .iter()
            .filter(|(s, _)| subject.is_none_or(|want| &***s == want))
            .flat_map(|(_, g)| g.clone())
            .collect();
        all.sort_by_key(|grant| grant.id);
        all
    }

    /// Adds a rule; it acts at once, and is durable when the commit resolves. The same rule twice is one.
    pub fn add(&self, grant: Grant) -> Commit {
        let _change = self.change.lock();
        let mut rules = Rules::clone(&self.rules.load());
        let of_subject = rules.entry(grant.subject.clone()).or_default();
        if of_subject.iter().any(|g| g.actions == grant.actions && g.filter == grant.filter) {
            return Commit::ready(Ok(()));
        }
        let op = Op::Put { table: Table::Grant, item: item(grant.id), value: grant.encode(), expect: Expect::Any };
        of_subject.push(grant);
        self.put(rules);
        self.store.commit(&grants_owner(), vec![op])
    }

    /// Removes the rules that `which` picks; gives them. It acts at once, and is durable when the commit resolves.
    pub fn remove(&self, which: impl Fn(&Grant) -> bool) -> (Vec<Grant>, Commit) {
        let _change = self.change.lock();
        let mut rules = Rules::clone(&self.rules.load());
        let mut removed = Vec::new();
        for of_subject in rules.values_mut() {
            removed.extend(of_subject.extract_if(.., |grant| which(grant)));
        }
        rules.retain(|_, of_subject| !of_subject.is_empty());
        self.put(rules);
        let delete = |g: &Grant| Op::Delete { table: Table::Grant, item: item(g.id), expect: Expect::Any };
        let ops: Vec<Op> = removed.iter().map(delete).collect();
        let commit = if ops.is_empty() { Commit::ready(Ok(())) } else { self.store.commit(&grants_owner(), ops) };
        (removed, commit)
    }

    /// Logs a refusal with the grant that would have allowed it.
    pub fn log_refusal(&self, who: &Principal, action: Action, filter: &str) {
        if writes(action) && is_brokers(filter) {
            tracing::info!(%who, action = action.name(), topic = filter, "refused: only the broker writes this topic");
        } else {
            tracing::info!(
                "refused: {who} may not {} {filter:?}; this would allow it: tavi-fleet grant add {who} {} '{filter}'",
                action.name(),
                action.name()
            );
        }
    }

    fn put(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn any_grant(&self, who: &Principal, test: impl Fn(&Grant) -> bool) -> bool {
        let rules = self.rules.load();
        subjects(who).into_iter().flatten().any(|s| rules.get(s).is_some_and(|grants| grants.iter().any(&test)))
    }

    /// Whether several rules together cover the filter.
    fn together(&self, who: &Principal, action: Action, filter: &str) -> bool {
        let rules = self.rules.load();
        let own = own_filter_text(who);
        let granted = subjects(who).into_iter().flatten().filter_map(|s| rules.get(s)).flatten();
        let granted = granted.filter(|grant| grant.actions.has(action)).map(|grant| &*grant.filter);
        covers_together(own.as_deref().into_iter().chain(granted), filter)
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

fn subjects(who: &Principal) -> [Option<&str>; 2] {
    match who {
        Principal::Account(jid) => [Some(jid.as_str()), Some(EVERYONE)],
        Principal::Device(jid) | Principal::Bot(jid) => [Some(jid.as_str()), None],
        Principal::Anon { loopback: true } => [Some("anon-clear"), None],
        Principal::Anon { loopback: false } => [None, None],
    }
}

/// The filter of the topics that are somebody's own without any grant.
fn own_filter_text(who: &Principal) -> Option<String> {
    match who {
        Principal::Device(jid) => jid.local().map(|id| format!("d/{id}/#")),
        Principal::Account(jid) => jid.local().map(|local| format!("u/{}/#", escape_level(local))),
        Principal::Bot(_) | Principal::Anon { .. } => None,
    }
}

fn own_filter(who: &Principal, test: impl Fn(&str) -> bool) -> bool {
    own_filter_text(who).is_some_and(|own| test(&own))
}

/// A local part as a topic level: `% + # $` percent-encoded. A local part holds no `/`.
pub fn escape_level(local: &str) -> String {
    local.chars().fold(String::with_capacity(local.len()), |mut out, c| {
        match c {
            '%' => out.push_str("%25"),
            '+' => out.push_str("%2B"),
            '#' => out.push_str("%23"),
            '$' => out.push_str("%24"),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tavi_store::MemoryStore;

    fn person(name: &str) -> Principal {
        Principal::Account(format!("{name}@localhost").parse().unwrap())
    }

    fn device() -> Principal {
        Principal::Device("abc@things.localhost".parse().unwrap())
    }

    async fn permit(grants: &[(&str, &str, &str)]) -> Permit {
        let permit = Permit::load(Arc::new(MemoryStore::default())).await.unwrap();
        for (n, (subject, actions, filter)) in grants.iter().enumerate() {
            permit.add(Grant::new(n as u64, subject, actions.parse().unwrap(), filter).unwrap()).await.unwrap();
        }
        permit
    }

    #[tokio::test]
    async fn without_grants_everybody_has_only_their_own() {
        let permit = permit(&[]).await;
        assert!(permit.may(&device(), Action::Publish, "d/abc/up/t"));
        assert!(permit.may_filter(&device(), Action::Subscribe, "d/abc/cmd/#"));
        assert!(!permit.may(&device(), Action::Publish, "d/abc/state"), "only the broker writes it");
        assert!(permit.may(&device(), Action::Retrieve, "d/abc/state"));
        assert!(!permit.may(&device(), Action::Publish, "d/abcd/up/t"));
        assert!(!permit.may_filter(&device(), Action::Subscribe, "d/+/up/t"));
        assert!(permit.may(&person("romeo"), Action::Publish, "u/romeo/notes"));
        assert!(!permit.may(&person("romeo"), Action::Retrieve, "u/juliet/notes"));
        assert!(!permit.may(&Principal::Anon { loopback: true }, Action::Retrieve, "u/romeo/notes"));
    }

    #[tokio::test]
    async fn grants_act_at_once_and_end_at_once() {
        let permit = permit(&[("@everyone", "retrieve,notify", "d/+/up/#")]).await;
        assert!(permit.may_filter(&person("romeo"), Action::Subscribe, "d/abc/up/+"));
        assert!(!permit.may_filter(&person("romeo"), Action::Subscribe, "d/#"));
        assert!(!permit.may(&person("romeo"), Action::Publish, "d/abc/up/t"));
        let before = permit.generation();
        let (removed, commit) = permit.remove(|grant| grant.id == 0);
        commit.await.unwrap();
        assert_eq!(removed.len(), 1);
        assert!(permit.generation() > before);
        assert!(!permit.may_filter(&person("romeo"), Action::Subscribe, "d/abc/up/+"));
    }

    #[tokio::test]
    async fn nobody_can_be_granted_what_the_broker_writes() {
        let permit = permit(&[("@everyone", "publish,delete,create", "#"), ("@everyone", "publish", "$SYS/#")]).await;
        assert!(!permit.may(&person("romeo"), Action::Publish, "d/abc/state"));
        assert!(!permit.may(&person("romeo"), Action::Publish, "$SYS/load"));
        assert!(permit.may(&person("romeo"), Action::Publish, "d/abc/cmd/x"));
    }

    #[tokio::test]
    async fn several_grants_together_may_cover_a_filter() {
        let permit = permit(&[("@everyone", "subscribe", "a"), ("@everyone", "subscribe", "a/+/#")]).await;
        assert!(permit.may_filter(&person("romeo"), Action::Subscribe, "a/#"));
        let half = self::permit(&[("@everyone", "subscribe", "a/b"), ("@everyone", "subscribe", "a/c")]).await;
        assert!(!half.may_filter(&person("romeo"), Action::Subscribe, "a/+"));
    }

    #[test]
    fn grants_are_read_back_as_they_were_written() {
        let grant = Grant::new(9, "Romeo@LOCALHOST", "notify,update".parse().unwrap(), "a/+/#").unwrap();
        assert_eq!(&*grant.subject, "romeo@localhost");
        assert_eq!(grant.actions.to_string(), "subscribe,publish");
        assert_eq!(Grant::decode("9", &grant.encode()), Some(grant));
        assert_eq!("fly".parse::<Actions>(), Err(GrantError::Action("fly".into())));
        assert!(Grant::new(1, "a/b", Actions::ALL, "a/#/b").is_err());
    }
}
