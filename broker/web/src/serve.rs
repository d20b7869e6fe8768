//! The accept loop that every HTTP listener shares: bounded connections, deadlines, an orderly stop.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use crate::reply::Reply;

/// What one listener grants its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many connections it holds at once; the next one is closed unread. 256 by default.
    pub connections: usize,
    /// How long a TLS handshake and then a request's head may take. 10 s by default.
    pub head: Duration,
    /// How long a connection may live, its one request and answer included. 30 s by default.
    pub connection: Duration,
    /// How long the open connections may go on after a stop. 2 s by default.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connections: 256, head: seconds(10), connection: seconds(30), stop: seconds(2) }
    }
}

/// Something that accepts connections which speak HTTP/1.1 once they are secured.
pub trait Listener: Send + Sync + 'static {
    /// A connection as it was accepted.
    type Raw: Send + 'static;
    /// The connection that HTTP is spoken over.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection.
    ///
    /// # Errors
    /// What the system reports; the loop goes on after it.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Raw>> + Send;

    /// Does what has to come before the first request: nothing, or a TLS handshake.
    ///
    /// # Errors
    /// The peer's handshake failed.
    fn secure(&self, raw: Self::Raw) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Raw = TcpStream;
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }

    async fn secure(&self, raw: TcpStream) -> io::Result<TcpStream> {
        Ok(raw)
    }
}

impl Listener for UnixListener {
    type Raw = UnixStream;
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }

    async fn secure(&self, raw: UnixStream) -> io::Result<UnixStream> {
        Ok(raw)
    }
}

/// A TCP listener whose connections begin with a TLS handshake.
pub struct Tls {
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
}

impl Tls {
    /// The configuration is the caller's, who may exchange it while this runs; if it names ALPN protocols, `http/1.1`
    /// has to be among them (RFC 7301 §6).
    pub fn new(listener: TcpListener, config: Arc<ArcSwap<ServerConfig>>) -> Self {
        Self { listener, config }
    }
}

impl Listener for Tls {
    type Raw = TcpStream;
    type Stream = TlsStream<TcpStream>;

    async fn accept(&self) -> io::Result<TcpStream> {
        Listener::accept(&self.listener).await
    }

    async fn secure(&self, raw: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config.load_full()).accept(raw).await
    }
}

/// Answers one request; implemented by each kind of listener.
pub(crate) trait Answer: Send + Sync + 'static {
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Reply> + Send;
}

/// Serves until `stop` is ready, then lets open connections finish for [`Limits::stop`].
pub(crate) async fn run<L: Listener>(
    listener: L,
    answer: impl Answer,
    limits: Limits,
    stop: impl Future<Output = ()> + Send,
) {
    let shared = Arc::new((listener, answer));
    let (stopping, _) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = shared.0.accept() => match accepted {
                Ok(_) if connections.len() >= limits.connections => tracing::debug!("too many HTTP connections: one was closed"),
                Ok(raw) => {
                    connections.spawn(connection(Arc::clone(&shared), raw, limits, stopping.subscribe()));
                }
                Err(error) => pause_after(&error).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    stopping.send_replace(());
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.stop, drained).await.is_err() {
        tracing::warn!("HTTP connections were cut by the stop");
    }
}

/// Out of descriptors, accepting fails at once and again: give the others time to close some.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "an HTTP connection was not accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn connection<L: Listener, A: Answer>(
    shared: Arc<(L, A)>,
    raw: L::Raw,
    limits: Limits,
    stopping: watch::Receiver<()>,
) {
    let whole = async {
        let Ok(Ok(stream)) = timeout(limits.head, shared.0.secure(raw)).await else { return };
        exchange(&shared.1, stream, limits, stopping).await;
    };
    if timeout(limits.connection, whole).await.is_err() {
        tracing::debug!("an HTTP connection took too long and was closed");
    }
}

/// One request and its answer. RFC 9112 §9.6: the connection closes after it, so that none is held idle.
async fn exchange<A: Answer>(
    answer: &A,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    limits: Limits,
    mut stopping: watch::Receiver<()>,
) {
    let service = service_fn(|request| async { Ok::<_, Infallible>(answer.answer(request).await) });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .keep_alive(false)
            .max_headers(64)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service)
    );
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}
