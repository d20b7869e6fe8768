//! A grant: who may, or must not, do what to which topics. Types and their one spelling; the broker's core decides.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tavi_wire::topic::{self, TopicError};

pub use tavi_wire::grant::{Action, Actions, Rights, RightsError};

/// One row of the access list, with names that were checked.
pub type Grant = tavi_wire::grant::Grant<Subject, Filter>;

/// Why a part of a grant is no such thing; the fault of whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrantError {
    /// Neither a bare JID, nor a group, nor the anonymous subject.
    #[error("'{0}' is no subject: use a JID like user@domain, a group like @everyone, or anon-clear")]
    Subject(String),
    /// The list of actions is none.
    #[error(transparent)]
    Rights(#[from] RightsError),
    /// The topic filter breaks a rule.
    #[error("the topic filter is illegal: {0}")]
    Filter(#[from] TopicError),
}

/// Who a grant is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Subject {
    /// A bare JID with a local part: an account, a device or a bot. The broker normalises it (RFC 7622 §3.2 to §3.3).
    Jid(String),
    /// A group, without its `@`; `everyone` holds all accounts.
    Group(String),
    /// A plain CoAP client on loopback.
    AnonClear,
}

const ANON_CLEAR: &str = "anon-clear";
/// RFC 7622 §3.3.1: what a local part may not contain.
const NOT_IN_LOCAL: &[char] = &['"', '&', '\'', '/', ':', '<', '>', '@'];

impl FromStr for Subject {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        if text == ANON_CLEAR {
            return Ok(Self::AnonClear);
        }
        match text.strip_prefix('@') {
            Some(group) if is_group(group) => Ok(Self::Group(group.into())),
            None if is_bare_jid(text) => Ok(Self::Jid(text.into())),
            _ => Err(GrantError::Subject(text.into())),
        }
    }
}

fn is_group(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=64).contains(&name.len()) && name.bytes().all(legal)
}

/// RFC 7622 §3.1: the shape and the lengths; the characters in full are the broker's to check.
fn is_bare_jid(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let sizes = (1..=1023).contains(&local.len()) && (1..=1023).contains(&domain.len());
    let characters = !text.contains(|c: char| c.is_control() || c.is_whitespace());
    sizes && characters && !local.contains(NOT_IN_LOCAL) && !domain.contains(['/', '@'])
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jid(jid) => f.write_str(jid),
            Self::Group(name) => write!(f, "@{name}"),
            Self::AnonClear => f.write_str(ANON_CLEAR),
        }
    }
}

/// A legal MQTT topic filter (MQTT 5 §4.7.1, with the limits of `tavi_wire::topic`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Filter(String);

impl Filter {
    /// The filter's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Filter {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        topic::check_filter(text)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// These types stand as their text in JSON.
macro_rules! as_text {
    ($($name:ty),+) => {$(
        impl TryFrom<String> for $name {
            type Error = GrantError;

            fn try_from(text: String) -> Result<Self, GrantError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )+};
}

as_text!(Subject, Filter);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_have_three_forms() {
        let round = |text: &str| text.parse::<Subject>().map(|subject| (subject.to_string() == text, subject));
        assert_eq!(round("anon-clear"), Ok((true, Subject::AnonClear)));
        assert_eq!(round("@everyone"), Ok((true, Subject::Group("everyone".into()))));
        assert_eq!(round("ann@localhost"), Ok((true, Subject::Jid("ann@localhost".into()))));
        assert!(round("zoë@things.example").is_ok());
        for bad in ["", "@", "@Every one", "localhost", "a@b/c", "a@", "@b@c", "a b@c", "a@b@c", "a\n@b", "anon_clear"]
        {
            assert_eq!(round(bad), Err(GrantError::Subject(bad.into())));
        }
    }

    #[test]
    fn a_grant_reads_well_in_json() {
        let json = r#"{"subject":"@everyone","actions":"retrieve,subscribe","filter":"site/+/temp"}"#;
        let grant: Grant = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&grant).unwrap(), json);
        assert_eq!(grant.to_string(), "@everyone retrieve,subscribe site/+/temp");
        let denied = json.replace("retrieve,", "!retrieve,");
        assert!(serde_json::from_str::<Grant>(&denied).unwrap().rights.denies(Action::Subscribe));
        let refused = json.replace("+/temp", "#/temp");
        assert!(serde_json::from_str::<Grant>(&refused).unwrap_err().to_string().contains("topic filter"));
    }
}
