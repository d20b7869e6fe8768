//! What an account wants to be archived (XEP-0441), and the key of its ids: one record, and a part of its state.

use super::ids::IdKey;
use crate::contacts::contacts;
use std::sync::Arc;
use tavi_core::{
    Account, AccountPart, AccountState, Effects,
    hooks::{BoxFuture, Handle, Iq, IqPayload, Reply},
};
use tavi_store::{Expect, Op, Owner, SharedStore, StoreError, Table};
use tavi_xmpp_proto::{Condition, Element, Jid, StanzaError, ns};

/// The item of its record.
const ITEM: &str = "archive";
/// JIDs in both lists of one account.
const MAX_JIDS: usize = 1_000;

/// Whose messages are archived.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Preferences {
    default: Default_,
    always: Vec<Jid>,
    never: Vec<Jid>,
}

/// XEP-0441 §2.1.1: what becomes of messages with those who stand in neither list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Default_ {
    #[default]
    Always,
    Never,
    Roster,
}

/// A module's part of an account's state.
#[derive(Clone, Default)]
pub(super) struct Settings {
    preferences: Preferences,
    key: Option<IdKey>,
}

impl AccountPart for Settings {
    fn load<'a>(store: &'a SharedStore, owner: &'a Owner) -> BoxFuture<'a, Result<Settings, StoreError>> {
        Box::pin(async move {
            let Some(record) = store.load(owner, Table::Setting, ITEM).await? else { return Ok(Settings::default()) };
            let damaged = || StoreError::Corrupt("the archive's settings of an account cannot be read".into());
            let element = Element::parse(&record.value, ns::MAM).map_err(|_| damaged())?;
            let key = element.get_attr("key").map(|key| IdKey::parse(key).ok_or_else(damaged)).transpose()?;
            Ok(Settings { preferences: Preferences::read(&element).map_err(|_| damaged())?, key })
        })
    }
}

impl Settings {
    /// Those of an account.
    pub fn of(state: &AccountState) -> Option<&Settings> {
        state.part::<Settings>()
    }

    /// The key of an account that has archived something.
    pub fn key(&self) -> Option<&IdKey> {
        self.key.as_ref()
    }

    fn save(&self) -> Op {
        let element = self.preferences.to_element().attr_opt("key", self.key.as_ref().map(IdKey::to_text));
        let value = element.to_xml(ns::MAM).into();
        Op::Put { table: Table::Setting, item: ITEM.into(), value, expect: Expect::Any }
    }
}

/// The key of an account, made and saved with its first message: that commit is handed in before the message's.
pub(super) fn key_of<'s>(account: &Account, state: &'s mut AccountState, fx: &mut Effects) -> Option<&'s IdKey> {
    let settings = state.part_mut::<Settings>();
    if settings.key.is_none() {
        settings.key = Some(IdKey::draw()?);
        let save = settings.save();
        fx.save_now(account, state, vec![save]);
    }
    state.part::<Settings>()?.key()
}

/// Whether messages with this correspondent are archived (XEP-0441 §2.3).
pub(super) fn wants(state: &AccountState, with: &Jid) -> bool {
    let Some(Settings { preferences, .. }) = Settings::of(state) else { return true };
    let listed = |list: &[Jid]| list.iter().any(|jid| jid == with || (jid.is_bare() && jid.as_str() == with.bare()));
    if listed(&preferences.never) {
        return false;
    }
    match preferences.default {
        Default_::Always => true,
        Default_::Never => listed(&preferences.always),
        Default_::Roster => {
            let known = || contacts(state).get(&with.to_bare()).is_some_and(|contact| contact.listed());
            listed(&preferences.always) || known()
        }
    }
}

impl Preferences {
    fn read(element: &Element) -> Result<Preferences, StanzaError> {
        let default = match element.get_attr("default") {
            Some("always") => Default_::Always,
            Some("never") => Default_::Never,
            Some("roster") => Default_::Roster,
            _ => return Err(StanzaError::new(Condition::BadRequest).text("default is always, never or roster")),
        };
        let (always, never) = (jids(element, "always")?, jids(element, "never")?);
        if always.len() + never.len() > MAX_JIDS {
            return Err(StanzaError::new(Condition::ResourceConstraint).text("too many addresses"));
        }
        Ok(Preferences { default, always, never })
    }

    fn to_element(&self) -> Element {
        let default = match self.default {
            Default_::Always => "always",
            Default_::Never => "never",
            Default_::Roster => "roster",
        };
        let list = |name: &'static str, jids: &[Jid]| {
            let jids = jids.iter().map(|jid| Element::new(ns::MAM, "jid").text(jid.to_string()));
            Element::new(ns::MAM, name).children(jids)
        };
        let lists = [list("always", &self.always), list("never", &self.never)];
        Element::new(ns::MAM, "prefs").attr("default", default).children(lists)
    }
}

/// XEP-0441 §2.1.2, §2.1.3: a list that is missing is empty.
fn jids(element: &Element, list: &str) -> Result<Vec<Jid>, StanzaError> {
    let listed = element.get_child(ns::MAM, list).into_iter().flat_map(Element::elements);
    let listed = listed.filter(|child| child.is(ns::MAM, "jid"));
    listed.map(|jid| Jid::parse(jid.text_content().trim()).map_err(|_| Condition::JidMalformed.into())).collect()
}

/// `<prefs/>` of XEP-0441 §2.1; `None` in a get.
pub(super) struct Prefs(Element);

impl IqPayload for Prefs {
    const NS: &'static str = ns::MAM;
    const NAME: &'static str = "prefs";

    fn parse(element: &Element) -> Result<Prefs, StanzaError> {
        Ok(Prefs(element.clone()))
    }
}

impl Handle<Prefs> for super::Archive {
    fn handle(&self, iq: Iq<Prefs>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            let account: &Arc<Account> = iq.account()?;
            if !iq.is_set() {
                let now =
                    account.at_home(|state| Settings::of(state).map(|settings| settings.preferences.to_element()));
                return Ok(now.unwrap_or_else(|| Preferences::default().to_element()).into());
            }
            let preferences = Preferences::read(&iq.payload.0)?;
            let mut reply = Reply::from(preferences.to_element());
            account.at_home(|state| {
                let settings = state.part_mut::<Settings>();
                settings.preferences = preferences;
                let save = settings.save();
                reply.fx.save_now(account, state, vec![save]);
            });
            Ok(reply)
        })
    }

    /// XEP-0313 §6.1.
    fn not_yours(&self) -> StanzaError {
        Condition::Forbidden.into()
    }
}
