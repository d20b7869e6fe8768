//! One rule of the access model, as the store keeps it.

use bytes::Bytes;
use std::ops::Deref;
use tavi_wire::{
    grant::{Rights, RightsError},
    topic::check_filter,
};

/// The group of all accounts.
pub const EVERYONE: &str = "@everyone";
/// Plain CoAP on the broker's own machine.
pub const ANON: &str = "anon-clear";

/// Why a grant is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The list of actions is none.
    #[error(transparent)]
    Rights(#[from] RightsError),
    /// The filter is not one.
    #[error("{0:?} is no valid topic filter")]
    Filter(Box<str>),
    /// The subject is none.
    #[error("{0:?} is no subject: use a JID such as juliet@localhost, @everyone, or anon-clear")]
    Subject(Box<str>),
    /// The subject has as many as it may have.
    #[error(
        "{subject} has {most} grants, as many as one subject may have: remove some, use a wider filter, or raise \
         grants_per_subject under [limits] in the configuration"
    )]
    Quota {
        /// Whose.
        subject: Box<str>,
        /// How many one subject may have.
        most: usize,
    },
}

/// One rule: a grant with its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its id, for removal.
    pub id: u64,
    /// What it says; the subject is normalised.
    pub rule: tavi_wire::grant::Grant<Box<str>>,
}

impl Deref for Grant {
    type Target = tavi_wire::grant::Grant<Box<str>>;

    fn deref(&self) -> &Self::Target {
        &self.rule
    }
}

impl Grant {
    /// A checked rule; `subject` is a bare JID, `@everyone` or `anon-clear`, and is normalised.
    ///
    /// # Errors
    /// If the subject or the filter is none.
    pub fn new(id: u64, subject: &str, rights: Rights, filter: &str) -> Result<Grant, GrantError> {
        check_filter(filter).map_err(|_| GrantError::Filter(filter.into()))?;
        let rule = tavi_wire::grant::Grant { subject: normal_subject(subject)?, rights, filter: filter.into() };
        Ok(Grant { id, rule })
    }

    /// Whether it says the same as another one.
    pub fn is_same(&self, other: &Grant) -> bool {
        self.rule == other.rule
    }

    pub(super) fn encode(&self) -> Bytes {
        format!("{}\n{}\n{}", self.subject, self.rights, self.filter).into()
    }

    pub(super) fn decode(id: &str, value: &[u8]) -> Option<Grant> {
        let mut fields = std::str::from_utf8(value).ok()?.splitn(3, '\n');
        let (subject, rights, filter) = (fields.next()?, fields.next()?, fields.next()?);
        let (id, rights) = (id.parse().ok()?, rights.parse().ok()?);
        Some(Grant { id, rule: tavi_wire::grant::Grant { subject: subject.into(), rights, filter: filter.into() } })
    }
}

/// A subject in its normal form.
///
/// # Errors
/// If it is none.
pub fn normal_subject(subject: &str) -> Result<Box<str>, GrantError> {
    if subject == ANON || subject == EVERYONE {
        return Ok(subject.into());
    }
    let jid = subject.parse::<tavi_xmpp_proto::jid::BareJid>().ok().filter(|jid| jid.local().is_some());
    jid.map(|jid| jid.as_str().into()).ok_or_else(|| GrantError::Subject(subject.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tavi_wire::grant::Actions;

    #[test]
    fn grants_are_read_back_as_they_were_written() {
        for rights in ["notify,update", "!retrieve"] {
            let grant = Grant::new(9, "Romeo@LOCALHOST", rights.parse().unwrap(), "a/+/#").unwrap();
            assert_eq!(&*grant.subject, "romeo@localhost");
            assert_eq!(Grant::decode("9", &grant.encode()), Some(grant));
        }
        let all = Rights::allow(Actions::ALL);
        assert!(Grant::new(1, "a/b", all, "a/#/b").is_err() && Grant::new(1, "localhost", all, "a").is_err());
    }
}
