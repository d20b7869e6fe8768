//! Properties of topics and filters, over random ones from a small alphabet so that collisions are common.

use proptest::prelude::*;
use tavi_wire::topic::{check_filter, check_topic, covers, covers_together, levels, matches};

fn level() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("b"), Just(""), Just("$s"), Just("é")].prop_map(String::from)
}

fn topic() -> impl Strategy<Value = String> {
    let joined = prop::collection::vec(level(), 1..6).prop_map(|levels| levels.join("/"));
    joined.prop_filter("a topic is not empty", |topic| !topic.is_empty())
}

fn filter() -> impl Strategy<Value = String> {
    let part = prop_oneof![2 => level(), 2 => Just(String::from("+"))];
    let parts = (prop::collection::vec(part, 0..5), any::<bool>());
    let joined = parts.prop_map(|(mut levels, hash)| {
        if hash || levels.is_empty() {
            levels.push("#".into());
        }
        levels.join("/")
    });
    joined.prop_filter("a filter is not empty", |filter| !filter.is_empty())
}

/// The standard's words read as slowly as possible: an independent oracle.
fn slow_match(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        (["#"], _) => true,
        ([], []) => true,
        (["+", filter @ ..], [_, topic @ ..]) => slow_match(filter, topic),
        ([a, filter @ ..], [b, topic @ ..]) => a == b && slow_match(filter, topic),
        _ => false,
    }
}

/// Topics that stand for everything a filter can match: each `+` a fresh level, `#` every depth up to the limit.
fn witnesses(filter: &str) -> Vec<String> {
    let fixed: Vec<&str> = levels(filter).filter(|level| *level != "#").collect();
    let fresh: Vec<&str> = fixed.iter().map(|level| if *level == "+" { "fresh" } else { level }).collect();
    let deepest = if filter.ends_with('#') { 64 - fresh.len() } else { 0 };
    let all = (0..=deepest).map(|depth| [fresh.clone(), vec!["fresh"; depth]].concat().join("/"));
    all.filter(|topic| !topic.is_empty()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn matching_agrees_with_the_slow_reading(filter in filter(), topic in topic()) {
        let hidden = topic.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#'));
        let split = |name| levels(name).collect::<Vec<_>>();
        prop_assert_eq!(matches(&filter, &topic), !hidden && slow_match(&split(&filter), &split(&topic)));
    }

    #[test]
    fn what_is_covered_is_matched(wide in filter(), narrow in filter(), topic in topic()) {
        if covers(&wide, &narrow) && matches(&narrow, &topic) {
            prop_assert!(matches(&wide, &topic));
        }
    }

    #[test]
    fn covering_is_what_the_witnesses_say(wide in filter(), narrow in filter()) {
        let expected = witnesses(&narrow).iter().all(|topic| matches(&wide, topic));
        prop_assert_eq!(covers(&wide, &narrow), expected);
    }

    #[test]
    fn covering_together_is_what_the_witnesses_say(wide in prop::collection::vec(filter(), 0..6), narrow in filter()) {
        let seen = |topic: &String| wide.iter().any(|filter| matches(filter, topic));
        let expected = witnesses(&narrow).iter().all(seen);
        prop_assert_eq!(covers_together(wide.iter().map(String::as_str), &narrow), expected);
    }

    #[test]
    fn covering_is_reflexive_and_a_topic_is_covered_where_it_is_matched(filter in filter(), topic in topic()) {
        prop_assert!(covers(&filter, &filter));
        prop_assert_eq!(covers(&filter, &topic), matches(&filter, &topic));
    }

    #[test]
    fn checks_take_any_text_and_a_topic_is_a_filter(text in "\\PC{0,40}|[ab/+#.]{0,12}|[\\x00-\\x1f/]{0,6}") {
        if check_topic(&text).is_ok() {
            prop_assert_eq!(check_filter(&text), Ok(()));
            prop_assert!(matches(&text, &text));
            prop_assert!(covers("#", &text) != text.starts_with('$'));
        }
    }

    #[test]
    fn generated_names_are_legal(filter in filter(), topic in topic()) {
        prop_assert_eq!(check_filter(&filter), Ok(()));
        prop_assert_eq!(check_topic(&topic), Ok(()));
    }
}
