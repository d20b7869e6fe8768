//! A connection from its first byte to its last, as one small future: it negotiates, talks as a session, goes on over
//! another connection, ends.
//!
//! An `async fn` keeps room for its arguments and for every step at once. Here a session is held once, and what only the
//! steps between need goes with them.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use crate::listener::{Connection, Port};
use crate::negotiate::Talk;
use crate::session::Session;
use crate::wire::Wire;

/// What leads to a session that talks, or to none.
type Step = Pin<Box<dyn Future<Output = Option<Box<Session>>> + Send>>;

/// A connection, or a session that waits for one, until its end.
pub(crate) struct Life {
    step: Option<Step>,
    talking: Option<Box<Session>>,
}

impl Life {
    /// Of a fresh connection.
    pub fn of(connection: Connection, stream: TcpStream, (peer, port): (IpAddr, Port)) -> Life {
        Life { step: Some(Box::pin(negotiate(connection, stream, (peer, port)))), talking: None }
    }

    /// Of a session that has no connection yet.
    pub fn of_waiting(session: Session) -> Life {
        Life { step: Some(Box::pin(Box::new(session).wait_first())), talking: None }
    }
}

async fn negotiate(connection: Connection, stream: TcpStream, (peer, port): (IpAddr, Port)) -> Option<Box<Session>> {
    let negotiated = Talk::new(connection.shared(), Wire::Clear(stream), peer).run(port).await?;
    Some(Box::new(Session::new(connection, negotiated)))
}

impl Future for Life {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(step) = &mut self.step {
                self.talking = ready!(step.as_mut().poll(cx));
                self.step = None;
            }
            let Some(session) = &mut self.talking else { return Poll::Ready(()) };
            let end = ready!(session.poll(cx));
            self.step = self.talking.take().map(|session| Box::pin(session.go_on(end)) as Step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// performance.md, idle XMPP.
    #[test]
    fn an_idle_session_is_small() {
        // Tasks are aligned to 128 bytes; with so much of its own one takes no more than that.
        assert!(size_of::<Life>() <= 24);
        // The allocator has blocks of this size.
        assert!(size_of::<Session>() <= 640, "{}", size_of::<Session>());
    }
}
