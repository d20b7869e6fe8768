//! SCRAM from a client that does not know the password (RFC 5802): no message gets it in, none panics.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tavi_xmpp_proto::sasl::{ChannelBindings, Hash, Mechanism, Plain, ScramKeys, ScramStart};

static KEYS: LazyLock<[ScramKeys; 2]> = LazyLock::new(|| [Hash::Sha1, Hash::Sha256].map(keys));

fn keys(hash: Hash) -> ScramKeys {
    ScramKeys::derive(hash, "a password that the fuzzer cannot find", &[7; 16], 4096).expect("a legal password")
}

fuzz_target!(|data: &[u8]| {
    let _ = Plain::parse(data);
    let _ = ScramKeys::decode(data);
    let Some((&selector, messages)) = data.split_first() else { return };
    let mechanism = Mechanism::ALL[usize::from(selector) % Mechanism::ALL.len()];
    // A zero octet stands between the client's first and its final message.
    let mut parts = messages.splitn(2, |octet| *octet == 0);
    let (first, last) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let exporter = (selector >= 128).then_some([5; 32]);
    let bindings = ChannelBindings { exporter, server_end_point: None };
    let Ok(start) = ScramStart::parse(mechanism, first, &bindings) else { return };
    let keys = &KEYS[usize::from(start.hash() == Hash::Sha256)];
    let (challenge, challenged) = start.challenge(keys.clone(), [9; 18]);
    assert!(challenge.starts_with(b"r="));
    assert!(challenged.finish(last).is_err(), "let in without the password");
});
