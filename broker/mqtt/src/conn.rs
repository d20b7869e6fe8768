//! One connection's task: bytes between a stream and a [`Client`], and the timers.
//!
//! Written as a future by hand, so that an idle connection holds no buffer: it reads into memory of the worker thread
//! and keeps only the piece of a packet that is not whole yet. All that one wake-up brings (packets, acknowledgements,
//! deliveries) goes out in one write.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tavi_store::Room;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::client::Client;
use crate::codec::Codec;
use crate::error::Fault;
use crate::hub::{Hub, Now, Parting};
use crate::packet::{Disconnect, Reason};
use crate::reply;

/// Bytes that one read takes at most.
const READ: usize = 64 * 1024;
/// How long a peer that was told to go may go on sending.
const LINGER: Duration = Duration::from_secs(1);
/// Turns that one wake-up may take before other tasks get theirs.
const TURNS: usize = 16;

/// A connection whose client was let in. It resolves when the connection is over and the client has left its session.
pub struct Conn<S> {
    stream: S,
    hub: Arc<Hub>,
    client: Option<Client>,
    codec: Codec,
    inbox: Vec<u8>,
    outbox: Outbox,
    timer: Option<Pin<Box<Sleep>>>,
    /// While too much waits for the disk, nothing is read.
    room: Room,
    /// All is said and our side of the stream is closed.
    shut: bool,
}

/// Memory of a worker thread that connections use while they are polled.
struct Scratch {
    input: Box<[u8]>,
    output: Vec<u8>,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Lends the thread's scratch memory; the output is empty.
fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    let fresh = || Box::new(Scratch { input: vec![0; READ].into(), output: Vec::new() });
    let mut scratch = SCRATCH.take().unwrap_or_else(fresh);
    let done = work(&mut scratch);
    scratch.output.clear();
    // One big packet must not pin its size for ever.
    scratch.output.shrink_to(4 * READ);
    SCRATCH.set(Some(scratch));
    done
}

/// What the peer has not taken yet.
#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    fn advance(&mut self, count: usize) {
        self.sent += count;
        if self.sent == self.bytes.len() {
            *self = Self::default();
        }
    }
}

/// What one part of a turn came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Progress,
    Idle,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    /// A connection; `inbox` holds what came behind CONNECT, `greeting` is the CONNACK.
    pub fn new(stream: S, hub: Arc<Hub>, client: Client, codec: Codec, (inbox, greeting): (Vec<u8>, Vec<u8>)) -> Self {
        let outbox = Outbox { bytes: greeting, sent: 0 };
        Self {
            stream,
            hub,
            client: Some(client),
            codec,
            inbox,
            outbox,
            timer: None,
            room: Room::default(),
            shut: false,
        }
    }

    /// One round: write what is left over, decode, read, deliver, write.
    fn turn(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Result<Turn, End>> {
        if self.poll_flush(cx)?.is_pending() {
            return self.poll_stalled(cx, scratch);
        }
        let Some(client) = &mut self.client else {
            return self.poll_farewell(cx, scratch);
        };
        client.set_time(self.hub.now());
        let result = self.exchange(cx, scratch);
        let (turn, end) = match result {
            Ok(turn) => (turn, None),
            Err(end) => (Turn::Progress, Some(end)),
        };
        if let Some(end) = end {
            self.end(end, &mut scratch.output);
        }
        let wrote = self.write(cx, &mut scratch.output)?;
        Poll::Ready(Ok(if wrote == Turn::Progress { wrote } else { turn }))
    }

    /// The peer takes nothing. Its tickets complete all the same, their answers join what waits; they are few, because
    /// nothing more is read from it.
    fn poll_stalled(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Result<Turn, End>> {
        if let Some(client) = &mut self.client {
            client.set_time(self.hub.now());
            client.is_not_read();
            client.poll_stalled(cx, &mut scratch.output).map_err(End::Fault)?;
            self.outbox.bytes.extend_from_slice(&scratch.output);
        }
        Poll::Pending
    }

    /// All is said. The stream is closed, and what the peer still sends is thrown away until it closes too: bytes left
    /// unread would make the system drop the DISCONNECT with a reset.
    fn poll_farewell(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Result<Turn, End>> {
        if !self.shut {
            let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
            (self.shut, self.timer) = (true, None);
        }
        let mut buffer = ReadBuf::new(&mut scratch.input);
        match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
            Ok(()) if !buffer.filled().is_empty() => Poll::Ready(Ok(Turn::Progress)),
            _ => Poll::Ready(Err(End::Closed)),
        }
    }

    fn exchange(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<Turn, End> {
        let read = self.read(cx, scratch)?;
        let Some(client) = &mut self.client else { return Ok(Turn::Idle) };
        let polled = client.poll(cx, &mut scratch.output).map_err(End::Fault)?;
        Ok(if read == Turn::Progress || polled.is_ready() { Turn::Progress } else { Turn::Idle })
    }

    fn read(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<Turn, End> {
        let Some(client) = &mut self.client else { return Ok(Turn::Idle) };
        let mut reader = Reader { client, codec: &mut self.codec, out: &mut scratch.output };
        // What a full window left undecoded comes first.
        let used = reader.decode(&self.inbox)?;
        self.inbox.drain(..used);
        if reader.client.is_full() || !self.room.poll_open(&*self.hub.node().parts.store, cx) {
            reader.client.is_not_read();
            return Ok(Turn::Idle);
        }
        let mut buffer = ReadBuf::new(&mut scratch.input);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => return Ok(if used > 0 { Turn::Progress } else { Turn::Idle }),
            Poll::Ready(Err(_)) => return Err(End::Cut),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Err(End::Cut),
            Poll::Ready(Ok(())) => {}
        }
        if self.inbox.is_empty() {
            let used = reader.decode(buffer.filled())?;
            self.inbox = buffer.filled()[used..].to_vec();
        } else {
            self.inbox.extend_from_slice(buffer.filled());
            let used = reader.decode(&self.inbox)?;
            self.inbox.drain(..used);
        }
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        }
        Ok(Turn::Progress)
    }

    /// Tells the client why, if it can be told, and leaves the session.
    fn end(&mut self, end: End, out: &mut Vec<u8>) {
        let Some(client) = self.client.take() else { return };
        let parting = match end {
            End::Left(disconnect) if disconnect.reason == Reason::SUCCESS => Parting::InOrder,
            _ => Parting::Cut,
        };
        if let End::Fault(fault) = end {
            tracing::debug!(%fault, "an MQTT connection ends");
            reply::disconnect(out, client.version(), fault.reason());
            if fault.is_breach() {
                self.hub.node().parts.metrics.protocol_errors.add(1);
            }
        }
        self.timer = None;
        client.leave(parting);
    }

    /// Writes the turn's output; what the peer does not take now is kept.
    fn write(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<Turn, End> {
        let mut sent = 0;
        while sent < out.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &out[sent..]) {
                Poll::Ready(Ok(count)) if count > 0 => sent += count,
                Poll::Ready(_) => return Err(End::Cut),
                Poll::Pending => break,
            }
        }
        if sent < out.len() {
            self.outbox = Outbox { bytes: out[sent..].to_vec(), sent: 0 };
            // From now on it measures how long the peer takes nothing.
            self.timer = None;
        }
        let turn = if out.is_empty() { Turn::Idle } else { Turn::Progress };
        out.clear();
        // TLS holds back what it has encrypted until it is flushed; for TCP this is nothing.
        if turn == Turn::Progress
            && let Poll::Ready(Err(_)) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            return Err(End::Cut);
        }
        Ok(turn)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        while !self.outbox.rest().is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, self.outbox.rest())) {
                Ok(count) if count > 0 => self.outbox.advance(count),
                _ => return Poll::Ready(Err(End::Cut)),
            }
            self.timer = None;
        }
        Pin::new(&mut self.stream).poll_flush(cx).map_err(|_| End::Cut)
    }

    /// Arms the timer for the keep-alive, or for a peer that takes nothing; `Ready` when it has run out.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        loop {
            if let Some(timer) = &mut self.timer {
                ready!(timer.as_mut().poll(cx));
                self.timer = None;
                if !self.outbox.rest().is_empty() || self.client.is_none() {
                    return Poll::Ready(Fault::SlowReader);
                }
                if let Some(Err(fault)) = self.client.as_mut().map(|client| keep_alive(client, self.hub.now())) {
                    return Poll::Ready(fault);
                }
            }
            match self.wait() {
                Some(wait) => self.timer = Some(Box::pin(tokio::time::sleep(wait))),
                None => return Poll::Pending,
            }
        }
    }

    fn wait(&self) -> Option<Duration> {
        if self.shut {
            return Some(LINGER);
        }
        let stalled = !self.outbox.rest().is_empty() || self.client.is_none();
        if stalled {
            return Some(self.hub.config().write_timeout);
        }
        let deadline = self.client.as_ref()?.deadline_ms()?;
        Some(Duration::from_millis(deadline.saturating_sub(self.hub.monotonic_ms()).max(1)))
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..TURNS {
            match with_scratch(|scratch| self.turn(cx, scratch)) {
                Poll::Ready(Ok(Turn::Progress)) => {}
                Poll::Ready(Ok(Turn::Idle)) | Poll::Pending => {
                    return self.poll_timer(cx).map(End::Fault);
                }
                Poll::Ready(Err(end)) => return Poll::Ready(end),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Conn<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let end = ready!(self.poll_inner(cx));
            let had_client = self.client.is_some();
            let mut last_words = Vec::new();
            let can_write = self.outbox.rest().is_empty();
            let told = matches!(end, End::Fault(_));
            self.end(end, &mut last_words);
            // A keep-alive that ran out is told, if the peer takes it; everything else is over.
            if !(had_client && told && can_write) {
                return Poll::Ready(());
            }
            self.outbox = Outbox { bytes: last_words, sent: 0 };
        }
    }
}

impl<S> Drop for Conn<S> {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            client.leave(Parting::Cut);
        }
    }
}

/// The keep-alive has perhaps run out; not while a full window stops reading.
fn keep_alive(client: &mut Client, now: Now) -> Result<(), Fault> {
    if client.is_full() {
        client.set_time(now);
        client.is_not_read();
    }
    client.check_alive(now.monotonic_ms)
}

/// Why a connection ends.
enum End {
    /// The client said DISCONNECT.
    Left(Disconnect),
    /// Somebody is at fault; the client is told if it speaks MQTT 5.
    Fault(Fault),
    /// The stream broke or closed.
    Cut,
    /// All was said and the stream is closed.
    Closed,
}

/// Decodes packets and hands them to the client.
struct Reader<'a> {
    client: &'a mut Client,
    codec: &'a mut Codec,
    out: &'a mut Vec<u8>,
}

impl Reader<'_> {
    /// Takes whole packets until none is left or the window is full; gives how many bytes they had.
    fn decode(&mut self, bytes: &[u8]) -> Result<usize, End> {
        let mut used = 0;
        while !self.client.is_full() && used < bytes.len() {
            let Some((packet, size)) = self.codec.decode(&bytes[used..]).map_err(End::Fault)? else { break };
            used += size;
            if let Some(disconnect) = self.client.take(packet, size, self.out).map_err(End::Fault)? {
                return Err(End::Left(disconnect));
            }
        }
        Ok(used)
    }
}
