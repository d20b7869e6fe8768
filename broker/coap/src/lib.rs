//! CoAP front end: endpoint, exchanges, blockwise transfer, observation, resources as topics.
//!
//! A [`datagram`] carries a [`message`]; it passes the message layer of [`exchange`], becomes an operation on a topic in
//! [`resource`], and is answered by the core in [`service`]. All but [`endpoint`], the socket, is without IO: time and
//! randomness are arguments.

pub mod block;
pub mod datagram;
pub mod endpoint;
pub mod exchange;
pub mod format;
mod ids;
pub mod inbox;
pub mod links;
pub mod message;
pub mod observe;
mod options;
pub mod peer;
pub mod representation;
pub mod resource;
pub mod service;
mod writes;

pub use endpoint::Endpoint;
pub use service::Seams;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Feeds arbitrary bytes through the decoder, the message layer and the request parser. It must never panic.
///
/// What decodes must survive a second trip over the wire. For the fuzzer.
pub fn fuzz_message(data: &[u8]) {
    let now = Instant::now();
    let peer = SocketAddr::from(([127, 0, 0, 1], 5683));
    let mut exchanges = exchange::Exchanges::new(exchange::Limits::default(), data.len() as u64);
    exchanges.receive(now, peer, data);
    while let Some(event) = exchanges.poll_event() {
        let exchange::Event::Request { exchange, message } = event else { continue };
        let response = resource::Request::parse(&message).err();
        let response = response.unwrap_or_else(|| Box::new(message::Message::new(message::Code::CHANGED)));
        exchanges.respond(now, exchange, *response);
    }
    exchanges.tick(now + Duration::from_secs(1000));
    if let Ok(datagram) = datagram::Datagram::decode(data)
        && datagram.payload().len() == datagram.payload_size()
    {
        assert_eq!(datagram::Datagram::decode(&datagram.encode()).as_ref(), Ok(&datagram));
    }
}
