//! What an owner can set of a room (XEP-0045 §10.1, §10.2): the form, and the row in which it is kept.

use crate::form;
use tavi_xmpp_proto::{BareJid, Condition, Element, StanzaError};

const PURPOSE: &str = "http://jabber.org/protocol/muc#roomconfig";
/// The namespace of rows in the store.
pub(super) const STORED: &str = "urn:tavi:room:0";
/// Greatest lengths in bytes.
const MAX_NAME: usize = 512;
const MAX_DESCRIPTION: usize = 4_096;
const MAX_PASSWORD: usize = 512;

/// A room's settings; the default is that of an instant room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) name: String,
    pub(super) description: String,
    /// It outlives its last occupant, and keeps its history.
    pub(super) persistent: bool,
    /// It is listed by the service.
    pub(super) public: bool,
    pub(super) members_only: bool,
    pub(super) moderated: bool,
    /// Participants may change the subject, not only moderators.
    pub(super) open_subject: bool,
    /// Empty: nobody is asked for one.
    pub(super) password: String,
    /// Everybody may see who an occupant is, not only moderators.
    pub(super) open_jids: bool,
}

impl Config {
    /// The form of XEP-0045 §10.2 with what is set now; `type_` as in XEP-0004 §3.1.
    pub(super) fn form(&self, type_: &'static str) -> Element {
        let flag = |flag: bool| if flag { "1" } else { "0" }.to_owned();
        let whois = if self.open_jids { "anyone" } else { "moderators" }.to_owned();
        let asked = flag(!self.password.is_empty());
        let fields = [
            ("muc#roomconfig_roomname", "text-single", "Name", self.name.clone()),
            ("muc#roomconfig_roomdesc", "text-single", "Description", self.description.clone()),
            ("muc#roomconfig_persistentroom", "boolean", "Stays when everybody has left", flag(self.persistent)),
            ("muc#roomconfig_publicroom", "boolean", "Is listed", flag(self.public)),
            ("muc#roomconfig_membersonly", "boolean", "Only members enter", flag(self.members_only)),
            ("muc#roomconfig_moderatedroom", "boolean", "Only those with voice speak", flag(self.moderated)),
            ("muc#roomconfig_changesubject", "boolean", "Participants change the subject", flag(self.open_subject)),
            ("muc#roomconfig_passwordprotectedroom", "boolean", "A password is asked for", asked),
            ("muc#roomconfig_roomsecret", "text-private", "Password", self.password.clone()),
            ("muc#roomconfig_whois", "list-single", "Who sees the occupants' addresses", whois),
        ];
        let fields = fields.into_iter().map(|(var, kind, label, value)| field(var, kind, label, value));
        form::form(type_, PURPOSE, fields)
    }

    /// The settings after a form was sent in; what it does not name stays.
    pub(super) fn with(&self, form: &Element) -> Result<Config, StanzaError> {
        let mut config = self.clone();
        let mut asked = None;
        for field in form::fields(form) {
            let value = form::value(field);
            match form::var(field) {
                "muc#roomconfig_roomname" => config.name = bounded(value, MAX_NAME)?,
                "muc#roomconfig_roomdesc" => config.description = bounded(value, MAX_DESCRIPTION)?,
                "muc#roomconfig_persistentroom" => config.persistent = flag(&value)?,
                "muc#roomconfig_publicroom" => config.public = flag(&value)?,
                "muc#roomconfig_membersonly" => config.members_only = flag(&value)?,
                "muc#roomconfig_moderatedroom" => config.moderated = flag(&value)?,
                "muc#roomconfig_changesubject" => config.open_subject = flag(&value)?,
                "muc#roomconfig_passwordprotectedroom" => asked = Some(flag(&value)?),
                "muc#roomconfig_roomsecret" => config.password = bounded(value, MAX_PASSWORD)?,
                "muc#roomconfig_whois" => config.open_jids = whois(&value)?,
                // XEP-0045 §10.2: options that are not here are none of the room's.
                _ => {}
            }
        }
        match asked {
            Some(true) if config.password.is_empty() => Err(refused("a room that asks for a password needs one")),
            Some(false) => Ok(Config { password: String::new(), ..config }),
            _ => Ok(config),
        }
    }

    /// The row in which it is kept, with who made the room.
    pub(super) fn to_row(&self, creator: &BareJid) -> bytes::Bytes {
        let row = Element::new(STORED, "room").attr("creator", creator.to_string()).child(self.form("submit"));
        row.to_xml("").into()
    }

    /// What [`Config::to_row`] wrote; `None` if it is something else.
    pub(super) fn of_row(row: &[u8]) -> Option<(BareJid, Config)> {
        let row = Element::parse(row, "").ok()?;
        let creator = row.get_attr("creator")?.parse().ok()?;
        let config = Config::default().with(form::of(&row)?).ok()?;
        Some((creator, config))
    }

    /// XEP-0045 §15.3: the features of disco#info that tell what kind of room it is.
    pub(super) fn features(&self) -> [&'static str; 6] {
        let either = |is: bool, yes: &'static str, no: &'static str| if is { yes } else { no };
        [
            either(self.password.is_empty(), "muc_unsecured", "muc_passwordprotected"),
            either(self.public, "muc_public", "muc_hidden"),
            either(self.persistent, "muc_persistent", "muc_temporary"),
            either(self.members_only, "muc_membersonly", "muc_open"),
            either(self.moderated, "muc_moderated", "muc_unmoderated"),
            either(self.open_jids, "muc_nonanonymous", "muc_semianonymous"),
        ]
    }
}

fn field(var: &'static str, kind: &'static str, label: &'static str, value: String) -> Element {
    let field = form::field(var, Some(kind), [value]).attr("label", label);
    if kind != "list-single" {
        return field;
    }
    let option = |label: &'static str, value: &'static str| form::option(Some(label), value);
    field.child(option("Moderators", "moderators")).child(option("Everybody", "anyone"))
}

/// XEP-0004 §3.3.
fn flag(value: &str) -> Result<bool, StanzaError> {
    form::boolean(value.trim()).ok_or_else(|| refused("yes is 1, no is 0"))
}

fn whois(value: &str) -> Result<bool, StanzaError> {
    match value {
        "anyone" => Ok(true),
        "moderators" => Ok(false),
        _ => Err(refused("whois is anyone or moderators")),
    }
}

fn bounded(value: String, most: usize) -> Result<String, StanzaError> {
    if value.len() <= most { Ok(value) } else { Err(refused(&format!("a value has at most {most} bytes"))) }
}

/// XEP-0045 §10.1.3: settings that the room does not take.
fn refused(why: &str) -> StanzaError {
    StanzaError::new(Condition::NotAcceptable).text(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(fields: &[(&'static str, &'static str)]) -> Element {
        let fields = fields.iter().map(|(var, value)| field(var, "text-single", "", (*value).into()));
        form::form("submit", PURPOSE, fields)
    }

    #[test]
    fn what_is_set_is_kept_and_read_back() {
        let sent = form(&[
            ("muc#roomconfig_roomname", "A <Dark> Cave"),
            ("muc#roomconfig_persistentroom", "true"),
            ("muc#roomconfig_roomsecret", "cauldronburn"),
            ("muc#roomconfig_whois", "anyone"),
            ("muc#roomconfig_lang", "en"),
        ]);
        let config = Config::default().with(&sent).unwrap();
        assert!(config.persistent && config.open_jids && config.password == "cauldronburn" && !config.moderated);
        let creator: BareJid = "crone1@localhost".parse().unwrap();
        assert_eq!(Config::of_row(&config.to_row(&creator)), Some((creator, config.clone())));
        let open = config.with(&form(&[("muc#roomconfig_passwordprotectedroom", "0")])).unwrap();
        assert_eq!(open, Config { password: String::new(), ..config });
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_damage_is_seen() {
        let long = "x".repeat(600);
        for (var, value) in [
            ("muc#roomconfig_whois", "nobody"),
            ("muc#roomconfig_moderatedroom", "perhaps"),
            ("muc#roomconfig_passwordprotectedroom", "1"),
            ("muc#roomconfig_roomname", Box::leak(long.into_boxed_str())),
        ] {
            let refused = Config::default().with(&form(&[(var, value)])).unwrap_err();
            assert_eq!(refused.condition, Condition::NotAcceptable, "{var}");
        }
        assert_eq!(Config::of_row(b"<room xmlns='urn:tavi:room:0' creator='a@b'/>"), None);
        assert_eq!(Config::of_row(b"\xff"), None);
    }
}
