//! What a client will think of the operator's certificate: asked before it is used, not at the first login.

use anyhow::{Result, bail};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::time::Duration;
use tavi_core::Hosts;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, Error, KeyUsage, anchor_from_trusted_cert};

/// Refuses a certificate that no client accepts: over, not begun, of another host. What only some clients will not
/// like is told in the log. The chain is not empty.
pub fn check(chain: &[CertificateDer<'_>], hosts: &Hosts, now_ms: u64) -> Result<()> {
    let (leaf, above) = (EndEntityCert::try_from(&chain[0])?, &chain[1..]);
    match path(&leaf, chain, now_ms) {
        Err(Error::CertExpired { .. }) => bail!("it, or one above it, has expired"),
        Err(Error::CertNotValidYet { .. }) => bail!("it is not valid yet: is the clock right?"),
        Err(Error::UnknownIssuer) if above.is_empty() => {
            tracing::warn!(
                "the certificate's file holds no issuer: clients that do not know it already refuse it; put the intermediate certificates behind it"
            );
        }
        Err(Error::UnknownIssuer) => {
            tracing::warn!("the certificates in the file do not follow one another: clients may refuse them");
        }
        // Self-signed ones and others of one's own making: whoever made them tells the clients.
        _ => {}
    }
    if !names(&leaf, hosts.domain()) {
        bail!("it is not for {}", hosts.domain());
    }
    let missing: Vec<_> = hosts.all().filter(|host| !names(&leaf, host)).collect();
    if !missing.is_empty() {
        tracing::warn!(hosts = ?missing, "the certificate does not name all hosts; clients of these will refuse it");
    }
    Ok(())
}

/// The way from the first certificate to the last of the file, which is taken for known.
fn path(leaf: &EndEntityCert<'_>, chain: &[CertificateDer<'_>], now_ms: u64) -> Result<(), Error> {
    let last = chain.last().map(anchor_from_trusted_cert).transpose()?;
    let anchors: Vec<_> = last.into_iter().collect();
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
    let usage = KeyUsage::server_auth();
    leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, &chain[1..], now, usage, None, None).map(drop)
}

fn names(leaf: &EndEntityCert<'_>, host: &str) -> bool {
    ServerName::try_from(host).is_ok_and(|name| leaf.verify_is_valid_for_subject_name(&name).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    const NOW: u64 = 1_795_000_000_000;

    /// A certificate for `names` that is valid in `years`, and its issuer's.
    fn made(names: &[&str], years: (i32, i32)) -> Vec<CertificateDer<'static>> {
        let mut above = CertificateParams::new(Vec::<String>::new()).unwrap();
        above.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let (key, leaf_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let authority = above.self_signed(&key).unwrap();
        let mut leaf = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        leaf.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        leaf.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let leaf = leaf.signed_by(&leaf_key, &Issuer::new(above, key)).unwrap();
        vec![leaf.der().clone(), authority.der().clone()]
    }

    #[test]
    fn what_no_client_accepts_is_refused() {
        let hosts = Hosts::new("example.org", &[]).unwrap();
        let checked = |names: &[&str], years| check(&made(names, years), &hosts, NOW).map_err(|e| e.to_string());
        assert_eq!(checked(&["example.org"], (2020, 2040)), Ok(()));
        assert_eq!(checked(&["example.org"], (2020, 2021)), Err("it, or one above it, has expired".into()));
        assert!(checked(&["example.org"], (2038, 2040)).unwrap_err().contains("not valid yet"));
        assert_eq!(checked(&["example.net"], (2020, 2040)), Err("it is not for example.org".into()));
        let alone = &made(&["example.org"], (2020, 2040))[..1];
        assert!(check(alone, &hosts, NOW).is_ok(), "its issuer may be known to the clients");
    }
}
