//! XMPP as far as an injector needs it (RFC 6120): log in, register, then raw bytes both ways.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tavi_xmpp_proto::sasl::{ClientBinding, Hash, ScramClient};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::chat::Management;

/// A connection in the clear or over TLS.
pub trait Wire: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Wire for T {}

/// An XMPP stream.
pub struct XmppClient {
    wire: Pin<Box<dyn Wire>>,
    unread: String,
    host: String,
}

/// Who logs in.
#[derive(Clone, Copy, Debug)]
pub struct Login<'a> {
    /// Local part of the account.
    pub user: &'a str,
    /// Its password.
    pub password: &'a str,
    /// The resource to ask for.
    pub resource: &'a str,
}

impl XmppClient {
    /// Connects in the clear and opens a stream.
    pub async fn connect(address: SocketAddr, host: &str) -> anyhow::Result<Self> {
        Self::open(Box::pin(tcp(address).await?), host).await
    }

    /// Connects with direct TLS (XEP-0368) and opens a stream. The certificate is not checked: this is loopback.
    pub async fn connect_tls(address: SocketAddr, host: &str) -> anyhow::Result<Self> {
        let name = ServerName::try_from(host.to_owned())?;
        let wire = TlsConnector::from(trusting()?).connect(name, tcp(address).await?).await?;
        Self::open(Box::pin(wire), host).await
    }

    async fn open(wire: Pin<Box<dyn Wire>>, host: &str) -> anyhow::Result<Self> {
        let mut client = Self { wire, unread: String::new(), host: host.into() };
        client.restart().await?;
        Ok(client)
    }

    async fn restart(&mut self) -> anyhow::Result<()> {
        let header = format!(
            "<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
             to='{}' version='1.0'>",
            self.host
        );
        self.send(header.as_bytes()).await
    }

    /// Makes an account in band (XEP-0077) on a server that allows it; an account that is there already is fine.
    pub async fn register(&mut self, user: &str, password: &str) -> anyhow::Result<()> {
        self.features().await?;
        let query = format!("<username>{user}</username><password>{password}</password>");
        let iq = format!("<iq type='set' id='reg'><query xmlns='jabber:iq:register'>{query}</query></iq>");
        self.send(iq.as_bytes()).await?;
        let answer = self.until(&["</iq>", "id='reg'/>", "type='result'/>"]).await?;
        ensure!(!answer.contains("error") || answer.contains("conflict"), "no registration: {answer}");
        Ok(())
    }

    /// Logs in with the best SCRAM that is offered, else PLAIN; binds and becomes available.
    pub async fn log_in(&mut self, login: Login<'_>) -> anyhow::Result<()> {
        let features = self.features().await?;
        if features.contains(">SCRAM-SHA-256<") {
            self.scram(Hash::Sha256, login).await?;
        } else if features.contains(">SCRAM-SHA-1<") {
            self.scram(Hash::Sha1, login).await?;
        } else {
            self.plain(login).await?;
        }
        self.restart().await?;
        self.features().await?;
        let bind =
            format!("<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{}</resource></bind>", login.resource);
        self.send(format!("<iq type='set' id='bind'>{bind}</iq>").as_bytes()).await?;
        let bound = self.until(&["</iq>"]).await?;
        ensure!(bound.contains("<jid>"), "no resource: {bound}");
        self.send(b"<presence/>").await?;
        self.settle().await
    }

    /// Waits until the server has handled what was sent (XEP-0199), and forgets what came meanwhile.
    pub async fn settle(&mut self) -> anyhow::Result<()> {
        let ping = format!("<iq type='get' id='settle' to='{}'><ping xmlns='urn:xmpp:ping'/></iq>", self.host);
        self.send(ping.as_bytes()).await?;
        self.until(&["id='settle'/>", "id=\"settle\"/>", "id='settle'", "id=\"settle\""]).await?;
        self.unread.clear();
        Ok(())
    }

    /// Turns stream management on (XEP-0198), for a stream that can be resumed if it is wanted so.
    pub async fn manage(&mut self, management: Management) -> anyhow::Result<()> {
        let (resume, granted): (_, &[_]) = match management {
            Management::Resumable => (" resume='true'", &["<enabled", "resume="]),
            _ => ("", &["<enabled"]),
        };
        self.send(format!("<enable xmlns='urn:xmpp:sm:3'{resume}/>").as_bytes()).await?;
        for sign in granted {
            let answer = self.until(&[sign, "<failed"]).await?;
            ensure!(!answer.contains("<failed"), "no such stream management: {answer}");
        }
        self.unread.clear();
        Ok(())
    }

    /// Enters a room (XEP-0045 §7.2) without its history; who makes it takes it as it is (§10.1.2).
    pub async fn enter(&mut self, room: &str, nick: &str, make: bool) -> anyhow::Result<()> {
        let x = "<x xmlns='http://jabber.org/protocol/muc'><history maxstanzas='0'/></x>";
        self.send(format!("<presence to='{room}/{nick}'>{x}</presence>").as_bytes()).await?;
        // Last comes the subject.
        let entered = self.until(&["</message>", "</error>"]).await?;
        ensure!(!entered.contains("</error>"), "not let in: {entered}");
        if make {
            let query =
                "<query xmlns='http://jabber.org/protocol/muc#owner'><x xmlns='jabber:x:data' type='submit'/></query>";
            self.send(format!("<iq type='set' id='make' to='{room}'>{query}</iq>").as_bytes()).await?;
        }
        self.settle().await
    }

    /// Gives the connection away.
    pub fn into_wire(self) -> Pin<Box<dyn Wire>> {
        self.wire
    }

    async fn scram(&mut self, hash: Hash, login: Login<'_>) -> anyhow::Result<()> {
        let name = if hash == Hash::Sha256 { "SCRAM-SHA-256" } else { "SCRAM-SHA-1" };
        let nonce = format!("load{}{}", std::process::id(), login.user);
        let who = (login.user, login.password);
        let (first, scram) = ScramClient::start(hash, who, &nonce, ClientBinding::Unsupported)?;
        let challenge = self.sasl(&format!("auth mechanism='{name}'"), &first, "challenge").await?;
        let (response, scram) = scram.respond(&challenge)?;
        let success = self.sasl("response", &response, "success").await?;
        Ok(scram.verify(&success)?)
    }

    async fn plain(&mut self, login: Login<'_>) -> anyhow::Result<()> {
        let message = format!("\0{}\0{}", login.user, login.password);
        self.sasl("auth mechanism='PLAIN'", message.as_bytes(), "success").await.map(drop)
    }

    /// Sends one SASL element and returns the decoded content of the answer.
    async fn sasl(&mut self, tag: &str, message: &[u8], expected: &str) -> anyhow::Result<Vec<u8>> {
        let name = tag.split(' ').next().unwrap_or(tag);
        let content = BASE64.encode(message);
        let element = format!("<{tag} xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>{content}</{name}>");
        self.send(element.as_bytes()).await?;
        let answer = self
            .until(&["</challenge>", "</success>", "</failure>", "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>"])
            .await?;
        ensure!(answer.contains(&format!("<{expected}")), "{answer}");
        let text = answer.split(&format!("<{expected}")).nth(1).and_then(|rest| rest.split(['>', '<']).nth(1));
        Ok(BASE64.decode(text.unwrap_or_default().trim())?)
    }

    async fn features(&mut self) -> anyhow::Result<String> {
        self.until(&["</stream:features>", "</features>"]).await
    }

    async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.wire.write_all(bytes).await?)
    }

    /// Reads up to the first of these endings.
    async fn until(&mut self, endings: &[&str]) -> anyhow::Result<String> {
        let mut buffer = [0; 8192];
        loop {
            let end = endings.iter().filter_map(|ending| Some(self.unread.find(ending)? + ending.len())).min();
            if let Some(end) = end {
                return Ok(self.unread.drain(..end).collect());
            }
            let length = self.wire.read(&mut buffer).await?;
            if length == 0 {
                bail!("the server closed the stream: {}", self.unread);
            }
            self.unread.push_str(std::str::from_utf8(&buffer[..length]).context("the server sent no UTF-8")?);
        }
    }
}

async fn tcp(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// TLS that trusts every certificate: the server is one that we started on loopback.
fn trusting() -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config =
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Trusting(schemes))).with_no_client_auth();
    config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Trusting(Vec<SignatureScheme>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
