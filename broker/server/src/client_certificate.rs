//! Client certificates: TLS takes whoever proves to have the key; whose key it is, the registry decides at each login.
//!
//! A certificate only carries the key (identity). What counts is that the whole key is one of the device's keys now,
//! also after a resumed handshake; who signed the certificate adds nothing to that, its dates and purpose are kept.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use tavi_core::login::Certificates;
use tavi_core::{Host, Parts, Principal, hooks::BoxFuture};
use tavi_enrol::key::PublicKey;
use tavi_wire::DeviceId;
use tavi_xmpp_proto::jid::BareJid;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage};

use crate::tokens::device_record;

/// Asks each client for a certificate and needs none. One that is shown is good if the client has its key: what it is for is
/// asked at the login, so a certificate of somebody else's disturbs no login by password.
#[derive(Debug)]
pub struct AnyKey(pub Arc<CryptoProvider>);

impl ClientCertVerifier for AnyKey {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificates of the registry's devices.
pub struct Devices(pub Parts);

impl Certificates for Devices {
    fn device<'a>(&'a self, chain: &'a [Vec<u8>]) -> BoxFuture<'a, Option<Principal>> {
        Box::pin(async move {
            let now_ms = self.0.clock.now_ms();
            let (id, key) = read(chain.first()?, now_ms)?;
            let jid = BareJid::new(&id.to_string(), self.0.hosts.name(Host::Things)).ok()?;
            let record = device_record(&self.0, &jid).await?;
            let known = record.id == id && record.keys(now_ms / 1000).any(|one| one == key);
            known.then_some(Principal::Device(jid))
        })
    }
}

/// The device that a certificate names and the Ed25519 key that it carries, if it is good now and for clients. It names it by
/// `urn:uuid:ID` (identity); without that, the device is the one whose first key this is.
fn read(certificate: &[u8], now_ms: u64) -> Option<(DeviceId, PublicKey)> {
    let der = CertificateDer::from(certificate);
    let leaf = EndEntityCert::try_from(&der).ok()?;
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
    // Nobody is trusted to sign, so an issuer that is not known is all that may be wrong: dates and purpose are looked at first.
    let judged = leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &[], &[], now, KeyUsage::client_auth(), None, None);
    match judged.map(drop) {
        Err(webpki::Error::UnknownIssuer) => {}
        // One that may sign others is none of a device (identity).
        other => {
            tracing::info!(reason = ?other, "a client's certificate is not one of a device");
            return None;
        }
    }
    let key = PublicKey::from_file(&leaf.subject_public_key_info()).ok()?;
    let mut named = leaf.valid_uri_names().filter_map(|uri| uri.strip_prefix("urn:uuid:"));
    match (named.next(), named.next()) {
        (None, _) => Some((key.device_id(), key)),
        (Some(id), None) => Some((id.parse().ok()?, key)),
        // Nobody is two devices.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType,
        date_time_ymd,
    };
    use tavi_core::{FakeClock, Hosts, homes::SessionLimits};
    use tavi_enrol::device::{DeviceRecord, DeviceState};
    use tavi_store::{Expect, MemoryStore, Op, Owner, Store, Table};

    /// 2026-11-22.
    const NOW: u64 = 1_795_359_600_000;

    fn params(uri: Option<&str>) -> CertificateParams {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names.extend(uri.map(|uri| SanType::URI(uri.try_into().unwrap())));
        (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2027, 1, 1));
        params
    }

    fn made(params: CertificateParams, key: &KeyPair) -> Vec<Vec<u8>> {
        vec![params.self_signed(key).unwrap().der().to_vec()]
    }

    fn public(key: &KeyPair) -> PublicKey {
        PublicKey::from_file(key.public_key_pem().as_bytes()).unwrap()
    }

    async fn registry(records: &[DeviceRecord]) -> Devices {
        let store = Arc::new(MemoryStore::default());
        for record in records {
            let owner = Owner::account(&format!("{}@things.localhost", record.id));
            let value = serde_json::to_vec(record).unwrap().into();
            let put = Op::Put { table: Table::Device, item: "".into(), value, expect: Expect::Any };
            store.commit(&owner, vec![put]).await.unwrap();
        }
        let (hosts, clock) = (Hosts::new("localhost", &[]).unwrap(), Arc::new(FakeClock::at(NOW)));
        Devices(Parts::load(hosts, store, clock, SessionLimits::default()).await.unwrap())
    }

    #[tokio::test]
    async fn a_key_of_the_registry_is_its_device_whoever_signed_the_certificate() {
        let (key, second, ca) = (
            KeyPair::generate_for(&PKCS_ED25519).unwrap(),
            KeyPair::generate_for(&PKCS_ED25519).unwrap(),
            KeyPair::generate().unwrap(),
        );
        let mut record = DeviceRecord::added(public(&key), None, NOW / 1000 - 10);
        record.credentials.extend(DeviceRecord::added(public(&second), None, NOW / 1000 - 10).credentials);
        let id = record.id;
        let devices = registry(&[record]).await;
        let named = format!("urn:uuid:{id}");
        let issuer = Issuer::new(CertificateParams::new(vec!["a maker".into()]).unwrap(), ca);
        let signed = params(Some(&named)).signed_by(&key, &issuer).unwrap().der().to_vec();
        for chain in [
            made(params(None), &key),
            made(params(Some(&named)), &key),
            vec![signed],
            made(params(Some(&named)), &second),
        ] {
            let device = devices.device(&chain).await;
            assert_eq!(device.unwrap().jid().unwrap().local(), Some(&*id.to_string()));
        }
        // A second key is not where the id comes from.
        assert!(devices.device(&made(params(None), &second)).await.is_none());
    }

    #[tokio::test]
    async fn every_other_certificate_is_nobody() {
        let pair = || KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let (key, stranger, revoked) = (pair(), pair(), pair());
        let record = DeviceRecord::added(public(&key), None, NOW / 1000 - 10);
        let named = format!("urn:uuid:{}", record.id);
        let mut gone = DeviceRecord::added(public(&revoked), None, NOW / 1000 - 10);
        gone.state = DeviceState::Revoked;
        let devices = registry(&[record, gone]).await;
        let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let (mut over, mut early, mut serves, mut two) =
            (params(None), params(None), params(None), params(Some(&named)));
        over.not_after = date_time_ymd(2026, 11, 1);
        early.not_before = date_time_ymd(2026, 12, 1);
        serves.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        two.subject_alt_names.push(SanType::URI("urn:uuid:32dda035-ad8f-8818-9747-e3f78c18cc86".try_into().unwrap()));
        for (why, chain) in [
            ("another key under the device's name", made(params(Some(&named)), &stranger)),
            ("a key that nobody registered", made(params(None), &stranger)),
            ("a revoked device", made(params(None), &revoked)),
            ("another kind of key", made(params(Some(&named)), &p256)),
            ("it is over", made(over, &key)),
            ("it has not begun", made(early, &key)),
            ("it is a server's", made(serves, &key)),
            ("two devices", made(two, &key)),
            ("no name of a device", made(params(Some("urn:uuid:x")), &key)),
            ("no certificate", vec![b"\x30\x03\x02\x01\x01".to_vec()]),
            ("nothing", vec![]),
        ] {
            assert!(devices.device(&chain).await.is_none(), "{why}");
        }
    }
}
