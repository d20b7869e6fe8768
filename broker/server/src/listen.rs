//! Opens the listening sockets, all or none.

use crate::config::{Addresses, Key};
use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{Ipv6Addr, SocketAddr},
};
use tokio::net::{TcpListener, UdpSocket};

/// The open sockets of one key.
pub enum Open {
    Tcp(Vec<TcpListener>),
    Udp(Vec<UdpSocket>),
}

/// What is open, and the first address of each.
pub struct Listeners {
    pub open: Vec<(Key, Open)>,
    pub addresses: BTreeMap<String, String>,
}

const BACKLOG: i32 = 4096;

/// Opens everything; a port that is taken is an error that says which flag helps.
pub fn open(wanted: &[(Key, Addresses)]) -> Result<Listeners> {
    let mut listeners = Listeners { open: Vec::new(), addresses: BTreeMap::new() };
    for (key, addresses) in wanted.iter().filter(|(_, addresses)| !addresses.is_empty()) {
        let sockets = open_key(*key, addresses)?;
        let first = sockets.first().and_then(|s| s.local_addr().ok()?.as_socket());
        let first = first.ok_or_else(|| anyhow!("the listener {key} has no address"))?;
        listeners.addresses.insert(key.name().into(), first.to_string());
        listeners.open.push((*key, hand_over(*key, sockets)?));
    }
    Ok(listeners)
}

fn open_key(key: Key, addresses: &Addresses) -> Result<Vec<Socket>> {
    let mut sockets: Vec<Socket> = Vec::new();
    for address in addresses {
        // The second loopback address gets the port that the first one was given.
        let port = sockets.first().and_then(|s| s.local_addr().ok()?.as_socket()).map_or(address.port(), |a| a.port());
        match bind(key, SocketAddr::new(address.ip(), port)) {
            Ok(socket) => sockets.push(socket),
            // A machine without IPv6 has no second loopback address.
            Err(error) if address.ip() == Ipv6Addr::LOCALHOST && !sockets.is_empty() && no_ipv6(&error) => {}
            Err(error) => return Err(explain(key, SocketAddr::new(address.ip(), port), error)),
        }
    }
    Ok(sockets)
}

fn no_ipv6(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::Unsupported)
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn bind(key: Key, address: SocketAddr) -> std::io::Result<Socket> {
    let udp = key == Key::Coap;
    let (kind, protocol) = if udp { (Type::DGRAM, Protocol::UDP) } else { (Type::STREAM, Protocol::TCP) };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip().is_loopback())?;
    }
    if !udp {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    if !udp {
        socket.listen(BACKLOG)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn explain(key: Key, address: SocketAddr, error: std::io::Error) -> anyhow::Error {
    let free = SocketAddr::new(address.ip(), 0);
    match error.kind() {
        ErrorKind::AddrInUse => anyhow!(
            "{address} is in use by another program. Choose another port with --listen {key}=ADDR:PORT, let one be picked with --listen {key}={free}, or close it with --listen {key}=off"
        ),
        ErrorKind::PermissionDenied => {
            anyhow!("this user may not listen on {address}. Choose a port above 1023 with --listen {key}=ADDR:PORT")
        }
        _ => anyhow!(error).context(format!("cannot listen on {address}; change it with --listen {key}=ADDR:PORT")),
    }
}

fn hand_over(key: Key, sockets: Vec<Socket>) -> Result<Open> {
    let context = || format!("the listener {key}");
    if key == Key::Coap {
        let sockets = sockets.into_iter().map(|socket| UdpSocket::from_std(socket.into()));
        return Ok(Open::Udp(sockets.collect::<Result<_, _>>().with_context(context)?));
    }
    let sockets = sockets.into_iter().map(|socket| TcpListener::from_std(socket.into()));
    Ok(Open::Tcp(sockets.collect::<Result<_, _>>().with_context(context)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_addresses;

    #[tokio::test]
    async fn both_loopback_addresses_share_a_port_that_was_picked() {
        let listeners = open(&[(Key::Mqtt, parse_addresses("localhost:0").unwrap())]).unwrap();
        let Open::Tcp(sockets) = &listeners.open[0].1 else { panic!("MQTT is TCP") };
        let ports: Vec<u16> = sockets.iter().map(|s| s.local_addr().unwrap().port()).collect();
        assert!(ports[0] != 0 && ports.iter().all(|port| *port == ports[0]));
        assert_eq!(listeners.addresses["mqtt"], format!("127.0.0.1:{}", ports[0]));
    }

    #[tokio::test]
    async fn a_busy_port_is_refused_with_the_flag_that_helps() {
        let taken = open(&[(Key::Xmpp, parse_addresses("127.0.0.1:0").unwrap())]).unwrap();
        let error = open(&[(Key::Xmpp, parse_addresses(&taken.addresses["xmpp"]).unwrap())]).err().unwrap().to_string();
        assert!(error.contains("--listen xmpp=127.0.0.1:0") && error.contains("in use"), "{error}");
    }
}
