//! MQTT alone over the memory store, with the account `load` (password `load`): to measure the front end by itself.
//!
//! `cargo run --release -p tavi-mqtt --example bare -- 127.0.0.1:1883`
#![allow(clippy::print_stdout, missing_docs)]

use std::sync::Arc;

use tavi_core::homes::SessionLimits;
use tavi_core::hooks::Registry;
use tavi_core::node::Parts;
use tavi_core::{Hosts, Node, SystemClock};
use tavi_mqtt::{Config, Hub};
use tavi_store::MemoryStore;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:1883".into());
    let (store, clock) = (Arc::new(MemoryStore::default()), Arc::new(SystemClock));
    let parts = Parts::load(Hosts::new("localhost", &[])?, store, clock, SessionLimits::default()).await?;
    parts.accounts.create(&"load@localhost".parse()?, "load").await?;
    let hub = Hub::recall(Node::new(parts, Registry::default()), Config::default()).await?;
    let listener = TcpListener::bind(address).await?;
    println!("{} {}", std::process::id(), listener.local_addr()?);
    tokio::spawn(hub.clone().run());
    hub.listen(listener).await;
    Ok(())
}
