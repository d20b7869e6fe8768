//! The bytes under a stream: TCP or TLS, read through a buffer that all connections of a thread share.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// One read takes at most this much.
const SCRATCH: usize = 16 * 1024;

thread_local! {
    /// Read into by every connection of the thread; nothing stays in it.
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// A connection. TLS is boxed: a clear one must not pay for its size.
#[derive(Debug)]
pub(crate) enum Wire {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// The connection is gone; its session waits for another one.
    Gone,
}

impl Wire {
    /// Reads once and hands the bytes to `take`, which must not read again. None means the end.
    pub fn poll_read<T>(&mut self, cx: &mut Context<'_>, take: impl FnOnce(&[u8]) -> T) -> Poll<io::Result<Option<T>>> {
        SHARED.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(match self {
                Wire::Clear(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
                Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, &mut buffer),
                Wire::Gone => Poll::Ready(Ok(())),
            })?;
            let read = buffer.filled();
            Poll::Ready(Ok((!read.is_empty()).then(|| take(read))))
        })
    }

    /// Writes from the front of `out` until it is empty and flushed; what is written is counted in `done`.
    pub fn poll_write_all(&mut self, cx: &mut Context<'_>, out: &[u8], done: &mut usize) -> Poll<io::Result<()>> {
        while *done < out.len() {
            let written = ready!(match self {
                Wire::Clear(stream) => Pin::new(stream).poll_write(cx, &out[*done..]),
                Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, &out[*done..]),
                Wire::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            })?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *done += written;
        }
        match self {
            // TCP has nothing to flush.
            Wire::Clear(_) | Wire::Gone => Poll::Ready(Ok(())),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    /// Ends the connection so that the peer can still read what was written: a socket that is closed with unread
    /// input resets the connection, and the last words are lost. Ready when the peer has hung up too.
    pub fn poll_hang_up(&mut self, cx: &mut Context<'_>, said: &mut bool) -> Poll<()> {
        if !*said {
            let _ = ready!(self.poll_shutdown(cx));
            *said = true;
        }
        while let Some(()) = ready!(self.poll_read(cx, |_| ())).unwrap_or(None) {}
        Poll::Ready(())
    }

    /// Ends the sending direction: TLS says `close_notify`, TCP FIN.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Wire::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Wire::Gone => Poll::Ready(Ok(())),
        }
    }
}
