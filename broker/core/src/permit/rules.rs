//! What the rules of a subject say of a topic, and of all that a filter can match.

use super::Grant;
use std::sync::Arc;
use tavi_wire::{
    grant::Action,
    topic::{covers_together, matches},
};

/// The rules of one subject. A change makes a new one, which shares the grants with the old.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    allow: Vec<Arc<Grant>>,
    deny: Vec<Arc<Grant>>,
}

impl Rules {
    pub fn len(&self) -> usize {
        self.allow.len() + self.deny.len()
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Grant>> {
        self.allow.iter().chain(&self.deny)
    }

    pub fn with(&self, grant: Arc<Grant>) -> Rules {
        self.clone().with_own(grant)
    }

    pub fn with_own(mut self, grant: Arc<Grant>) -> Rules {
        if grant.rights.deny {
            self.deny.push(grant)
        } else {
            self.allow.push(grant)
        }
        self
    }

    pub fn without(&self, which: impl Fn(&Grant) -> bool) -> Rules {
        let left = |grants: &[Arc<Grant>]| grants.iter().filter(|grant| !which(grant)).cloned().collect();
        Rules { allow: left(&self.allow), deny: left(&self.deny) }
    }

    pub fn allows(&self, action: Action, topic: &str) -> bool {
        self.allow.iter().any(|grant| grant.rights.allows(action) && matches(&grant.filter, topic))
    }

    pub fn denies(&self, action: Action, topic: &str) -> bool {
        self.deny.iter().any(|grant| grant.rights.denies(action) && matches(&grant.filter, topic))
    }

    pub fn allowed(&self, action: Action) -> impl Iterator<Item = &str> {
        self.allow.iter().filter(move |grant| grant.rights.allows(action)).map(|grant| &*grant.filter)
    }

    fn denied(&self, action: Action) -> impl Iterator<Item = &str> {
        self.deny.iter().filter(move |grant| grant.rights.denies(action)).map(|grant| &*grant.filter)
    }
}

/// What applies to somebody: what is theirs without any grant, their own rules, and those of the group that they are in.
pub(super) struct Question<'a> {
    pub is_own: bool,
    pub rules: &'a Rules,
    pub everyone: Option<&'a Rules>,
}

impl Question<'_> {
    /// Whether they may do it to the topic. A deny rule beats the grants of its own subject and of a wider one; those
    /// of a narrower subject beat it.
    pub fn may(&self, action: Action, topic: &str) -> bool {
        if self.rules.denies(action, topic) {
            return false;
        }
        if self.is_own || self.rules.allows(action, topic) {
            return true;
        }
        self.everyone.is_some_and(|everyone| !everyone.denies(action, topic) && everyone.allows(action, topic))
    }

    /// Whether the grants cover all that the filter can match, and the deny rules leave something of it. Where those of
    /// the group leave nothing, one's own grants must cover it alone.
    pub fn may_filter(&self, action: Action, filter: &str) -> bool {
        let (mine, no_rules) = (self.rules, Rules::default());
        if covers_together(mine.denied(action), filter) {
            return false;
        }
        if self.is_own || covers_together(mine.allowed(action), filter) {
            return true;
        }
        let everyone = self.everyone.unwrap_or(&no_rules);
        !covers_together(mine.denied(action).chain(everyone.denied(action)), filter)
            && covers_together(mine.allowed(action).chain(everyone.allowed(action)), filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tavi_wire::topic::check_filter;

    const SUBSCRIBE: Action = Action::Subscribe;

    fn rules(list: &[(bool, String)]) -> Rules {
        list.iter().enumerate().fold(Rules::default(), |rules, (id, (deny, filter))| {
            let rights = if *deny { "!subscribe,delete" } else { "subscribe,publish" };
            let grant = Grant::new(id as u64, "@everyone", rights.parse().unwrap(), filter).unwrap();
            rules.with(Arc::new(grant))
        })
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![Just("a"), Just("b"), Just("+"), Just("")];
        let end = prop_oneof![Just(""), Just("/#"), Just("/+")];
        let whole = (proptest::collection::vec(level, 1..3), end).prop_map(|(levels, end)| levels.join("/") + end);
        let whole = prop_oneof![6 => whole, 1 => Just("#".to_owned()), 1 => Just("$a/#".to_owned())];
        whole.prop_filter("a legal filter", |filter| check_filter(filter).is_ok())
    }

    /// All topics that can make a difference: `z` stands for the levels that no rule names, and rules are shallower.
    fn topics() -> Vec<String> {
        let (mut all, mut last) = (Vec::new(), vec![String::new()]);
        for depth in 0..4 {
            let deeper = |topic: &String| {
                ["a", "b", "z", "", "$a"].map(|level| match depth {
                    0 => level.to_owned(),
                    _ => format!("{topic}/{level}"),
                })
            };
            last = last.iter().flat_map(deeper).filter(|topic| depth == 0 || !topic.contains("/$")).collect();
            all.extend(last.iter().filter(|topic| !topic.is_empty()).cloned());
        }
        all
    }

    /// The rule of the design, word by word.
    fn naive(mine: &[(bool, String)], everyone: &[(bool, String)], topic: &str) -> bool {
        let any = |rules: &[(bool, String)], deny| rules.iter().any(|(d, filter)| *d == deny && matches(filter, topic));
        let by_mine = any(mine, false) && !any(mine, true);
        let by_group = any(everyone, false) && !any(everyone, true) && !any(mine, true);
        by_mine || by_group
    }

    fn some_rules() -> impl Strategy<Value = Vec<(bool, String)>> {
        proptest::collection::vec((proptest::bool::weighted(0.3), filter()), 0..5)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn the_answer_is_that_of_all_rules_one_by_one(mine in some_rules(), everyone in some_rules()) {
            let (my_rules, group) = (rules(&mine), rules(&everyone));
            let question = Question { is_own: false, rules: &my_rules, everyone: Some(&group) };
            for topic in topics() {
                prop_assert_eq!(question.may(SUBSCRIBE, &topic), naive(&mine, &everyone, &topic), "{}", topic);
                prop_assert!(!question.may(Action::Retrieve, &topic));
            }
        }

        #[test]
        fn a_filter_is_allowed_exactly_if_all_that_it_matches_is_granted_and_not_all_denied(
            mine in some_rules(), everyone in some_rules(), filter in filter()
        ) {
            let (my_rules, group) = (rules(&mine), rules(&everyone));
            let question = Question { is_own: false, rules: &my_rules, everyone: Some(&group) };
            let may = question.may_filter(SUBSCRIBE, &filter);
            let topics: Vec<_> = topics().into_iter().filter(|topic| matches(&filter, topic)).collect();
            let granted = |topic: &String| {
                mine.iter().chain(&everyone).any(|(deny, filter)| !deny && matches(filter, topic))
            };
            if may {
                prop_assert!(topics.iter().all(granted), "something is not granted");
            } else {
                let open = topics.iter().filter(|topic| question.may(SUBSCRIBE, topic)).count();
                let denied = |topic: &&String| {
                    mine.iter().chain(&everyone).any(|(deny, filter)| *deny && matches(filter, topic))
                };
                let all_denied = topics.iter().filter(denied).count() == topics.len();
                prop_assert!(open == 0 || all_denied || !topics.iter().all(granted), "granted, and something is open");
            }
        }
    }
}
