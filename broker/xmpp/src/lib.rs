//! XMPP front end: client streams over TCP and TLS.
