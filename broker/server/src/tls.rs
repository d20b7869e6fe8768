//! Certificates: the operator's own, or ones from a CA that the first start makes; read again while running.

use crate::{certificate, client_certificate::AnyKey, config::Config, data::write_new};
use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{ServerConfig, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};
use tavi_core::clock::xmpp_time;

const DAY_MS: u64 = 86_400_000;
/// What clients accept at most for a server certificate.
const SERVER_DAYS: u64 = 397;
const RENEW_BEFORE_DAYS: u64 = 30;
const CA_DAYS: u64 = 3650;

/// A TLS configuration that can be changed while it is used.
pub type Shared = Arc<ArcSwap<ServerConfig>>;

/// The TLS configurations, one for each use: they differ in their ALPN names (RFC 7301).
pub struct Tls {
    /// STARTTLS: no ALPN.
    pub starttls: Shared,
    /// Direct TLS for XMPP (XEP-0368 §4).
    pub xmpps: Shared,
    pub mqtts: Shared,
    pub https: Shared,
    /// The server certificate itself, for channel binding (RFC 5929 §4).
    pub certificate: Arc<ArcSwap<Vec<u8>>>,
}

impl Tls {
    /// Reads the certificate, made if the operator has none.
    pub fn load(config: &Config, now_ms: u64) -> Result<Tls> {
        let loaded = Loaded::read(config, now_ms)?;
        let share = |alpn: &[&str]| Ok::<_, anyhow::Error>(Arc::new(ArcSwap::from_pointee(loaded.config(alpn)?)));
        Ok(Tls {
            starttls: share(NONE)?,
            xmpps: share(XMPP)?,
            mqtts: share(MQTT)?,
            https: share(HTTP)?,
            certificate: Arc::new(ArcSwap::from_pointee(loaded.chain[0].to_vec())),
        })
    }

    /// Reads it again; new connections use it. After an error the old one stays.
    pub fn reload(&self, config: &Config, now_ms: u64) -> Result<()> {
        let loaded = Loaded::read(config, now_ms)?;
        for (shared, alpn) in [(&self.starttls, NONE), (&self.xmpps, XMPP), (&self.mqtts, MQTT), (&self.https, HTTP)] {
            shared.store(Arc::new(loaded.config(alpn)?));
        }
        self.certificate.store(Arc::new(loaded.chain[0].to_vec()));
        Ok(())
    }
}

const NONE: &[&str] = &[];
const XMPP: &[&str] = &["xmpp-client"];
const MQTT: &[&str] = &["mqtt"];
const HTTP: &[&str] = &["http/1.1"];

struct Loaded {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Loaded {
    fn read(config: &Config, now_ms: u64) -> Result<Loaded> {
        let (certificate, key) = match &config.certificate {
            Some(own) => own.clone(),
            None => own_certificate(&config.data.join("tls"), &names(config), now_ms)?,
        };
        let what = || format!("the certificate {}", certificate.display());
        let chain: Vec<_> = CertificateDer::pem_file_iter(&certificate)
            .with_context(what)?
            .collect::<Result<_, _>>()
            .with_context(what)?;
        anyhow::ensure!(!chain.is_empty(), "{} holds no certificate", certificate.display());
        let key = PrivateKeyDer::from_pem_file(&key).with_context(|| format!("the key {}", key.display()))?;
        if config.certificate.is_some() {
            certificate::check(&chain, &config.hosts, now_ms).with_context(what)?;
        }
        Ok(Loaded { chain, key })
    }

    fn config(&self, alpn: &[&str]) -> Result<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = match alpn {
            // A browser would ask its user for one.
            HTTP => builder.with_no_client_auth(),
            _ => builder.with_client_cert_verifier(Arc::new(AnyKey(provider))),
        };
        let mut config = builder
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .context("certificate and key do not fit")?;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        // Sessions are resumed by tickets (RFC 5077, RFC 8446 §2.2), not by server memory. Their keys live in memory and
        // are exchanged every few hours, so a restart or a new certificate costs a full handshake, and no more.
        config.ticketer = ring::Ticketer::new().context("the system has no randomness")?;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(config)
    }
}

/// What the certificate is for: our hosts, and each address at which clients are told to find us.
fn names(config: &Config) -> Vec<String> {
    let local: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let listening = config.listen.iter().flat_map(|(_, addresses)| addresses).map(|address| address.ip());
    let listening = listening.filter(|ip| !ip.is_unspecified());
    let addresses: BTreeSet<IpAddr> = local.into_iter().chain(listening).collect();
    config.hosts.all().map(str::to_owned).chain(addresses.iter().map(IpAddr::to_string)).collect()
}

/// The broker's own certificate, made or renewed if need be: (certificate chain, key). `names` begin with the domain.
fn own_certificate(folder: &Path, names: &[String], now_ms: u64) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (folder.join("server.pem"), folder.join("server.key"));
    let note = folder.join("server.note");
    if !certificate.exists() || !key.exists() || !is_good(&note, names, now_ms) {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let ca_key = ca_key(folder, now_ms)?;
        let issuer = Issuer::new(ca_params(now_ms)?, ca_key);
        let server_key = KeyPair::generate()?;
        let made = server_params(names, now_ms)?.signed_by(&server_key, &issuer)?;
        let chain = made.pem() + fs::read_to_string(folder.join("ca.pem"))?.as_str();
        write_new(&key, server_key.serialize_pem().as_bytes(), 0o600)?;
        write_new(&certificate, chain.as_bytes(), 0o644)?;
        write_new(&note, format!("{}\n{}\n", names.join(" "), now_ms + SERVER_DAYS * DAY_MS).as_bytes(), 0o644)?;
        tracing::info!(ca = %folder.join("ca.pem").display(), "made a server certificate; clients that check it need this CA");
    }
    Ok((certificate, key))
}

/// Whether the note beside the certificate says that it is for these names and lasts.
fn is_good(note: &Path, names: &[String], now_ms: u64) -> bool {
    let Ok(text) = fs::read_to_string(note) else { return false };
    let mut lines = text.lines();
    let same = lines.next() == Some(names.join(" ").as_str());
    let until: u64 = lines.next().and_then(|line| line.parse().ok()).unwrap_or(0);
    same && until > now_ms + RENEW_BEFORE_DAYS * DAY_MS
}

fn ca_key(folder: &Path, now_ms: u64) -> Result<KeyPair> {
    let (certificate, key) = (folder.join("ca.pem"), folder.join("ca.key"));
    if key.exists() && certificate.exists() {
        return KeyPair::from_pem(&fs::read_to_string(&key)?).with_context(|| format!("the key {}", key.display()));
    }
    let pair = KeyPair::generate()?;
    write_new(&key, pair.serialize_pem().as_bytes(), 0o600)?;
    write_new(&certificate, ca_params(now_ms)?.self_signed(&pair)?.pem().as_bytes(), 0o644)?;
    Ok(pair)
}

fn ca_params(now_ms: u64) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, "Tavi server CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (day(now_ms - DAY_MS), day(now_ms + CA_DAYS * DAY_MS));
    Ok(params)
}

fn server_params(names: &[String], now_ms: u64) -> Result<CertificateParams> {
    // An IP address among them becomes one in the certificate (RFC 5280 §4.2.1.6).
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("localhost", String::as_str));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (day(now_ms - DAY_MS), day(now_ms + SERVER_DAYS * DAY_MS));
    Ok(params)
}

/// Midnight of the day in which the moment lies.
fn day(ms: u64) -> time::OffsetDateTime {
    let text = xmpp_time(ms);
    let number =
        |range: std::ops::Range<usize>| text.get(range).and_then(|digits| digits.parse::<u16>().ok()).unwrap_or(1);
    rcgen::date_time_ymd(i32::from(number(0..4)), number(5..7) as u8, number(8..10) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_000_000_000;

    #[test]
    fn the_certificate_is_made_once_and_again_for_another_domain_or_before_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let read = |names: &[String], now| {
            let (certificate, _) = own_certificate(folder.path(), names, now).unwrap();
            fs::read_to_string(certificate).unwrap()
        };
        let first = read(&names, NOW);
        assert_eq!(first.matches("BEGIN CERTIFICATE").count(), 2, "the chain has the CA");
        assert_eq!(read(&names, NOW + DAY_MS), first);
        assert_ne!(read(&names, NOW + 370 * DAY_MS), first);
        let second = read(&names, NOW + 370 * DAY_MS);
        assert_ne!(read(&names[..2], NOW + 370 * DAY_MS), second, "an address is gone");
        let ca = fs::read_to_string(folder.path().join("ca.pem")).unwrap();
        assert_ne!(read(&["example.org".to_owned()], NOW), first);
        assert_eq!(fs::read_to_string(folder.path().join("ca.pem")).unwrap(), ca, "the CA stays");
    }
}
