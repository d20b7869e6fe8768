//! Negotiations as dialogues: what the client says, what the server answers.

use super::*;
use crate::framing::Limits;
use crate::ingress::Ingress;
use crate::sasl::{BindingKind, ClientBinding, ScramClient};

const OPEN: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='tavi.example' version='1.0'>";
const BIND: &str = "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
const CLEAR: Layer = Layer::Clear { tls: true, loopback: false };
const LOOPBACK: Layer = Layer::Clear { tls: true, loopback: true };

/// A server with one user, romeo, whose password is `secret`.
struct Server {
    framing: Framing,
    ingress: Ingress,
    negotiation: Option<Negotiation>,
    layer: Layer,
    bindings: ChannelBindings,
    bound: Option<Jid>,
    lang: Option<String>,
}

impl Server {
    fn new(layer: Layer) -> Server {
        Server::over(Framing::Stream, layer)
    }

    fn over(framing: Framing, layer: Layer) -> Server {
        let bindings = match layer {
            Layer::Tls => ChannelBindings { exporter: Some([7; 32]), server_end_point: None },
            Layer::Clear { .. } => ChannelBindings::NONE,
        };
        Server {
            framing,
            ingress: Ingress::framed(framing, Limits::BEFORE_LOGIN),
            negotiation: Some(Negotiation::default()),
            layer,
            bindings,
            bound: None,
            lang: None,
        }
    }

    /// The client says `text`; gives what the server answers.
    fn hears(&mut self, text: &str) -> String {
        let bindings = self.bindings.clone();
        let features = [Element::new(ns::ROSTER_VERSIONING, "ver")];
        let setting = Setting {
            domain: "tavi.example",
            is_login_host: &|host| host == "tavi.example" || host == "things.tavi.example",
            layer: self.layer,
            framing: self.framing,
            bindings: &bindings,
            offers: [&[], &features],
            entropy: [9; 18],
        };
        let mut out = Vec::new();
        let mut input = text.as_bytes();
        if let Err(error) = self.read(&mut input, &setting, &mut out) {
            match self.negotiation.take() {
                Some(negotiation) => negotiation.write_error(&error, &setting, &mut out),
                None => self.framing.write_error(&error, &mut out),
            }
        }
        let messages = self.framing.messages(&out);
        messages
            .into_iter()
            .map(|message| String::from_utf8(message.into_owned()).unwrap())
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn read(&mut self, input: &mut &[u8], setting: &Setting<'_>, out: &mut Vec<u8>) -> Result<(), StreamError> {
        while let Some(incoming) = self.ingress.next(input)? {
            let Some(negotiation) = self.negotiation.take() else { panic!("the stream has ended") };
            let next = negotiation.handle(incoming, setting, out)?;
            self.negotiation = self.answer(next, setting, out)?;
        }
        Ok(())
    }

    fn answer(
        &mut self,
        next: Next,
        setting: &Setting<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Negotiation>, StreamError> {
        Ok(Some(match next {
            Next::Wait(negotiation) => negotiation,
            Next::StartTls(negotiation) => {
                (self.ingress, self.layer) = (Ingress::new(Limits::BEFORE_LOGIN), Layer::Tls);
                self.bindings.exporter = Some([7; 32]);
                negotiation
            }
            Next::Keys(wanted) => {
                let keys = match wanted.user() {
                    "romeo@tavi.example" => ScramKeys::derive(wanted.hash(), "secret", &[1; 16], 4096).unwrap(),
                    other => ScramKeys::dummy(wanted.hash(), other, b"server", 4096),
                };
                wanted.with(keys, setting, out)
            }
            Next::Judge(wanted) => {
                let right = match wanted.evidence() {
                    Evidence::Password(password) => (wanted.user(), password) == ("romeo@tavi.example", "secret"),
                    Evidence::Proof { challenge, answer } => challenge.finish(answer).is_ok(),
                };
                let next = if right { wanted.accept(out) } else { Next::Failed(wanted.refuse()) };
                return self.answer(next, setting, out);
            }
            Next::Failed(failed) => failed.answer(out)?,
            Next::LoggedIn(_, negotiation) => {
                self.ingress.restart();
                negotiation
            }
            Next::Bind(wanted) => {
                self.lang = wanted.lang().map(str::to_owned);
                self.bound = Some(wanted.bound(out));
                return Ok(None);
            }
            Next::Resume(wanted) => wanted.refuse(out),
            Next::Close => return Ok(None),
        }))
    }

    /// Logs in with SCRAM; gives the last answer.
    fn login(&mut self, mechanism: Mechanism, (user, password): (&str, &str), binding: ClientBinding) -> String {
        let (Mechanism::Scram(hash) | Mechanism::ScramPlus(hash)) = mechanism else { panic!() };
        let (first, client) = ScramClient::start(hash, (user, password), "abc", binding).unwrap();
        let name = mechanism.name();
        let auth = format!("<auth xmlns='{}' mechanism='{name}'>{}</auth>", ns::SASL, BASE64.encode(first));
        let answer = self.hears(&auth);
        let challenge = Element::parse(answer.as_bytes(), "").unwrap();
        if challenge.name() != "challenge" {
            return answer;
        }
        let (last, client) = client.respond(&BASE64.decode(challenge.text_content()).unwrap()).unwrap();
        let answer = self.hears(&format!("<response xmlns='{}'>{}</response>", ns::SASL, BASE64.encode(last)));
        if let Some(proof) = Element::parse(answer.as_bytes(), "").ok().filter(|element| element.name() == "success") {
            client.verify(&BASE64.decode(proof.text_content()).unwrap()).unwrap();
        }
        answer
    }
}

const SUCCESS: &str = "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'";

fn failure(condition: &str) -> String {
    format!("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><{condition}/></failure>")
}

#[test]
fn a_whole_negotiation_with_starttls_and_scram_plus() {
    let mut server = Server::new(CLEAR);
    let answer = server.hears(&format!("<?xml version='1.0'?>{OPEN}"));
    assert!(answer.starts_with("<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' from='tavi.example' id='"), "{answer}");
    assert!(answer.ends_with("<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>"), "{answer}");
    assert_eq!(
        server.hears("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"),
        "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"
    );

    let answer = server.hears(OPEN);
    assert!(answer.contains("<mechanism>SCRAM-SHA-256-PLUS</mechanism><mechanism>SCRAM-SHA-1-PLUS</mechanism><mechanism>SCRAM-SHA-256</mechanism>"), "{answer}");
    assert!(answer.contains(
        "<sasl-channel-binding xmlns='urn:xmpp:sasl-cb:0'><channel-binding type='tls-exporter'/></sasl-channel-binding>"
    ));
    assert!(!answer.contains("starttls"));
    let bound = ClientBinding::Bound(BindingKind::TlsExporter, vec![7; 32]);
    let answer = server.login(Mechanism::ScramPlus(Hash::Sha256), ("romeo", "secret"), bound);
    assert!(answer.starts_with(SUCCESS), "{answer}");

    let answer = server.hears(OPEN);
    assert!(answer.contains("to='romeo@tavi.example'"));
    assert!(answer.contains("<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><required/></bind>"));
    assert!(answer.contains("<sm xmlns='urn:xmpp:sm:3'/><ver xmlns='urn:xmpp:features:rosterver'/>"));
    let answer = server.hears(
        "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>Orchard</resource></bind></iq>",
    );
    assert_eq!(
        answer,
        "<iq type='result' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid>romeo@tavi.example/Orchard</jid></bind></iq>"
    );
    assert_eq!(server.bound.unwrap().as_str(), "romeo@tavi.example/Orchard");
}

/// What a client says over each framing: its header, and a request to bind.
const SAID: [(Framing, &str, &str); 2] = [
    (Framing::Stream, OPEN, BIND),
    (
        Framing::WebSocket,
        "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='tavi.example' version='1.0'/>",
        "<iq xmlns='jabber:client' type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
    ),
];

#[test]
fn the_same_negotiation_over_each_framing() {
    for (framing, open, bind) in SAID {
        let mut server = Server::over(framing, Layer::Tls);
        let answer = server.hears(open);
        assert!(answer.contains("<mechanism>SCRAM-SHA-256-PLUS</mechanism>"), "{answer}");
        let bound = ClientBinding::Bound(BindingKind::TlsExporter, vec![7; 32]);
        assert!(server.login(Mechanism::ScramPlus(Hash::Sha256), ("romeo", "secret"), bound).starts_with(SUCCESS));
        // RFC 7395 §3.7: the stream begins anew here as well.
        assert!(server.hears(open).contains("to='romeo@tavi.example'"));
        let answer = server.hears(bind);
        let result = match framing {
            Framing::WebSocket => "<iq xmlns='jabber:client' type='result' id='b'>",
            _ => "<iq type='result' id='b'>",
        };
        assert!(answer.starts_with(result) && server.bound.is_some(), "{answer}");
    }
}

#[test]
fn what_goes_wrong_ends_the_stream_in_its_framing() {
    for (framing, open, bind) in SAID {
        let ended = |answer: &str| match framing {
            Framing::WebSocket => {
                answer.ends_with("</stream:error>\n<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>")
            }
            _ => answer.ends_with("</stream:error></stream:stream>"),
        };
        let answer = Server::over(framing, Layer::Tls).hears(&open.replace("tavi.example", "other.example"));
        assert!(answer.contains("<host-unknown") && ended(&answer), "{answer}");
        let mut server = Server::over(framing, Layer::Tls);
        server.hears(open);
        let answer = server.hears(bind);
        assert!(answer.contains("<not-authorized") && ended(&answer), "{answer}");
        // Before our header it comes with one (RFC 6120 §4.9.1.2).
        let answer = Server::over(framing, Layer::Tls).hears("<!DOCTYPE x>");
        assert!(answer.contains(" from='tavi.example'") && ended(&answer), "{answer}");
        let mut server = Server::over(framing, Layer::Tls);
        server.hears(open);
        let close = if framing == Framing::WebSocket {
            "<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>"
        } else {
            "</stream:stream>"
        };
        assert_eq!((server.hears(close), server.negotiation.is_none()), (String::new(), true));
    }
}

#[test]
fn passwords_are_never_taken_in_the_clear() {
    let plain = format!("<auth xmlns='{}' mechanism='PLAIN'>{}</auth>", ns::SASL, BASE64.encode("\0romeo\0secret"));
    for layer in [CLEAR, LOOPBACK] {
        let mut server = Server::new(layer);
        assert!(!server.hears(OPEN).contains("PLAIN"));
        assert_eq!(server.hears(&plain), failure("encryption-required"));
    }
    let mut server = Server::new(CLEAR);
    server.hears(OPEN);
    let answer = server.login(Mechanism::Scram(Hash::Sha256), ("romeo", "secret"), ClientBinding::Unsupported);
    assert_eq!(answer, failure("encryption-required"));
    let mut server = Server::new(Layer::Tls);
    assert!(server.hears(OPEN).contains("<mechanism>PLAIN</mechanism>"));
    assert!(server.hears(&plain).starts_with(SUCCESS));
}

#[test]
fn scram_is_allowed_in_the_clear_on_loopback() {
    let mut server = Server::new(LOOPBACK);
    let answer = server.hears(OPEN);
    assert!(
        answer.contains("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>") && !answer.contains("PLUS"),
        "{answer}"
    );
    let answer = server.login(Mechanism::Scram(Hash::Sha1), ("romeo", "secret"), ClientBinding::Unsupported);
    assert!(answer.starts_with(SUCCESS));
    assert!(server.hears(OPEN).contains("<bind"));
    let answer = server.hears("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>");
    assert!(answer.contains("<jid>romeo@tavi.example/"), "{answer}");
}

#[test]
fn wrong_passwords_and_unknown_users_look_alike_and_end_the_stream_after_a_while() {
    let mut server = Server::new(LOOPBACK);
    server.hears(OPEN);
    for user in ["romeo", "nobody", "romeo@tavi.example", "ro meo"] {
        let answer = server.login(Mechanism::Scram(Hash::Sha256), (user, "wrong"), ClientBinding::Unsupported);
        assert_eq!(answer, failure("not-authorized"), "{user}");
    }
    let answer = server.login(Mechanism::Scram(Hash::Sha256), ("romeo", "wrong"), ClientBinding::Unsupported);
    assert!(answer.contains("<policy-violation") && answer.ends_with("</stream:stream>"), "{answer}");
}

#[test]
fn a_login_in_several_steps_can_be_aborted_or_garbled() {
    let mut server = Server::new(Layer::Tls);
    server.hears(OPEN);
    let auth =
        |mechanism: &str, text: &str| format!("<auth xmlns='{}' mechanism='{mechanism}'>{text}</auth>", ns::SASL);
    assert_eq!(server.hears(&auth("PLAIN", "")), "<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
    let response =
        format!("<response xmlns='{}'>{}</response>", ns::SASL, BASE64.encode("romeo@tavi.example\0romeo\0secret"));
    assert!(server.hears(&response).starts_with(SUCCESS));

    let mut server = Server::new(Layer::Tls);
    server.hears(OPEN);
    server.hears(&auth("SCRAM-SHA-1", ""));
    assert_eq!(server.hears(&format!("<abort xmlns='{}'/>", ns::SASL)), failure("aborted"));
    assert_eq!(server.hears(&auth("SCRAM-SHA-1", "***")), failure("incorrect-encoding"));
    assert_eq!(server.hears(&auth("DIGEST-MD5", "=")), failure("invalid-mechanism"));
    assert_eq!(server.hears(&auth("PLAIN", "=")), failure("malformed-request"));
}

#[test]
fn nobody_acts_as_somebody_else() {
    let mut server = Server::new(Layer::Tls);
    server.hears(OPEN);
    let auth = format!(
        "<auth xmlns='{}' mechanism='PLAIN'>{}</auth>",
        ns::SASL,
        BASE64.encode("juliet@tavi.example\0romeo\0secret")
    );
    assert_eq!(server.hears(&auth), failure("invalid-authzid"));
    // A right password for another host of the server.
    let mut server = Server::new(Layer::Tls);
    server.hears(&OPEN.replace("tavi", "things.tavi"));
    let auth = format!(
        "<auth xmlns='{}' mechanism='PLAIN'>{}</auth>",
        ns::SASL,
        BASE64.encode("\0romeo@tavi.example\0secret")
    );
    assert_eq!(server.hears(&auth), failure("not-authorized"));
}

#[test]
fn errors_before_our_header_come_with_one() {
    for (bytes, condition) in [
        ("GET / HTTP/1.1\r\n", "not-well-formed"),
        ("<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams'>", "invalid-namespace"),
        ("<!DOCTYPE x>", "restricted-xml"),
    ] {
        let answer = Server::new(CLEAR).hears(bytes);
        assert!(answer.starts_with("<?xml version='1.0'?><stream:stream "), "{answer}");
        assert!(
            answer.contains(&format!("<stream:error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>")),
            "{answer}"
        );
        assert!(answer.ends_with("</stream:error></stream:stream>"));
    }
}

#[test]
fn hosts_and_versions_are_judged() {
    let host = Server::new(CLEAR).hears(&OPEN.replace("tavi.example", "other.example"));
    assert!(host.contains("<host-unknown") && host.matches("<stream:stream").count() == 1, "{host}");
    assert!(Server::new(CLEAR).hears(&OPEN.replace(" to='tavi.example'", "")).contains("<host-unknown"));
    assert!(Server::new(CLEAR).hears(&OPEN.replace(" version='1.0'", "")).contains("<unsupported-version"));
    assert!(Server::new(CLEAR).hears(&OPEN.replace("tavi.example", "TAVI.EXAMPLE.")).contains("from='tavi.example'"));
}

#[test]
fn a_higher_version_is_answered_with_ours_and_an_asker_is_addressed() {
    let answer = Server::new(LOOPBACK).hears(&OPEN.replace("version='1.0'", "version='2.0'"));
    assert!(answer.contains(" version='1.0'") && answer.contains("<stream:features>"), "{answer}");
    let answer = Server::new(LOOPBACK).hears(&OPEN.replace(" to=", " from='romeo@tavi.example' to="));
    assert!(answer.contains(" to='romeo@tavi.example'"), "{answer}");
    let answer = Server::new(LOOPBACK).hears(&OPEN.replace(" to=", " from='&lt;' to="));
    assert!(!answer.contains(" to="), "{answer}");
}

#[test]
fn the_stream_s_language_is_that_of_its_stanzas() {
    for (said, kept) in [("de-CH", Some("de-CH")), ("a'b", None), ("", None)] {
        let mut server = Server::new(LOOPBACK);
        server.hears(OPEN);
        server.login(Mechanism::Scram(Hash::Sha1), ("romeo", "secret"), ClientBinding::Unsupported);
        server.hears(&OPEN.replace(" to=", &format!(" xml:lang=\"{said}\" to=")));
        server.hears(BIND);
        assert_eq!(server.lang.as_deref(), kept, "{said}");
    }
    let own: Jid = "romeo@tavi.example/Orchard".parse().unwrap();
    let mut head = Head::new(StanzaType::Iq(IqType::Get));
    stamp(&mut head, (&own, Some("de"))).unwrap();
    assert_eq!(head.lang.as_deref(), Some("de"));
    stamp(&mut head, (&own, Some("fr"))).unwrap();
    assert_eq!(head.lang.as_deref(), Some("de"), "its own counts");
}

#[test]
fn a_stream_error_is_answered_with_the_end_only() {
    let mut server = Server::new(LOOPBACK);
    server.hears(OPEN);
    let error = "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>";
    assert_eq!(server.hears(error), "");
    assert!(server.negotiation.is_none());
}

#[test]
fn nothing_works_before_login_and_binding() {
    let mut server = Server::new(LOOPBACK);
    server.hears(OPEN);
    assert!(server.hears("<message to='a@tavi.example'><body>x</body></message>").contains("<not-authorized"));
    let mut server = Server::new(Layer::Tls);
    server.hears(OPEN);
    assert!(
        server
            .hears("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            .contains("<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
    );
}

#[test]
fn stream_management_waits_for_the_resource() {
    let mut server = Server::new(LOOPBACK);
    server.hears(OPEN);
    server.login(Mechanism::Scram(Hash::Sha1), ("romeo", "secret"), ClientBinding::Unsupported);
    server.hears(OPEN);
    assert!(server.hears("<enable xmlns='urn:xmpp:sm:3'/>").contains("<unexpected-request"));
    assert!(server.hears("<resume xmlns='urn:xmpp:sm:3' previd='x' h='0'/>").contains("<item-not-found"));
    assert!(server.hears("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>\u{1d173}</resource></bind></iq>").contains("<bad-request"));
    assert!(server.hears("<presence/>").contains("<not-authorized"));
}

#[test]
fn a_sender_is_stamped_and_can_not_be_somebody_else() {
    let own: Jid = "romeo@tavi.example/Orchard".parse().unwrap();
    let mut head = Head::new(StanzaType::Iq(IqType::Get));
    assert_eq!(stamp(&mut head, (&own, None)), Ok(()));
    assert_eq!(head.from.as_ref(), Some(&own));
    head.from = Some(own.to_bare().into());
    assert_eq!(stamp(&mut head, (&own, None)), Ok(()));
    head.from = Some("juliet@tavi.example".parse().unwrap());
    assert_eq!(stamp(&mut head, (&own, None)).unwrap_err().condition, StreamCondition::InvalidFrom);
}
