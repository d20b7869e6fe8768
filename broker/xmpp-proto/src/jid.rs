//! Addresses: bare and full JIDs, RFC 7622.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use idna::uts46::{AsciiDenyList, Hyphens, Uts46};
use precis_core::profile::PrecisFastInvocation;
use precis_profiles::{OpaqueString, UsernameCaseMapped};

/// The longest part of a JID in octets, RFC 7622 §3.1.
pub const MAX_PART: usize = 1023;

/// A JID, with or without a resource, normalised once when it was made. Cloning copies a pointer.
///
/// ```
/// use tavi_xmpp_proto::Jid;
///
/// let jid: Jid = "Juliet@EXAMPLE.com/Balcony".parse()?;
/// assert_eq!(jid.as_str(), "juliet@example.com/Balcony");
/// assert_eq!(jid.to_bare(), "juliet@example.com");
/// # Ok::<(), tavi_xmpp_proto::JidError>(())
/// ```
#[derive(Clone)]
pub struct Jid {
    text: Arc<str>,
    /// Length of the local part; 0 means that there is none (an empty one is illegal).
    at: u16,
    /// Where the bare JID ends: the place of the `/`, or the end.
    end: u16,
}

/// A JID without a resource. Cloning copies a pointer; it may share the text of a full [`Jid`].
#[derive(Clone)]
pub struct BareJid(Jid);

/// Why a text is no JID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JidError {
    /// The part before the `@` is empty, too long or has a forbidden character (RFC 7622 §3.3).
    #[error("the local part of the address is not allowed")]
    Local,
    /// The domain is empty, too long or no domain name (RFC 7622 §3.2).
    #[error("the domain of the address is not allowed")]
    Domain,
    /// The part after the `/` is empty, too long or has a forbidden character (RFC 7622 §3.4).
    #[error("the resource of the address is not allowed")]
    Resource,
    /// A bare JID was asked for and the text has a resource.
    #[error("the address must not have a resource")]
    NotBare,
}

impl Jid {
    /// Parses and normalises `text`.
    ///
    /// # Errors
    /// The part that is wrong.
    pub fn parse(text: &str) -> Result<Jid, JidError> {
        if let Some(jid) = Jid::parse_plain(text) {
            return Ok(jid);
        }
        let (bare, resource) = match text.split_once('/') {
            Some((bare, resource)) => (bare, Some(resource)),
            None => (text, None),
        };
        let (local, domain) = match bare.split_once('@') {
            Some((local, domain)) => (Some(local), domain),
            None => (None, bare),
        };
        Jid::from_parts(local, domain, resource)
    }

    /// The common case: an address in ASCII that is its own normal form.
    fn parse_plain(text: &str) -> Option<Jid> {
        let bytes = text.as_bytes();
        let end = memchr::memchr(b'/', bytes).unwrap_or(bytes.len());
        let at = memchr::memchr(b'@', &bytes[..end]);
        let plain = at.is_none_or(|at| is_normal_local(&bytes[..at]))
            && is_normal_domain(&text[at.map_or(0, |at| at + 1)..end])
            && (end == bytes.len() || is_normal_resource(&bytes[end + 1..]));
        // Each part is at most MAX_PART long, so offsets fit into 16 bits.
        plain.then(|| Jid { text: text.into(), at: at.unwrap_or(0) as u16, end: end as u16 })
    }

    /// Puts a JID together from raw parts, normalising each.
    ///
    /// # Errors
    /// The part that is wrong.
    pub fn from_parts(local: Option<&str>, domain: &str, resource: Option<&str>) -> Result<Jid, JidError> {
        let local = local.map(normal_local).transpose()?;
        let domain = normal_domain(domain)?;
        let resource = resource.map(normal_resource).transpose()?;
        Ok(Jid::assemble(local.as_deref(), &domain, resource.as_deref()))
    }

    /// Joins parts that are normal already; each has at most [`MAX_PART`] octets, so offsets fit into 16 bits.
    fn assemble(local: Option<&str>, domain: &str, resource: Option<&str>) -> Jid {
        let mut text = String::with_capacity(2 + part_len(local) + domain.len() + part_len(resource));
        if let Some(local) = local {
            text.push_str(local);
            text.push('@');
        }
        text.push_str(domain);
        let end = text.len() as u16;
        if let Some(resource) = resource {
            text.push('/');
            text.push_str(resource);
        }
        Jid { text: text.into(), at: part_len(local) as u16, end }
    }

    /// The whole address.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The address without its resource, as text.
    pub fn bare(&self) -> &str {
        &self.text[..self.end as usize]
    }

    /// The address without its resource. Shares the text, so it does not allocate.
    pub fn to_bare(&self) -> BareJid {
        BareJid(self.clone())
    }

    /// The local part, if there is one.
    pub fn local(&self) -> Option<&str> {
        (self.at > 0).then(|| &self.text[..self.at as usize])
    }

    /// The domain.
    pub fn domain(&self) -> &str {
        &self.bare()[self.domain_start()..]
    }

    /// The resource, if there is one.
    pub fn resource(&self) -> Option<&str> {
        self.text.get(self.end as usize + 1..)
    }

    /// Whether there is no resource.
    pub fn is_bare(&self) -> bool {
        self.end as usize == self.text.len()
    }

    /// The same account with another resource.
    ///
    /// # Errors
    /// [`JidError::Resource`] when the resource is not allowed.
    pub fn with_resource(&self, resource: &str) -> Result<Jid, JidError> {
        let resource = normal_resource(resource)?;
        Ok(Jid::assemble(self.local(), self.domain(), Some(&resource)))
    }

    fn domain_start(&self) -> usize {
        if self.at > 0 { self.at as usize + 1 } else { 0 }
    }
}

impl BareJid {
    /// `local@domain`, both normalised.
    ///
    /// # Errors
    /// The part that is wrong.
    pub fn new(local: &str, domain: &str) -> Result<BareJid, JidError> {
        Jid::from_parts(Some(local), domain, None).map(BareJid)
    }

    /// The JID of a host: only a domain.
    ///
    /// # Errors
    /// [`JidError::Domain`].
    pub fn host(domain: &str) -> Result<BareJid, JidError> {
        Jid::from_parts(None, domain, None).map(BareJid)
    }

    /// Parses a JID that must not have a resource.
    ///
    /// # Errors
    /// The part that is wrong, or [`JidError::NotBare`].
    pub fn parse(text: &str) -> Result<BareJid, JidError> {
        let jid = Jid::parse(text)?;
        if jid.is_bare() { Ok(BareJid(jid)) } else { Err(JidError::NotBare) }
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        self.0.bare()
    }

    /// The local part, if there is one.
    pub fn local(&self) -> Option<&str> {
        self.0.local()
    }

    /// The domain.
    pub fn domain(&self) -> &str {
        self.0.domain()
    }

    /// The full JID of this account with a resource.
    ///
    /// # Errors
    /// [`JidError::Resource`] when the resource is not allowed.
    pub fn with_resource(&self, resource: &str) -> Result<Jid, JidError> {
        self.0.with_resource(resource)
    }
}

fn part_len(part: Option<&str>) -> usize {
    part.map_or(0, str::len)
}

/// RFC 7622 §3.3: UsernameCaseMapped without the eight characters of §3.3.1.
fn normal_local(local: &str) -> Result<Cow<'_, str>, JidError> {
    if is_normal_local(local.as_bytes()) {
        return Ok(Cow::Borrowed(local));
    }
    let normal =
        stable(local, |text| UsernameCaseMapped::enforce(text).ok().map(Cow::into_owned)).ok_or(JidError::Local)?;
    if normal.contains(['"', '&', '\'', '/', ':', '<', '>', '@']) {
        return Err(JidError::Local);
    }
    Ok(Cow::Owned(normal))
}

/// RFC 7622 §3.2: a domain name in Unicode form, or an IP address; a final dot is removed.
fn normal_domain(domain: &str) -> Result<Cow<'_, str>, JidError> {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    if is_normal_domain(domain) {
        return Ok(Cow::Borrowed(domain));
    }
    if let Some(address) = domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address: std::net::Ipv6Addr = address.parse().map_err(|_| JidError::Domain)?;
        return Ok(Cow::Owned(format!("[{address}]")));
    }
    stable(domain, unicode_domain).map(Cow::Owned).ok_or(JidError::Domain)
}

/// One round of UTS 46 processing; what is left of ASCII must be letters, digits, `-`, `_` and dots.
fn unicode_domain(domain: &str) -> Option<String> {
    let (name, verdict) = Uts46::new().to_unicode(domain.as_bytes(), AsciiDenyList::URL, Hyphens::Allow);
    verdict.ok()?;
    let name = name.strip_suffix('.').unwrap_or(&name);
    let legal = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (name.chars().all(legal) && legal_labels(name)).then(|| name.to_owned())
}

/// RFC 1035 §2.3.4: no empty label, none over 63 octets (counted in what we keep, which is never shorter in use).
fn legal_labels(domain: &str) -> bool {
    domain.split('.').all(|label| !label.is_empty() && (label.len() <= 63 || !label.is_ascii()))
}

/// RFC 7622 §3.4: OpaqueString.
fn normal_resource(resource: &str) -> Result<Cow<'_, str>, JidError> {
    if is_normal_resource(resource.as_bytes()) {
        return Ok(Cow::Borrowed(resource));
    }
    stable(resource, |text| OpaqueString::enforce(text).ok().map(Cow::into_owned))
        .map(Cow::Owned)
        .ok_or(JidError::Resource)
}

/// RFC 8264 §7: applies `rule` until nothing changes any more; refuses what never settles or is too long.
fn stable(text: &str, rule: impl Fn(&str) -> Option<String>) -> Option<String> {
    // Normalisation shrinks or grows by small factors; far longer input can not become legal.
    if text.is_empty() || text.len() > 4 * MAX_PART {
        return None;
    }
    let mut current = rule(text)?;
    for _ in 0..3 {
        let next = rule(&current)?;
        if next == current {
            return (!next.is_empty() && next.len() <= MAX_PART).then_some(next);
        }
        current = next;
    }
    None
}

/// ASCII that UsernameCaseMapped leaves alone and RFC 7622 §3.3.1 does not exclude.
fn is_normal_local(local: &[u8]) -> bool {
    let excluded = |byte: u8| matches!(byte, b'"' | b'&' | b'\'' | b'/' | b':' | b'<' | b'>' | b'@' | b'A'..=b'Z');
    (1..=MAX_PART).contains(&local.len()) && local.iter().all(|&byte| matches!(byte, b'!'..=b'~') && !excluded(byte))
}

/// Lower-case ASCII labels, none of them in Punycode (RFC 5890 §2.3.1: its third and fourth characters are hyphens).
fn is_normal_domain(domain: &str) -> bool {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let legal = |label: &[u8]| {
        (1..=63).contains(&label.len()) && label.iter().all(|&byte| plain(byte)) && !label.starts_with(b"xn--")
    };
    domain.len() <= MAX_PART && domain.as_bytes().split(|&byte| byte == b'.').all(legal)
}

/// Printable ASCII, which OpaqueString leaves alone.
fn is_normal_resource(resource: &[u8]) -> bool {
    (1..=MAX_PART).contains(&resource.len()) && resource.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

impl FromStr for Jid {
    type Err = JidError;
    fn from_str(text: &str) -> Result<Jid, JidError> {
        Jid::parse(text)
    }
}

impl FromStr for BareJid {
    type Err = JidError;
    fn from_str(text: &str) -> Result<BareJid, JidError> {
        BareJid::parse(text)
    }
}

impl From<BareJid> for Jid {
    fn from(bare: BareJid) -> Jid {
        let BareJid(jid) = bare;
        if jid.is_bare() { jid } else { Jid::assemble(jid.local(), jid.domain(), None) }
    }
}

impl From<&BareJid> for Jid {
    fn from(bare: &BareJid) -> Jid {
        bare.clone().into()
    }
}

/// Comparison, order and hash of an address are those of its text.
macro_rules! like_text {
    ($type:ty) => {
        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.as_str() == other.as_str()
            }
        }
        impl Eq for $type {}
        impl PartialEq<str> for $type {
            fn eq(&self, other: &str) -> bool {
                self.as_str() == other
            }
        }
        impl PartialEq<&str> for $type {
            fn eq(&self, other: &&str) -> bool {
                self.as_str() == *other
            }
        }
        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for $type {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.as_str().cmp(other.as_str())
            }
        }
        impl Hash for $type {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.as_str().hash(state);
            }
        }
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
like_text!(Jid);
like_text!(BareJid);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn jid(text: &str) -> Jid {
        text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn the_parts_of_a_full_jid() {
        let jid = jid("juliet@example.com/balcony");
        assert_eq!((jid.local(), jid.domain(), jid.resource()), (Some("juliet"), "example.com", Some("balcony")));
        assert_eq!(jid.bare(), "juliet@example.com");
        assert_eq!(jid.to_bare(), BareJid::new("juliet", "example.com").unwrap());
        assert_eq!(Jid::from(jid.to_bare()).as_str(), "juliet@example.com");
    }

    /// RFC 7622 §3.5, table 1.
    #[test]
    fn the_legal_examples_of_rfc_7622() {
        let legal = [
            "juliet@example.com",
            "juliet@example.com/foo",
            "juliet@example.com/foo bar",
            "juliet@example.com/foo@bar",
            "foo\\20bar@example.com",
            "fussball@example.com",
            "fu\u{df}ball@example.com",
            "\u{3c0}@example.com",
            "\u{3a3}@example.com/foo",
            "\u{3c3}@example.com/foo",
            "\u{3c2}@example.com/foo",
            "king@example.com/\u{265a}",
            "example.com",
            "example.com/foobar",
            "a.example.com/b@example.net",
        ];
        for text in legal {
            jid(text);
        }
        assert_eq!(jid("\u{3a3}@example.com"), jid("\u{3c3}@example.com"));
        assert_ne!(jid("fu\u{df}ball@example.com"), jid("fussball@example.com"));
    }

    /// RFC 7622 §3.5, table 2.
    #[test]
    fn the_illegal_examples_of_rfc_7622() {
        let illegal = [
            "\"juliet\"@example.com",
            "foo bar@example.com",
            "juliet@example.com/",
            "@example.com/",
            "@example.com",
            "henry\u{2163}@example.com",
            "\u{265a}@example.com",
            "juliet@",
            "/foobar",
            "",
            "a@b@c",
            "juliet@exa mple.com",
        ];
        for text in illegal {
            assert!(Jid::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn case_width_and_punycode_are_normalised() {
        assert_eq!(jid("JULIET@EXAMPLE.COM/Balcony"), "juliet@example.com/Balcony");
        assert_eq!(jid("a@xn--bcher-kva.example"), "a@b\u{fc}cher.example");
        assert_eq!(jid("a@example.com."), "a@example.com");
        assert_eq!(jid("a@[2001:DB8::1]"), "a@[2001:db8::1]");
        assert_eq!(jid("\u{ff21}b@example.com"), "ab@example.com");
    }

    #[test]
    fn each_part_has_at_most_1023_octets() {
        assert!(Jid::parse(&format!("{}@example.com", "a".repeat(1023))).is_ok());
        assert_eq!(Jid::parse(&format!("{}@example.com", "a".repeat(1024))), Err(JidError::Local));
        assert_eq!(Jid::parse(&format!("a@b/{}", "\u{e9}".repeat(512))), Err(JidError::Resource));
    }

    proptest! {
        #[test]
        fn display_then_parse_gives_the_same_jid(text in "(\\PC{1,12}@)?[a-zA-Z0-9\u{e0}-\u{ff}\u{5d0}-\u{5ea}.-]{1,16}(/\\PC{1,12})?") {
            if let Ok(first) = Jid::parse(&text) {
                let again = Jid::parse(first.as_str());
                prop_assert_eq!(Ok(first), again);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = Jid::parse(&text);
        }
    }
}
