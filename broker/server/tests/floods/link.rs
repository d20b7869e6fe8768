//! A TCP connection between a client and the broker that can be made to stand still towards the client.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The least that the system takes: what it buffers is not the broker's.
const BUFFER: u32 = 4096;

/// Carries one connection. Dropping it cuts the connection.
pub struct Link {
    /// Where the client connects.
    pub address: SocketAddr,
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Link {
    pub async fn to(broker: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, (open, opened)) = (listener.local_addr().unwrap(), watch::channel(true));
        Self { address, open, task: tokio::spawn(carry(listener, broker, opened)) }
    }

    /// From now on the client takes nothing.
    pub fn stall(&self) {
        self.open.send_replace(false);
    }

    /// The client reads again.
    pub fn resume(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(listener: TcpListener, broker: SocketAddr, open: watch::Receiver<bool>) {
    let (client, _) = listener.accept().await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(BUFFER).unwrap();
    let broker = socket.connect(broker).await.unwrap();
    let ((from_client, to_client), (from_broker, to_broker)) = (client.into_split(), broker.into_split());
    let (_, always) = watch::channel(true);
    tokio::join!(pass(from_client, to_broker, always), pass(from_broker, to_client, open));
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut open: watch::Receiver<bool>) {
    let mut buffer = vec![0; BUFFER as usize];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        // A sender that is gone leaves the last value, which is true.
        while !*open.borrow_and_update() && open.changed().await.is_ok() {}
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
