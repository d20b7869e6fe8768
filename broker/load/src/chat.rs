//! One-to-one chat: pairs of accounts, one writes to the other with a window of messages in flight.

use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::task::JoinSet;

use crate::Target;
use crate::meter::{Cost, Meter};
use crate::told;
use crate::window::Window;
use crate::xmpp_client::{Login, Wire, XmppClient};

/// How much chat.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Pairs of accounts.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=5000))]
    pub pairs: u32,
    /// Messages of each pair.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub messages: u64,
    /// Messages of a pair that are on their way at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub in_flight: u64,
    /// Bytes of a message's text.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub body: u32,
    /// Both sides use stream management (XEP-0198), so that a message is durable before it is acknowledged.
    #[arg(long)]
    pub managed: bool,
    /// The same, on streams that can be resumed, as most clients use it.
    #[arg(long)]
    pub resumable: bool,
}

/// What both sides of a chat use of XEP-0198.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Management {
    /// Nothing.
    Off,
    /// Acknowledgements.
    On,
    /// Acknowledgements, on streams that can be resumed.
    Resumable,
}

impl Plan {
    fn management(&self) -> Management {
        match (self.resumable, self.managed) {
            (true, _) => Management::Resumable,
            (false, true) => Management::On,
            (false, false) => Management::Off,
        }
    }
}

/// Accounts that a chat needs.
pub fn accounts(plan: &Plan) -> Vec<String> {
    (0..2 * plan.pairs).map(|n| format!("load{n}")).collect()
}

/// Runs the chat and measures it.
pub async fn run(target: &Target, plan: &Plan) -> anyhow::Result<Cost> {
    let mut pairs = Vec::new();
    for n in 0..plan.pairs {
        pairs.push(Pair::connect(target, plan, n).await.with_context(|| format!("pair {n}"))?);
    }
    let meter = Meter::start(target.pid)?;
    let chats: Vec<_> = pairs.into_iter().map(|pair| tokio::spawn(pair.talk(plan.clone()))).collect();
    let mut ends = Vec::new();
    for chat in chats {
        // The ends stay open until all is measured: closing costs, too.
        ends.push(chat.await??);
    }
    meter.stop(u64::from(plan.pairs) * plan.messages)
}

struct Pair {
    sender: Pin<Box<dyn Wire>>,
    receiver: Pin<Box<dyn Wire>>,
    to: String,
}

/// What keeps a pair's connections open; dropping it ends both.
type Ends = (WriteHalf<Pin<Box<dyn Wire>>>, JoinSet<()>);

impl Pair {
    async fn connect(target: &Target, plan: &Plan, n: u32) -> anyhow::Result<Self> {
        let (a, b) = (format!("load{}", 2 * n), format!("load{}", 2 * n + 1));
        let receiver = client(target, plan.management(), &b).await?;
        let sender = client(target, plan.management(), &a).await?;
        Ok(Self { sender, receiver, to: format!("{b}@{}", target.host) })
    }

    async fn talk(self, plan: Plan) -> anyhow::Result<Ends> {
        let window = Window::new(plan.in_flight, 1);
        let (read, mut write) = tokio::io::split(self.sender);
        let (receiver, answers) = tokio::io::split(self.receiver);
        let mut readers = JoinSet::new();
        readers.spawn(told("a sender", watch(read)));
        readers.spawn(told("a receiver", receive(receiver, answers, Arc::clone(&window))));
        let message = Message::new(&self.to, plan.body);
        let (mut sent, mut batch) = (0, Vec::new());
        while sent < plan.messages {
            let room = window.room(sent).await?.min(plan.messages - sent);
            batch.clear();
            (sent..sent + room).for_each(|n| message.write(n, &mut batch));
            if plan.management() != Management::Off {
                batch.extend_from_slice(b"<r xmlns='urn:xmpp:sm:3'/>");
            }
            write.write_all(&batch).await?;
            sent += room;
        }
        window.drained(plan.messages).await?;
        Ok((write, readers))
    }
}

/// Logs an account in, with stream management if wanted.
pub async fn client(target: &Target, management: Management, user: &str) -> anyhow::Result<Pin<Box<dyn Wire>>> {
    let mut client = XmppClient::connect(target.address, &target.host).await?;
    client.log_in(Login { user, password: &target.password, resource: "load" }).await?;
    if management != Management::Off {
        client.manage(management).await?;
    }
    Ok(client.into_wire())
}

/// A message's bytes round its number.
pub struct Message {
    before: String,
    after: String,
}

impl Message {
    /// A message to somebody with a text of so many bytes.
    pub fn new(to: &str, body: u32) -> Self {
        let text = "x".repeat(body as usize);
        Self {
            before: format!("<message to='{to}' type='chat' id='m"),
            after: format!("'><body>{text}</body></message>"),
        }
    }

    /// Appends it with a number.
    pub fn write(&self, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(self.before.as_bytes());
        out.extend_from_slice(number.to_string().as_bytes());
        out.extend_from_slice(self.after.as_bytes());
    }
}

/// Reads what the sender is sent: acknowledgements. Anything with an error ends the load.
pub async fn watch(mut read: ReadHalf<Pin<Box<dyn Wire>>>) -> anyhow::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = read.read(&mut buffer).await?;
        if length == 0 || memmem::find(&buffer[..length], b"<error").is_some() {
            bail!("it was told {:?}", String::from_utf8_lossy(&buffer[..length.min(500)]));
        }
    }
}

/// Counts messages by their end tags, also where a read cuts one, and answers requests for acknowledgement.
pub async fn receive(
    mut read: ReadHalf<Pin<Box<dyn Wire>>>,
    mut write: WriteHalf<Pin<Box<dyn Wire>>>,
    window: Arc<Window>,
) -> anyhow::Result<()> {
    let (messages, requests) = (Counter::new(b"</message>"), Counter::new(b"<r xmlns"));
    let (mut buffer, mut kept, mut received) = (vec![0; 64 * 1024], 0, 0);
    loop {
        let length = read.read(&mut buffer[kept..]).await?;
        if length == 0 {
            bail!("the server closed the receiver's stream");
        }
        let bytes = &buffer[..kept + length];
        let count = messages.count(bytes, kept);
        received += count;
        window.deliver(0, count);
        if requests.count(bytes, kept) > 0 {
            write.write_all(format!("<a xmlns='urn:xmpp:sm:3' h='{received}'/>").as_bytes()).await?;
        }
        let end = kept + length;
        kept = end.min(16);
        buffer.copy_within(end - kept..end, 0);
    }
}

/// Finds occurrences that end in new bytes, though they may begin in the old ones before them.
pub struct Counter {
    finder: memmem::Finder<'static>,
}

impl Counter {
    /// Of this text.
    pub fn new(wanted: &'static [u8]) -> Self {
        Self { finder: memmem::Finder::new(wanted) }
    }

    /// How many end behind the first `old` bytes.
    pub fn count(&self, bytes: &[u8], old: usize) -> u64 {
        let start = (old + 1).saturating_sub(self.finder.needle().len());
        self.finder.find_iter(&bytes[start..]).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cut_by_a_read_counts_once() {
        let counter = Counter::new(b"</message>");
        let whole = b"</message>x</message>";
        for cut in 0..=whole.len() {
            let old = cut.min(16);
            let second = counter.count(&whole[cut - old..], old);
            assert_eq!(counter.count(&whole[..cut], 0) + second, 2, "cut at {cut}");
        }
    }

    #[test]
    fn a_message_has_its_number() {
        let mut out = Vec::new();
        Message::new("b@localhost", 3).write(7, &mut out);
        assert_eq!(out, b"<message to='b@localhost' type='chat' id='m7'><body>xxx</body></message>");
    }
}
