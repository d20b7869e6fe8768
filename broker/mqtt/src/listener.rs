//! The listeners: TCP and TLS sockets whose connections are served, and the hub's own clockwork.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::{ProtocolVersion, ServerConfig, ServerConnection};
use socket2::{SockRef, TcpKeepalive};
use tavi_core::{Lines, login};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use crate::conn::Conn;
use crate::greet::{Link, Peer, greet};
use crate::hub::Hub;
use crate::serving::{Serving, serve};

static FULL: Lines = Lines::new();

/// Time between the system's questions to a silent peer.
const PROBE_INTERVAL: Duration = Duration::from_secs(20);

impl Hub {
    /// Accepts plain connections until [`Hub::stop`].
    pub async fn listen(self: Arc<Self>, listener: TcpListener) {
        while let Some((stream, peer)) = self.accept(&listener).await {
            tokio::spawn(serve(self.clone(), stream, Peer::at(peer.ip(), Link::Clear)));
        }
    }

    /// Accepts TLS connections until [`Hub::stop`]. The configuration may be exchanged while it runs; its ALPN list
    /// may hold `mqtt` (RFC 7301), which clients rarely ask for.
    pub async fn listen_tls(self: Arc<Self>, listener: TcpListener, tls: Arc<ArcSwap<ServerConfig>>) {
        while let Some((stream, peer)) = self.accept(&listener).await {
            let (hub, acceptor) = (self.clone(), TlsAcceptor::from(tls.load_full()));
            let accepting = acceptor.accept(stream);
            tokio::spawn(Serving::new(hub.clone(), greet_tls(hub, accepting, peer)));
        }
    }

    /// The next connection within the limit; `None` when the broker stops.
    async fn accept(&self, listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stopping() => return None,
            };
            match accepted {
                Ok((stream, peer)) if self.connections() < self.config().max_connections => {
                    // Acknowledgements are small and wanted at once; an error only makes them slower.
                    let _ = stream.set_nodelay(true);
                    self.keep_alive(&stream);
                    return Some((stream, peer));
                }
                Ok((_, peer)) => {
                    FULL.write(|| tracing::warn!(%peer, "MQTT connection refused: the configured number is reached"))
                }
                Err(error) => {
                    // Out of file descriptors: trying again at once would only burn the processor.
                    tracing::warn!(%error, "an MQTT connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Asks the system to notice peers that are gone: MQTT's own keep-alive may be off.
    fn keep_alive(&self, stream: &TcpStream) {
        let keepalive = TcpKeepalive::new().with_time(self.config().tcp_keepalive).with_interval(PROBE_INTERVAL);
        // Without it a dead connection is only noticed later.
        let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
    }

    /// Expires sessions and rows, publishes delayed wills and drops who was revoked, until [`Hub::stop`]. One such task is needed.
    pub async fn run(self: Arc<Self>) {
        tokio::select! {
            () = self.clone().keep_time() => {}
            () = self.keep_swept() => {}
        }
    }

    async fn keep_time(self: Arc<Self>) {
        let mut revoked = self.node().parts.revoked.subscribe();
        loop {
            tokio::select! {
                () = self.stopping() => return,
                () = self.next_due() => {}
                jid = revoked.recv() => match jid {
                    Ok(jid) => self.revoke(jid.as_str()),
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => self.revoke_unknown().await,
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                },
            }
        }
    }
}

/// Lets a client in behind a TLS handshake.
async fn greet_tls(
    hub: Arc<Hub>,
    accepting: Accept<TcpStream>,
    peer: SocketAddr,
) -> Option<Box<Conn<TlsStream<TcpStream>>>> {
    match tokio::time::timeout(hub.config().connect_timeout, accepting).await {
        Ok(Ok(stream)) => {
            let who = shown(peer.ip(), stream.get_ref().1);
            return greet(hub, stream, Peer { who, link: Link::Encrypted }).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, %peer, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
    None
}

/// What a TLS handshake shows of a peer: the certificates that it proved to have, and what only the two ends know.
fn shown(address: IpAddr, tls: &ServerConnection) -> login::Peer {
    let chain = tls.peer_certificates().map(|chain| chain.iter().map(|one| one.to_vec()).collect());
    // RFC 9266 §4.2: before TLS 1.3 it is safe only with the extended master secret.
    let modern = tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
    let export = || tls.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b"")).ok();
    login::Peer { address, certificate: chain, exporter: modern.then(export).flatten() }
}
