//! The listeners: connections are accepted, negotiated, and become sessions, until the broker stops.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tavi_core::hooks::Stage;
use tavi_core::link::{Closer, Link};
use tavi_core::metrics::Protocol;
use tavi_core::{Closed, Lines, Node};
use tavi_xmpp_proto::{Element, ns};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::config::Config;
use crate::life::Life;
use crate::negotiate::is_login_host;
use crate::resume::Resumables;
use crate::session::Session;
use crate::tls::Tls;

static FULL: Lines = Lines::new();

/// The XMPP front end of a node.
pub struct Xmpp {
    shared: Arc<Shared>,
}

/// What every connection knows.
pub(crate) struct Shared {
    pub node: Node,
    pub tls: Option<Tls>,
    pub config: Config,
    /// What modules add to the features of a stream before and after login.
    pub offers: [Vec<Element>; 2],
    /// What can be begun while a resource is bound.
    pub inline: Vec<&'static str>,
    pub is_login_host: Box<dyn Fn(&str) -> bool + Send + Sync>,
    /// Sessions, so that the stop can end them; by their number in the core.
    sessions: Mutex<std::collections::HashMap<u64, Closer>>,
    /// Sessions that another connection can go on with.
    pub resumable: Arc<Resumables>,
    connections: AtomicUsize,
    /// Sessions without a connection.
    waiting: AtomicUsize,
    /// Connections and sessions whose ends the stop waits for.
    alive: AtomicUsize,
    stop: watch::Sender<bool>,
    /// Tells the stop that the last of them is gone.
    idle: tokio::sync::Notify,
}

/// What a port speaks first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    /// A stream, with STARTTLS (RFC 6120 §5).
    Stream,
    /// TLS (XEP-0368).
    DirectTls,
}

impl Xmpp {
    /// A front end for the node's people and devices. Without `tls` only clients on this machine can log in.
    pub fn new(node: Node, tls: Option<Tls>, config: Config) -> Arc<Xmpp> {
        let hosts = node.clone();
        let offers = [Stage::BeforeLogin, Stage::AfterLogin].map(|stage| node.router.registry().offers(stage));
        let mut inline = node.router.registry().inline();
        inline.push(ns::SM);
        let shared = Shared {
            is_login_host: Box::new(move |domain| is_login_host(&hosts, domain)),
            node,
            tls,
            config,
            offers,
            inline,
            sessions: Mutex::default(),
            resumable: Arc::default(),
            connections: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            alive: AtomicUsize::new(0),
            stop: watch::Sender::new(false),
            idle: tokio::sync::Notify::new(),
        };
        Arc::new(Xmpp { shared: Arc::new(shared) })
    }

    /// Accepts connections that begin in the clear, with STARTTLS offered, until [`Xmpp::stop`].
    pub async fn listen(self: Arc<Self>, listener: TcpListener) {
        self.shared.clone().accept(listener, Port::Stream).await;
    }

    /// Accepts connections that begin with TLS, until [`Xmpp::stop`].
    pub async fn listen_tls(self: Arc<Self>, listener: TcpListener) {
        self.shared.clone().accept(listener, Port::DirectTls).await;
    }

    /// Sessions of an earlier process, each of which waits for a connection of its client as long as if its connection
    /// had been cut just now.
    pub fn restore(&self, sessions: Vec<tavi_core::restore::Restored>) {
        for restored in sessions {
            let session = Session::restored(Connection::new(self.shared.clone(), None), restored);
            tokio::spawn(Life::of_waiting(session));
        }
    }

    /// Stops accepting, ends every stream with `<system-shutdown/>`, and waits until all connections and sessions are gone. Each
    /// has [`Config::farewell_deadline`] to read its last words.
    pub async fn stop(&self) {
        self.shared.stop.send_replace(true);
        let seats: Vec<_> = self.shared.sessions.lock().values().cloned().collect();
        seats.iter().for_each(|seat| seat.close(Closed::Shutdown));
        let alive = || self.shared.alive.load(Ordering::Acquire) > 0;
        while alive() {
            let idle = self.shared.idle.notified();
            if !alive() {
                break;
            }
            idle.await;
        }
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener, port: Port) {
        while let Some((stream, peer)) = self.next(&listener).await {
            let connection = Connection::new(self.clone(), Some(peer.ip()));
            self.prepare(&stream);
            tokio::spawn(Life::of(connection, stream, (peer.ip(), port)));
        }
    }

    /// The next connection within the limit; None when the broker stops.
    async fn next(&self, listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stopping() => return None,
            };
            match accepted {
                Ok(found) if self.connections.load(Ordering::Acquire) < self.config.max_connections => {
                    return Some(found);
                }
                Ok((_, peer)) => {
                    FULL.write(|| tracing::warn!(%peer, "XMPP connection refused: the configured number is reached"))
                }
                Err(error) => {
                    // Out of file descriptors: trying again at once would only burn the processor.
                    tracing::warn!(%error, "an XMPP connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Socket options; a failure makes the connection slower or longer-lived, not wrong.
    fn prepare(&self, stream: &TcpStream) {
        let _ = stream.set_nodelay(true);
        let keepalive = TcpKeepalive::new().with_time(self.config.tcp_keepalive).with_interval(Duration::from_secs(20));
        let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
    }

    /// Ready when the broker stops.
    pub async fn stopping(&self) {
        // The sender lives in self.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }
}

/// A session that the stop can end. When this is dropped, in whatever way, nobody sends to the session any more.
pub(crate) struct Entered {
    shared: Arc<Shared>,
    id: u64,
    seat: Closer,
}

impl Entered {
    /// Notes a session.
    pub fn new(shared: Arc<Shared>, link: &Link) -> Entered {
        let (id, seat) = (link.seat().number, link.closer());
        shared.sessions.lock().insert(id, seat.clone());
        // The stop may have looked just before.
        if *shared.stop.borrow() {
            seat.close(Closed::Shutdown);
        }
        Entered { shared, id, seat }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.seat.close(Closed::Gone);
        let mut sessions = self.shared.sessions.lock();
        sessions.remove(&self.id);
        if sessions.is_empty() {
            sessions.shrink_to_fit();
        }
    }
}

/// Counts a connection while it lives, and after it its session.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    /// There is a socket.
    open: bool,
    /// Who is at its other end, or was.
    pub peer: Option<IpAddr>,
}

impl Connection {
    fn new(shared: Arc<Shared>, peer: Option<IpAddr>) -> Connection {
        shared.alive.fetch_add(1, Ordering::AcqRel);
        let mut connection = Connection { shared, open: false, peer };
        connection.count();
        connection
    }

    /// What every connection knows.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    fn count(&mut self) {
        self.open = true;
        self.shared.connections.fetch_add(1, Ordering::AcqRel);
        self.shared.node.parts.metrics.connections(Protocol::Xmpp).add(1);
    }

    fn discount(&mut self) {
        self.open = false;
        self.shared.connections.fetch_sub(1, Ordering::AcqRel);
        self.shared.node.parts.metrics.connections(Protocol::Xmpp).sub(1);
    }

    /// The socket is gone and its session waits for another one; false if as many as there may be do so already.
    pub fn part(&mut self) -> bool {
        if self.shared.waiting.fetch_add(1, Ordering::AcqRel) >= self.shared.config.max_connections {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        self.discount();
        true
    }

    /// The session has a socket again.
    pub fn join(&mut self) {
        self.count();
        self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.open {
            self.discount();
        } else {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        if self.shared.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.idle.notify_waiters();
        }
    }
}
