//! A connection from its first byte to its last, as one small future: first a greeting, then a client.
//!
//! An `async fn` keeps room for its arguments and for every step at once. Here what only the greeting needs goes with it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tavi_core::metrics::Protocol;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::conn::Conn;
use crate::greet::{Peer, greet};
use crate::hub::Hub;

/// Serves one connection until it ends: TCP, TLS or a WebSocket's stream.
pub fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    hub: Arc<Hub>,
    stream: S,
    peer: Peer,
) -> impl Future<Output = ()> + Send {
    Serving::new(hub.clone(), greet(hub, stream, peer))
}

/// A connection, counted while it is served.
pub(crate) struct Serving<S> {
    part: Part<S>,
    _counted: Counted,
}

/// What gives the connection of a client that was let in.
type Greeting<S> = Pin<Box<dyn Future<Output = Option<Box<Conn<S>>>> + Send>>;

enum Part<S> {
    Greeting(Greeting<S>),
    Client(Box<Conn<S>>),
}

impl<S> Serving<S> {
    /// Begins with a greeting, which gives the connection of a client that was let in.
    pub(crate) fn new(
        hub: Arc<Hub>,
        greeting: impl Future<Output = Option<Box<Conn<S>>>> + Send + 'static,
    ) -> Serving<S> {
        Serving { part: Part::Greeting(Box::pin(greeting)), _counted: Counted::new(hub) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Serving<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Part::Greeting(greeting) = &mut self.part {
            let Some(conn) = ready!(greeting.as_mut().poll(cx)) else { return Poll::Ready(()) };
            self.part = Part::Client(conn);
        }
        let Part::Client(conn) = &mut self.part else { return Poll::Ready(()) };
        Pin::new(conn).poll(cx)
    }
}

/// Counts a connection while it lives.
struct Counted(Arc<Hub>);

impl Counted {
    fn new(hub: Arc<Hub>) -> Self {
        hub.node().parts.metrics.connections(Protocol::Mqtt).add(1);
        hub.connected();
        Self(hub)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.node().parts.metrics.connections(Protocol::Mqtt).sub(1);
        self.0.disconnected();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    /// performance.md, idle MQTT.
    #[test]
    fn an_idle_connection_is_small() {
        // Tasks are aligned to 128 bytes; with so much of its own one takes no more than that.
        assert!(size_of::<Serving<TcpStream>>() <= 24);
        // The allocator has blocks of this size.
        assert!(size_of::<Conn<TcpStream>>() <= 640, "{}", size_of::<Conn<TcpStream>>());
    }
}
