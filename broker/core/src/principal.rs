//! Who acts: people, devices, bots and the nameless; and the hosts that they live on.

use std::fmt;
use tavi_xmpp_proto::jid::{BareJid, Jid};

/// Who is behind a session or a publication.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A person's account on the main domain.
    Account(BareJid),
    /// A device on `things.DOMAIN`; its local part is the device id.
    Device(BareJid),
    /// A bot on `bots.DOMAIN`.
    Bot(BareJid),
    /// A client without identity: plain CoAP. `loopback` tells whether it is on this machine, where the
    /// subject `anon-clear` may be granted something.
    Anon {
        /// Whether the peer's address is a loopback address.
        loopback: bool,
    },
}

impl Principal {
    /// The bare JID; `None` for [`Principal::Anon`].
    pub fn jid(&self) -> Option<&BareJid> {
        match self {
            Principal::Account(jid) | Principal::Device(jid) | Principal::Bot(jid) => Some(jid),
            Principal::Anon { .. } => None,
        }
    }

    /// The name under which grants and logs know it: the bare JID, or `anon-clear`.
    pub fn subject(&self) -> &str {
        self.jid().map_or("anon-clear", |jid| jid.as_str())
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.subject())
    }
}

/// Which of the broker's hosts a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// `DOMAIN`: people.
    Main,
    /// `things.DOMAIN`: devices.
    Things,
    /// `bots.DOMAIN`: bots.
    Bots,
    /// `pubsub.DOMAIN`: topics.
    Pubsub,
    /// `rooms.DOMAIN`: rooms.
    Rooms,
    /// `upload.DOMAIN`: files.
    Upload,
}

impl Host {
    /// All hosts with the label that stands before the domain.
    pub const ALL: [(Host, &'static str); 6] = [
        (Host::Main, ""),
        (Host::Things, "things."),
        (Host::Bots, "bots."),
        (Host::Pubsub, "pubsub."),
        (Host::Rooms, "rooms."),
        (Host::Upload, "upload."),
    ];
}

/// The names of the broker's hosts.
#[derive(Clone, Debug)]
pub struct Hosts {
    names: [Jid; 6],
}

impl Hosts {
    /// The hosts of `domain`, which is already normalised.
    ///
    /// # Errors
    /// If `domain` or one of the names made from it is no valid domain part.
    pub fn new(domain: &str) -> Result<Hosts, tavi_xmpp_proto::jid::JidError> {
        let mut names = Vec::with_capacity(6);
        for (_, label) in Host::ALL {
            names.push(format!("{label}{domain}").parse::<Jid>()?);
        }
        // Six were pushed, one per host.
        Ok(Hosts { names: names.try_into().unwrap_or_else(|_| unreachable!("one name per host")) })
    }

    /// The host's JID, a bare domain.
    pub fn jid(&self, host: Host) -> &Jid {
        &self.names[host as usize]
    }

    /// The host's name.
    pub fn name(&self, host: Host) -> &str {
        self.jid(host).domain()
    }

    /// The main domain.
    pub fn domain(&self) -> &str {
        self.name(Host::Main)
    }

    /// Which host a domain is; `None` if it is somebody else's.
    pub fn find(&self, domain: &str) -> Option<Host> {
        Host::ALL.iter().map(|(host, _)| *host).find(|host| self.name(*host) == domain)
    }

    /// All names, for certificates.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|jid| jid.domain())
    }

    /// The principal that a bare JID on one of the login hosts is; `None` if nobody can have that JID.
    pub fn principal(&self, jid: &BareJid) -> Option<Principal> {
        jid.local()?;
        match self.find(jid.domain())? {
            Host::Main => Some(Principal::Account(jid.clone())),
            Host::Things => Some(Principal::Device(jid.clone())),
            Host::Bots => Some(Principal::Bot(jid.clone())),
            _ => None,
        }
    }
}
