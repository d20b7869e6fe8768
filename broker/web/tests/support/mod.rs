//! What the tests of both listeners need: one-shot requests, and a listener that is stopped and joined.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::future::Future;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Sends one request without a body, `METHOD PATH`, and gives all that comes back.
pub async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    exchange(stream, format!("{request} HTTP/1.1\r\nhost: tavi\r\n\r\n").as_bytes()).await
}

/// Sends one request with a JSON body.
pub async fn send(stream: impl AsyncRead + AsyncWrite + Unpin, request: &str, body: &str) -> String {
    let length = body.len();
    exchange(stream, format!("{request} HTTP/1.1\r\nhost: tavi\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes())
        .await
}

pub async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> String {
    // A refusal may come, and the connection close, before all is written.
    let _ = stream.write_all(bytes).await;
    read_all(&mut stream).await
}

/// Everything until the peer closes, whether it does so politely or not.
pub async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    let mut part = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut part).await {
        all.extend_from_slice(&part[..count]);
    }
    String::from_utf8(all).unwrap()
}

/// A listener that runs until this is dropped or stopped.
pub struct Stop(oneshot::Sender<()>, JoinHandle<()>);

pub type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Stop {
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(listen: impl FnOnce(Signal) -> F) -> Self {
        let (sender, receiver) = oneshot::channel();
        let signal = Box::pin(async move {
            let _ = receiver.await;
        });
        Self(sender, tokio::spawn(listen(signal)))
    }

    pub async fn and_wait(self) {
        let _ = self.0.send(());
        self.1.await.unwrap();
    }
}
