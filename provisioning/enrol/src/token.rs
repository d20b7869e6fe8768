//! Device tokens: a COSE_Sign1 by the device's own key, sent as a password, good once and for ten minutes at most.
//!
//! Form: base64url without padding of a tagged COSE_Sign1 (RFC 9052 §4.2). Protected header: `alg` EdDSA
//! (RFC 9053 §2.2) and `kid` = the 16 bytes of the device id; nothing unprotected. Payload: CWT claims (RFC 8392
//! §3.1) `sub` (the id's text), `aud`, `iat`, `exp`, `cti` (16 bytes). External data: the context string below.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coset::cwt::{ClaimsSet, ClaimsSetBuilder, Timestamp};
use coset::{CborSerializable, CoseSign1, CoseSign1Builder, Header, HeaderBuilder, TaggedCborSerializable, iana};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use tavi_wire::DeviceId;
use zeroize::Zeroizing;

use crate::key::PublicKey;

/// The longest life of a token in seconds.
pub const MAX_LIFETIME: u64 = 600;
/// By how many seconds a device's clock may be ahead of the broker's.
pub const MAX_AHEAD: u64 = 60;
/// The longest token that is looked at, in characters.
pub const MAX_LENGTH: usize = 1024;

/// RFC 9052 §4.3: signed but not sent, so that a signature made for another purpose never passes as a token.
const CONTEXT: &[u8] = b"tavi device token 1";
/// How each token begins: tag 18, an array of four, and a byte string. No generated secret contains a `0`.
const PREFIX: &str = "0oR";

/// Which service of which domain a token is for: `mqtt:DOMAIN` or `xmpp:DOMAIN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience<'a> {
    /// The MQTT listeners of this domain.
    Mqtt(&'a str),
    /// The XMPP listeners of this domain.
    Xmpp(&'a str),
}

impl<'a> Audience<'a> {
    /// The audience for a protocol's name, `mqtt` or `xmpp`.
    pub fn named(protocol: &str, domain: &'a str) -> Option<Self> {
        match protocol {
            "mqtt" => Some(Self::Mqtt(domain)),
            "xmpp" => Some(Self::Xmpp(domain)),
            _ => None,
        }
    }
}

impl fmt::Display for Audience<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mqtt(domain) => write!(f, "mqtt:{domain}"),
            Self::Xmpp(domain) => write!(f, "xmpp:{domain}"),
        }
    }
}

/// What a device says in a token.
#[derive(Debug, Clone, Copy)]
pub struct Claims<'a> {
    /// Who logs in. Given, not computed: after a rotation the key no longer yields the id.
    pub device: DeviceId,
    /// Where.
    pub audience: Audience<'a>,
    /// Now, in seconds since 1970 in UTC.
    pub issued_at: u64,
    /// For how many seconds; more than [`MAX_LIFETIME`] is cut to it.
    pub lifetime: u64,
    /// 16 random bytes, other ones for each token.
    pub nonce: [u8; 16],
}

/// Makes a token with the device's private key.
pub fn sign(key: &SigningKey, claims: &Claims<'_>) -> Zeroizing<String> {
    let header = HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA).key_id(claims.device.as_bytes().to_vec());
    let unsigned = CoseSign1Builder::new().protected(header.build()).payload(claim_bytes(claims));
    let signed = unsigned.create_signature(CONTEXT, |bytes| key.sign(bytes).to_vec()).build();
    // Encoding into memory fails for no value that this file can build.
    Zeroizing::new(URL_SAFE_NO_PAD.encode(signed.to_tagged_vec().unwrap_or_default()))
}

fn claim_bytes(claims: &Claims<'_>) -> Vec<u8> {
    let expires = claims.issued_at.saturating_add(claims.lifetime.min(MAX_LIFETIME));
    let set = ClaimsSetBuilder::new()
        .subject(claims.device.to_string())
        .audience(claims.audience.to_string())
        .issued_at(timestamp(claims.issued_at))
        .expiration_time(timestamp(expires))
        .cwt_id(claims.nonce.to_vec());
    // As above: a map of texts, integers and bytes is always encodable.
    set.build().to_vec().unwrap_or_default()
}

fn timestamp(seconds: u64) -> Timestamp {
    Timestamp::WholeSeconds(i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// What a token is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// Who the peer says it is, for example by its user name.
    pub device: DeviceId,
    /// Which service it speaks to.
    pub audience: Audience<'a>,
    /// Now, in seconds since 1970 in UTC.
    pub now: u64,
}

/// What a good token proves. It logs in only if [`Replay::admit`](crate::replay::Replay::admit) has not seen it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedToken {
    /// Who logs in.
    pub device: DeviceId,
    /// The registered key that made the signature.
    pub key: PublicKey,
    /// The token's `cti`: remember it until `expires`.
    pub nonce: [u8; 16],
    /// When the device says that it made the token; seconds since 1970 in UTC.
    pub issued_at: u64,
    /// From this second on the token is refused anyhow; seconds since 1970 in UTC.
    pub expires: u64,
}

/// Why a token is refused: the device's fault, or its clock's. Tell the peer only that the login failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not base64url of a tagged COSE_Sign1 with this file's header and claims.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Made by or for another device than the one that logs in.
    #[error("the token is another device's")]
    Device,
    /// Made for another service or domain.
    #[error("the token is for another service or domain")]
    Audience,
    /// Its life is empty or longer than [`MAX_LIFETIME`].
    #[error("the token's life must be 1 to {MAX_LIFETIME} seconds")]
    Lifetime,
    /// Its `iat` is more than [`MAX_AHEAD`] seconds in the future.
    #[error("the token is from the future: the device's clock is ahead")]
    NotYet,
    /// Its `exp` has come.
    #[error("the token has expired")]
    Expired,
    /// The device has no key that counts: unknown, revoked, or rotated out.
    #[error("no active device with this id has a key")]
    UnknownDevice,
    /// None of the device's keys made the signature.
    #[error("the token is not signed by a key of this device")]
    Signature,
    /// It was used before.
    #[error("the token was used before")]
    Replayed,
    /// It was made before the broker started, so that nobody knows whether it was used.
    #[error("the token is older than this run of the broker")]
    BeforeStart,
    /// The device has used too many tokens in their lifetime.
    #[error("the device has used too many tokens in ten minutes")]
    TooMany,
}

/// Whether a password is meant as a token. No generated secret looks like one.
pub fn looks_like_token(password: &str) -> bool {
    password.len() > 128 && password.starts_with(PREFIX)
}

/// Checks a token; `keys` are the whole 32-byte keys of the device that count now.
///
/// # Errors
/// See [`TokenError`]. The signature is checked last, strictly (RFC 8032 §5.1.7 without its latitude).
pub fn verify(token: &str, attempt: &Attempt<'_>, keys: &[PublicKey]) -> Result<VerifiedToken, TokenError> {
    let signed = decode(token)?;
    let claims = claims_of(&signed)?;
    let device = device_of(&signed)?;
    if claims.subject.as_deref() != Some(&*device.text()) {
        return Err(TokenError::Malformed("sub is not the device of kid"));
    }
    if device != attempt.device {
        return Err(TokenError::Device);
    }
    if claims.audience.as_deref() != Some(&*attempt.audience.to_string()) {
        return Err(TokenError::Audience);
    }
    let (issued_at, expires) = check_times(&claims, attempt.now)?;
    let nonce = claims.cwt_id.as_deref().and_then(|id| id.try_into().ok());
    let nonce = nonce.ok_or(TokenError::Malformed("cti is not 16 bytes"))?;
    let key = signer_of(&signed, keys)?;
    Ok(VerifiedToken { device, key, nonce, issued_at, expires })
}

fn decode(token: &str) -> Result<CoseSign1, TokenError> {
    if token.len() > MAX_LENGTH {
        return Err(TokenError::Malformed("too long"));
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| TokenError::Malformed("not base64url"))?;
    CoseSign1::from_tagged_slice(&bytes).map_err(|_| TokenError::Malformed("not a tagged COSE_Sign1"))
}

fn device_of(signed: &CoseSign1) -> Result<DeviceId, TokenError> {
    let header = &signed.protected.header;
    let kid = <[u8; 16]>::try_from(&*header.key_id).map_err(|_| TokenError::Malformed("kid is not 16 bytes"))?;
    // Exactly these two parameters: in particular nothing critical (RFC 9052 §3.1) that would go unheeded.
    let expected = HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA).key_id(kid.to_vec()).build();
    if *header != expected || signed.unprotected != Header::default() {
        return Err(TokenError::Malformed("its header has more or less than alg EdDSA and kid"));
    }
    DeviceId::from_bytes(kid).map_err(|_| TokenError::Malformed("kid is no device id"))
}

fn claims_of(signed: &CoseSign1) -> Result<ClaimsSet, TokenError> {
    let payload = signed.payload.as_deref().ok_or(TokenError::Malformed("no payload"))?;
    ClaimsSet::from_slice(payload).map_err(|_| TokenError::Malformed("its payload is no set of claims"))
}

/// RFC 8392 §3.1.4 and §3.1.6; gives the seconds at which the token was made and expires.
fn check_times(claims: &ClaimsSet, now: u64) -> Result<(u64, u64), TokenError> {
    let issued = seconds(&claims.issued_at).ok_or(TokenError::Malformed("iat is no whole second"))?;
    let expires = seconds(&claims.expiration_time).ok_or(TokenError::Malformed("exp is no whole second"))?;
    match expires.checked_sub(issued) {
        Some(1..=MAX_LIFETIME) => {}
        _ => return Err(TokenError::Lifetime),
    }
    if claims.not_before.is_some() {
        return Err(TokenError::Malformed("nbf is not used"));
    }
    if issued > now.saturating_add(MAX_AHEAD) {
        return Err(TokenError::NotYet);
    }
    if now >= expires { Err(TokenError::Expired) } else { Ok((issued, expires)) }
}

fn seconds(time: &Option<Timestamp>) -> Option<u64> {
    match time {
        Some(Timestamp::WholeSeconds(seconds)) => u64::try_from(*seconds).ok(),
        _ => None,
    }
}

fn signer_of(signed: &CoseSign1, keys: &[PublicKey]) -> Result<PublicKey, TokenError> {
    if keys.is_empty() {
        return Err(TokenError::UnknownDevice);
    }
    let signature = Signature::from_slice(&signed.signature).map_err(|_| TokenError::Signature)?;
    let bytes = signed.tbs_data(CONTEXT);
    let made_it = |key: &PublicKey| {
        VerifyingKey::from_bytes(key.as_bytes()).is_ok_and(|key| key.verify_strict(&bytes, &signature).is_ok())
    };
    keys.iter().copied().find(made_it).ok_or(TokenError::Signature)
}

/// For fuzzing: whatever the bytes are, checking them as a token ends, and only a good signature passes.
pub fn fuzz_token(data: &[u8]) {
    let Ok(key) = PublicKey::from_bytes(*FUZZ_KEY) else { return };
    let attempt = Attempt { device: key.device_id(), audience: Audience::Mqtt("localhost"), now: 1_800_000_000 };
    let raw = URL_SAFE_NO_PAD.encode(data);
    let texts = [raw.as_str(), std::str::from_utf8(data).unwrap_or_default()];
    for text in texts {
        let outcome = verify(text, &attempt, &[key]);
        assert!(outcome.is_err(), "nobody has the private key of RFC 8032's first vector at hand here");
    }
}

/// RFC 8032 §7.1, test 1.
const FUZZ_KEY: &[u8; 32] = b"\xd7\x5a\x98\x01\x82\xb1\x0a\xb7\xd5\x4b\xfe\xd3\xc9\x64\x07\x3a\
    \x0e\xe1\x72\xf3\xda\xa6\x23\x25\xaf\x02\x1a\x68\xf7\x07\x51\x1a";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_795_000_000;
    const HERE: Audience<'_> = Audience::Mqtt("example.org");

    fn pump() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn public(key: &SigningKey) -> PublicKey {
        PublicKey::from_bytes(key.verifying_key().to_bytes()).unwrap()
    }

    fn claims() -> Claims<'static> {
        let device = public(&pump()).device_id();
        Claims { device, audience: HERE, issued_at: NOW, lifetime: 300, nonce: [9; 16] }
    }

    fn attempt(now: u64) -> Attempt<'static> {
        Attempt { device: claims().device, audience: HERE, now }
    }

    fn check(token: &str, now: u64) -> Result<VerifiedToken, TokenError> {
        verify(token, &attempt(now), &[public(&pump())])
    }

    /// Signs any header and claims, to say what `sign` never says.
    fn forge(edit: impl FnOnce(&mut CoseSign1, &mut ClaimsSet)) -> String {
        let mut signed = decode(&sign(&pump(), &claims())).unwrap();
        let mut set = claims_of(&signed).unwrap();
        edit(&mut signed, &mut set);
        signed.protected.original_data = None;
        signed.payload = Some(set.to_vec().unwrap());
        signed.signature = pump().sign(&signed.tbs_data(CONTEXT)).to_vec();
        URL_SAFE_NO_PAD.encode(signed.to_tagged_vec().unwrap())
    }

    #[test]
    fn the_pump_logs_in_with_its_token() {
        let token = sign(&pump(), &claims());
        assert!(looks_like_token(&token) && token.len() < 300, "{}", token.len());
        let device = claims().device;
        let key = public(&pump());
        let expected = VerifiedToken { device, key, nonce: [9; 16], issued_at: NOW, expires: NOW + 300 };
        assert_eq!(check(&token, NOW), Ok(expected));
        assert_eq!(check(&token, NOW + 299), Ok(expected));
        assert_eq!(check(&forge(|_, _| {}), NOW), Ok(expected));
    }

    #[test]
    fn time_is_enforced() {
        let token = sign(&pump(), &claims());
        assert_eq!(check(&token, NOW + 300), Err(TokenError::Expired));
        assert!(check(&token, NOW - MAX_AHEAD).is_ok());
        assert_eq!(check(&token, NOW - MAX_AHEAD - 1), Err(TokenError::NotYet));
        let long = forge(|_, set| set.expiration_time = Some(timestamp(NOW + MAX_LIFETIME + 1)));
        assert_eq!(check(&long, NOW), Err(TokenError::Lifetime));
        let empty = forge(|_, set| set.expiration_time = Some(timestamp(NOW)));
        assert_eq!(check(&empty, NOW), Err(TokenError::Lifetime));
        let cut = sign(&pump(), &Claims { lifetime: 9999, ..claims() });
        assert_eq!(check(&cut, NOW).unwrap().expires, NOW + MAX_LIFETIME);
    }

    #[test]
    fn a_token_is_for_one_service_of_one_domain() {
        let token = sign(&pump(), &claims());
        for other in [Audience::Xmpp("example.org"), Audience::Mqtt("example.com")] {
            let attempt = Attempt { audience: other, ..attempt(NOW) };
            assert_eq!(verify(&token, &attempt, &[public(&pump())]), Err(TokenError::Audience));
        }
        assert_eq!(Audience::named("mqtt", "example.org"), Some(HERE));
        assert_eq!(Audience::named("coap", "example.org"), None);
    }

    #[test]
    fn a_token_logs_in_its_own_device_only() {
        let lamp = public(&SigningKey::from_bytes(&[8; 32]));
        let token = sign(&pump(), &claims());
        let as_lamp = Attempt { device: lamp.device_id(), ..attempt(NOW) };
        assert_eq!(verify(&token, &as_lamp, &[public(&pump())]), Err(TokenError::Device));
        let forged = sign(&pump(), &Claims { device: lamp.device_id(), ..claims() });
        assert_eq!(verify(&forged, &as_lamp, &[lamp]), Err(TokenError::Signature));
    }

    #[test]
    fn only_a_registered_key_counts() {
        let token = sign(&pump(), &claims());
        let other = SigningKey::from_bytes(&[8; 32]);
        assert_eq!(verify(&token, &attempt(NOW), &[]), Err(TokenError::UnknownDevice));
        assert_eq!(verify(&token, &attempt(NOW), &[public(&other)]), Err(TokenError::Signature));
        let both = verify(&token, &attempt(NOW), &[public(&other), public(&pump())]);
        assert_eq!(both.unwrap().key, public(&pump()));
        // A rotated key signs for the id that the first key made.
        let rotated = sign(&other, &claims());
        assert_eq!(verify(&rotated, &attempt(NOW), &[public(&other)]).unwrap().device, claims().device);
    }

    #[test]
    fn a_signature_for_another_purpose_is_no_token() {
        let mut signed = decode(&sign(&pump(), &claims())).unwrap();
        signed.signature = pump().sign(&signed.tbs_data(b"another purpose")).to_vec();
        let token = URL_SAFE_NO_PAD.encode(signed.to_tagged_vec().unwrap());
        assert_eq!(check(&token, NOW), Err(TokenError::Signature));
    }

    #[test]
    fn headers_and_claims_are_exactly_those() {
        let other = public(&SigningKey::from_bytes(&[8; 32])).device_id();
        let cases = [
            forge(|signed, _| signed.protected.header.alg = None),
            forge(|signed, _| signed.protected.header.key_id = vec![1; 16]),
            forge(|signed, _| signed.protected.header.key_id = other.as_bytes().to_vec()),
            forge(|signed, _| signed.protected.header.content_type = Some(coset::ContentType::Text("a/b".into()))),
            forge(|signed, _| signed.unprotected.key_id = vec![1]),
            forge(|_, set| set.subject = None),
            forge(|_, set| set.cwt_id = Some(vec![1; 15])),
            forge(|_, set| set.issued_at = Some(Timestamp::FractionalSeconds(NOW as f64))),
            forge(|_, set| set.issued_at = Some(Timestamp::WholeSeconds(-1))),
            forge(|_, set| set.not_before = Some(timestamp(NOW))),
            String::from("0oR"),
            "A".repeat(MAX_LENGTH + 1),
            format!("{}=", &*sign(&pump(), &claims())),
        ];
        for (i, token) in cases.iter().enumerate() {
            assert!(matches!(check(token, NOW), Err(TokenError::Malformed(_))), "case {i}: {:?}", check(token, NOW));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(data in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz_token(&data);
        }

        #[test]
        fn one_changed_bit_is_noticed(at in 0usize..10_000, bit in 0u8..8) {
            let mut bytes = URL_SAFE_NO_PAD.decode(sign(&pump(), &claims()).as_str()).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(check(&URL_SAFE_NO_PAD.encode(&bytes), NOW).is_err());
        }
    }
}
