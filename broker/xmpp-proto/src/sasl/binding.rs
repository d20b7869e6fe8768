//! Channel binding: ties a login to this very TLS connection (RFC 5929, RFC 9266, announced by XEP-0440).

use crate::element::Element;
use crate::ns;

/// A type of channel binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BindingKind {
    /// Keying material exported from TLS 1.3, RFC 9266.
    TlsExporter,
    /// A hash of the server's certificate, RFC 5929 §4.
    TlsServerEndPoint,
}

impl BindingKind {
    /// Its name in the IANA registry.
    pub fn name(self) -> &'static str {
        match self {
            BindingKind::TlsExporter => "tls-exporter",
            BindingKind::TlsServerEndPoint => "tls-server-end-point",
        }
    }

    /// The type of that name.
    pub fn from_name(name: &str) -> Option<BindingKind> {
        [BindingKind::TlsExporter, BindingKind::TlsServerEndPoint].into_iter().find(|kind| kind.name() == name)
    }
}

/// What the TLS layer of a connection gives to bind to.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ChannelBindings {
    /// 32 octets exported with the label `EXPORTER-Channel-Binding` and an empty context, RFC 9266 §2.
    pub exporter: Option<[u8; 32]>,
    /// The hash of the server's certificate, RFC 5929 §4.1.
    pub server_end_point: Option<std::sync::Arc<[u8]>>,
}

impl ChannelBindings {
    /// A connection that gives nothing to bind to.
    pub const NONE: ChannelBindings = ChannelBindings { exporter: None, server_end_point: None };

    /// Whether the -PLUS mechanisms can be offered.
    pub fn is_empty(&self) -> bool {
        self.exporter.is_none() && self.server_end_point.is_none()
    }

    /// The data of a type, if this connection has it.
    pub fn get(&self, kind: BindingKind) -> Option<&[u8]> {
        match kind {
            BindingKind::TlsExporter => self.exporter.as_ref().map(|data| &data[..]),
            BindingKind::TlsServerEndPoint => self.server_end_point.as_deref(),
        }
    }

    /// The stream feature that lists the types, XEP-0440 §3.
    pub fn feature(&self) -> Option<Element> {
        let kinds = [BindingKind::TlsExporter, BindingKind::TlsServerEndPoint];
        let offered = kinds.into_iter().filter(|kind| self.get(*kind).is_some());
        let item = |kind: BindingKind| Element::new(ns::SASL_CB, "channel-binding").attr("type", kind.name());
        (!self.is_empty()).then(|| Element::new(ns::SASL_CB, "sasl-channel-binding").children(offered.map(item)))
    }
}

impl std::fmt::Debug for ChannelBindings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let has = (self.exporter.is_some(), self.server_end_point.is_some());
        f.debug_tuple("ChannelBindings").field(&has.0).field(&has.1).finish()
    }
}
