//! Logins inside SASL2 (XEP-0388) over real connections: binding, stream management and resumption in one round trip.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tavi_xmpp_proto::{Element, Incoming, Stanza, ns};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::{Broker, Client};

/// Connects with TLS and asks for this with the login; gives what the server says to it.
async fn authenticate(broker: &Broker, inline: &str) -> (Client<TlsStream<TcpStream>>, Element) {
    let stream = TcpStream::connect(broker.tls_address).await.unwrap();
    let mut client = Client::new(broker.handshake(stream, &["xmpp-client"]).await);
    let features = client.open().await;
    let offered = features.get_child(ns::SASL2, "authentication").expect("SASL2 is offered");
    assert!(offered.get_child(ns::SASL2, "inline").unwrap().get_child(ns::BIND2, "bind").is_some());
    let message = BASE64.encode("\0romeo\0oemor");
    client
        .say(&format!(
            "<authenticate xmlns='{}' mechanism='PLAIN'><initial-response>{message}</initial-response>\
             <user-agent id='d4565fa7-4d72-4749-b3d3-740edbf87770'/>{inline}</authenticate>",
            ns::SASL2
        ))
        .await;
    let success = client.hear_element().await;
    assert!(success.is(ns::SASL2, "success"), "{}", success.to_xml(""));
    // XEP-0198 §9.2: behind a resumption the stream just goes on.
    if success.get_child(ns::SM, "resumed").is_none() {
        assert!(client.hear_element().await.is(ns::STREAM, "features"));
    }
    (client, success)
}

const BIND: &str = "<bind xmlns='urn:xmpp:bind:0'><tag>phone</tag>\
    <enable xmlns='urn:xmpp:sm:3' resume='true'/></bind>";

#[tokio::test]
async fn a_session_begins_with_its_login_and_is_gone_on_with_in_the_next_one() {
    let broker = Broker::start().await;
    let (mut phone, success) = authenticate(&broker, BIND).await;
    let own = success.get_child(ns::SASL2, "authorization-identifier").unwrap().text_content();
    assert!(own.starts_with("romeo@localhost/phone~"), "{own}");
    let enabled = success.get_child(ns::BIND2, "bound").unwrap().get_child(ns::SM, "enabled").unwrap();
    let name = enabled.get_attr("id").expect("it can be resumed").to_owned();

    let mut juliet = broker.login("juliet", "balcony").await;
    juliet.say(&format!("<message to='{own}' type='chat' id='1'><body>one</body></message>")).await;
    assert_eq!(stanza(&mut phone).await.body().as_deref(), Some("one"));
    juliet.say(&format!("<message to='{own}' type='chat' id='2'><body>two</body></message>")).await;
    assert_eq!(stanza(&mut phone).await.body().as_deref(), Some("two"));
    drop(phone);

    let resume = format!("<resume xmlns='urn:xmpp:sm:3' previd='{name}' h='1'/>{BIND}");
    let (mut phone, success) = authenticate(&broker, &resume).await;
    let resumed = success.get_child(ns::SM, "resumed").expect("the session is still there");
    assert_eq!((resumed.get_attr("previd"), resumed.get_attr("h")), (Some(&*name), Some("0")));
    assert!(success.get_child(ns::BIND2, "bound").is_none());
    assert_eq!(stanza(&mut phone).await.body().as_deref(), Some("two"), "it was not acknowledged");
    juliet.say(&format!("<message to='{own}' type='chat' id='3'><body>three</body></message>")).await;
    assert_eq!(stanza(&mut phone).await.body().as_deref(), Some("three"));

    let (_, success) = authenticate(&broker, &resume.replace(&name, "unknown")).await;
    assert!(success.get_child(ns::SM, "failed").is_some() && success.get_child(ns::BIND2, "bound").is_some());
    assert_eq!(success.get_child(ns::SASL2, "authorization-identifier").unwrap().text_content(), own);
}

/// The next stanza; requests to acknowledge are passed over.
async fn stanza(client: &mut Client<TlsStream<TcpStream>>) -> Arc<Stanza> {
    loop {
        match client.hear().await {
            Some(Incoming::Stanza(stanza)) => return stanza,
            Some(Incoming::Element(request)) if request.is(ns::SM, "r") => {}
            other => panic!("no stanza: {other:?}"),
        }
    }
}
