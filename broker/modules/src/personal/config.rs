//! The configuration of a personal node (XEP-0060 §16.4.4): a few fields, each with a default that fits persons
//! (XEP-0163 §5).

use super::MAX_ITEMS;
use crate::form;
use tavi_xmpp_proto::{Condition, Element, StanzaError};

/// Who may see a node (XEP-0060 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Open,
    /// Whoever sees the account's presence.
    Presence,
    /// Those of them who are in one of the node's groups.
    Roster,
    /// The account's own sessions.
    Whitelist,
}

/// When the last item is sent without a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendLast {
    Never,
    OnSubscribe,
    OnSubscribeAndPresence,
}

/// What an owner chose of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) access: Access,
    /// The groups of [`Access::Roster`].
    pub(super) groups: Vec<String>,
    pub(super) persist: bool,
    /// `None`: as many as there may be.
    max_items: Option<usize>,
    pub(super) send_last: SendLast,
    pub(super) notifies: bool,
    pub(super) payloads: bool,
    pub(super) tells_retractions: bool,
    pub(super) tells_deletion: bool,
    /// What owners wrote for people and clients: title, description, the payloads' namespace.
    texts: [String; 3],
}

impl Default for Config {
    fn default() -> Config {
        Config {
            access: Access::Presence,
            groups: Vec::new(),
            persist: true,
            max_items: Some(1),
            send_last: SendLast::OnSubscribeAndPresence,
            notifies: true,
            payloads: true,
            tells_retractions: true,
            tells_deletion: true,
            texts: Default::default(),
        }
    }
}

/// The fields, each with its type (XEP-0004 §3.3).
const FIELDS: [(&str, &str); 14] = [
    ("pubsub#title", "text-single"),
    ("pubsub#description", "text-single"),
    ("pubsub#type", "text-single"),
    ("pubsub#access_model", "list-single"),
    ("pubsub#roster_groups_allowed", "list-multi"),
    ("pubsub#publish_model", "list-single"),
    ("pubsub#persist_items", "boolean"),
    ("pubsub#max_items", "text-single"),
    ("pubsub#send_last_published_item", "list-single"),
    ("pubsub#deliver_notifications", "boolean"),
    ("pubsub#deliver_payloads", "boolean"),
    ("pubsub#notify_retract", "boolean"),
    ("pubsub#notify_delete", "boolean"),
    ("pubsub#itemreply", "list-single"),
];

const ACCESS: [(Access, &str); 4] = [
    (Access::Open, "open"),
    (Access::Presence, "presence"),
    (Access::Roster, "roster"),
    (Access::Whitelist, "whitelist"),
];
const SEND_LAST: [(SendLast, &str); 3] = [
    (SendLast::Never, "never"),
    (SendLast::OnSubscribe, "on_sub"),
    (SendLast::OnSubscribeAndPresence, "on_sub_and_presence"),
];
/// The longest text in a configuration, in bytes.
const MAX_TEXT: usize = 1023;
/// Groups of one node.
const MAX_GROUPS: usize = 64;

impl Config {
    /// What only the owner sees, and asks for.
    pub(super) fn private() -> Config {
        Config { access: Access::Whitelist, max_items: None, send_last: SendLast::Never, ..Config::default() }
    }

    /// How many items are kept.
    pub(super) fn max_items(&self) -> usize {
        if self.persist { self.max_items.unwrap_or(MAX_ITEMS) } else { 0 }
    }

    /// The same with the values of a form.
    ///
    /// # Errors
    /// `<not-acceptable/>` with the field that is unknown here or cannot have its value.
    pub(super) fn with(&self, form: &Element) -> Result<Config, StanzaError> {
        let mut config = self.clone();
        for (var, values) in fields_of(form) {
            let value = values.first().map_or("", String::as_str);
            let set = config.set(var, value, &values);
            set.ok_or_else(|| StanzaError::new(Condition::NotAcceptable).text(refusal(var, value)))?;
        }
        Ok(config)
    }

    /// `None`: there is no such field, or it cannot have this value.
    fn set(&mut self, var: &str, value: &str, values: &[String]) -> Option<()> {
        match var {
            "pubsub#title" => self.texts[0] = text(value)?,
            "pubsub#description" => self.texts[1] = text(value)?,
            "pubsub#type" => self.texts[2] = text(value)?,
            "pubsub#access_model" => self.access = named(&ACCESS, value)?,
            "pubsub#roster_groups_allowed" => self.groups = groups(values)?,
            "pubsub#persist_items" => self.persist = form::boolean(value)?,
            "pubsub#max_items" => self.max_items = max_items(value)?,
            "pubsub#send_last_published_item" => self.send_last = named(&SEND_LAST, value)?,
            "pubsub#deliver_notifications" => self.notifies = form::boolean(value)?,
            "pubsub#deliver_payloads" => self.payloads = form::boolean(value)?,
            "pubsub#notify_retract" => self.tells_retractions = form::boolean(value)?,
            "pubsub#notify_delete" => self.tells_deletion = form::boolean(value)?,
            // XEP-0163 §3.2: the owner alone publishes.
            "pubsub#publish_model" => (value == "publishers").then_some(())?,
            "pubsub#itemreply" => (value == "owner").then_some(())?,
            _ => return None,
        }
        Some(())
    }

    fn get(&self, var: &str) -> Vec<String> {
        let bit = |on: bool| vec![if on { "1" } else { "0" }.to_owned()];
        match var {
            "pubsub#title" => vec![self.texts[0].clone()],
            "pubsub#description" => vec![self.texts[1].clone()],
            "pubsub#type" => vec![self.texts[2].clone()],
            "pubsub#access_model" => vec![name_of(&ACCESS, self.access)],
            "pubsub#roster_groups_allowed" => self.groups.clone(),
            "pubsub#persist_items" => bit(self.persist),
            "pubsub#max_items" => vec![self.max_items.map_or("max".to_owned(), |max| max.to_string())],
            "pubsub#send_last_published_item" => vec![name_of(&SEND_LAST, self.send_last)],
            "pubsub#deliver_notifications" => bit(self.notifies),
            "pubsub#deliver_payloads" => bit(self.payloads),
            "pubsub#notify_retract" => bit(self.tells_retractions),
            "pubsub#notify_delete" => bit(self.tells_deletion),
            "pubsub#itemreply" => vec!["owner".to_owned()],
            _ => vec!["publishers".to_owned()],
        }
    }

    /// XEP-0060 §7.1.5: whether the node is as a publisher expects it; a field that is unknown is never met.
    pub(super) fn meets(&self, options: &Element) -> bool {
        self.with(options).is_ok_and(|wanted| wanted == *self)
    }

    /// The form of XEP-0060 §8.2.1; `type_` is that of XEP-0004.
    pub(super) fn form(&self, type_: &'static str) -> Element {
        let fields = FIELDS.map(|(var, kind)| form::field(var, Some(kind), self.get(var)).children(options(var)));
        form::form(type_, "http://jabber.org/protocol/pubsub#node_config", fields)
    }
}

/// The fields of a form but for its type, each with its values.
fn fields_of(form: &Element) -> impl Iterator<Item = (&str, Vec<String>)> {
    let fields = form::fields(form).map(|field| (form::var(field), form::values(field)));
    fields.filter(|(var, _)| *var != form::FORM_TYPE)
}

fn refusal(var: &str, value: &str) -> String {
    let cut = |text: &str| text[..text.floor_char_boundary(100)].to_owned();
    match var {
        "pubsub#max_items" => format!("a node has 1 to {MAX_ITEMS} items, or max"),
        _ => format!("{} cannot be set to {:?} here", cut(var), cut(value)),
    }
}

fn text(value: &str) -> Option<String> {
    (value.len() <= MAX_TEXT).then(|| value.to_owned())
}

fn groups(values: &[String]) -> Option<Vec<String>> {
    let fit = values.len() <= MAX_GROUPS && values.iter().all(|group| group.len() <= MAX_TEXT);
    fit.then(|| values.to_vec())
}

fn max_items(value: &str) -> Option<Option<usize>> {
    match value {
        "max" => Some(None),
        _ => value.parse().ok().filter(|max| (1..=MAX_ITEMS).contains(max)).map(Some),
    }
}

fn named<T: Copy>(names: &[(T, &'static str)], name: &str) -> Option<T> {
    names.iter().find(|(_, known)| *known == name).map(|(value, _)| *value)
}

fn name_of<T: Copy + PartialEq>(names: &[(T, &'static str)], value: T) -> String {
    names.iter().find(|(known, _)| *known == value).map_or_else(String::new, |(_, name)| (*name).to_owned())
}

fn options(var: &str) -> Vec<Element> {
    let names: Vec<&'static str> = match var {
        "pubsub#access_model" => ACCESS.iter().map(|(_, name)| *name).collect(),
        "pubsub#send_last_published_item" => SEND_LAST.iter().map(|(_, name)| *name).collect(),
        _ => return Vec::new(),
    };
    names.into_iter().map(|name| form::option(None, name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tavi_xmpp_proto::ns;

    fn form(fields: &[(&str, &str)]) -> Element {
        let kind = [("FORM_TYPE", "http://jabber.org/protocol/pubsub#publish-options")];
        let fields = kind.iter().chain(fields).map(|(var, text)| {
            Element::new(ns::DATA_FORMS, "field")
                .attr("var", (*var).to_owned())
                .child(Element::new(ns::DATA_FORMS, "value").text((*text).to_owned()))
        });
        Element::new(ns::DATA_FORMS, "x").attr("type", "submit").children(fields)
    }

    #[test]
    fn a_form_is_read_back_as_it_was_written() {
        let fields = [
            ("pubsub#title", "Mine"),
            ("pubsub#access_model", "roster"),
            ("pubsub#roster_groups_allowed", "Friends & foes"),
            ("pubsub#persist_items", "false"),
            ("pubsub#max_items", "max"),
            ("pubsub#send_last_published_item", "never"),
            ("pubsub#deliver_payloads", "0"),
            ("pubsub#notify_retract", "false"),
        ];
        let config = Config::default().with(&form(&fields)).unwrap();
        assert_ne!(config, Config::default());
        assert_eq!(Config::default().with(&config.form("form")).unwrap(), config);
        assert!(config.meets(&form(&fields)) && !Config::default().meets(&form(&fields)));
    }

    #[test]
    fn what_is_expected_is_compared_by_its_meaning() {
        let config = Config::default();
        for (var, text) in [
            ("pubsub#persist_items", "true"),
            ("pubsub#persist_items", "1"),
            ("pubsub#access_model", "presence"),
            ("pubsub#max_items", "1"),
            ("pubsub#publish_model", "publishers"),
        ] {
            assert!(config.meets(&form(&[(var, text)])), "{var} {text}");
        }
        for (var, text) in [
            ("pubsub#persist_items", "0"),
            ("pubsub#access_model", "open"),
            ("pubsub#max_items", "max"),
            ("pubsub#publish_model", "open"),
            ("pubsub#unheard_of", "1"),
        ] {
            assert!(!config.meets(&form(&[(var, text)])), "{var} {text}");
        }
    }

    #[test]
    fn what_a_node_cannot_be_is_refused_by_name() {
        let long = "x".repeat(MAX_TEXT + 1);
        let cases = [
            ("pubsub#max_items", "0"),
            ("pubsub#max_items", "1000000"),
            ("pubsub#access_model", "authorize"),
            ("pubsub#persist_items", "maybe"),
            ("pubsub#title", &*long),
            ("pubsub#unheard_of", ""),
        ];
        for (var, text) in cases {
            let error = Config::default().with(&form(&[(var, text)])).unwrap_err();
            assert_eq!(error.condition, Condition::NotAcceptable, "{var}");
            assert!(error.text.is_some_and(|text| text.len() < 300), "{var}");
        }
    }
}
