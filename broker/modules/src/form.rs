//! Data forms (XEP-0004): how they are read and written, whatever they ask for.

use tavi_xmpp_proto::{Element, ns};

/// The field that tells what a form is for (XEP-0068).
pub(crate) const FORM_TYPE: &str = "FORM_TYPE";

/// The form in an element.
pub(crate) fn of(parent: &Element) -> Option<&Element> {
    parent.get_child(ns::DATA_FORMS, "x")
}

/// The fields of a form, that of its type among them.
pub(crate) fn fields(form: &Element) -> impl Iterator<Item = &Element> {
    form.elements().filter(|child| child.is(ns::DATA_FORMS, "field"))
}

/// A field's name; empty if it has none.
pub(crate) fn var(field: &Element) -> &str {
    field.get_attr("var").unwrap_or_default()
}

/// A field's values.
pub(crate) fn values(field: &Element) -> Vec<String> {
    field.elements().filter(|child| child.is(ns::DATA_FORMS, "value")).map(Element::text_content).collect()
}

/// A field's first value; empty if it has none.
pub(crate) fn value(field: &Element) -> String {
    field.get_child(ns::DATA_FORMS, "value").map(Element::text_content).unwrap_or_default()
}

/// XEP-0004 §3.3: yes or no; `None` if it is neither.
pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// A form of this type (XEP-0004 §3.1) and purpose.
pub(crate) fn form(type_: &'static str, purpose: &'static str, fields: impl IntoIterator<Item = Element>) -> Element {
    let purpose = field(FORM_TYPE, Some("hidden"), [purpose.to_owned()]);
    Element::new(ns::DATA_FORMS, "x").attr("type", type_).child(purpose).children(fields)
}

/// A field, of this type if it is to have one (XEP-0004 §3.3).
pub(crate) fn field(
    var: &'static str,
    type_: Option<&'static str>,
    values: impl IntoIterator<Item = String>,
) -> Element {
    let field = Element::new(ns::DATA_FORMS, "field").attr("var", var).attr_opt("type", type_);
    field.children(values.into_iter().map(written))
}

/// One of the values to choose from, with its label if it has one.
pub(crate) fn option(label: Option<&'static str>, value: &'static str) -> Element {
    Element::new(ns::DATA_FORMS, "option").attr_opt("label", label).child(written(value.to_owned()))
}

fn written(value: String) -> Element {
    Element::new(ns::DATA_FORMS, "value").text(value)
}
