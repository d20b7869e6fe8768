//! Drives the negotiation of one connection: reads, asks the core, writes, until a resource is bound.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use tavi_core::bus::NoSeat;
use tavi_core::link::Link;
use tavi_core::login::{Attempt, Credential, Peer};
use tavi_core::node::Attached;
use tavi_core::principal::Host;
use tavi_core::{Denied, Node};
use tavi_xmpp_proto::error::{Condition, StanzaError};
use tavi_xmpp_proto::ingress::{Incoming, Ingress};
use tavi_xmpp_proto::sasl::{ChannelBindings, Evidence};
use tavi_xmpp_proto::sm::{self, SmRequest};
use tavi_xmpp_proto::stream::c2s::{
    BindWanted, Judgement, KeysWanted, Layer, Negotiation, Next, ResumeWanted, Setting,
};
use tavi_xmpp_proto::{Element, Limits, StreamCondition, StreamError};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::listener::{Port, Shared};
use crate::resume::{Managed, Resume, Unresumed};
use crate::tls::{channel_bindings, peer_certificate};
use crate::wire::Wire;

/// A connection on which a session was bound.
pub(crate) struct Negotiated {
    pub wire: Wire,
    pub ingress: Ingress,
    pub link: Link,
    pub attached: Attached,
    /// The default language of the client's stream (RFC 6120 §4.7.4).
    pub lang: Option<Box<str>>,
    /// Stream management was enabled with the binding.
    pub managed: Option<Managed>,
    /// Written by the session first: the answer to the binding.
    pub out: Vec<u8>,
    /// Received behind the request to bind.
    pub rest: Vec<u8>,
}

/// Why a negotiation ended without a session.
#[derive(Debug)]
enum Stop {
    /// The connection broke, or the client closed it.
    Gone,
    /// The stream ends with this error.
    Stream(StreamError),
    /// The client closed the stream.
    Closed,
    /// An earlier session has the connection now.
    HandedOn,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Stop {
        Stop::Gone
    }
}
impl From<StreamError> for Stop {
    fn from(error: StreamError) -> Stop {
        Stop::Stream(error)
    }
}

/// One connection until it is bound.
pub(crate) struct Talk {
    shared: Arc<Shared>,
    wire: Option<Wire>,
    peer: Peer,
    ingress: Ingress,
    received: Vec<u8>,
    out: Vec<u8>,
    layer: Layer,
    bindings: ChannelBindings,
    /// Our header of the current stream went out, or will before anything else.
    header_sent: bool,
    lang: Option<Box<str>>,
    managed: Option<Managed>,
}

impl Talk {
    /// A fresh TCP connection.
    pub fn new(shared: Arc<Shared>, wire: Wire, peer: std::net::IpAddr) -> Talk {
        let layer = Layer::Clear { tls: shared.tls.is_some(), loopback: peer.to_canonical().is_loopback() };
        Talk {
            shared,
            wire: Some(wire),
            peer: Peer::at(peer),
            ingress: Ingress::new(Limits::BEFORE_LOGIN),
            received: Vec::new(),
            out: Vec::new(),
            layer,
            bindings: ChannelBindings::NONE,
            header_sent: false,
            lang: None,
            managed: None,
        }
    }

    /// Negotiates until the deadline; None when there is no session, the client was told why then.
    pub async fn run(mut self, port: Port) -> Option<Negotiated> {
        let shared = self.shared.clone();
        let ended = tokio::select! {
            ended = self.work(port) => ended,
            () = tokio::time::sleep(shared.config.login_deadline) => Err(Stop::Stream(too_slow())),
            () = shared.stopping() => Err(Stop::Stream(StreamCondition::SystemShutdown.into())),
        };
        match ended {
            Ok((link, attached)) => self.negotiated(link, attached),
            Err(stop) => {
                self.farewell(stop).await;
                None
            }
        }
    }

    fn negotiated(mut self, link: Link, attached: Attached) -> Option<Negotiated> {
        self.ingress.set_limits(self.shared.config.stanza);
        let (out, rest) = (std::mem::take(&mut self.out), std::mem::take(&mut self.received));
        let (wire, ingress, lang) = (self.wire.take()?, self.ingress, self.lang);
        Some(Negotiated { wire, ingress, link, attached, lang, managed: self.managed, out, rest })
    }

    async fn work(&mut self, port: Port) -> Result<(Link, Attached), Stop> {
        if port == Port::DirectTls {
            let tls = self.shared.tls.clone().ok_or(Stop::Gone)?;
            self.handshake(TlsAcceptor::from(tls.direct.load_full())).await?;
        }
        let mut state = Negotiation::default();
        loop {
            match self.step(state).await? {
                Stepped::State(next) => state = next,
                Stepped::Bound(link, attached) => return Ok((*link, attached)),
            }
        }
    }

    /// One thing from the client, and all that follows from it.
    async fn step(&mut self, state: Negotiation) -> Result<Stepped, Stop> {
        let incoming = self.incoming().await?;
        // The answer to a header begins with ours, also when it is an error.
        self.header_sent |= matches!(incoming, Incoming::Header(_));
        let mut out = std::mem::take(&mut self.out);
        let next = state.handle(incoming, &self.setting(), &mut out);
        self.out = out;
        let stepped = self.follow(next?).await?;
        if let Stepped::State(_) = stepped {
            self.flush().await?;
        }
        Ok(stepped)
    }

    /// Does what the negotiation cannot do itself.
    async fn follow(&mut self, mut next: Next) -> Result<Stepped, Stop> {
        loop {
            next = match next {
                Next::Wait(state) => return Ok(Stepped::State(state)),
                Next::Close => return Err(Stop::Closed),
                Next::StartTls(state) => return self.start_tls(state).await.map(Stepped::State),
                Next::Keys(wanted) => self.keys(wanted).await?,
                Next::Judge(wanted) => self.judge(wanted).await?,
                Next::Failed(failed) => Next::Wait(failed.answer(&mut self.out)?),
                Next::LoggedIn(_, state) => {
                    // RFC 6120 §6.4.6: the stream begins anew.
                    self.header_sent = false;
                    self.ingress.restart();
                    Next::Wait(state)
                }
                Next::Resume(wanted) => self.resume(wanted).await?,
                Next::Bind(wanted) => match self.bind(wanted).await {
                    Ok((link, attached)) => return Ok(Stepped::Bound(Box::new(link), attached)),
                    Err(state) => Next::Wait(state),
                },
            };
        }
    }

    async fn start_tls(&mut self, state: Negotiation) -> Result<Negotiation, Stop> {
        self.flush().await?;
        // RFC 6120 §5.4.3.3: whatever was received before the handshake is forgotten.
        self.received = Vec::new();
        let Some(tls) = self.shared.tls.clone() else { return Err(Stop::Gone) };
        self.handshake(TlsAcceptor::from(tls.starttls.load_full())).await?;
        Ok(state)
    }

    async fn handshake(&mut self, acceptor: TlsAcceptor) -> io::Result<()> {
        let Some(Wire::Clear(stream)) = self.wire.take() else { return Err(io::ErrorKind::NotConnected.into()) };
        let certificate = self.shared.tls.as_ref().map(|tls| tls.certificate.load_full()).unwrap_or_default();
        let stream = acceptor.accept(stream).await?;
        self.bindings = channel_bindings(stream.get_ref().1, &certificate);
        self.peer.exporter = self.bindings.exporter;
        self.peer.certificate = peer_certificate(stream.get_ref().1);
        self.layer = Layer::Tls;
        self.header_sent = false;
        self.ingress = Ingress::new(Limits::BEFORE_LOGIN);
        self.wire = Some(Wire::Tls(Box::new(stream)));
        Ok(())
    }

    async fn keys(&mut self, wanted: KeysWanted) -> Result<Next, Stop> {
        match self.shared.node.parts.login.scram(wanted.user(), wanted.hash()).await {
            Ok(keys) => {
                let mut out = std::mem::take(&mut self.out);
                let state = wanted.with(keys, &self.setting(), &mut out);
                self.out = out;
                Ok(Next::Wait(state))
            }
            Err(error) => {
                tracing::error!(%error, "the keys of a user could not be read");
                Ok(Next::Wait(wanted.unavailable().answer(&mut self.out)?))
            }
        }
    }

    async fn judge(&mut self, wanted: Judgement) -> Result<Next, Stop> {
        let credential = match wanted.evidence() {
            Evidence::Password(password) => Credential::Secret(password.as_bytes()),
            Evidence::Proof { challenge, answer } => Credential::Proof { challenge, answer },
            Evidence::Certificate => Credential::Certificate,
        };
        let attempt = Attempt { user: wanted.user(), credential, audience: "xmpp", peer: &self.peer };
        match self.shared.node.parts.login.login(attempt).await {
            Ok(principal) => match principal.jid() {
                Some(jid) => Ok(self.say(|setting, out| wanted.accept(jid, setting, out))),
                // Nobody without a name logs in here.
                None => Ok(Next::Wait(wanted.refuse().answer(&mut self.out)?)),
            },
            Err(Denied::Wrong { delay }) => {
                tokio::time::sleep(delay).await;
                Ok(Next::Wait(wanted.refuse().answer(&mut self.out)?))
            }
            // RFC 6120 §6.5.11: the client may try again.
            Err(Denied::Busy) => {
                tracing::info!(user = wanted.user(), peer = %self.peer.address, "a login was put off: too many are looked at");
                Ok(Next::Wait(wanted.unavailable().answer(&mut self.out)?))
            }
            Err(Denied::Store(error)) => {
                tracing::error!(%error, "a credential could not be checked");
                Ok(Next::Wait(wanted.unavailable().answer(&mut self.out)?))
            }
        }
    }

    async fn bind(&mut self, wanted: BindWanted) -> Result<(Link, Attached), Negotiation> {
        match place(&self.shared.node, &wanted).await {
            Ok(found) => {
                self.lang = wanted.lang().map(Into::into);
                let done = self.begin(wanted.inline(), &found.0);
                self.say(|setting, out| wanted.bound(done, setting, out));
                Ok(found)
            }
            Err(error) => Err(self.say(|setting, out| wanted.refuse(&error, setting, out))),
        }
    }

    /// Begins what the client asked for with its binding (XEP-0386 §4); gives what it is told of it.
    fn begin(&mut self, requests: &[Element], link: &Link) -> Vec<Element> {
        link.begin(requests);
        let enable = requests.iter().find_map(|request| match SmRequest::read(request) {
            Some(SmRequest::Enable { resume }) => Some(resume),
            _ => None,
        });
        self.managed = enable.map(|resume| Managed::new(&self.shared, &link.seat().owner, resume));
        self.managed.iter().map(|managed| sm::enabled(managed.resumable(&self.shared))).collect()
    }

    /// Has the negotiation write something.
    fn say<T>(&mut self, write: impl FnOnce(&Setting<'_>, &mut Vec<u8>) -> T) -> T {
        let mut out = std::mem::take(&mut self.out);
        let said = write(&self.setting(), &mut out);
        self.out = out;
        said
    }

    /// Gives the connection to the session that it goes on with (XEP-0198 §5).
    async fn resume(&mut self, wanted: ResumeWanted) -> Result<Next, Stop> {
        let session = self.shared.resumable.find(&wanted.previous, wanted.user());
        // It may end just now, or another connection was faster.
        let Some(place) = session.as_ref().and_then(|session| session.try_reserve().ok()) else {
            let failed = self.not_resumed(&wanted);
            return Ok(self.say(|setting, out| wanted.refuse(failed, setting, out)));
        };
        let wire = self.wire.take().ok_or(Stop::Gone)?;
        let mut ingress = std::mem::replace(&mut self.ingress, Ingress::new(Limits::BEFORE_LOGIN));
        ingress.set_limits(self.shared.config.stanza);
        let (rest, handled) = (std::mem::take(&mut self.received), wanted.handled);
        let lang = wanted.lang().map(Into::into);
        let greeting = wanted.accept();
        let (back, comes_back) = oneshot::channel();
        place.send(Box::new(Resume { wire, peer: self.peer.address, ingress, rest, lang, handled, greeting, back }));
        // It is the session's once it does not come back any more.
        let Ok((Unresumed { wire, ingress, rest }, handled)) = comes_back.await else { return Err(Stop::HandedOn) };
        (self.wire, self.ingress, self.received) = (Some(wire), ingress, rest);
        self.ingress.set_limits(Limits::BEFORE_LOGIN);
        Ok(self.say(|setting, out| wanted.refuse(sm::not_resumed(handled), setting, out)))
    }

    /// XEP-0198 §5: there is no such session, or there never is one.
    fn not_resumed(&self, wanted: &ResumeWanted) -> Element {
        if self.shared.config.resume.is_zero() {
            return sm::failed(Condition::FeatureNotImplemented);
        }
        sm::not_resumed(self.shared.resumable.ended(&wanted.previous, wanted.user()))
    }

    /// The next thing that the client sent.
    async fn incoming(&mut self) -> Result<Incoming, Stop> {
        loop {
            let mut input = &self.received[..];
            let found = self.ingress.next(&mut input);
            let rest = input.len();
            let done = self.received.len() - rest;
            self.received.drain(..done);
            if let Some(incoming) = found? {
                return Ok(incoming);
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<(), Stop> {
        let (wire, received) = (self.wire.as_mut().ok_or(Stop::Gone)?, &mut self.received);
        let read = poll_fn(|cx| wire.poll_read(cx, |bytes| received.extend_from_slice(bytes))).await?;
        read.ok_or(Stop::Gone)
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        let out = std::mem::take(&mut self.out);
        let (wire, mut done) = (self.wire.as_mut().ok_or(Stop::Gone)?, 0);
        poll_fn(|cx| wire.poll_write_all(cx, &out, &mut done)).await?;
        Ok(())
    }

    fn write_error(&mut self, error: &StreamError) {
        self.shared.node.parts.metrics.protocol_errors.add(1);
        tracing::debug!(peer = %self.peer.address, %error, "a stream ended before login");
        let mut out = std::mem::take(&mut self.out);
        if self.header_sent {
            self.ingress.framing().write_error(error, &mut out);
        } else {
            Negotiation::default().write_error(error, &self.setting(), &mut out);
        }
        self.out = out;
    }

    async fn farewell(mut self, stop: Stop) {
        match stop {
            Stop::Gone | Stop::HandedOn => return,
            Stop::Closed => self.ingress.framing().write_close(&mut self.out),
            Stop::Stream(error) => self.write_error(&error),
        }
        let deadline = self.shared.config.farewell_deadline;
        // A client that does not read its error loses it.
        let _ = tokio::time::timeout(deadline, async {
            let _ = self.flush().await;
            if let Some(wire) = &mut self.wire {
                let mut said = false;
                poll_fn(|cx| wire.poll_hang_up(cx, &mut said)).await;
            }
        })
        .await;
    }

    fn setting(&self) -> Setting<'_> {
        let mut entropy = [0; 18];
        // Without randomness no login may go on: nonces would repeat. getrandom fails only on broken systems.
        getrandom::fill(&mut entropy).expect("the system has randomness since the broker started");
        Setting {
            domain: self.shared.node.parts.hosts.domain(),
            is_login_host: &*self.shared.is_login_host,
            layer: self.layer,
            framing: self.ingress.framing(),
            bindings: &self.bindings,
            inline: &self.shared.inline,
            external: self.shared.node.parts.login.takes_certificate(&self.peer),
            offers: [&self.shared.offers[0], &self.shared.offers[1]],
            entropy,
        }
    }
}

/// What a step led to.
enum Stepped {
    State(Negotiation),
    Bound(Box<Link>, Attached),
}

/// A seat in the account, wherever it is home.
async fn place(node: &Node, wanted: &BindWanted) -> Result<(Link, Attached), StanzaError> {
    node.bind(wanted.jid()).await.map_err(|why| match why {
        // It was removed between login and binding.
        NoSeat::Nobody => Condition::NotAuthorized.into(),
        // RFC 6120 §7.6.2.1.
        NoSeat::TooMany => StanzaError::new(Condition::ResourceConstraint).text("this account has too many sessions"),
        NoSeat::Unavailable => Condition::InternalServerError.into(),
    })
}

/// Whether clients can log in at a host (semantics.md: people and devices).
pub(crate) fn is_login_host(node: &Node, domain: &str) -> bool {
    matches!(node.parts.hosts.find(domain), Some(Host::Main | Host::Things))
}

/// What a client that is too slow is told.
fn too_slow() -> StreamError {
    StreamError::new(StreamCondition::ConnectionTimeout).text("logging in took too long")
}
