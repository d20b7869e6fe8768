//! A small XMPP client (RFC 6120): SCRAM, binding, stream management (XEP-0198), everything else as elements.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail, ensure};
use tavi_xmpp_proto::Element;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::inbox::Inbox;
use crate::scram::Scram;
use crate::xml_stream::{Cutter, Part};

const CLIENT: &str = "jabber:client";
const STREAMS: &str = "http://etherx.jabber.org/streams";
const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const SM: &str = "urn:xmpp:sm:3";

/// An open stream.
#[derive(Debug)]
pub struct XmppClient {
    host: String,
    jid: String,
    inbox: Inbox<Received>,
    writer: mpsc::UnboundedSender<Vec<u8>>,
    counters: Arc<Counters>,
    tasks: [JoinHandle<()>; 2],
}

/// An element as it came; shows itself as XML.
#[derive(Clone)]
pub struct Received(pub Element);

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_xml(CLIENT))
    }
}

/// XEP-0198 §4: stanzas counted in both directions, and how many of ours the server has acknowledged.
#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU32,
    received: AtomicU32,
    serial: AtomicU32,
}

impl XmppClient {
    /// Connects and opens a stream to `host`; nobody is logged in yet.
    ///
    /// # Errors
    /// The connection is refused.
    pub async fn connect(address: SocketAddr, host: &str) -> anyhow::Result<Self> {
        let client = Self::connect_silently(address, host).await?;
        client.open()?;
        Ok(client)
    }

    /// Connects and sends nothing.
    ///
    /// # Errors
    /// The connection is refused.
    pub async fn connect_silently(address: SocketAddr, host: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let (writer, outgoing) = mpsc::unbounded_channel();
        let (inbox, counters) = (Inbox::new(), Arc::new(Counters::default()));
        let reading = read_all(read, inbox.clone(), writer.clone(), Arc::clone(&counters));
        let tasks = [tokio::spawn(reading), tokio::spawn(write_all(write, outgoing))];
        Ok(Self { host: host.into(), jid: String::new(), inbox, writer, counters, tasks })
    }

    /// Logs in with SCRAM-SHA-256 and binds a resource that the server chooses.
    ///
    /// # Errors
    /// The server refuses; the error holds its condition.
    pub async fn log_in(&mut self, user: &str, password: &str) -> anyhow::Result<()> {
        self.features().await?;
        self.authenticate(user, password).await?;
        self.open()?;
        self.features().await?;
        let bind = Element::new("urn:ietf:params:xml:ns:xmpp-bind", "bind");
        let answer = self.request(None, "set", bind).await?;
        let jid = answer.elements().next().and_then(|bound| bound.elements().next()).context("no bound JID")?;
        self.jid = jid.text_content();
        Ok(())
    }

    /// Turns stream management on.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn manage_stream(&self) -> anyhow::Result<()> {
        // XEP-0198 §3: we count what we send from `enable` on, what we receive from `enabled` on.
        self.counters.sent.store(0, Ordering::SeqCst);
        self.send_bytes(format!("<enable xmlns='{SM}'/>").into_bytes())?;
        self.take("stream management", |e| e.is(SM, "enabled").then_some(())).await
    }

    /// Turns stream management on, for a stream that can be resumed; gives its name.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn manage_resumable(&self) -> anyhow::Result<String> {
        self.counters.sent.store(0, Ordering::SeqCst);
        self.send_bytes(format!("<enable xmlns='{SM}' resume='true'/>").into_bytes())?;
        self.take("stream management", |e| e.is(SM, "enabled").then(|| e.get_attr("id").map(Into::into))?).await
    }

    /// Logs in and goes on with the stream `previous`, of which `handled` stanzas came (XEP-0198 §5); gives how many of
    /// ours the server has handled. `self` is a fresh connection.
    ///
    /// # Errors
    /// The server refuses; the error shows what it said.
    pub async fn resume(&mut self, user: &str, password: &str, previous: &str, handled: u32) -> anyhow::Result<u32> {
        self.features().await?;
        self.authenticate(user, password).await?;
        self.open()?;
        self.features().await?;
        self.counters.received.store(handled, Ordering::SeqCst);
        self.send_bytes(format!("<resume xmlns='{SM}' previd='{previous}' h='{handled}'/>").into_bytes())?;
        let answer = self.take("an answer to resume", |e| (e.ns() == SM && e.name() != "a").then(|| e.clone())).await?;
        ensure!(answer.is(SM, "resumed"), "the server answers {}", answer.to_xml(CLIENT));
        Ok(answer.get_attr("h").context("no h")?.parse()?)
    }

    /// How many stanzas came since stream management was turned on, over all connections of the stream.
    pub fn handled(&self) -> u32 {
        self.counters.received.load(Ordering::SeqCst)
    }

    /// Waits until the server has acknowledged every stanza that was sent.
    ///
    /// # Errors
    /// It does not.
    pub async fn acknowledged(&self) -> anyhow::Result<()> {
        let sent = self.counters.sent.load(Ordering::SeqCst).to_string();
        self.send_bytes(format!("<r xmlns='{SM}'/>").into_bytes())?;
        self.take("an acknowledgement of all", |e| (e.is(SM, "a") && e.get_attr("h") == Some(&sent)).then_some(()))
            .await
    }

    /// The full JID that the server bound.
    pub fn jid(&self) -> &str {
        &self.jid
    }

    /// Sends a stanza.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&self, stanza: &Element) -> anyhow::Result<()> {
        self.counters.sent.fetch_add(1, Ordering::SeqCst);
        self.send_bytes(stanza.to_xml(CLIENT).into_bytes())
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_bytes(&self, bytes: Vec<u8>) -> anyhow::Result<()> {
        self.writer.send(bytes).ok().context("the connection is gone")
    }

    /// Takes the first received element for which `pick` gives a value.
    ///
    /// # Errors
    /// It does not come; see [`Inbox::take`].
    pub async fn take<R>(&self, what: &str, pick: impl Fn(&Element) -> Option<R>) -> anyhow::Result<R> {
        self.inbox.take(what, |received| pick(&received.0)).await
    }

    /// As [`XmppClient::take`], of what is already there.
    pub fn take_now<R>(&self, pick: impl Fn(&Element) -> Option<R>) -> Option<R> {
        self.inbox.take_now(|received| pick(&received.0))
    }

    /// Sends an IQ and returns its result.
    ///
    /// # Errors
    /// The answer is an error; its condition is the error's text.
    pub async fn request(&self, to: Option<&str>, kind: &'static str, payload: Element) -> anyhow::Result<Element> {
        let id = format!("q{}", self.counters.serial.fetch_add(1, Ordering::SeqCst));
        let iq = Element::new(CLIENT, "iq").attr("type", kind).attr("id", id.clone());
        self.send(&iq.attr_opt("to", to.map(ToOwned::to_owned)).child(payload))?;
        let is_answer = |e: &Element| e.is(CLIENT, "iq") && e.get_attr("id") == Some(&id);
        let answer = self.take("an answer", |e| is_answer(e).then(|| e.clone())).await?;
        match condition(&answer) {
            Some(condition) => bail!(condition),
            None => Ok(answer),
        }
    }

    /// Waits until the server has handled everything that was sent before: a ping (XEP-0199) answers in order.
    ///
    /// # Errors
    /// The connection ends.
    pub async fn settle(&self) -> anyhow::Result<()> {
        let host = self.host.clone();
        self.request(Some(&host), "get", Element::new("urn:xmpp:ping", "ping")).await.map(drop)
    }

    /// The condition of the stream error that the server sends.
    ///
    /// # Errors
    /// It sends none.
    pub async fn stream_error(&self) -> anyhow::Result<String> {
        let name = |e: &Element| Some(e.elements().next()?.name().to_owned());
        self.take("a stream error", |e| e.is(STREAMS, "error").then(|| name(e)).flatten()).await
    }

    /// Waits until the server closes the connection.
    ///
    /// # Errors
    /// It stays open.
    pub async fn closed(&self) -> anyhow::Result<()> {
        self.inbox.closed().await.map(drop)
    }

    /// Closes the stream in order and waits for the other side (RFC 6120 §4.4).
    ///
    /// # Errors
    /// The server does not close.
    pub async fn close(self) -> anyhow::Result<()> {
        self.send_bytes(b"</stream:stream>".to_vec())?;
        self.inbox.closed().await.map(drop)
    }

    fn open(&self) -> anyhow::Result<()> {
        let (host, id) = (&self.host, "version='1.0' xml:lang='en'");
        let header =
            format!("<?xml version='1.0'?><stream:stream xmlns='{CLIENT}' xmlns:stream='{STREAMS}' to='{host}' {id}>");
        self.send_bytes(header.into_bytes())
    }

    async fn features(&self) -> anyhow::Result<Element> {
        self.take("stream features", |e| e.is(STREAMS, "features").then(|| e.clone())).await
    }

    async fn authenticate(&self, user: &str, password: &str) -> anyhow::Result<()> {
        let mut scram = Scram::new(user, password, &nonce());
        let start = Element::new(SASL, "auth").attr("mechanism", "SCRAM-SHA-256").text(scram.first());
        let challenge = self.sasl(start, "challenge").await?;
        let response = Element::new(SASL, "response").text(scram.answer(&challenge)?);
        scram.verify(&self.sasl(response, "success").await?)
    }

    async fn sasl(&self, step: Element, expected: &'static str) -> anyhow::Result<String> {
        self.send_bytes(step.to_xml(CLIENT).into_bytes())?;
        let answer = self.take("a SASL answer", |e| (e.ns() == SASL).then(|| e.clone())).await?;
        if answer.name() == "failure" {
            bail!(answer.elements().next().map_or("failure", Element::name).to_owned());
        }
        ensure!(answer.name() == expected, "SASL answered <{}/> instead of <{expected}/>", answer.name());
        Ok(answer.text_content())
    }
}

impl Drop for XmppClient {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The defined condition of an error stanza.
pub fn condition(stanza: &Element) -> Option<String> {
    let error = stanza.get_child(CLIENT, "error").filter(|_| stanza.get_attr("type") == Some("error"))?;
    Some(error.elements().next()?.name().to_owned())
}

/// New enough for a test: the process, and a count.
fn nonce() -> String {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    format!("test{}x{}", std::process::id(), SERIAL.fetch_add(1, Ordering::SeqCst))
}

async fn write_all(mut write: OwnedWriteHalf, mut outgoing: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = outgoing.recv().await {
        if write.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read_all(
    mut read: OwnedReadHalf,
    inbox: Inbox<Received>,
    writer: mpsc::UnboundedSender<Vec<u8>>,
    counters: Arc<Counters>,
) {
    let (mut cutter, mut buffer) = (Cutter::default(), vec![0; 64 * 1024]);
    loop {
        match read.read(&mut buffer).await {
            Ok(0) => return inbox.close("closed by the server"),
            Err(error) => return inbox.close(error.to_string()),
            Ok(length) => cutter.push(&buffer[..length]),
        }
        while let Some(part) = cutter.next_part() {
            let Part::Element(text) = part else { continue };
            match parse(&text) {
                Ok(element) => receive(element, &inbox, &writer, &counters),
                Err(error) => return inbox.close(format!("{error} in {text}")),
            }
        }
    }
}

/// Declares the one prefix that a part of a stream may use without declaring it (RFC 6120 §4.8.5).
fn parse(text: &str) -> anyhow::Result<Element> {
    let Some(rest) = text.strip_prefix("<stream:") else { return Ok(Element::parse(text.as_bytes(), CLIENT)?) };
    let (name, tail) = rest.split_at(rest.find([' ', '>', '/']).context("a tag without an end")?);
    let declared = format!("<stream:{name} xmlns:stream='{STREAMS}'{tail}");
    Ok(Element::parse(declared.as_bytes(), CLIENT)?)
}

fn receive(element: Element, inbox: &Inbox<Received>, writer: &mpsc::UnboundedSender<Vec<u8>>, counters: &Counters) {
    if element.is(SM, "r") {
        let answer = format!("<a xmlns='{SM}' h='{}'/>", counters.received.load(Ordering::SeqCst));
        // A writer that is gone means a connection that is gone.
        let _ = writer.send(answer.into_bytes());
        return;
    }
    if element.is(SM, "enabled") {
        counters.received.store(0, Ordering::SeqCst);
    } else if element.ns() == CLIENT {
        counters.received.fetch_add(1, Ordering::SeqCst);
    }
    inbox.push(Received(element));
}
