//! A broker in this process and small clients that speak to it over real sockets.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tavi_core::homes::SessionLimits;
use tavi_core::{Hosts, Node, Parts, Registry, SystemClock};
use tavi_store::{MemoryStore, SharedStore};
use tavi_xmpp::{Config, Tls, Xmpp};
use tavi_xmpp_proto::sasl::{BindingKind, ClientBinding, Hash, Mechanism, ScramClient};
use tavi_xmpp_proto::{Element, Header, Incoming, Ingress, Limits, Stanza, ns};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long a client waits for anything before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A broker on `localhost` with the accounts `romeo` and `juliet`, whose passwords are their names backwards.
pub struct Broker {
    pub xmpp: Arc<Xmpp>,
    pub node: Node,
    pub store: SharedStore,
    pub address: SocketAddr,
    pub tls_address: SocketAddr,
    certificate: CertificateDer<'static>,
}

impl Broker {
    pub async fn start() -> Broker {
        Broker::with(Config::default(), SessionLimits::default()).await
    }

    pub async fn with(config: Config, limits: SessionLimits) -> Broker {
        let store: SharedStore = Arc::new(MemoryStore::default());
        let hosts = Hosts::new("localhost", &[]).unwrap();
        let parts = Parts::load(hosts, store.clone(), Arc::new(SystemClock), limits).await.unwrap();
        for (user, password) in [("romeo", "oemor"), ("juliet", "teiluj")] {
            let jid = format!("{user}@localhost").parse().unwrap();
            parts.accounts.create(&jid, password).await.unwrap();
        }
        Broker::on(Node::new(parts, Registry::default()), store, config).await
    }

    /// The front end of a node.
    pub async fn on(node: Node, store: SharedStore, config: Config) -> Broker {
        let (tls, certificate) = tls();
        let xmpp = Xmpp::new(node.clone(), Some(tls), config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tls_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, tls_address) = (listener.local_addr().unwrap(), tls_listener.local_addr().unwrap());
        tokio::spawn(xmpp.clone().listen(listener));
        tokio::spawn(xmpp.clone().listen_tls(tls_listener));
        Broker { xmpp, node, store, address, tls_address, certificate }
    }

    /// A client that has connected and said nothing.
    pub async fn connect(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// A user with a bound resource, over a clear connection.
    pub async fn login(&self, user: &str, resource: &str) -> Client<TcpStream> {
        let mut client = self.connect().await;
        client.open().await;
        let password: String = user.chars().rev().collect();
        client.scram(Mechanism::Scram(Hash::Sha256), (user, &password), ClientBinding::Unsupported).await.unwrap();
        client.bind(resource).await;
        client
    }

    /// TLS over a connection.
    pub async fn handshake(&self, stream: TcpStream, alpn: &[&str]) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
    }

    /// The certificate's hash, for tls-server-end-point.
    pub fn end_point(&self) -> Vec<u8> {
        use sha2::Digest;
        sha2::Sha256::digest(&self.certificate).to_vec()
    }
}

fn tls() -> (Tls, CertificateDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
    let config = |alpn: &[&str]| {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(ArcSwap::from_pointee(config))
    };
    let tls = Tls {
        starttls: config(&[]),
        direct: config(&["xmpp-client"]),
        certificate: Arc::new(ArcSwap::from_pointee(certificate.der().to_vec())),
    };
    (tls, certificate.der().clone())
}

/// A client over any connection.
pub struct Client<S> {
    pub stream: S,
    ingress: Ingress,
    waiting: VecDeque<Incoming>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn new(stream: S) -> Client<S> {
        Client { stream, ingress: Ingress::new(Limits::default()), waiting: VecDeque::new() }
    }

    pub async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next thing that the server says; None when it hung up.
    pub async fn hear(&mut self) -> Option<Incoming> {
        tokio::time::timeout(PATIENCE, self.next()).await.expect("the server said nothing")
    }

    async fn next(&mut self) -> Option<Incoming> {
        let mut bytes = [0; 4096];
        while self.waiting.is_empty() {
            let len = self.stream.read(&mut bytes).await.unwrap_or(0);
            if len == 0 {
                return None;
            }
            let mut input = &bytes[..len];
            while let Some(incoming) = self.ingress.next(&mut input).expect("the server speaks XMPP") {
                self.waiting.push_back(incoming);
            }
        }
        self.waiting.pop_front()
    }

    pub async fn hear_header(&mut self) -> Header {
        match self.hear().await {
            Some(Incoming::Header(header)) => *header,
            other => panic!("no header: {other:?}"),
        }
    }

    pub async fn hear_element(&mut self) -> Element {
        match self.hear().await {
            Some(Incoming::Element(element)) => element,
            other => panic!("no element: {other:?}"),
        }
    }

    pub async fn hear_stanza(&mut self) -> Stanza {
        match self.hear().await {
            Some(Incoming::Stanza(stanza)) => Arc::unwrap_or_clone(stanza),
            other => panic!("no stanza: {other:?}"),
        }
    }

    /// The stream ends with an error; gives its condition.
    pub async fn hear_the_end(&mut self) -> String {
        loop {
            match self.hear().await {
                Some(Incoming::Element(error)) if error.is(ns::STREAM, "error") => {
                    assert!(matches!(self.hear().await, Some(Incoming::Close)), "the stream is closed behind an error");
                    assert!(self.hear().await.is_none(), "the connection is closed behind the stream");
                    return error.elements().next().map(|condition| condition.name().to_owned()).unwrap();
                }
                Some(_) => {}
                None => panic!("the server hung up without an error"),
            }
        }
    }

    /// Opens a stream; gives the features.
    pub async fn open(&mut self) -> Element {
        self.ingress = Ingress::new(Limits::default());
        self.say("<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='localhost' version='1.0'>").await;
        assert_eq!(self.hear_header().await.from.as_deref(), Some("localhost"));
        self.hear_element().await
    }

    /// Logs in and opens the next stream; Err is the failure's condition.
    pub async fn scram(
        &mut self,
        mechanism: Mechanism,
        (user, password): (&str, &str),
        binding: ClientBinding,
    ) -> Result<Element, String> {
        let (Mechanism::Scram(hash) | Mechanism::ScramPlus(hash)) = mechanism else { panic!("no SCRAM") };
        let (first, client) = ScramClient::start(hash, (user, password), "abcdefgh", binding).unwrap();
        self.say(&format!(
            "<auth xmlns='{}' mechanism='{}'>{}</auth>",
            ns::SASL,
            mechanism.name(),
            BASE64.encode(first)
        ))
        .await;
        let challenge = self.hear_element().await;
        if challenge.name() == "failure" {
            return Err(challenge.elements().next().unwrap().name().to_owned());
        }
        let (last, client) = client.respond(&BASE64.decode(challenge.text_content()).unwrap()).unwrap();
        self.say(&format!("<response xmlns='{}'>{}</response>", ns::SASL, BASE64.encode(last))).await;
        let verdict = self.hear_element().await;
        if verdict.name() == "failure" {
            return Err(verdict.elements().next().unwrap().name().to_owned());
        }
        client.verify(&BASE64.decode(verdict.text_content()).unwrap()).unwrap();
        Ok(self.open().await)
    }

    pub async fn bind(&mut self, resource: &str) {
        self.say(&format!(
            "<iq type='set' id='bind'><bind xmlns='{}'><resource>{resource}</resource></bind></iq>",
            ns::BIND
        ))
        .await;
        assert!(self.hear_stanza().await.element(ns::BIND, "bind").is_some());
    }
}

/// What a TLS client binds a login to.
pub fn exporter(stream: &tokio_rustls::client::TlsStream<TcpStream>) -> ClientBinding {
    let data = stream.get_ref().1.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b"")).unwrap();
    ClientBinding::Bound(BindingKind::TlsExporter, data.to_vec())
}
