//! What a legal topic and a legal filter are, what a filter matches, and whether filters cover another one.
//!
//! A topic is one string in every protocol: an MQTT topic name (MQTT 5 §4.7), a pubsub node (XEP-0060) and a
//! CoAP path (RFC 7252 §5.10.1). It is compared byte for byte and never normalised.

use core::fmt;
use core::str::Split;

/// The most bytes that a topic or a filter may have.
pub const MAX_BYTES: usize = 1024;
/// The most levels that a topic or a filter may have; `a/b` has two.
pub const MAX_LEVELS: usize = 64;
/// The most bytes that one level may have: the longest CoAP Uri-Path segment (RFC 7252 §5.10).
pub const MAX_LEVEL_BYTES: usize = 255;

/// Why a topic or a filter is illegal; always the fault of whoever wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicError {
    /// It has no character at all (MQTT 5 §4.7.3).
    Empty,
    /// It has more than [`MAX_BYTES`] bytes.
    TooLong,
    /// It has more than [`MAX_LEVELS`] levels.
    TooManyLevels,
    /// One level has more than [`MAX_LEVEL_BYTES`] bytes.
    LevelTooLong,
    /// This character is not legal in XML 1.0 (§2.2).
    IllegalCharacter(char),
    /// A level is `.` or `..`, which a URI would resolve away (RFC 3986 §5.2.4).
    DotLevel,
    /// A topic, which names one value, contains `+` or `#` (MQTT 5 §4.7.1).
    WildcardInTopic,
    /// In a filter, `+` shares its level, or `#` shares its level or is not the last one (MQTT 5 §4.7.1.2 and §4.7.1.3).
    MisplacedWildcard,
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a topic needs at least one character"),
            Self::TooLong => write!(f, "a topic has at most {MAX_BYTES} bytes"),
            Self::TooManyLevels => write!(f, "a topic has at most {MAX_LEVELS} levels"),
            Self::LevelTooLong => write!(f, "a level of a topic has at most {MAX_LEVEL_BYTES} bytes"),
            Self::IllegalCharacter(c) => write!(f, "the character U+{:04X} is not allowed in a topic", *c as u32),
            Self::DotLevel => f.write_str("a level of a topic must not be '.' or '..'"),
            Self::WildcardInTopic => f.write_str("'+' and '#' stand in filters only, not in a topic"),
            Self::MisplacedWildcard => {
                f.write_str("'+' must be a whole level, '#' a whole level and the last one of the filter")
            }
        }
    }
}

impl core::error::Error for TopicError {}

/// The levels of a topic or filter in order: `a//b` has `a`, an empty one, and `b`.
pub fn levels(name: &str) -> Split<'_, char> {
    name.split('/')
}

/// Tells whether `topic` may name a value.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_topic(topic: &str) -> Result<(), TopicError> {
    check_size(topic)?;
    check_characters(topic)?;
    if is_filter(topic) { Err(TopicError::WildcardInTopic) } else { Ok(()) }
}

/// Tells whether `filter` may be subscribed to. Each legal topic is a legal filter.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_filter(filter: &str) -> Result<(), TopicError> {
    check_size(filter)?;
    check_characters(filter)?;
    let mut rest = levels(filter);
    while let Some(level) = rest.next() {
        let alone = level.len() == 1;
        if level.contains('+') && !alone {
            return Err(TopicError::MisplacedWildcard);
        }
        if level.contains('#') && !(alone && rest.clone().next().is_none()) {
            return Err(TopicError::MisplacedWildcard);
        }
    }
    Ok(())
}

/// Whether `name` contains a wildcard, so that it can be subscribed to but not published to.
pub fn is_filter(name: &str) -> bool {
    name.bytes().any(|b| matches!(b, b'+' | b'#'))
}

/// Whether a legal `filter` matches a legal `topic` (MQTT 5 §4.7).
///
/// `a/#` matches `a` too (§4.7.1.2), and a filter that begins with a wildcard matches no topic that begins
/// with `$` (§4.7.2).
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && starts_with_wildcard(filter) {
        return false;
    }
    let mut wanted = levels(filter);
    for level in levels(topic) {
        match wanted.next() {
            Some("#") => return true,
            Some("+") => {}
            Some(literal) if literal == level => {}
            _ => return false,
        }
    }
    matches!(wanted.next(), None | Some("#"))
}

/// Whether the legal filter `wide` matches every legal topic that the legal filter `narrow` can match.
pub fn covers(wide: &str, narrow: &str) -> bool {
    covers_together(core::iter::once(wide), narrow)
}

/// Whether the legal filters `wide`, taken together, match every legal topic that `narrow` can match.
///
/// `a` and `a/+/#` together cover `a/#`, although neither does alone.
pub fn covers_together<'a>(wide: impl IntoIterator<Item = &'a str>, narrow: &str) -> bool {
    let needed = needed_depths(narrow);
    let mut covered = 0;
    wide.into_iter().any(|filter| {
        covered |= covered_depths(filter, narrow);
        covered & needed == needed
    })
}

/// A set of depths: bit `d` stands for the topics with `d` levels more than the filter has before its `#`.
///
/// A finite list of literals never exhausts what `+` or `#` stands for, so filters can only complement each
/// other in depth, and a set of at most 65 depths decides the cover of several filters exactly.
type Depths = u128;

/// The depths that `narrow` can match: only 0 without `#`, else all up to [`MAX_LEVELS`].
fn needed_depths(narrow: &str) -> Depths {
    if !ends_with_hash(narrow) {
        return 1;
    }
    let before = levels(narrow).count() - 1;
    let all = from_depth(0) & !from_depth(MAX_LEVELS.saturating_sub(before) + 1);
    // At depth 0 these two would match the empty topic, and there is none.
    if matches!(narrow, "#" | "/#") { all & !1 } else { all }
}

/// The depths of `narrow` that `wide` matches completely.
fn covered_depths(wide: &str, narrow: &str) -> Depths {
    // MQTT 5 §4.7.2: a leading wildcard leaves out the topics that begin with `$`.
    if narrow.starts_with('$') && starts_with_wildcard(wide) {
        return 0;
    }
    let mut wanted = levels(wide);
    for level in levels(narrow) {
        if level == "#" {
            return depths_of_tail(wanted);
        }
        match wanted.next() {
            Some("#") => return from_depth(0),
            Some("+") => {}
            Some(literal) if literal == level => {}
            _ => return 0,
        }
    }
    if matches!(wanted.next(), None | Some("#")) { 1 } else { 0 }
}

/// What is left of a filter where the narrow one says `#`: `+/+` is depth 2, `+/#` all from 1, a literal none.
fn depths_of_tail(tail: Split<'_, char>) -> Depths {
    let mut depth = 0;
    for level in tail {
        match level {
            "#" => return from_depth(depth),
            "+" => depth += 1,
            _ => return 0,
        }
    }
    from_depth(depth) & !from_depth(depth + 1)
}

fn from_depth(depth: usize) -> Depths {
    if depth < 128 { Depths::MAX << depth } else { 0 }
}

fn ends_with_hash(filter: &str) -> bool {
    levels(filter).next_back() == Some("#")
}

fn starts_with_wildcard(filter: &str) -> bool {
    filter.starts_with(['+', '#'])
}

fn check_size(name: &str) -> Result<(), TopicError> {
    if name.is_empty() {
        return Err(TopicError::Empty);
    }
    if name.len() > MAX_BYTES {
        return Err(TopicError::TooLong);
    }
    let mut count = 0;
    for level in levels(name) {
        count += 1;
        match level {
            "." | ".." => return Err(TopicError::DotLevel),
            _ if level.len() > MAX_LEVEL_BYTES => return Err(TopicError::LevelTooLong),
            _ if count > MAX_LEVELS => return Err(TopicError::TooManyLevels),
            _ => {}
        }
    }
    Ok(())
}

fn check_characters(name: &str) -> Result<(), TopicError> {
    match name.chars().find(|c| !is_xml_char(*c)) {
        Some(c) => Err(TopicError::IllegalCharacter(c)),
        None => Ok(()),
    }
}

/// XML 1.0 §2.2, production `Char`; surrogates do not occur in a `char`.
fn is_xml_char(c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' => true,
        '\u{FFFE}' | '\u{FFFF}' => false,
        c => c >= ' ',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    #[test]
    fn ordinary_topics_are_legal() {
        for topic in ["a", "/", "a//b", "d/x/up/temp", "$SYS/x", "ünï/世界", "tab\there", "...", "a b"] {
            assert_eq!(check_topic(topic), Ok(()), "{topic}");
            assert_eq!(check_filter(topic), Ok(()), "{topic}");
        }
    }

    #[test]
    fn each_rule_names_itself() {
        let long = "x".repeat(256);
        let huge = ["y"; 600].join("/");
        let cases = [
            ("", TopicError::Empty),
            (&*huge, TopicError::TooLong),
            (&"/".repeat(64), TopicError::TooManyLevels),
            (&long, TopicError::LevelTooLong),
            ("a\u{1}b", TopicError::IllegalCharacter('\u{1}')),
            ("a\0b", TopicError::IllegalCharacter('\0')),
            ("a\u{FFFE}", TopicError::IllegalCharacter('\u{FFFE}')),
            ("a/./b", TopicError::DotLevel),
            ("..", TopicError::DotLevel),
        ];
        for (name, error) in cases {
            assert_eq!(check_topic(name), Err(error), "{name:?}");
            assert_eq!(check_filter(name), Err(error), "{name:?}");
        }
        assert_eq!(check_topic("a/+"), Err(TopicError::WildcardInTopic));
        assert_eq!(check_topic("a#"), Err(TopicError::WildcardInTopic));
    }

    #[test]
    fn limits_are_inclusive() {
        assert_eq!(check_topic(&"/".repeat(63)), Ok(()));
        assert_eq!(check_topic(&"x".repeat(255)), Ok(()));
        let full = ["z".repeat(255), "z".repeat(255), "z".repeat(255), "z".repeat(256 - 2), String::from("")].join("/");
        assert_eq!((full.len(), check_topic(&full)), (1023, Ok(())));
    }

    #[test]
    fn wildcards_have_their_place() {
        for filter in ["#", "+", "+/#", "a/+/b", "/#", "+/+", "a/#"] {
            assert_eq!(check_filter(filter), Ok(()), "{filter}");
        }
        for filter in ["a#", "#/a", "a/#/b", "a+", "+a/b", "##", "++", "a/b+/c", "+#"] {
            assert_eq!(check_filter(filter), Err(TopicError::MisplacedWildcard), "{filter}");
        }
    }

    #[test]
    fn matching_follows_the_standard() {
        let yes = [
            ("#", "a"),
            ("#", "/"),
            ("a/#", "a"),
            ("a/#", "a/b/c"),
            ("a/#", "a/"),
            ("+", "a"),
            ("+/+", "/a"),
            ("/+", "/a"),
            ("a/+", "a/"),
            ("+/#", "a"),
            ("$SYS/#", "$SYS/x"),
            ("$SYS/+", "$SYS/x"),
            ("a/+/#", "a/b"),
        ];
        let no = [
            ("a/#", "ab"),
            ("a/#", "b"),
            ("+", "/a"),
            ("a/+", "a"),
            ("a/+", "a/b/c"),
            ("#", "$SYS/x"),
            ("+/x", "$SYS/x"),
            ("+/#", "$SYS"),
            ("a", "A"),
            ("a", "a/"),
            ("a/+/#", "a"),
        ];
        for (filter, topic) in yes {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in no {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
    }

    #[test]
    fn covering_is_exact() {
        let yes = [
            ("#", "a/b"),
            ("#", "#"),
            ("+/#", "#"),
            ("#", "+/#"),
            ("+/+/#", "/#"),
            ("a/#", "a"),
            ("a/#", "a/+"),
            ("a/#", "a/#"),
            ("a/#", "a/b/#"),
            ("+/b", "a/b"),
            ("+/#", "a/+/c/#"),
            ("$x/#", "$x/+"),
        ];
        let no = [
            ("a/+", "a/#"),
            ("a/+/#", "a/#"),
            ("+", "#"),
            ("#", "$SYS/#"),
            ("+/x", "$SYS/x"),
            ("a/b", "a/+"),
            ("a", "a/#"),
            ("a/b", "a"),
            ("+/+/#", "#"),
        ];
        for (wide, narrow) in yes {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in no {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }

    #[test]
    fn filters_complement_each_other_in_depth() {
        assert!(covers_together(["a", "a/+/#"], "a/#"));
        assert!(covers_together(["+", "+/+", "+/+/+/#"], "#"));
        assert!(!covers_together(["a", "a/+/+/#"], "a/#"));
        assert!(!covers_together(["a/b", "a/c"], "a/+"));
        assert!(!covers_together(Vec::new(), "a"));
    }
}
