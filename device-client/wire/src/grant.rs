//! The words of a grant: what can be done to a topic, and whether it is allowed or denied. The broker, the admin API
//! and the command line read and write them here, and nowhere else.

use core::fmt::{self, Write};
use core::str::FromStr;

/// One thing that can be done to a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read the retained value: MQTT retained messages, pubsub items, CoAP GET.
    Retrieve,
    /// Hear new values, also spelled `notify`: SUBSCRIBE, Observe.
    Subscribe,
    /// Set a value, also spelled `update`: PUBLISH, a will, PUT, POST.
    Publish,
    /// Remove a value or a node.
    Delete,
    /// Make a node.
    Create,
    /// Call an operation.
    Invoke,
}

impl Action {
    /// All six, in their fixed order.
    pub const ALL: [Action; 6] =
        [Action::Retrieve, Action::Subscribe, Action::Publish, Action::Delete, Action::Create, Action::Invoke];

    /// The action's first name.
    pub fn name(self) -> &'static str {
        match self {
            Action::Retrieve => "retrieve",
            Action::Subscribe => "subscribe",
            Action::Publish => "publish",
            Action::Delete => "delete",
            Action::Create => "create",
            Action::Invoke => "invoke",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl FromStr for Action {
    type Err = RightsError;

    fn from_str(text: &str) -> Result<Action, RightsError> {
        let name = match text {
            // OCF's names (OCF Security §12.3.2).
            "notify" => "subscribe",
            "update" => "publish",
            other => other,
        };
        Action::ALL.into_iter().find(|action| action.name() == name).ok_or(RightsError::Unknown(Word::new(text)))
    }
}

/// A set of actions, written as a comma list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Actions(u8);

impl Actions {
    /// All six.
    pub const ALL: Actions = Actions(0b11_1111);

    /// The set with `action` added.
    #[must_use]
    pub fn with(self, action: Action) -> Actions {
        Actions(self.0 | action.bit())
    }

    /// Whether `action` is in it.
    pub fn has(self, action: Action) -> bool {
        self.0 & action.bit() != 0
    }

    /// The actions of the set in their fixed order.
    pub fn iter(self) -> impl Iterator<Item = Action> {
        Action::ALL.into_iter().filter(move |action| self.has(*action))
    }
}

impl FromStr for Actions {
    type Err = RightsError;

    /// At least one action.
    fn from_str(list: &str) -> Result<Actions, RightsError> {
        if list.trim().is_empty() {
            return Err(RightsError::Empty);
        }
        list.split(',').map(str::trim).try_fold(Actions::default(), |set, word| Ok(set.with(word.parse()?)))
    }
}

impl fmt::Display for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Rights::allow(*self).fmt(f)
    }
}

/// What a grant does about its actions: it allows them, or, with `!` in front, it denies them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rights {
    /// Whether the actions are denied rather than allowed.
    pub deny: bool,
    /// Which.
    pub actions: Actions,
}

impl Rights {
    /// Rights that allow these actions.
    pub fn allow(actions: Actions) -> Rights {
        Rights { deny: false, actions }
    }

    /// Whether they allow `action`.
    pub fn allows(self, action: Action) -> bool {
        !self.deny && self.actions.has(action)
    }

    /// Whether they deny `action`.
    pub fn denies(self, action: Action) -> bool {
        self.deny && self.actions.has(action)
    }
}

/// One row of the access list. Deny by default: what no grant allows is refused. The broker, the admin API and the
/// command line have this one type; each holds the two names in its own way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Grant<S, F = S> {
    /// Who: a bare JID, a group or `anon-clear`.
    pub subject: S,
    /// May do what, or must not.
    #[cfg_attr(feature = "serde", serde(rename = "actions"))]
    pub rights: Rights,
    /// On which topics: an MQTT topic filter.
    pub filter: F,
}

impl<S: fmt::Display, F: fmt::Display> fmt::Display for Grant<S, F> {
    /// As the command line takes it: `SUBJECT ACTIONS FILTER`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.subject, self.rights, self.filter)
    }
}

impl FromStr for Rights {
    type Err = RightsError;

    fn from_str(text: &str) -> Result<Rights, RightsError> {
        let text = text.trim();
        let (deny, list) = text.strip_prefix('!').map_or((false, text), |list| (true, list));
        Ok(Rights { deny, actions: list.parse()? })
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Text::<64>::default();
        if self.deny {
            text.write_char('!')?;
        }
        for (place, action) in self.actions.iter().enumerate() {
            text.write_str(if place == 0 { "" } else { "," })?;
            text.write_str(action.name())?;
        }
        f.pad(text.as_str())
    }
}

/// Why a list of actions is none; the fault of whoever wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RightsError {
    /// A word that names no action.
    Unknown(Word),
    /// There is no word.
    Empty,
}

/// The beginning of a word that was not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word(Text<24>);

impl Word {
    fn new(text: &str) -> Word {
        let mut word = Text::default();
        word.push(&text[..text.floor_char_boundary(24)]);
        Word(word)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

const NAMES: &str = "retrieve, subscribe (or notify), publish (or update), delete, create, invoke";

impl fmt::Display for RightsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RightsError::Unknown(word) => {
                write!(f, "'{}' is no action: use a comma list of {NAMES}, with ! in front to deny them", word.as_str())
            }
            RightsError::Empty => write!(f, "name at least one action: a comma list of {NAMES}"),
        }
    }
}

impl core::error::Error for RightsError {}

/// A short text without an allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Text<N> {
        Text { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Text<N> {
    /// Whether there was room.
    fn push(&mut self, text: &str) -> bool {
        let Some(place) = self.bytes.get_mut(self.len..self.len + text.len()) else { return false };
        place.copy_from_slice(text.as_bytes());
        self.len += text.len();
        true
    }

    fn as_str(&self) -> &str {
        // Only whole texts were pushed.
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.push(text) { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(feature = "serde")]
mod serialised {
    use super::{Rights, fmt};
    use serde::de::{Error, Visitor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    impl Serialize for Rights {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    impl<'de> Deserialize<'de> for Rights {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rights, D::Error> {
            deserializer.deserialize_str(RightsVisitor)
        }
    }

    struct RightsVisitor;

    impl Visitor<'_> for RightsVisitor {
        type Value = Rights;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a comma list of actions")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Rights, E> {
            text.parse().map_err(E::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{format, string::ToString};

    #[test]
    fn rights_are_a_comma_list_with_aliases_and_a_denial_in_front() {
        let parsed: Rights = "update, notify,publish".parse().unwrap();
        assert_eq!(parsed.to_string(), "subscribe,publish");
        assert!(parsed.allows(Action::Publish) && !parsed.allows(Action::Delete) && !parsed.denies(Action::Publish));
        let denied: Rights = "!notify".parse().unwrap();
        assert_eq!(format!("{denied:12}|"), "!subscribe  |");
        assert!(denied.denies(Action::Subscribe) && !denied.allows(Action::Subscribe));
        for text in ["", "!", " "] {
            assert_eq!(text.parse::<Rights>(), Err(RightsError::Empty));
        }
        let told = |text: &str| text.parse::<Rights>().unwrap_err().to_string();
        assert!(told("read").starts_with("'read' is no action"));
        assert!(told("publish,").starts_with("'' is no action"));
        assert!(told("publish,!delete").starts_with("'!delete' is no action"));
        assert!(told(&"ä".repeat(99)).starts_with(&format!("'{}' is", "ä".repeat(12))));
    }

    #[test]
    fn each_set_of_actions_round_trips() {
        for bits in 1..128u8 {
            let deny = bits & 64 != 0;
            let rights = Rights { deny, actions: Actions(bits & 63) };
            let read = rights.to_string().parse();
            assert!(read == Ok(rights) || rights.actions == Actions::default());
        }
        assert_eq!(Actions::ALL.iter().count(), 6);
    }
}
