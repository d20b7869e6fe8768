//! TLS of client streams: the exchangeable configurations, and what a connection gives to bind a login to.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{ProtocolVersion, ServerConfig, ServerConnection};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tavi_xmpp_proto::sasl::ChannelBindings;

/// The TLS configurations; each can be exchanged while the broker runs.
#[derive(Clone)]
pub struct Tls {
    /// For STARTTLS (RFC 6120 §5); without ALPN names.
    pub starttls: Arc<ArcSwap<ServerConfig>>,
    /// For direct TLS; its ALPN name is `xmpp-client` (XEP-0368 §4).
    pub direct: Arc<ArcSwap<ServerConfig>>,
    /// The server's own certificate in DER, to which logins are bound (RFC 5929 §4).
    pub certificate: Arc<ArcSwap<Vec<u8>>>,
}

/// What a finished handshake gives to bind to. `certificate` is the one that the handshake used.
pub(crate) fn channel_bindings(connection: &ServerConnection, certificate: &[u8]) -> ChannelBindings {
    // RFC 9266 §4.2: in TLS 1.2 the exporter is safe only with the extended master secret; offered from 1.3 on.
    let modern = connection.protocol_version() == Some(ProtocolVersion::TLSv1_3);
    let export = || connection.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b"")).ok();
    ChannelBindings { exporter: modern.then(export).flatten(), server_end_point: end_point(certificate).map(Arc::from) }
}

/// The certificates that the client showed, its own first.
pub(crate) fn peer_certificate(connection: &ServerConnection) -> Option<Arc<[Vec<u8>]>> {
    let chain = connection.peer_certificates()?;
    Some(chain.iter().map(|certificate| certificate.to_vec()).collect())
}

/// RFC 5929 §4.1: the certificate's hash, by the hash of its signature, where MD5 and SHA-1 become SHA-256. Signatures
/// that have no single hash (Ed25519, PSS) define no binding.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    match signature_algorithm(certificate)? {
        // RFC 8017 appendix C: md5, sha1, sha256 with RSA; RFC 5758 §3.2: ECDSA with SHA-1, SHA-256.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04 | 0x05 | 0x0b]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02] => Some(Sha256::digest(certificate).to_vec()),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03] => {
            Some(Sha384::digest(certificate).to_vec())
        }
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04] => {
            Some(Sha512::digest(certificate).to_vec())
        }
        _ => None,
    }
}

const SEQUENCE: u8 = 0x30;
const OBJECT_ID: u8 = 0x06;

/// RFC 5280 §4.1: Certificate is a SEQUENCE of tbsCertificate, signatureAlgorithm (which begins with its id), signature.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (fields, _) = der(certificate, SEQUENCE)?;
    let (_, rest) = der(fields, SEQUENCE)?;
    let (algorithm, _) = der(rest, SEQUENCE)?;
    Some(der(algorithm, OBJECT_ID)?.0)
}

/// One DER value of type `tag`: its content, and what follows it.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = bytes.split_first_chunk()?;
    if found != tag {
        return None;
    }
    let (len, rest) = match first {
        0..=0x7f => (first as usize, rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked((first - 0x80) as usize)?;
            (digits.iter().fold(0, |len, &digit| len << 8 | digit as usize), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_point_is_hashed_like_the_signature() {
        let p256 = certificate(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(end_point(&p256), Some(Sha256::digest(&p256).to_vec()));
        let p384 = certificate(&PKCS_ECDSA_P384_SHA384);
        assert_eq!(end_point(&p384), Some(Sha384::digest(&p384).to_vec()));
        assert_eq!(end_point(&certificate(&PKCS_ED25519)), None);
    }

    #[test]
    fn damaged_certificates_give_nothing() {
        let good = certificate(&PKCS_ECDSA_P256_SHA256);
        for len in 0..good.len().min(200) {
            assert_eq!(end_point(&good[..len]), None);
        }
    }
}
