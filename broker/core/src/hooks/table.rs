//! What service discovery and the documents tell of the modules.

use crate::principal::Host;

/// Who has a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// A host.
    Host(Host),
    /// Each account of a person, device or bot.
    Account,
}

impl From<Host> for At {
    fn from(host: Host) -> At {
        At::Host(host)
    }
}

/// A feature for service discovery (XEP-0030 §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub var: &'static str,
    /// Who answers with it.
    pub at: At,
}

/// What somebody is, for service discovery (XEP-0030 §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who.
    pub at: At,
    /// Its category, of the registry of identities.
    pub category: &'static str,
    /// Its type.
    pub type_: &'static str,
    /// Its name for people, if it has one.
    pub name: Option<&'static str>,
}

/// One protocol extension that is implemented: a line of the table in the documents and of the DOAP file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xep {
    /// Its number.
    pub number: u16,
    /// Its title.
    pub name: &'static str,
    /// The version that was implemented.
    pub version: &'static str,
    /// The module that implements it.
    pub module: &'static str,
}
