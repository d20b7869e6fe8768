//! Negotiations as dialogues: what the client says, what the server answers.

use base64::engine::general_purpose::STANDARD as BASE64;

use super::*;
use crate::error::Condition;
use crate::framing::Limits;
use crate::ingress::Ingress;
use crate::sasl::{BindingKind, ClientBinding, Evidence, Hash, ScramClient, ScramKeys};
use crate::sm;

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
    /// What was begun with the binding.
    begun: Vec<String>,
    /// The name of a stream that can be resumed.
    resumable: Option<&'static str>,
    /// Whose the certificate is that the client showed.
    certificate: Option<&'static str>,
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
            begun: Vec::new(),
            resumable: None,
            certificate: None,
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
            inline: &["urn:xmpp:carbons:2"],
            external: self.certificate.is_some(),
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
                    Evidence::Certificate => self.certificate.is_some(),
                };
                let principal = self.certificate.unwrap_or(wanted.user()).parse();
                let next = match principal {
                    Ok(principal) if right => wanted.accept(&principal, setting, out),
                    _ => Next::Failed(wanted.refuse()),
                };
                return self.answer(next, setting, out);
            }
            Next::Failed(failed) => failed.answer(out)?,
            Next::LoggedIn(_, negotiation) => {
                self.ingress.restart();
                negotiation
            }
            Next::Bind(wanted) => {
                self.lang = wanted.lang().map(str::to_owned);
                self.begun = wanted.inline().iter().map(|element| element.ns().to_owned()).collect();
                if wanted.jid().resource().is_some_and(|resource| resource.starts_with("full")) {
                    return Ok(Some(wanted.refuse(&Condition::ResourceConstraint.into(), setting, out)));
                }
                let done = wanted.inline().iter().filter(|element| element.is(ns::SM, "enable"));
                let done = done.map(|_| sm::enabled(None)).collect();
                self.bound = Some(wanted.bound(done, setting, out));
                return Ok(None);
            }
            Next::Resume(wanted) if self.resumable == Some(&*wanted.previous) => {
                wanted.accept().write(Element::new(ns::SM, "resumed"), out);
                return Ok(None);
            }
            Next::Resume(wanted) => {
                let next = wanted.refuse(sm::not_resumed(None), setting, out);
                return self.answer(next, setting, out);
            }
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

/// A login by XEP-0388 with PLAIN and what else is asked for in it.
fn authenticate(password: &str, inline: &str) -> String {
    let message = BASE64.encode(format!("\0romeo\0{password}"));
    format!(
        "<authenticate xmlns='urn:xmpp:sasl:2' mechanism='PLAIN'><initial-response>{message}</initial-response>\
         <user-agent id='d4565fa7-4d72-4749-b3d3-740edbf87770'/>{inline}</authenticate>"
    )
}

const TAGGED: &str = "<bind xmlns='urn:xmpp:bind:0'><tag>Globe</tag><enable xmlns='urn:xmpp:sm:3' resume='true'/><enable xmlns='urn:xmpp:carbons:2'/></bind>";

/// The login of a client that has come this far over a framing.
fn opened(framing: Framing, open: &str) -> Server {
    let mut server = Server::over(framing, Layer::Tls);
    let answer = server.hears(open);
    let feature = "<authentication xmlns='urn:xmpp:sasl:2'><mechanism>SCRAM-SHA-256-PLUS</mechanism>";
    assert!(answer.contains(feature), "{answer}");
    let inline = "<inline><bind xmlns='urn:xmpp:bind:0'><inline><feature var='urn:xmpp:carbons:2'/></inline></bind><sm xmlns='urn:xmpp:sm:3'/></inline></authentication>";
    assert!(answer.contains(inline), "{answer}");
    server
}

#[test]
fn a_login_binds_and_begins_more_in_one_round_trip_over_each_framing() {
    for (framing, open, _) in SAID {
        let mut server = opened(framing, open);
        let answer = server.hears(&authenticate("secret", TAGGED));
        let jid = server.bound.clone().unwrap();
        let resource = jid.resource().unwrap();
        assert!(resource.starts_with("Globe~") && resource.len() == 18, "{resource}");
        assert_eq!(server.begun, [ns::SM, ns::CARBONS]);
        let success = format!(
            "<success xmlns='urn:xmpp:sasl:2'><authorization-identifier>{jid}</authorization-identifier>\
             <bound xmlns='urn:xmpp:bind:0'><enabled xmlns='urn:xmpp:sm:3'/></bound></success>"
        );
        assert!(answer.starts_with(&success), "{answer}");
        // XEP-0388 §2.6: features follow, and no new stream; there is nothing left to bind.
        assert!(answer.contains("<stream:features") && !answer.contains("xmpp-bind"), "{answer}");
        let mut again = opened(framing, open);
        again.hears(&authenticate("secret", TAGGED));
        assert_eq!(again.bound.unwrap(), jid, "the same installation gets the same resource");
    }
}

#[test]
fn a_login_without_more_goes_on_with_binding_on_the_same_stream() {
    for (framing, open, bind) in SAID {
        let mut server = opened(framing, open);
        let answer = server.hears(&authenticate("secret", ""));
        assert!(answer.starts_with("<success xmlns='urn:xmpp:sasl:2'><authorization-identifier>romeo@tavi.example<"));
        assert!(answer.contains("<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>"), "{answer}");
        server.hears(bind);
        assert!(server.bound.is_some());
    }
}

#[test]
fn a_login_in_steps_works_inside_sasl2_too() {
    let mut server = opened(Framing::Stream, OPEN);
    let bound = ClientBinding::Bound(BindingKind::TlsExporter, vec![7; 32]);
    let (first, client) = ScramClient::start(Hash::Sha256, ("romeo", "secret"), "abc", bound).unwrap();
    let begin = format!(
        "<authenticate xmlns='{}' mechanism='SCRAM-SHA-256-PLUS'><initial-response>{}</initial-response></authenticate>",
        ns::SASL2,
        BASE64.encode(first)
    );
    let challenge = Element::parse(server.hears(&begin).as_bytes(), "").unwrap();
    assert!(challenge.is(ns::SASL2, "challenge"));
    let (last, client) = client.respond(&BASE64.decode(challenge.text_content()).unwrap()).unwrap();
    let answer = server.hears(&format!("<response xmlns='{}'>{}</response>", ns::SASL2, BASE64.encode(last)));
    let success = answer.split_once("<stream:features>").unwrap().0;
    let success = Element::parse(success.as_bytes(), "").unwrap();
    let proof = success.get_child(ns::SASL2, "additional-data").unwrap().text_content();
    client.verify(&BASE64.decode(proof).unwrap()).unwrap();

    let mut server = opened(Framing::Stream, OPEN);
    let begin = format!("<authenticate xmlns='{}' mechanism='SCRAM-SHA-1'/>", ns::SASL2);
    assert_eq!(server.hears(&begin), "<challenge xmlns='urn:xmpp:sasl:2'/>");
    let failed = |condition: &str| {
        failure(condition)
            .replace("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>", "<failure xmlns='urn:xmpp:sasl:2'>")
            .replace(&format!("<{condition}/>"), &format!("<{condition} xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>"))
    };
    assert_eq!(server.hears("<abort xmlns='urn:xmpp:sasl:2'/>"), failed("aborted"));
    assert_eq!(server.hears(&authenticate("wrong", TAGGED)), failed("not-authorized"));
    assert!(server.hears(&authenticate("secret", "")).contains("<success"), "and another try");
}

#[test]
fn an_earlier_stream_is_gone_on_with_inside_the_login_or_a_resource_is_bound() {
    let wish = format!("<resume xmlns='urn:xmpp:sm:3' previd='old' h='3'/>{TAGGED}");
    let mut server = opened(Framing::Stream, OPEN);
    server.resumable = Some("old");
    let answer = server.hears(&authenticate("secret", &wish));
    let user = "<authorization-identifier>romeo@tavi.example</authorization-identifier>";
    // XEP-0198 §9.2: no features follow.
    assert!(answer.ends_with(&format!("{user}<resumed xmlns='urn:xmpp:sm:3'/></success>")), "{answer}");
    assert!(server.negotiation.is_none() && server.bound.is_none(), "the earlier session has it");
    let mut server = opened(Framing::Stream, OPEN);
    let answer = server.hears(&authenticate("secret", &wish));
    let failed = "<failed xmlns='urn:xmpp:sm:3'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>";
    assert!(answer.contains(&format!("{failed}<bound xmlns='urn:xmpp:bind:0'>")), "{answer}");
    assert!(server.bound.is_some());
}

#[test]
fn stream_management_before_the_login_is_refused_and_the_login_goes_on() {
    let mut server = opened(Framing::Stream, OPEN);
    let failed =
        "<failed xmlns='urn:xmpp:sm:3'><unexpected-request xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>";
    assert_eq!(server.hears("<enable xmlns='urn:xmpp:sm:3' resume='true'/>"), failed);
    assert_eq!(server.hears("<resume xmlns='urn:xmpp:sm:3' previd='old' h='3'/>"), failed);
    assert!(server.hears(&authenticate("secret", "")).contains("<success"));
}

#[test]
fn a_binding_that_fails_leaves_the_login() {
    let mut server = opened(Framing::Stream, OPEN);
    let answer = server.hears(&authenticate("secret", &TAGGED.replace("Globe", "full")));
    assert!(answer.contains("<failed xmlns='urn:xmpp:bind:0'><error"), "{answer}");
    assert!(answer.contains("<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>"), "it can be tried once more: {answer}");
    assert!(server.hears(BIND).contains("<jid>"));
}

#[test]
fn a_certificate_is_a_login_where_one_was_shown() {
    let external = |authzid: &str| format!("<auth xmlns='{}' mechanism='EXTERNAL'>{authzid}</auth>", ns::SASL);
    let mut server = Server::new(Layer::Tls);
    assert!(!server.hears(OPEN).contains("EXTERNAL"));
    assert_eq!(server.hears(&external("=")), failure("invalid-mechanism"));
    for (certificate, authzid, answer) in [
        ("romeo@tavi.example", "=", SUCCESS.to_owned()),
        ("romeo@tavi.example", &BASE64.encode("romeo@tavi.example"), SUCCESS.to_owned()),
        ("romeo@tavi.example", &BASE64.encode("juliet@tavi.example"), failure("invalid-authzid")),
        ("romeo@things.tavi.example", "=", failure("not-authorized")),
    ] {
        let mut server = Server::new(Layer::Tls);
        server.certificate = Some(certificate);
        assert!(server.hears(OPEN).contains("<mechanism>EXTERNAL</mechanism>"));
        let said = server.hears(&external(authzid));
        assert!(said.starts_with(&answer), "{certificate} {authzid}: {said}");
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
