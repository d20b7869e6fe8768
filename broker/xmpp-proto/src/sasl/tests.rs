//! SCRAM: the vectors of RFC 5802 and RFC 7677, both sides against each other, and attacks.

use super::*;

fn start(mechanism: Mechanism, message: &str, bindings: &ChannelBindings) -> Result<ScramStart, SaslFailure> {
    ScramStart::parse(mechanism, message.as_bytes(), bindings)
}

fn bindings() -> ChannelBindings {
    ChannelBindings { exporter: Some([7; 32]), server_end_point: Some([8u8; 32][..].into()) }
}

/// Checks both sides against a transcript of an RFC.
fn transcript(hash: Hash, nonce: &str, server_nonce: &str, salt: &[u8], lines: [&str; 4]) {
    let (first, client) = ScramClient::start(hash, ("user", "pencil"), nonce, ClientBinding::Unsupported).unwrap();
    assert_eq!(first, lines[0].as_bytes());
    let keys = ScramKeys::derive(hash, "pencil", salt, 4096).unwrap();
    let parsed = start(Mechanism::Scram(hash), lines[0], &ChannelBindings::NONE).unwrap();
    let (_, mut challenged) = parsed.challenge(keys, [0; 18]);
    // The RFC's server nonce is no base64 of ours: put it in.
    challenged.replace_nonce(&format!("{nonce}{server_nonce}"), lines[1]);
    let (last, client) = client.respond(lines[1].as_bytes()).unwrap();
    assert_eq!(last, lines[2].as_bytes());
    let success = challenged.finish(&last).unwrap();
    assert_eq!(success.message, lines[3].as_bytes());
    client.verify(&success.message).unwrap();
}

/// RFC 5802 §5.
#[test]
fn the_example_of_rfc_5802() {
    transcript(
        Hash::Sha1,
        "fyko+d2lbbFgONRv9qkxdawL",
        "3rfcNHYJY1ZVvWVs7j",
        &[0x41, 0x25, 0xc2, 0x47, 0xe4, 0x3a, 0xb1, 0xe9, 0x3c, 0x6d, 0xff, 0x76],
        [
            "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
            "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        ],
    );
}

/// RFC 7677 §3.
#[test]
fn the_example_of_rfc_7677() {
    let salt = [0x5b, 0x6d, 0x99, 0x68, 0x9d, 0x12, 0x35, 0x8e, 0xec, 0xa0, 0x4b, 0x14, 0x12, 0x36, 0xfa, 0x81];
    transcript(
        Hash::Sha256,
        "rOprNGfwEbeRWgbNEkqO",
        "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        &salt,
        [
            "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ],
    );
}

/// Runs both sides; gives what the server says in the end.
fn login(
    mechanism: Mechanism,
    password: &str,
    binding: ClientBinding,
    offered: &ChannelBindings,
) -> Result<ScramSuccess, SaslFailure> {
    let (Mechanism::Scram(hash) | Mechanism::ScramPlus(hash)) = mechanism else { panic!("no SCRAM") };
    let (first, client) = ScramClient::start(hash, ("rom=eo,", password), "abc", binding).unwrap();
    let parsed = ScramStart::parse(mechanism, &first, offered)?;
    assert_eq!(parsed.user(), "rom=eo,");
    let keys = ScramKeys::derive(hash, "secret", &[1; 16], 4096).unwrap();
    let (challenge, challenged) = parsed.challenge(keys, [9; 18]);
    let (last, client) = client.respond(&challenge).unwrap();
    let success = challenged.finish(&last)?;
    client.verify(&success.message).unwrap();
    Ok(success)
}

#[test]
fn the_right_password_gets_in_and_a_wrong_one_does_not() {
    for hash in [Hash::Sha1, Hash::Sha256] {
        let none = ChannelBindings::NONE;
        assert_eq!(login(Mechanism::Scram(hash), "secret", ClientBinding::Unsupported, &none).unwrap().user, "rom=eo,");
        let wrong = login(Mechanism::Scram(hash), "Secret", ClientBinding::Unsupported, &none);
        assert_eq!(wrong, Err(SaslFailure::NotAuthorized));
    }
}

#[test]
fn channel_binding_must_fit_the_connection() {
    let plus = Mechanism::ScramPlus(Hash::Sha256);
    let exporter = |byte| ClientBinding::Bound(BindingKind::TlsExporter, vec![byte; 32]);
    assert!(login(plus, "secret", exporter(7), &bindings()).is_ok());
    assert!(
        login(plus, "secret", ClientBinding::Bound(BindingKind::TlsServerEndPoint, vec![8; 32]), &bindings()).is_ok()
    );
    // Somebody in the middle has another TLS connection.
    assert_eq!(login(plus, "secret", exporter(6), &bindings()), Err(SaslFailure::NotAuthorized));
    let only_end_point = ChannelBindings { exporter: None, ..bindings() };
    assert_eq!(login(plus, "secret", exporter(7), &only_end_point), Err(SaslFailure::NotAuthorized));
}

#[test]
fn a_removed_plus_mechanism_is_noticed() {
    let plain = Mechanism::Scram(Hash::Sha256);
    assert!(login(plain, "secret", ClientBinding::NotOffered, &ChannelBindings::NONE).is_ok());
    assert_eq!(login(plain, "secret", ClientBinding::NotOffered, &bindings()), Err(SaslFailure::NotAuthorized));
    let plus = Mechanism::ScramPlus(Hash::Sha256);
    assert_eq!(login(plus, "secret", ClientBinding::Unsupported, &bindings()), Err(SaslFailure::MalformedRequest));
    assert!(login(plain, "secret", ClientBinding::Unsupported, &bindings()).is_ok());
}

#[test]
fn malformed_first_messages() {
    for message in [
        "",
        "n",
        "n,,",
        "n,,n=,r=x",
        "n,,n=a=b,r=x",
        "n,,r=x,n=a",
        "n,,n=a,r=",
        "x,,n=a,r=b",
        "n,b,n=a,r=b",
        "n,,m=x,n=a,r=b",
        "p=tls-exporter,,n=a,r=b",
    ] {
        let parsed = start(Mechanism::Scram(Hash::Sha1), message, &ChannelBindings::NONE);
        assert_eq!(parsed.err(), Some(SaslFailure::MalformedRequest), "{message}");
    }
    let parsed =
        start(Mechanism::Scram(Hash::Sha1), "n,a=jul=2Ciet,n=a,r=b,x=ignored", &ChannelBindings::NONE).unwrap();
    assert_eq!(parsed.authzid(), Some("jul,iet"));
}

#[test]
fn a_client_refuses_a_weak_or_replayed_challenge() {
    let respond = |challenge: &str| {
        let (_, client) = ScramClient::start(Hash::Sha256, ("a", "b"), "abc", ClientBinding::Unsupported).unwrap();
        client.respond(challenge.as_bytes()).map(|_| ())
    };
    assert_eq!(respond("r=abc,s=AAAA,i=4096"), Err(ClientError::Nonce));
    assert_eq!(respond("r=xyzd,s=AAAA,i=4096"), Err(ClientError::Nonce));
    assert_eq!(respond("r=abcd,s=AAAA,i=1"), Err(ClientError::Iterations));
    assert_eq!(respond("e=other-error"), Err(ClientError::Malformed));
}

/// RFC 4616 §4.
#[test]
fn plain_messages() {
    let plain = Plain::parse(b"\0tim\0tanstaaftanstaaf").unwrap();
    assert_eq!((plain.authzid.as_str(), plain.user.as_str(), plain.password.as_str()), ("", "tim", "tanstaaftanstaaf"));
    assert_eq!(Plain::parse(b"Ursel\0Kurt\0xipj3plmq").unwrap().authzid, "Ursel");
    for message in [&b""[..], b"a", b"\0\0x", b"\0a\0", b"\0a\0b\0c", b"\0a\0\xff"] {
        assert!(Plain::parse(message).is_err());
    }
}

impl ScramChallenged {
    fn replace_nonce(&mut self, nonce: &str, server_first: &str) {
        (self.nonce, self.server_first) = (nonce.to_owned(), server_first.to_owned());
    }
}
