//! One UDP socket and the task that serves it (RFC 7252 §4, plain CoAP).

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::service::{Limits, Seams, Service};

/// The longest datagram of UDP; longer ones do not exist.
const MAX_DATAGRAM: usize = 65_535;
/// How many waiting datagrams are taken before the core and the timers have their turn.
const BATCH: usize = 64;
/// How long the writes that are on their way may take when the broker stops.
const DRAIN: Duration = Duration::from_secs(2);

/// A running CoAP socket. Dropping it stops it without ceremony; [`stop`](Self::stop) does it in order.
#[derive(Debug)]
pub struct Endpoint {
    local: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Endpoint {
    /// Binds `address` (port 0 picks a free one) and serves it in a task.
    ///
    /// # Errors
    /// What the system says: the port is busy, the address is not ours.
    pub async fn bind(seams: Seams, address: SocketAddr) -> io::Result<Self> {
        Self::serve(seams, Limits::default(), UdpSocket::bind(address).await?)
    }

    /// Serves a socket that is bound already, in a task. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// What the system says of the socket.
    pub fn serve(seams: Seams, limits: Limits, socket: UdpSocket) -> io::Result<Self> {
        let local = socket.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let service = Service::new(seams, limits, seed());
        let task = tokio::spawn(run(socket, service, stopped));
        Ok(Self { local, stop: Some(stop), task })
    }

    /// The real address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Stops in order: no more requests, observers are told, the writes that are on their way are answered.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            // A task that is gone already needs no word.
            let _ = stop.send(());
        }
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the CoAP endpoint failed");
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // Without `stop` the sender is dropped here, which ends the task in order as well.
        self.stop.take();
    }
}

async fn run(socket: UdpSocket, mut service: Service, mut stopped: oneshot::Receiver<()>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        flush(&socket, &mut service).await;
        let timeout = sleep_until(service.poll_timeout());
        tokio::select! {
            _ = &mut stopped => break,
            () = std::future::poll_fn(|cx| service.poll_core(Instant::now(), cx)) => {}
            () = timeout => service.tick(Instant::now()),
            received = socket.recv_from(&mut buffer) => match received {
                Ok((length, peer)) => take(&socket, &mut service, (&mut buffer, length, peer)),
                Err(error) => tracing::debug!(%error, "no datagram"),
            },
        }
    }
    drain(&socket, service).await;
}

/// Takes a datagram and those that wait behind it.
fn take(socket: &UdpSocket, service: &mut Service, (buffer, length, peer): (&mut [u8], usize, SocketAddr)) {
    let now = Instant::now();
    service.receive(now, peer, &buffer[..length]);
    for _ in 1..BATCH {
        let Ok((length, peer)) = socket.try_recv_from(buffer) else { return };
        service.receive(now, peer, &buffer[..length]);
    }
}

async fn flush(socket: &UdpSocket, service: &mut Service) {
    while let Some(transmit) = service.poll_transmit() {
        if let Err(error) = socket.send_to(&transmit.bytes, transmit.to.address()).await {
            // As if it was lost on the way: what matters is repeated (RFC 7252 §4.2).
            tracing::debug!(%error, to = %transmit.to, "datagram not sent");
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn drain(socket: &UdpSocket, mut service: Service) {
    service.end_observations(Instant::now());
    let finish = async {
        while !service.is_idle() {
            std::future::poll_fn(|cx| service.poll_core(Instant::now(), cx)).await;
        }
    };
    if tokio::time::timeout(DRAIN, finish).await.is_err() {
        tracing::warn!("writes over CoAP were still on their way at the stop");
    }
    flush(socket, &mut service).await;
    service.close();
}

/// A seed from the random keys that the standard library draws for its hash tables.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
