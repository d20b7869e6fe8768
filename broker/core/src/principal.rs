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
    /// `LABEL.DOMAIN`: a module's, which registers a [`Service`](crate::hooks::Service) for it.
    Service(&'static str),
}

impl Host {
    /// The hosts for which the server itself answers, and on which somebody can log in or run.
    pub const OWN: [Host; 3] = [Host::Main, Host::Things, Host::Bots];

    /// What stands before the domain.
    fn label(self) -> &'static str {
        match self {
            Host::Main => "",
            Host::Things => "things",
            Host::Bots => "bots",
            Host::Service(label) => label,
        }
    }
}

/// The names of the broker's hosts.
#[derive(Clone, Debug)]
pub struct Hosts {
    main: Jid,
    others: Vec<(Host, Jid)>,
}

impl Hosts {
    /// The hosts of `domain`, which is already normalised; `services` are the labels of those that modules serve.
    ///
    /// # Errors
    /// If `domain` or one of the names made from it is no valid domain part.
    pub fn new(domain: &str, services: &[&'static str]) -> Result<Hosts, tavi_xmpp_proto::jid::JidError> {
        let services = services.iter().map(|label| Host::Service(label));
        let others = [Host::Things, Host::Bots].into_iter().chain(services);
        let named = others.map(|host| Ok((host, format!("{}.{domain}", host.label()).parse()?)));
        Ok(Hosts { main: domain.parse()?, others: named.collect::<Result<_, _>>()? })
    }

    /// The host's JID, a bare domain; `None` for a service that is not among them.
    pub fn get(&self, host: Host) -> Option<&Jid> {
        match host {
            Host::Main => Some(&self.main),
            _ => self.others.iter().find(|(other, _)| *other == host).map(|(_, jid)| jid),
        }
    }

    /// The host's JID, a bare domain; the main one's for a service that is not among them, which no
    /// [`Registry`](crate::Registry) is started with.
    pub fn jid(&self, host: Host) -> &Jid {
        self.get(host).unwrap_or(&self.main)
    }

    /// The host's name.
    pub fn name(&self, host: Host) -> &str {
        self.jid(host).domain()
    }

    /// The main domain.
    pub fn domain(&self) -> &str {
        self.main.domain()
    }

    /// Which host a domain is; `None` if it is somebody else's.
    pub fn find(&self, domain: &str) -> Option<Host> {
        if self.main.domain() == domain {
            return Some(Host::Main);
        }
        self.others.iter().find(|(_, jid)| jid.domain() == domain).map(|(host, _)| *host)
    }

    /// All names, for certificates.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.main).chain(self.others.iter().map(|(_, jid)| jid)).map(|jid| jid.domain())
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
