//! Who receives what is published to a topic: found in the trie, judged by the access model, kept until either changes.

use super::{SubOptions, Subscriber, Topics};
use crate::{
    permit::{Action, EVERYONE, Grant},
    publication::Publication,
};
use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;
use std::sync::Arc;
use tavi_wire::topic::matches;

/// One subscription as the trie holds it.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) subscriber: Arc<dyn Subscriber>,
    pub(super) options: SubOptions,
    /// Of the members of one group only one receives each publication (MQTT 5 §4.8.2).
    pub(super) group: Option<Arc<str>>,
}

/// One receiver of a publication with the options of all its matching filters.
#[derive(Clone)]
pub(crate) struct Match {
    pub(super) subscriber: Arc<dyn Subscriber>,
    pub(super) options: SmallVec<[SubOptions; 1]>,
}

/// All that a topic's subscriptions come to.
#[derive(Default)]
pub(super) struct Receivers {
    /// Each of them receives.
    all: Vec<Match>,
    /// Of each group one receives.
    groups: Vec<Vec<Match>>,
    /// Who subscribes as well, and may not.
    refused: HashSet<Box<str>>,
}

/// Receivers that were found for a topic, and what they depend on.
pub(super) struct Found {
    receivers: Arc<Receivers>,
    signature: u64,
    changes: u64,
    grants: u64,
}

/// The receivers of one publication.
#[derive(Clone, Default)]
pub(super) struct Audience {
    receivers: Arc<Receivers>,
    /// Draws the member of each group that receives.
    turn: u64,
    /// Who subscribed while it was being saved.
    pub(super) joined: Vec<Match>,
    /// The same, but with rows of their own: they are told by themselves.
    pub(super) late: Vec<u64>,
}

impl Match {
    /// Whether it is not its own, or it wants that too.
    pub(super) fn wants(&self, publication: &Publication) -> bool {
        publication.from_session != self.subscriber.id() || self.options.iter().any(|o| !o.no_local)
    }
}

impl Audience {
    /// Whether there are several receivers.
    pub(super) fn is_many(&self) -> bool {
        self.receivers() > 1
    }

    /// How many had subscribed when it was begun, whether they want it or not; of a group one counts.
    pub(super) fn receivers(&self) -> usize {
        self.receivers.all.len() + self.receivers.groups.len()
    }

    /// One of the receivers; behind them are those who joined.
    pub(super) fn get(&self, at: usize) -> Option<&Match> {
        let Receivers { all, groups, .. } = &*self.receivers;
        if let Some(to) = all.get(at) {
            return Some(to);
        }
        let at = at - all.len();
        match groups.get(at) {
            Some(group) => group.get((self.turn % group.len().max(1) as u64) as usize),
            None => self.joined.get(at - groups.len()),
        }
    }

    /// Whether somebody receives it by a subscription that is not a group's.
    pub(super) fn has(&self, id: u64) -> bool {
        self.receivers.all.iter().chain(&self.joined).any(|m| m.subscriber.id() == id) || self.late.contains(&id)
    }
}

impl Receivers {
    /// Whether a grant of `subject` can change who receives.
    fn concerns(&self, subject: &str) -> bool {
        let is_its = |m: &Match| m.subscriber.principal().subject() == subject;
        subject == EVERYONE
            || self.refused.contains(subject)
            || self.all.iter().chain(self.groups.iter().flatten()).any(is_its)
    }
}

impl Found {
    /// About how many bytes are kept with it.
    pub(super) fn weight(&self) -> usize {
        let members: usize = self.receivers.groups.iter().map(Vec::len).sum();
        (self.receivers.all.len() + members) * size_of::<Match>()
    }
}

impl Topics {
    /// The receivers of a topic, with the number of changes of subscriptions that they take in: whoever subscribed with
    /// that change or an earlier one is among them.
    pub(super) fn audience(&self, kept: &mut Option<Found>, topic: &str) -> (Audience, u64) {
        let (receivers, changes) = self.receivers(kept, topic);
        let turn = if receivers.groups.is_empty() { 0 } else { self.next_turn() };
        (Audience { receivers, turn, ..Audience::default() }, changes)
    }

    pub(super) fn receivers(&self, kept: &mut Option<Found>, topic: &str) -> (Arc<Receivers>, u64) {
        let grants = self.permit.generation();
        if let Some(found) = kept.as_mut().filter(|found| found.grants != grants) {
            let receivers = found.receivers.clone();
            let concerns = |grant: &Grant| {
                grant.rights.actions.has(Action::Subscribe)
                    && matches(&grant.filter, topic)
                    && receivers.concerns(&grant.subject)
            };
            if !self.permit.changed(found.grants, grants, concerns) {
                found.grants = grants;
            }
        }
        let trie = self.trie.read();
        let changes = trie.changes();
        if let Some(found) = kept.as_mut().filter(|found| found.grants == grants)
            && (found.changes == changes || found.signature == trie.signature(topic))
        {
            found.changes = changes;
            return (found.receivers.clone(), changes);
        }
        let signature = trie.signature(topic);
        let mut entries = Vec::new();
        trie.each_match(topic, &mut |id, entry: &Entry| entries.push((id, entry.clone())));
        // The access model is asked without a lock: there may be many.
        drop(trie);
        let receivers = Arc::new(self.judge(entries, topic));
        *kept = Some(Found { receivers: receivers.clone(), signature, changes, grants });
        (receivers, changes)
    }

    fn judge(&self, entries: Vec<(u64, Entry)>, topic: &str) -> Receivers {
        let mut found = Receivers { all: Vec::with_capacity(entries.len()), ..Receivers::default() };
        let (mut by_id, mut refused) = (HashMap::<u64, usize>::new(), HashSet::new());
        let mut groups = HashMap::<Arc<str>, Vec<Match>>::new();
        for (id, Entry { subscriber, options, group }) in entries {
            if refused.contains(&id) {
                continue;
            }
            if let Some(at) = by_id.get(&id).filter(|_| group.is_none()) {
                found.all[*at].options.push(options);
            } else if !self.permit.may(subscriber.principal(), Action::Subscribe, topic) {
                found.refused.insert(subscriber.principal().subject().into());
                refused.insert(id);
            } else if let Some(group) = group {
                groups.entry(group).or_default().push(Match { subscriber, options: SmallVec::from_elem(options, 1) });
            } else {
                by_id.insert(id, found.all.len());
                found.all.push(Match { subscriber, options: SmallVec::from_elem(options, 1) });
            }
        }
        found.groups = groups.into_values().collect();
        found
    }
}
