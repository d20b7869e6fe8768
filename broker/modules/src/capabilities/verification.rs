//! The verification string of Entity Capabilities (XEP-0115 §5): what a client says of itself, as one string, and its hash.

use crate::form::{FORM_TYPE, fields, values, var};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};
use std::{collections::BTreeMap, sync::Arc};
use tavi_xmpp_proto::{Element, ns};

/// What a session wants to be notified of: names of nodes, in order.
pub(crate) type Interests = Arc<[Box<str>]>;

/// Nodes that one client may want to be notified of.
const MAX_INTERESTS: usize = 100;
/// The longest name of such a node, in bytes.
const MAX_NAME: usize = 1023;
/// What a feature ends with that wishes for notifications (XEP-0060 §9.2).
const NOTIFY: &str = "+notify";

/// An answer of service discovery, in the form that is hashed.
pub(super) struct Verification {
    /// XEP-0115 §5.1: the string S.
    string: String,
    /// XEP-0115 §5.4: an answer that says something twice proves nothing.
    well_formed: bool,
}

impl Verification {
    /// XEP-0115 §5.1.
    pub(super) fn of(query: &Element) -> Verification {
        let (mut string, mut well_formed) = (String::new(), true);
        for part in [identities(query), features(query)] {
            well_formed &= part.windows(2).all(|pair| pair[0] != pair[1]);
            part.iter().for_each(|word| append(&mut string, word));
        }
        well_formed &= append_forms(&mut string, query);
        Verification { string, well_formed }
    }

    /// Whether this is what a client means that gives `ver` (XEP-0115 §5.4).
    pub(super) fn proves(&self, ver: &str) -> bool {
        self.well_formed && self.hash() == ver
    }

    fn hash(&self) -> String {
        STANDARD.encode(Sha1::digest(self.string.as_bytes()))
    }

    /// What the client wants to be notified of. Read from the string, not from the answer: two answers with the same
    /// string (one can write a feature as a form, or two as one with a `<` between) have the same wishes, so nobody
    /// speaks for others by that.
    pub(super) fn interests(&self) -> Interests {
        let nodes = self.string.split('<').filter_map(|word| word.strip_suffix(NOTIFY));
        let nodes = nodes.filter(|node| !node.is_empty() && node.len() <= MAX_NAME);
        let mut nodes: Vec<Box<str>> = nodes.take(MAX_INTERESTS).map(Into::into).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.into()
    }
}

/// Steps 2 and 3: category, type, language and name of each identity.
fn identities(query: &Element) -> Vec<String> {
    let part = |identity: &Element, name| identity.get_attr(name).unwrap_or_default().to_owned();
    let identities = query.elements().filter(|child| child.is(ns::DISCO_INFO, "identity"));
    let mut all: Vec<[String; 4]> =
        identities.map(|identity| ["category", "type", "xml:lang", "name"].map(|name| part(identity, name))).collect();
    all.sort_unstable();
    all.iter().map(|parts| parts.join("/")).collect()
}

/// Steps 4 and 5.
fn features(query: &Element) -> Vec<String> {
    let features = query.elements().filter(|child| child.is(ns::DISCO_INFO, "feature"));
    let mut all: Vec<String> = features.filter_map(|feature| feature.get_attr("var")).map(Into::into).collect();
    all.sort_unstable();
    all
}

/// Steps 6 and 7; false if two forms have one type, or one form has two (XEP-0115 §5.4).
fn append_forms(string: &mut String, query: &Element) -> bool {
    let (mut forms, mut well_formed) = (BTreeMap::new(), true);
    for form in query.elements().filter(|child| child.is(ns::DATA_FORMS, "x")) {
        let Some(types) = form_type(form) else { continue };
        well_formed &= types.windows(2).all(|pair| pair[0] == pair[1]);
        let type_ = types.into_iter().next().unwrap_or_default();
        well_formed &= forms.insert(type_, form).is_none();
    }
    for (type_, form) in forms {
        append(string, &type_);
        let mut fields: Vec<_> = fields(form).filter(|field| var(field) != FORM_TYPE).collect();
        fields.sort_by(|a, b| var(a).cmp(var(b)));
        for field in fields {
            append(string, var(field));
            let mut values = values(field);
            values.sort_unstable();
            values.iter().for_each(|value| append(string, value));
        }
    }
    well_formed
}

/// XEP-0115 §5.4: a form without a hidden type is left out.
fn form_type(form: &Element) -> Option<Vec<String>> {
    let field = fields(form).find(|field| var(field) == FORM_TYPE)?;
    (field.get_attr("type") == Some("hidden")).then(|| values(field)).filter(|values| !values.is_empty())
}

fn append(string: &mut String, word: &str) {
    string.push_str(word);
    string.push('<');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(inner: &str) -> Verification {
        let xml = format!("<query xmlns='http://jabber.org/protocol/disco#info'>{inner}</query>");
        Verification::of(&Element::parse(xml.as_bytes(), ns::CLIENT).unwrap())
    }

    const EXODUS: &str = "<identity category='client' type='pc' name='Exodus 0.9.1'/>
        <feature var='http://jabber.org/protocol/disco#info'/><feature var='http://jabber.org/protocol/caps'/>
        <feature var='http://jabber.org/protocol/muc'/><feature var='http://jabber.org/protocol/disco#items'/>";

    #[test]
    fn the_examples_of_the_standard_are_proven() {
        assert!(of(EXODUS).proves("QgayPKawpkPSDYmwT/WM94uAlu0="));
        assert!(!of(EXODUS).proves("q07IKJEyjvHSyhy//CH0CxmKi8w="));
        let psi = "<identity xml:lang='en' category='client' name='Psi 0.11' type='pc'/>
            <identity xml:lang='el' category='client' name='\u{3a8} 0.11' type='pc'/>
            <feature var='http://jabber.org/protocol/caps'/><feature var='http://jabber.org/protocol/disco#info'/>
            <feature var='http://jabber.org/protocol/disco#items'/><feature var='http://jabber.org/protocol/muc'/>
            <x xmlns='jabber:x:data' type='result'>
            <field var='FORM_TYPE' type='hidden'><value>urn:xmpp:dataforms:softwareinfo</value></field>
            <field var='ip_version' type='text-multi'><value>ipv6</value><value>ipv4</value></field>
            <field var='os'><value>Mac</value></field><field var='os_version'><value>10.5.1</value></field>
            <field var='software_version'><value>0.11</value></field><field var='software'><value>Psi</value></field></x>";
        assert!(of(psi).proves("q07IKJEyjvHSyhy//CH0CxmKi8w="));
        let ignored = format!("{psi}<x xmlns='jabber:x:data'><field var='FORM_TYPE'><value>a</value></field></x>");
        assert!(of(&ignored).proves("q07IKJEyjvHSyhy//CH0CxmKi8w="), "a form whose type is not hidden is left out");
    }

    #[test]
    fn what_says_something_twice_proves_nothing() {
        let form =
            |type_: &str| format!("<x xmlns='jabber:x:data'><field var='FORM_TYPE' type='hidden'>{type_}</field></x>");
        let twice = [
            "<feature var='a'/><feature var='a'/>".to_owned(),
            "<identity category='client' type='pc'/><identity category='client' type='pc'/>".to_owned(),
            form("<value>a</value>").repeat(2),
            form("<value>a</value><value>b</value>"),
        ];
        for inner in twice {
            let said = of(&inner);
            assert!(!said.proves(&said.hash()), "{inner}");
        }
    }

    #[test]
    fn whoever_has_the_same_hash_has_the_same_wishes() {
        let honest = of("<identity category='client' type='pc'/><feature var='a+notify'/><feature var='b+notify'/>");
        assert_eq!(&*honest.interests(), ["a".into(), "b".into()]);
        let forged = [
            "<identity category='client' type='pc'/><feature var='a+notify&lt;b+notify'/>".to_owned(),
            "<identity category='client' type='pc'/><feature var='a+notify'/><x xmlns='jabber:x:data'>
             <field var='FORM_TYPE' type='hidden'><value>b+notify</value></field></x>"
                .to_owned(),
        ];
        for inner in forged {
            let forged = of(&inner);
            assert_eq!(forged.hash(), honest.hash(), "{inner}");
            assert_eq!(forged.interests(), honest.interests(), "{inner}");
        }
    }

    #[test]
    fn wishes_are_bounded() {
        let many: String = (0..1_000).map(|n| format!("<feature var='n{n}+notify'/>")).collect();
        let long = format!("<feature var='{}+notify'/><feature var='+notify'/>", "x".repeat(MAX_NAME + 1));
        assert_eq!(of(&many).interests().len(), MAX_INTERESTS);
        assert!(of(&long).interests().is_empty());
    }
}
