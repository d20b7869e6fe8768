//! Stanza errors (RFC 6120 §8.3) and stream errors (RFC 6120 §4.9).

use std::fmt;

use crate::element::{Element, Name};
use crate::ns;

/// Declares an enum of conditions, each with its element name (and what else a condition carries).
macro_rules! conditions {
    ($(#[$doc:meta])* $type:ident { $($(#[$vdoc:meta])* $variant:ident = $name:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "each variant is named like the element that its RFC section defines")]
        pub enum $type { $($(#[$vdoc])* $variant,)* }

        impl $type {
            /// All conditions, in the order of the RFC.
            pub const ALL: &[$type] = &[$($type::$variant),*];

            /// The name of the element.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }

            /// The condition whose element is called `name`.
            pub fn from_name(name: &str) -> Option<$type> {
                match name { $($name => Some($type::$variant),)* _ => None }
            }
        }
    };
}

conditions! {
    /// The defined conditions of a stanza error, RFC 6120 §8.3.3.
    Condition {
        BadRequest = "bad-request";
        Conflict = "conflict";
        FeatureNotImplemented = "feature-not-implemented";
        Forbidden = "forbidden";
        Gone = "gone";
        InternalServerError = "internal-server-error";
        ItemNotFound = "item-not-found";
        JidMalformed = "jid-malformed";
        NotAcceptable = "not-acceptable";
        NotAllowed = "not-allowed";
        NotAuthorized = "not-authorized";
        PolicyViolation = "policy-violation";
        RecipientUnavailable = "recipient-unavailable";
        Redirect = "redirect";
        RegistrationRequired = "registration-required";
        RemoteServerNotFound = "remote-server-not-found";
        RemoteServerTimeout = "remote-server-timeout";
        ResourceConstraint = "resource-constraint";
        ServiceUnavailable = "service-unavailable";
        SubscriptionRequired = "subscription-required";
        UndefinedCondition = "undefined-condition";
        UnexpectedRequest = "unexpected-request";
    }
}

conditions! {
    /// The `type` of a stanza error: what the sender can do about it, RFC 6120 §8.3.2.
    ErrorType {
        Auth = "auth";
        Cancel = "cancel";
        Continue = "continue";
        Modify = "modify";
        Wait = "wait";
    }
}

conditions! {
    /// The defined conditions of a stream error, RFC 6120 §4.9.3.
    StreamCondition {
        BadFormat = "bad-format";
        BadNamespacePrefix = "bad-namespace-prefix";
        Conflict = "conflict";
        ConnectionTimeout = "connection-timeout";
        HostGone = "host-gone";
        HostUnknown = "host-unknown";
        ImproperAddressing = "improper-addressing";
        InternalServerError = "internal-server-error";
        InvalidFrom = "invalid-from";
        InvalidNamespace = "invalid-namespace";
        InvalidXml = "invalid-xml";
        NotAuthorized = "not-authorized";
        NotWellFormed = "not-well-formed";
        PolicyViolation = "policy-violation";
        RemoteConnectionFailed = "remote-connection-failed";
        Reset = "reset";
        ResourceConstraint = "resource-constraint";
        RestrictedXml = "restricted-xml";
        SeeOtherHost = "see-other-host";
        SystemShutdown = "system-shutdown";
        UndefinedCondition = "undefined-condition";
        UnsupportedEncoding = "unsupported-encoding";
        UnsupportedFeature = "unsupported-feature";
        UnsupportedStanzaType = "unsupported-stanza-type";
        UnsupportedVersion = "unsupported-version";
    }
}

impl Condition {
    /// The type that RFC 6120 §8.3.3 recommends for this condition.
    pub fn usual_type(self) -> ErrorType {
        use Condition::*;
        match self {
            Forbidden | NotAuthorized | RegistrationRequired | SubscriptionRequired => ErrorType::Auth,
            BadRequest | JidMalformed | NotAcceptable | PolicyViolation | Redirect => ErrorType::Modify,
            RecipientUnavailable | RemoteServerTimeout | ResourceConstraint | UnexpectedRequest => ErrorType::Wait,
            _ => ErrorType::Cancel,
        }
    }
}

/// Why a stanza was refused; the body of an answer of type `error`.
#[derive(Debug, Clone, PartialEq)]
pub struct StanzaError {
    /// What the sender can do about it.
    pub type_: ErrorType,
    /// What was wrong.
    pub condition: Condition,
    /// A sentence that a person can act on.
    pub text: Option<String>,
    /// A condition defined by a XEP, beside the general one (RFC 6120 §8.3.4).
    pub specific: Option<Box<Element>>,
}

impl StanzaError {
    /// An error with the usual type of its condition.
    pub fn new(condition: Condition) -> StanzaError {
        StanzaError { type_: condition.usual_type(), condition, text: None, specific: None }
    }

    /// The same with a text for a person.
    pub fn text(mut self, text: impl Into<String>) -> StanzaError {
        self.text = Some(text.into());
        self
    }

    /// The same with another type.
    pub fn with_type(mut self, type_: ErrorType) -> StanzaError {
        self.type_ = type_;
        self
    }

    /// The same with a condition of a XEP.
    pub fn specific(mut self, element: Element) -> StanzaError {
        self.specific = Some(Box::new(element));
        self
    }

    /// The `<error/>` element, RFC 6120 §8.3.2.
    pub fn to_element(&self) -> Element {
        let mut error = Element::new(ns::CLIENT, "error")
            .attr("type", self.type_.name())
            .child(Element::new(ns::STANZA_ERRORS, self.condition.name()));
        if let Some(text) = &self.text {
            error = error.child(Element::new(ns::STANZA_ERRORS, "text").attr("xml:lang", "en").text(text.clone()));
        }
        match &self.specific {
            Some(specific) => error.child((**specific).clone()),
            None => error,
        }
    }

    /// Reads an `<error/>` element; what it does not say becomes `undefined-condition` and `cancel`.
    pub fn from_element(error: &Element) -> StanzaError {
        let condition =
            error.elements().filter(|e| e.ns() == ns::STANZA_ERRORS).find_map(|e| Condition::from_name(e.name()));
        StanzaError {
            type_: error.get_attr("type").and_then(ErrorType::from_name).unwrap_or(ErrorType::Cancel),
            condition: condition.unwrap_or(Condition::UndefinedCondition),
            text: error.get_child(ns::STANZA_ERRORS, "text").map(Element::text_content),
            specific: error.elements().find(|e| e.ns() != ns::STANZA_ERRORS).cloned().map(Box::new),
        }
    }
}

impl From<Condition> for StanzaError {
    fn from(condition: Condition) -> StanzaError {
        StanzaError::new(condition)
    }
}

impl fmt::Display for StanzaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(f, self.condition.name(), self.text.as_deref())
    }
}
impl std::error::Error for StanzaError {}

/// Why a stream ends; it is sent before `</stream:stream>` and can not be recovered from (RFC 6120 §4.9.1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamError {
    /// What was wrong.
    pub condition: StreamCondition,
    /// A sentence that a person can act on.
    pub text: Option<Name>,
    /// A condition defined by a XEP, beside the general one (RFC 6120 §4.9.4).
    pub specific: Option<Box<Element>>,
}

impl StreamError {
    /// An error without a text.
    pub fn new(condition: StreamCondition) -> StreamError {
        StreamError { condition, text: None, specific: None }
    }

    /// The same with a text for a person.
    pub fn text(mut self, text: impl Into<Name>) -> StreamError {
        self.text = Some(text.into());
        self
    }

    /// The same with a condition of a XEP.
    pub fn specific(mut self, element: Element) -> StreamError {
        self.specific = Some(Box::new(element));
        self
    }

    /// The `<stream:error/>` element, RFC 6120 §4.9.2.
    pub fn to_element(&self) -> Element {
        let text = |text: &Name| Element::new(ns::STREAM_ERRORS, "text").attr("xml:lang", "en").text(text.clone());
        Element::new(ns::STREAM, "error")
            .child(Element::new(ns::STREAM_ERRORS, self.condition.name()))
            .child_opt(self.text.as_ref().map(text))
            .child_opt(self.specific.as_deref().cloned())
    }
}

impl From<StreamCondition> for StreamError {
    fn from(condition: StreamCondition) -> StreamError {
        StreamError::new(condition)
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(f, self.condition.name(), self.text.as_deref())
    }
}
impl std::error::Error for StreamError {}

fn describe(f: &mut fmt::Formatter<'_>, condition: &str, text: Option<&str>) -> fmt::Result {
    match text {
        Some(text) => write!(f, "{condition}: {text}"),
        None => f.write_str(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stanza_error_survives_the_wire() {
        for &condition in Condition::ALL {
            let error =
                StanzaError::new(condition).text("no <way>").specific(Element::new(ns::PUBSUB_ERRORS, "closed-node"));
            let mut bytes = Vec::new();
            error.to_element().write_to(&mut bytes, ns::CLIENT);
            let back = StanzaError::from_element(&Element::parse(&bytes, ns::CLIENT).unwrap());
            assert_eq!(back, error);
        }
    }

    #[test]
    fn there_are_22_stanza_and_25_stream_conditions() {
        assert_eq!((Condition::ALL.len(), StreamCondition::ALL.len()), (22, 25));
        assert!(StreamCondition::ALL.iter().all(|c| StreamCondition::from_name(c.name()) == Some(*c)));
    }
}
