//! XMPP without IO: JIDs, framing, stanza heads, stream negotiation, SASL, stream management.
