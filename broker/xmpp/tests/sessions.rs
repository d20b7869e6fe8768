//! Client sessions over real sockets: logins, chat, acknowledgement, bad input, the end.

mod away;
mod client;
mod lines;
mod managed;
mod resumption;
mod sasl2;
mod worlds;

use client::{Broker, Client, exporter};
use std::time::Duration;
use tavi_core::homes::SessionLimits;
use tavi_store::Owner;
use tavi_xmpp::Config;
use tavi_xmpp_proto::sasl::{BindingKind, ClientBinding, Hash, Mechanism};
use tavi_xmpp_proto::{Incoming, Jid, Limits, ns};
use tokio::io::AsyncWriteExt;

const PLUS: Mechanism = Mechanism::ScramPlus(Hash::Sha256);

#[tokio::test]
async fn two_people_chat() {
    let broker = Broker::start().await;
    let mut romeo = broker.login("romeo", "orchard").await;
    let mut juliet = broker.login("juliet", "balcony").await;
    romeo.say("<message to='juliet@localhost/balcony' type='chat' id='m1'><body>Good night &amp; good night!</body></message>").await;
    let heard = juliet.hear_stanza().await;
    assert_eq!(heard.head.from.as_ref().map(Jid::as_str), Some("romeo@localhost/orchard"));
    assert_eq!(heard.body().as_deref(), Some("Good night & good night!"));
    juliet
        .say("<message to='romeo@localhost/orchard' type='chat'><body>Parting is such sweet sorrow</body></message>")
        .await;
    assert_eq!(romeo.hear_stanza().await.body().as_deref(), Some("Parting is such sweet sorrow"));
}

#[tokio::test]
async fn many_messages_in_small_pieces_keep_their_order() {
    let broker = Broker::start().await;
    let mut romeo = broker.login("romeo", "orchard").await;
    let mut juliet = broker.login("juliet", "balcony").await;
    let all: String =
        (0..200).map(|n| format!("<message to='juliet@localhost/balcony'><body>{n}</body></message>\n")).collect();
    let sending = async {
        for piece in all.as_bytes().chunks(37) {
            romeo.stream.write_all(piece).await.unwrap();
        }
    };
    let hearing = async {
        for n in 0..200 {
            assert_eq!(juliet.hear_stanza().await.body(), Some(n.to_string()));
        }
    };
    tokio::join!(sending, hearing);
}

/// Somebody who says much, closes the stream and then only reads is heard to the end.
#[tokio::test]
async fn what_stands_before_the_end_of_a_stream_is_heard() {
    for enable in ["", "<enable xmlns='urn:xmpp:sm:3'/>", "<enable xmlns='urn:xmpp:sm:3' resume='true'/>"] {
        let broker = Broker::start().await;
        let mut romeo = broker.login("romeo", "orchard").await;
        let mut juliet = broker.login("juliet", "balcony").await;
        let message = |n| format!("<message to='juliet@localhost/balcony'><body>{n}</body></message>");
        let all: String = (0..600).map(message).collect();
        let sending = async {
            romeo.say(&format!("{enable}{all}</stream:stream>")).await;
            romeo.stream.shutdown().await.unwrap();
            let mut last = None;
            while let Some(incoming) = romeo.hear().await {
                last = Some(incoming);
            }
            assert!(matches!(last, Some(Incoming::Close)), "{last:?}");
        };
        let hearing = async {
            for n in 0..600 {
                assert_eq!(juliet.hear_stanza().await.body(), Some(n.to_string()));
            }
        };
        tokio::join!(sending, hearing);
        let account = broker.node.parts.homes.known(&"romeo@localhost".parse().unwrap()).unwrap();
        while account.session_count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn starttls_then_a_login_bound_to_the_connection() {
    let broker = Broker::start().await;
    let mut clear = broker.connect().await;
    assert!(clear.open().await.get_child(ns::TLS, "starttls").is_some());
    clear.say("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
    assert_eq!(clear.hear_element().await.name(), "proceed");
    let stream = broker.handshake(clear.stream, &[]).await;
    let binding = exporter(&stream);
    let mut romeo = Client::new(stream);
    let features = romeo.open().await;
    assert!(features.get_child(ns::SASL_CB, "sasl-channel-binding").is_some());
    assert!(romeo.scram(PLUS, ("romeo", "oemor"), binding).await.unwrap().get_child(ns::BIND, "bind").is_some());
    romeo.bind("tower").await;
}

#[tokio::test]
async fn direct_tls_then_a_login_bound_to_the_certificate() {
    let broker = Broker::start().await;
    let stream = tokio::net::TcpStream::connect(broker.tls_address).await.unwrap();
    let stream = broker.handshake(stream, &["xmpp-client"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"xmpp-client"[..]));
    let mut romeo = Client::new(stream);
    romeo.open().await;
    let foreign = ClientBinding::Bound(BindingKind::TlsServerEndPoint, vec![0; 32]);
    assert_eq!(romeo.scram(PLUS, ("romeo", "oemor"), foreign).await, Err("not-authorized".into()));
    let own = ClientBinding::Bound(BindingKind::TlsServerEndPoint, broker.end_point());
    romeo.scram(PLUS, ("romeo", "oemor"), own).await.unwrap();
    romeo.bind("tower").await;
}

#[tokio::test]
async fn wrong_passwords_are_refused_and_counted() {
    let broker = Broker::start().await;
    let mut stranger = broker.connect().await;
    stranger.open().await;
    let scram = Mechanism::Scram(Hash::Sha256);
    for user in ["romeo", "mercutio"] {
        let answer = stranger.scram(scram, (user, "wrong"), ClientBinding::Unsupported).await;
        assert_eq!(answer, Err("not-authorized".into()));
    }
    assert_eq!(broker.node.parts.metrics.login_failures.get(), 2);
    stranger.scram(scram, ("romeo", "oemor"), ClientBinding::Unsupported).await.unwrap();
}

#[tokio::test]
async fn bad_input_ends_the_stream_with_the_right_error() {
    let broker = Broker::start().await;
    for (input, condition) in [
        ("<message><body></message>", "not-well-formed"),
        ("<message><!-- hidden --></message>", "restricted-xml"),
        ("<message from='juliet@localhost'/>", "invalid-from"),
        ("<nonsense/>", "unsupported-stanza-type"),
        ("<message>\u{1}</message>", "not-well-formed"),
    ] {
        let mut romeo = broker.login("romeo", "orchard").await;
        romeo.say(input).await;
        assert_eq!(romeo.hear_the_end().await, condition, "{input}");
    }
    let mut stranger = broker.connect().await;
    stranger.say("GET / HTTP/1.1\r\n\r\n").await;
    stranger.hear_header().await;
    assert_eq!(stranger.hear_the_end().await, "not-well-formed");
}

#[tokio::test]
async fn an_oversized_stanza_is_refused_before_it_is_held() {
    let config = Config { stanza: Limits { stanza: 20_000, ..Limits::default() }, ..Config::default() };
    let broker = Broker::with(config, SessionLimits::default()).await;
    let mut romeo = broker.login("romeo", "orchard").await;
    // Far more than is read before the error: it must not be lost in a reset of the connection.
    romeo.say(&format!("<message><body>{}</body></message>", "x".repeat(3_000_000))).await;
    assert_eq!(romeo.hear_the_end().await, "policy-violation");
    let mut stranger = broker.connect().await;
    stranger.open().await;
    stranger.say(&format!("<auth xmlns='{}' mechanism='PLAIN'>{}</auth>", ns::SASL, "A".repeat(17_000))).await;
    assert_eq!(stranger.hear_the_end().await, "policy-violation");
}

#[tokio::test]
async fn who_is_too_slow_is_told_so() {
    let config = Config { login_deadline: Duration::from_millis(50), ..Config::default() };
    let broker = Broker::with(config, SessionLimits::default()).await;
    let mut silent = broker.connect().await;
    silent.hear_header().await;
    assert_eq!(silent.hear_the_end().await, "connection-timeout");
    let mut slow = broker.connect().await;
    slow.open().await;
    assert_eq!(slow.hear_the_end().await, "connection-timeout");
}

#[tokio::test]
async fn the_same_resource_replaces_the_old_session() {
    let broker = Broker::start().await;
    let mut old = broker.login("romeo", "orchard").await;
    let mut new = broker.login("romeo", "orchard").await;
    assert_eq!(old.hear_the_end().await, "conflict");
    let mut juliet = broker.login("juliet", "balcony").await;
    juliet.say("<message to='romeo@localhost/orchard'><body>still there?</body></message>").await;
    assert_eq!(new.hear_stanza().await.body().as_deref(), Some("still there?"));
}

#[tokio::test]
async fn a_wrong_stanza_is_answered_and_the_stream_goes_on() {
    let broker = Broker::start().await;
    let mut romeo = broker.login("romeo", "orchard").await;
    romeo.say("<message to='a@b@c' id='1'/><iq type='get' id='2' to='localhost'><unknown xmlns='urn:x'/></iq>").await;
    let first = romeo.hear_stanza().await;
    assert_eq!((first.head.id.as_deref(), first.head.type_.is_error()), (Some("1"), true));
    let second = romeo.hear_stanza().await;
    assert_eq!((second.head.id.as_deref(), second.head.type_.is_error()), (Some("2"), true));
    romeo.say("<iq type='set' id='3'><session xmlns='urn:ietf:params:xml:ns:xmpp-session'/></iq>").await;
    assert_eq!(romeo.hear_stanza().await.head.type_.name(), "result");
}

#[tokio::test]
async fn stream_management_counts_what_is_durable_and_keeps_what_is_not_acknowledged() {
    let broker = Broker::start().await;
    let mut romeo = broker.login("romeo", "orchard").await;
    let mut juliet = broker.login("juliet", "balcony").await;
    for client in [&mut romeo, &mut juliet] {
        client.say("<enable xmlns='urn:xmpp:sm:3'/>").await;
        let enabled = client.hear_element().await;
        assert_eq!((enabled.name(), enabled.get_attr("resume")), ("enabled", None));
    }
    romeo.say("<message to='juliet@localhost/balcony'><body>1</body></message><message to='juliet@localhost/balcony'><body>2</body></message><r xmlns='urn:xmpp:sm:3'/>").await;
    let answer = romeo.hear_element().await;
    assert_eq!((answer.name(), answer.get_attr("h")), ("a", Some("2")));

    let queue = || async { broker.store.queue(&Owner::account("juliet@localhost"), 0, 10).await.unwrap().len() };
    assert_eq!(queue().await, 2, "what was acknowledged to Romeo is in Juliet's queue");
    let mut bodies = Vec::new();
    while bodies.len() < 2 {
        if let Some(Incoming::Stanza(stanza)) = juliet.hear().await {
            bodies.push(stanza.body().unwrap());
        }
    }
    assert_eq!(bodies, ["1", "2"]);
    juliet.say("<a xmlns='urn:xmpp:sm:3' h='1'/><iq type='get' id='q'><unknown xmlns='urn:x'/></iq>").await;
    // When the answer comes, the acknowledgement before it was dealt with.
    while !matches!(juliet.hear().await, Some(Incoming::Stanza(_))) {}
    assert_eq!(queue().await, 1, "acknowledged messages are deleted");
    juliet.say("<a xmlns='urn:xmpp:sm:3' h='7'/>").await;
    assert_eq!(juliet.hear_the_end().await, "undefined-condition");
    assert_eq!(queue().await, 1, "the other one waits for her");
}

#[tokio::test]
async fn a_managed_stream_ends_with_a_last_count() {
    let broker = Broker::start().await;
    let _juliet = broker.login("juliet", "balcony").await;
    let mut romeo = broker.login("romeo", "orchard").await;
    romeo.say("<enable xmlns='urn:xmpp:sm:3'/><message to='juliet@localhost/balcony'><body>bye</body></message></stream:stream>").await;
    assert_eq!(romeo.hear_element().await.name(), "enabled");
    let last = romeo.hear_element().await;
    assert_eq!((last.name(), last.get_attr("h")), ("a", Some("1")));
    assert!(matches!(romeo.hear().await, Some(Incoming::Close)));
    assert!(romeo.hear().await.is_none());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_by_what_is_neither_kept_nor_dropped() {
    let limits = SessionLimits { inbox_bytes: 100_000, ..SessionLimits::default() };
    let broker = Broker::with(Config::default(), limits).await;
    let mut romeo = broker.login("romeo", "orchard").await;
    let mut juliet = broker.login("juliet", "balcony").await;
    let message =
        format!("<iq to='juliet@localhost/balcony' type='get' id='1'><a xmlns='urn:a'>{}</a></iq>", "x".repeat(60_000));
    let account = broker.node.parts.homes.account(&"juliet@localhost".parse().unwrap()).await.unwrap().unwrap();
    // The socket buffers take some megabytes; then her inbox fills up.
    while account.at_home(|state| state.sessions.iter().all(|session| session.is_open())) && account.session_count() > 0
    {
        romeo.say(&message).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(juliet.hear_the_end().await, "resource-constraint");
}

#[tokio::test]
async fn the_stop_says_goodbye_to_everybody() {
    let broker = Broker::start().await;
    let mut romeo = broker.login("romeo", "orchard").await;
    let mut stranger = broker.connect().await;
    stranger.open().await;
    let (_, romeo, stranger) = tokio::join!(broker.xmpp.stop(), romeo.hear_the_end(), stranger.hear_the_end());
    assert_eq!((romeo.as_str(), stranger.as_str()), ("system-shutdown", "system-shutdown"));
    assert_eq!(broker.xmpp.connections(), 0);
    assert_eq!(broker.node.parts.metrics.connections(tavi_core::metrics::Protocol::Xmpp).get(), 0);
}

#[tokio::test]
async fn a_removed_account_is_thrown_out() {
    let broker = Broker::start().await;
    let mut romeo = broker.login("romeo", "orchard").await;
    broker.node.parts.revoke(&"romeo@localhost".parse().unwrap());
    assert_eq!(romeo.hear_the_end().await, "not-authorized");
}

#[tokio::test]
async fn two_hundred_silent_connections_are_closed_and_forgotten() {
    let config = Config { login_deadline: Duration::from_millis(300), ..Config::default() };
    let broker = Broker::with(config, SessionLimits::default()).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(broker.connect().await);
    }
    for client in &mut silent {
        client.hear_header().await;
        assert_eq!(client.hear_the_end().await, "connection-timeout");
    }
    broker.xmpp.stop().await;
    assert_eq!(broker.xmpp.connections(), 0);
}
