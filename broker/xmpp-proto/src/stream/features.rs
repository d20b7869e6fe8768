//! The lists of features that the server offers, RFC 6120 §4.3.2.

use super::c2s::{Layer, Setting};
use super::sasl2;
use crate::element::Element;
use crate::ns;
use crate::sasl::Mechanism;

/// Before login: STARTTLS (RFC 6120 §5.4.1) and mechanisms (§6.4.1).
pub(crate) fn before_login(setting: &Setting<'_>, out: &mut Vec<u8>) {
    let mut list = Vec::new();
    if let Layer::Clear { tls: true, loopback } = setting.layer {
        let starttls = Element::new(ns::TLS, "starttls");
        list.push(if loopback { starttls } else { starttls.child(Element::new(ns::TLS, "required")) });
    }
    let mechanisms = mechanisms(setting);
    if !mechanisms.is_empty() {
        let item = |mechanism: &Mechanism| Element::new(ns::SASL, "mechanism").text(mechanism.name());
        list.push(Element::new(ns::SASL, "mechanisms").children(mechanisms.iter().map(item)));
        list.push(sasl2::feature(&mechanisms, setting));
        list.extend(setting.bindings.feature());
    }
    list.extend_from_slice(setting.offers[0]);
    setting.framing.write_features(&list, out);
}

/// What may be used here: on a clear connection nothing, except that on loopback SCRAM is allowed; never a password.
pub(crate) fn mechanisms(setting: &Setting<'_>) -> Vec<Mechanism> {
    let allowed = |mechanism: &Mechanism| match (mechanism, setting.layer) {
        (_, Layer::Clear { loopback: false, .. }) => false,
        (Mechanism::External, layer) => layer == Layer::Tls && setting.external,
        (Mechanism::Plain, layer) => layer == Layer::Tls,
        (Mechanism::ScramPlus(_), _) => !setting.bindings.is_empty(),
        (Mechanism::Scram(_), _) => true,
    };
    Mechanism::ALL.into_iter().filter(allowed).collect()
}

/// After login: resource binding, the session that no longer means anything, stream management, and what modules add.
pub(crate) fn after_login(setting: &Setting<'_>, out: &mut Vec<u8>) {
    // RFC 6120 §7.4, bind is mandatory to negotiate; RFC 6121 §1.4 made the session optional.
    let bind = [
        Element::new(ns::BIND, "bind").child(Element::new(ns::BIND, "required")),
        Element::new(ns::SESSION, "session").child(Element::new(ns::SESSION, "optional")),
    ];
    write(&bind, setting, out);
}

/// With a resource: what is left.
pub(crate) fn after_binding(setting: &Setting<'_>, out: &mut Vec<u8>) {
    write(&[], setting, out);
}

fn write(first: &[Element], setting: &Setting<'_>, out: &mut Vec<u8>) {
    let list = [first, &[Element::new(ns::SM, "sm")], setting.offers[1]].concat();
    setting.framing.write_features(&list, out);
}
