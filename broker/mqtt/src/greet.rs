//! From an open stream to a client that is let in: CONNECT under a deadline, login, CONNACK.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;

use tavi_core::login::{self, Attempt, Credential, Denied};
use tavi_core::permit::Action;
use tavi_core::{Lines, Principal};
use tavi_wire::topic::check_topic;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use zeroize::Zeroizing;

use crate::client::Client;
use crate::codec::Codec;
use crate::conn::Conn;
use crate::error::Fault;
use crate::hub::{Entered, Hub, Parting};
use crate::packet::{Connect, Packet, Reason, Version};
use crate::reply::{self, Welcome};
use crate::session::Session;

static IN_CLEAR: Lines = Lines::new();

/// Who is at the other end, and how.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What is known of it before it says anything.
    pub who: login::Peer,
    /// How it came.
    pub link: Link,
}

impl Peer {
    /// A peer of whom only the address is known.
    pub fn at(address: IpAddr, link: Link) -> Peer {
        Peer { who: login::Peer::at(address), link }
    }
}

/// Whether a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// In clear: passwords are taken from this machine only.
    Clear,
    /// TLS, or a WebSocket over it.
    Encrypted,
}

/// Lets a client in; `None` if it was refused or is gone. Boxed, so that nothing of its size is kept by who waits.
pub(crate) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    hub: Arc<Hub>,
    mut stream: S,
    peer: Peer,
) -> Option<Box<Conn<S>>> {
    let mut codec = Codec::new(hub.config().max_connect);
    let mut inbox = Vec::new();
    let mut connect = match receive(&hub, &mut stream, &mut codec, &mut inbox).await {
        Ok(connect) => connect?,
        Err(fault) => {
            tracing::debug!(%fault, peer = %peer.who.address, "no MQTT client");
            refuse_stranger(&mut stream, codec, fault).await;
            return None;
        }
    };
    let (version, mut greeting) = (connect.version, Vec::new());
    match admit(&hub, &mut connect, &peer).await {
        Ok(admitted) => match let_in(&hub, connect, admitted, &mut greeting).await {
            Ok(client) => {
                codec.raise_limit(hub.config().max_packet);
                return Some(Box::new(Conn::new(stream, hub, client, codec, (inbox, greeting))));
            }
            Err(reason) => refuse(&mut stream, version, reason).await,
        },
        Err(reason) => refuse(&mut stream, version, reason).await,
    }
    None
}

/// Reads the CONNECT under its deadline. `None`: the peer left or said nothing in time, so nobody is to be answered.
async fn receive<S: AsyncRead + Unpin>(
    hub: &Hub,
    stream: &mut S,
    codec: &mut Codec,
    inbox: &mut Vec<u8>,
) -> Result<Option<Connect>, Fault> {
    let reading = tokio::time::timeout(hub.config().connect_timeout, read_connect(stream, codec, inbox));
    let received = reading.await;
    if !matches!(received, Ok(Ok(_))) {
        hub.node().parts.metrics.protocol_errors.add(1);
    }
    received.unwrap_or(Ok(None))
}

/// Gives the client its session; nothing is acknowledged before it is durable: not a session or a will either.
async fn let_in(
    hub: &Arc<Hub>,
    mut connect: Connect,
    (principal, assigned_id): (Principal, Option<String>),
    greeting: &mut Vec<u8>,
) -> Result<Client, Reason> {
    let asked = connect.expiry;
    // A former connection of the session leaves at once, but the store may keep what it began waiting.
    let entering = tokio::time::timeout(hub.config().connect_timeout, hub.enter(&principal, &mut connect));
    let Entered { place, session_present, held, ticket } = entering.await.unwrap_or(Err(Reason::UNAVAILABLE))?;
    let welcome = Welcome {
        session_present,
        assigned_id,
        receive_maximum: hub.config().receive_maximum,
        maximum_packet: hub.config().max_packet,
        expiry: (place.expiry != asked).then_some(place.expiry),
        keep_alive: None,
    };
    let session = Session::new(&connect, hub.config().bounds(), &held, hub.monotonic_ms());
    let client = Client::new(hub.clone(), place, session);
    if let Err(error) = ticket.complete().await {
        tracing::error!(%error, "an MQTT session could not be saved");
        client.leave(Parting::InOrder);
        return Err(Reason::UNAVAILABLE);
    }
    if reply::welcome(greeting, connect.version, &welcome, connect.maximum_packet).is_err() {
        client.leave(Parting::InOrder);
        return Err(Reason::TOO_LARGE);
    }
    tracing::debug!(%principal, client = connect.client_id, "MQTT client connected");
    Ok(client)
}

/// Reads until the CONNECT is whole; what follows it stays in `inbox`. `None`: the peer left.
async fn read_connect<S: AsyncRead + Unpin>(
    stream: &mut S,
    codec: &mut Codec,
    inbox: &mut Vec<u8>,
) -> Result<Option<Connect>, Fault> {
    let mut bytes = Zeroizing::new(Vec::new());
    loop {
        if let Some((packet, used)) = codec.decode(&bytes)? {
            inbox.extend_from_slice(&bytes[used..]);
            return match packet {
                Packet::Connect(connect) => Ok(Some(*connect)),
                _ => Err(Fault::Protocol("the first packet is not CONNECT")),
            };
        }
        match read_some(stream, &mut bytes).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

/// Waits with no buffer at all; a silent connection costs nothing but its task.
async fn read_some<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut Vec<u8>) -> std::io::Result<usize> {
    std::future::poll_fn(|cx| {
        let mut space = Zeroizing::new([0; 2048]);
        let mut buffer = ReadBuf::new(&mut *space);
        match std::pin::Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                bytes.extend_from_slice(buffer.filled());
                Poll::Ready(Ok(buffer.filled().len()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Checks the CONNECT and logs in. Gives the principal and, if the broker chose it, the client identifier.
async fn admit(hub: &Hub, connect: &mut Connect, peer: &Peer) -> Result<(Principal, Option<String>), Reason> {
    if hub.is_stopping() {
        return Err(Reason::SHUTTING_DOWN);
    }
    if connect.auth_method {
        return Err(Reason::BAD_AUTH_METHOD);
    }
    let assigned = check_client_id(hub, connect)?;
    let principal = log_in(hub, connect, peer).await?;
    check_will(hub, connect, &principal)?;
    Ok((principal, assigned))
}

/// The longest client identifier in bytes. MQTT asks for 23 at least (§3.1.3.1).
const MAX_CLIENT_ID: usize = 1024;

/// MQTT 5.0 §3.1.3.1: an empty identifier is replaced; 3.1.1 allows that for clean sessions only (3.1.1 §3.1.3.1).
fn check_client_id(hub: &Hub, connect: &mut Connect) -> Result<Option<String>, Reason> {
    if connect.client_id.len() > MAX_CLIENT_ID {
        return Err(Reason::CLIENT_ID);
    }
    if !connect.client_id.is_empty() {
        return Ok(None);
    }
    if connect.version == Version::V4 && !connect.clean {
        return Err(Reason::CLIENT_ID);
    }
    connect.client_id = format!("auto-{:016x}", hub.next_id());
    Ok(Some(connect.client_id.clone()))
}

async fn log_in(hub: &Hub, connect: &mut Connect, peer: &Peer) -> Result<Principal, Reason> {
    let login = &hub.node().parts.login;
    let (user, password) = (connect.user.take(), connect.password.take());
    let credential = match &password {
        Some(password) if user.is_some() => Credential::Secret(password.expose().as_bytes()),
        // A device that showed its certificate needs no password; a user name must be its own (identity).
        None if login.takes_certificate(&peer.who) => Credential::Certificate,
        // Anonymous clients are refused everywhere, on this machine too.
        _ => return Err(Reason::NOT_AUTHORIZED),
    };
    if peer.link == Link::Clear && !peer.who.address.is_loopback() {
        IN_CLEAR.write(|| {
            tracing::warn!(
                peer = %peer.who.address,
                "MQTT login refused: a password in clear is taken from this machine only; use the mqtts listener"
            )
        });
        // 3.1.1 tells "not authorised" from "bad password" (3.1.1 §3.2.2.3).
        return Err(if connect.version == Version::V4 { Reason::NOT_AUTHORIZED } else { Reason::BAD_CREDENTIALS });
    }
    let user = user.unwrap_or_default();
    match login.login(Attempt { user: &user, credential, audience: "mqtt", peer: &peer.who }).await {
        Ok(principal) => Ok(principal),
        Err(Denied::Wrong { delay }) => {
            tokio::time::sleep(delay).await;
            Err(Reason::BAD_CREDENTIALS)
        }
        Err(Denied::Busy) => Err(Reason::BUSY),
        Err(Denied::Store(error)) => {
            tracing::error!(%error, "MQTT login failed because the store failed");
            Err(Reason::UNAVAILABLE)
        }
    }
}

/// A will that can never be published is refused now; in 3.1.1, which has no code for that, it is dropped later.
fn check_will(hub: &Hub, connect: &Connect, principal: &Principal) -> Result<(), Reason> {
    let Some(will) = &connect.will else { return Ok(()) };
    check_topic(will.body.topic()).map_err(|_| Reason::TOPIC_INVALID)?;
    let permit = &hub.node().parts.permit;
    if connect.version == Version::V5 && !permit.may(principal, Action::Publish, will.body.topic()) {
        permit.log_refusal(principal, Action::Publish, will.body.topic());
        return Err(Reason::NOT_AUTHORIZED);
    }
    Ok(())
}

/// Answers bytes that were no acceptable CONNECT. MQTT 5.0 §4.13: a CONNACK may tell why; 3.1.1 §3.1.4: it is just closed.
async fn refuse_stranger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, codec: Codec, fault: Fault) {
    match (fault, codec.version()) {
        // §3.1.2.2: an old client understands the old code, a newer one hopefully the new.
        (Fault::Version(level), _) => {
            // The high bit is how bridges of 3.1 and 3.1.1 name themselves: they know the old code too.
            let version = if level & 0x7F < 5 { Version::V4 } else { Version::V5 };
            refuse(stream, version, fault.reason()).await;
        }
        (_, Some(version)) => refuse(stream, version, fault.reason()).await,
        (_, None) => {}
    }
}

async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, version: Version, reason: Reason) {
    let mut out = Vec::new();
    reply::refuse(&mut out, version, reason);
    // The peer may be gone already; then nobody wants to know.
    let _ = stream.write_all(&out).await;
    let _ = stream.shutdown().await;
    // Bytes left unread would make the system drop the answer with a reset.
    let mut rest = [0; 512];
    let _ = tokio::time::timeout(std::time::Duration::from_millis(100), stream.read(&mut rest)).await;
}
