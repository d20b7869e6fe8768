//! What two topic filters have in common: a bot that asks for more than it is granted hears what it is granted.

/// The filter that matches what both match; `None` if there is no such topic. Both are legal (MQTT 5.0 §4.7).
pub fn intersect(one: &str, other: &str) -> Option<String> {
    let (one, other): (Vec<&str>, Vec<&str>) = (one.split('/').collect(), other.split('/').collect());
    let mut levels = Vec::new();
    let mut at = 0;
    loop {
        match (one.get(at).copied(), other.get(at).copied()) {
            (None, None) => break,
            // "#" stands for the rest of the other, and also for nothing at all.
            (Some("#"), _) => {
                levels.extend_from_slice(&other[at..]);
                break;
            }
            (_, Some("#")) => {
                levels.extend_from_slice(&one[at..]);
                break;
            }
            (Some("+"), Some(level)) | (Some(level), Some("+")) => levels.push(level),
            (Some(a), Some(b)) if a == b => levels.push(a),
            _ => return None,
        }
        at += 1;
    }
    Some(levels.join("/")).filter(|filter| !filter.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tavi_wire::topic::{check_filter, check_topic, matches};

    #[test]
    fn what_both_match() {
        for (one, other, both) in [
            ("d/+/up/+", "d/lamp/up/#", Some("d/lamp/up/+")),
            ("d/+/up/temperature", "d/lamp/#", Some("d/lamp/up/temperature")),
            ("#", "a/b", Some("a/b")),
            ("a/#", "a", Some("a")),
            ("a/+", "+/b", Some("a/b")),
            ("a/b", "a/c", None),
            ("a/b", "a", None),
            ("d/+/up/+", "home/#", None),
        ] {
            assert_eq!(intersect(one, other).as_deref(), both, "{one} and {other}");
            assert_eq!(intersect(other, one).as_deref(), both, "{other} and {one}");
        }
    }

    fn filters() -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(vec!["a", "b", "+", "#"]), 1..4).prop_map(|l| l.join("/"))
    }

    proptest! {
        #[test]
        fn a_topic_is_in_both_exactly_if_it_is_in_what_they_have_in_common(
            one in filters(), other in filters(),
            topic in proptest::collection::vec(proptest::sample::select(vec!["a", "b", "c"]), 1..5),
        ) {
            let topic = topic.join("/");
            prop_assume!(check_filter(&one).is_ok() && check_filter(&other).is_ok() && check_topic(&topic).is_ok());
            let both = intersect(&one, &other);
            prop_assert!(both.as_deref().is_none_or(|filter| check_filter(filter).is_ok()));
            let expected = matches(&one, &topic) && matches(&other, &topic);
            prop_assert_eq!(both.is_some_and(|filter| matches(&filter, &topic)), expected);
        }
    }
}
