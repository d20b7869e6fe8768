//! Result Set Management (XEP-0059): what a `<set/>` asks for, and where a page begins and ends.

use tavi_xmpp_proto::{Condition, Element, StanzaError, ns};

/// What a `<set/>` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// At most so many.
    pub(crate) max: Option<usize>,
    /// Those behind this one.
    pub(crate) after: Option<String>,
    /// Those before this one, the last of them; empty: the last of all (XEP-0059 §2.5).
    pub(crate) before: Option<String>,
}

impl Asked {
    /// Reads it.
    ///
    /// # Errors
    /// XEP-0059 §2.6: pages are not found by their index here. `<bad-request/>` for a maximum that is no number.
    pub(crate) fn read(set: &Element) -> Result<Asked, StanzaError> {
        let text = |name| set.get_child(ns::RSM, name).map(Element::text_content);
        if text("index").is_some() {
            return Err(StanzaError::new(Condition::FeatureNotImplemented).text("pages are not found by their index"));
        }
        let no_number = |_| StanzaError::new(Condition::BadRequest).text("max is a number");
        let max = text("max").map(|max| max.trim().parse()).transpose().map_err(no_number)?;
        Ok(Asked { max, after: text("after"), before: text("before") })
    }
}

/// XEP-0059 §2.1: the first and the last of a page; neither, if there is nothing in it.
pub(crate) fn ends(first: Option<String>, last: Option<String>) -> Element {
    let end = |name: &'static str, id: Option<String>| id.map(|id| Element::new(ns::RSM, name).text(id));
    Element::new(ns::RSM, "set").child_opt(end("first", first)).child_opt(end("last", last))
}
