//! Who may see an account's nodes (XEP-0060 §4.5): the account itself always, others by its roster.

use super::config::{Access, Config};
use crate::{contacts::contacts, pubsub::specific};
use tavi_core::{Account, AccountState};
use tavi_xmpp_proto::{BareJid, Condition, StanzaError};

/// Whether somebody may see a node with this configuration.
///
/// # Errors
/// What XEP-0060 §6.1.3 and §6.5.9 say to those who may not.
pub(super) fn check(
    (account, state): (&Account, &AccountState),
    config: &Config,
    asker: &BareJid,
) -> Result<(), StanzaError> {
    if *asker == account.jid || config.access == Access::Open {
        return Ok(());
    }
    let contact = contacts(state).get(asker).filter(|contact| contact.subscription.from);
    match (config.access, contact) {
        (Access::Whitelist | Access::Open, _) => Err(specific(Condition::NotAllowed, "closed-node")),
        (Access::Presence, Some(_)) => Ok(()),
        (Access::Presence, None) => Err(specific(Condition::NotAuthorized, "presence-subscription-required")),
        (Access::Roster, Some(contact)) if contact.groups.iter().any(|group| config.groups.contains(group)) => Ok(()),
        (Access::Roster, _) => Err(specific(Condition::NotAuthorized, "not-in-roster-group")),
    }
}

/// Whether somebody may see a node with this configuration.
pub(super) fn may_see(at: (&Account, &AccountState), config: &Config, asker: &BareJid) -> bool {
    check(at, config, asker).is_ok()
}
