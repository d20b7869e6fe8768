//! Steps of XMPP clients.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use tavi_xmpp_proto::Element;

use super::cast::{Key, Session, Stage};
use super::script::{Step, Word, bytes, cut, find};
use crate::xmpp::{XmppClient, condition};

const CLIENT: &str = "jabber:client";
const PUBSUB: &str = "http://jabber.org/protocol/pubsub";
const EVENT: &str = "http://jabber.org/protocol/pubsub#event";
const RECEIPTS: &str = "urn:xmpp:receipts";
const DATA: &str = "urn:tavi:data:0";
const ROSTER: &str = "jabber:iq:roster";
/// XEP-0439.
const QUICK_RESPONSE: &str = "urn:xmpp:tmp:quick-response";

#[derive(Clone, Copy)]
enum Verb {
    LogsIn,
    OpensStream,
    ConnectsSilently,
    Available,
    Unavailable,
    AsksToSee,
    SeesRequest,
    Lets,
    SeesAgreement,
    SeesOnline,
    SeesOffline,
    HasInRoster,
    Sends,
    SendsUntil,
    Sees,
    SeesChoices,
    Confirms,
    SeesReceipt,
    Acknowledged,
    SubscribesTo,
    PublishesTo,
    SeesOn,
    SeesCleared,
    Reads,
    SeesNothing,
    Bytes,
    Oversized,
    StreamError,
    Disconnected,
    LogsOut,
    Loses,
}

const VOCABULARY: &[(&str, Verb)] = &[
    ("logs in", Verb::LogsIn),
    ("opens a stream", Verb::OpensStream),
    ("connects and says nothing", Verb::ConnectsSilently),
    ("is available", Verb::Available),
    ("is unavailable", Verb::Unavailable),
    ("asks to see {}", Verb::AsksToSee),
    ("sees that {} asks", Verb::SeesRequest),
    ("lets {} see", Verb::Lets),
    ("sees that {} agrees", Verb::SeesAgreement),
    ("sees {} come online", Verb::SeesOnline),
    ("sees {} go offline", Verb::SeesOffline),
    ("has {} in the roster as {}", Verb::HasInRoster),
    ("sends {} to {}", Verb::Sends),
    ("sends {} to {} until {} comes", Verb::SendsUntil),
    ("sees {} from {}", Verb::Sees),
    ("sees {} from {} with the choices {} {}", Verb::SeesChoices),
    ("confirms {} to {}", Verb::Confirms),
    ("sees the receipt of {} from {}", Verb::SeesReceipt),
    ("is told that everything has arrived", Verb::Acknowledged),
    ("subscribes to the topic {}", Verb::SubscribesTo),
    ("publishes {} to the topic {}", Verb::PublishesTo),
    ("sees {} on the topic {}", Verb::SeesOn),
    ("sees the topic {} cleared", Verb::SeesCleared),
    ("reads {} as the last item of {}", Verb::Reads),
    ("sees nothing more", Verb::SeesNothing),
    ("sends the bytes {}", Verb::Bytes),
    ("sends a message of {} bytes", Verb::Oversized),
    ("sees the stream error {}", Verb::StreamError),
    ("is disconnected", Verb::Disconnected),
    ("logs out", Verb::LogsOut),
    ("loses the connection", Verb::Loses),
];

/// What a step says besides its verb.
struct Manner {
    password: Option<String>,
    managed: bool,
    receipt: bool,
    delayed: bool,
}

impl Manner {
    fn cut(words: &mut Vec<Word>) -> Self {
        Self {
            password: cut(words, "with the password {}").map(|mut found| found.remove(0)),
            managed: cut(words, "with stream management").is_some(),
            receipt: cut(words, "asking for a receipt").is_some(),
            delayed: cut(words, "sent earlier").is_some(),
        }
    }
}

/// Performs a step of an actor's XMPP session.
pub async fn act(stage: &mut Stage, key: &Key, mut step: Step) -> anyhow::Result<()> {
    let manner = Manner::cut(&mut step.words);
    let (verb, words) = find(&step.words, VOCABULARY)?;
    match verb {
        Verb::LogsIn => log_in(stage, key, &manner).await,
        Verb::OpensStream => {
            let client = XmppClient::connect(stage.broker()?.address("xmpp")?, "localhost").await?;
            stage.keep(key, Session::Xmpp(client));
            Ok(())
        }
        Verb::ConnectsSilently => {
            let client = XmppClient::connect_silently(stage.broker()?.address("xmpp")?, "localhost").await?;
            stage.keep(key, Session::Xmpp(client));
            Ok(())
        }
        Verb::LogsOut => match stage.remove(key)? {
            Session::Xmpp(client) => client.close().await,
            _ => bail!("not an XMPP session"),
        },
        Verb::Loses => stage.remove(key).map(drop),
        Verb::Sends => send(stage, key, &words, &manner).await,
        Verb::Sees => see(stage, key, &words, &manner).await,
        Verb::Confirms | Verb::SeesReceipt => receipt(stage, key, verb, &words).await,
        _ => perform(stage, key, verb, words).await,
    }
}

async fn perform(stage: &Stage, key: &Key, verb: Verb, words: Vec<String>) -> anyhow::Result<()> {
    let client = client(stage, key)?;
    let first = words.first().map_or("", String::as_str);
    match verb {
        Verb::Available => {
            // RFC 6121 §2.2: as clients do, the roster first; only then does the session hear of subscriptions.
            client.request(None, "get", Element::new(ROSTER, "query")).await?;
            client.send(&Element::new(CLIENT, "presence"))?;
            client.settle().await
        }
        Verb::Unavailable => {
            client.send(&Element::new(CLIENT, "presence").attr("type", "unavailable"))?;
            client.settle().await
        }
        Verb::AsksToSee => send_presence(client, "subscribe", stage.jid(first)?),
        Verb::Lets => send_presence(client, "subscribed", stage.jid(first)?),
        Verb::SeesRequest => presence(client, Some("subscribe"), stage.jid(first)?).await,
        Verb::SeesAgreement => presence(client, Some("subscribed"), stage.jid(first)?).await,
        Verb::SeesOnline => presence(client, None, stage.jid(first)?).await,
        Verb::SeesOffline => presence(client, Some("unavailable"), stage.jid(first)?).await,
        Verb::HasInRoster => has_in_roster(client, &stage.jid(first)?, &words[1]).await,
        Verb::SendsUntil => send_until(client, &words, stage.jid(&words[1])?).await,
        Verb::SeesChoices => see_choices(client, &words, stage.jid(&words[1])?).await,
        Verb::Acknowledged => client.acknowledged().await,
        Verb::SubscribesTo => subscribe(client, first).await,
        Verb::PublishesTo => publish(client, first, &words[1]).await,
        Verb::SeesOn => see_on(client, first, &words[1]).await,
        Verb::SeesCleared => see_cleared(client, first).await,
        Verb::Reads => read_last(client, first, &words[1]).await,
        Verb::SeesNothing => nothing_more(client).await,
        Verb::Bytes => client.send_bytes(bytes(first)?),
        Verb::Oversized => client.send(&message("nobody@localhost", "x", &"x".repeat(first.parse()?))),
        Verb::StreamError => {
            let condition = client.stream_error().await?;
            ensure!(condition == first, "the stream error is {condition}");
            Ok(())
        }
        Verb::Disconnected => client.closed().await,
        _ => bail!("a step of the stage"),
    }
}

fn client<'a>(stage: &'a Stage, key: &Key) -> anyhow::Result<&'a XmppClient> {
    match stage.session(key)? {
        Session::Xmpp(client) => Ok(client),
        _ => bail!("not an XMPP session"),
    }
}

async fn log_in(stage: &mut Stage, key: &Key, manner: &Manner) -> anyhow::Result<()> {
    let actor = stage.actor(&key.0)?;
    let host = actor.jid.split_once('@').map_or("localhost", |(_, host)| host).to_owned();
    let mut client = XmppClient::connect(stage.broker()?.address("xmpp")?, &host).await?;
    client.log_in(&actor.id, manner.password.as_ref().unwrap_or(&actor.secret)).await?;
    if manner.managed {
        client.manage_stream().await?;
    }
    stage.keep(key, Session::Xmpp(client));
    Ok(())
}

fn message(to: &str, id: &str, body: &str) -> Element {
    let message =
        Element::new(CLIENT, "message").attr("type", "chat").attr("to", to.to_owned()).attr("id", id.to_owned());
    message.child(Element::new(CLIENT, "body").text(body.to_owned()))
}

/// Sends, and waits until the server has routed it, so that a refusal is there.
async fn send(stage: &mut Stage, key: &Key, words: &[String], manner: &Manner) -> anyhow::Result<()> {
    let id = format!("m{}", stage.message_ids.len());
    stage.message_ids.insert(words[0].clone(), id.clone());
    let mut stanza = message(&stage.jid(&words[1])?, &id, &words[0]);
    if manner.receipt {
        stanza.push(Element::new(RECEIPTS, "request"));
    }
    let client = client(stage, key)?;
    client.send(&stanza)?;
    client.settle().await?;
    let refusal = |e: &Element| if e.get_attr("id") == Some(&id) { condition(e) } else { None };
    match client.take_now(refusal) {
        Some(condition) => bail!(condition),
        None => Ok(()),
    }
}

/// Says it again until the answer comes: for a change that takes effect at a time nobody announces.
async fn send_until(client: &XmppClient, words: &[String], jid: String) -> anyhow::Result<()> {
    let wanted = |e: &Element| (is_from(e, &jid) && body(e).as_ref() == Some(&words[2])).then_some(());
    for attempt in 0..100 {
        if attempt % 10 == 0 {
            client.send(&message(&jid, &format!("u{attempt}"), &words[0]))?;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        if client.take_now(wanted).is_some() {
            return Ok(());
        }
    }
    bail!("{:?} never came", words[2])
}

async fn see(stage: &mut Stage, key: &Key, words: &[String], manner: &Manner) -> anyhow::Result<()> {
    let jid = stage.jid(&words[1])?;
    let wanted = |e: &Element| (is_from(e, &jid) && body(e).as_ref() == Some(&words[0])).then(|| e.clone());
    let got = client(stage, key)?.take(&format!("{:?} from {jid}", words[0]), wanted).await?;
    let delayed = got.get_child("urn:xmpp:delay", "delay").is_some();
    ensure!(delayed == manner.delayed, "its delay element is {}", if delayed { "there" } else { "missing" });
    Ok(())
}

async fn see_choices(client: &XmppClient, words: &[String], jid: String) -> anyhow::Result<()> {
    let text = |e: &Element| body(e).is_some_and(|body| body.starts_with(&words[0]));
    let asked = |e: &Element| (is_from(e, &jid) && text(e)).then(|| e.clone());
    let question = client.take(&format!("the question {:?}", words[0]), asked).await?;
    let choices = question.elements().filter(|e| e.is(QUICK_RESPONSE, "response"));
    let choices: Vec<&str> = choices.filter_map(|choice| choice.get_attr("value")).collect();
    ensure!(choices == words[2..], "the choices are {choices:?}");
    let readable = body(&question).context("no text")?;
    ensure!(words[2..].iter().all(|choice| readable.contains(choice)), "the text has no choices: {readable}");
    Ok(())
}

/// XEP-0184.
async fn receipt(stage: &mut Stage, key: &Key, verb: Verb, words: &[String]) -> anyhow::Result<()> {
    let jid = stage.jid(&words[1])?;
    let id = stage.message_ids.get(&words[0]).context("nobody sent that")?.clone();
    let client = client(stage, key)?;
    if matches!(verb, Verb::Confirms) {
        let received = Element::new(RECEIPTS, "received").attr("id", id);
        let receipt = Element::new(CLIENT, "message").attr("type", "chat").attr("to", jid);
        return client.send(&receipt.child(received));
    }
    let receipt = |e: &Element| e.get_child(RECEIPTS, "received")?.get_attr("id").map(ToOwned::to_owned);
    client.take("the receipt", |e| (is_from(e, &jid) && receipt(e).as_ref() == Some(&id)).then_some(())).await
}

fn body(stanza: &Element) -> Option<String> {
    stanza.get_child(CLIENT, "body").map(Element::text_content)
}

/// True for a stanza of the bare JID or one of its resources.
fn is_from(stanza: &Element, jid: &str) -> bool {
    stanza.get_attr("from").and_then(|from| from.split('/').next()) == Some(jid)
}

fn send_presence(client: &XmppClient, kind: &'static str, to: String) -> anyhow::Result<()> {
    client.send(&Element::new(CLIENT, "presence").attr("type", kind).attr("to", to))
}

async fn presence(client: &XmppClient, kind: Option<&str>, jid: String) -> anyhow::Result<()> {
    let wanted = |e: &Element| e.is(CLIENT, "presence") && e.get_attr("type") == kind && is_from(e, &jid);
    let what = format!("presence {} of {jid}", kind.unwrap_or("available"));
    client.take(&what, |e| wanted(e).then_some(())).await
}

/// Reads the roster until the entry is there: another session's change is pushed at its own time.
async fn has_in_roster(client: &XmppClient, jid: &str, subscription: &str) -> anyhow::Result<()> {
    let roster = client.request(None, "get", Element::new(ROSTER, "query")).await?;
    let query = roster.get_child(ROSTER, "query").context("no roster")?;
    let item = query.elements().find(|item| item.get_attr("jid") == Some(jid)).context("no such entry")?;
    let found = item.get_attr("subscription").unwrap_or("none");
    ensure!(found == subscription, "the subscription is {found}");
    Ok(())
}

async fn pubsub(client: &XmppClient, kind: &'static str, action: Element) -> anyhow::Result<Element> {
    client.request(Some("pubsub.localhost"), kind, Element::new(PUBSUB, "pubsub").child(action)).await
}

/// XEP-0060 §6.1.
async fn subscribe(client: &XmppClient, topic: &str) -> anyhow::Result<()> {
    let own = client.jid().split('/').next().unwrap_or_default().to_owned();
    let action = Element::new(PUBSUB, "subscribe").attr("node", topic.to_owned()).attr("jid", own);
    pubsub(client, "set", action).await.map(drop)
}

/// XEP-0060 §7.1, with a payload as semantics.md wraps it.
async fn publish(client: &XmppClient, payload: &str, topic: &str) -> anyhow::Result<()> {
    let data = Element::new(DATA, "data").attr("type", "text/plain").attr("encoding", "utf-8").text(payload.to_owned());
    let item = Element::new(PUBSUB, "item").child(data);
    let action = Element::new(PUBSUB, "publish").attr("node", topic.to_owned()).child(item);
    pubsub(client, "set", action).await.map(drop)
}

async fn see_on(client: &XmppClient, payload: &str, topic: &str) -> anyhow::Result<()> {
    let wanted =
        |e: &Element| (event(e, "item", topic)?.elements().find_map(payload_of)? == payload.as_bytes()).then_some(());
    client.take(&format!("{payload:?} on {topic}"), wanted).await
}

async fn see_cleared(client: &XmppClient, topic: &str) -> anyhow::Result<()> {
    client.take("a retraction", |e| event(e, "retract", topic).map(|_| ())).await
}

/// The item or retraction that an event about this topic carries.
fn event<'a>(stanza: &'a Element, name: &str, topic: &str) -> Option<&'a Element> {
    let items = stanza.get_child(EVENT, "event")?.get_child(EVENT, "items")?;
    if items.get_attr("node") == Some(topic) { items.get_child(EVENT, name) } else { None }
}

fn payload_of(data: &Element) -> Option<Vec<u8>> {
    let text = data.is(DATA, "data").then(|| data.text_content())?;
    match data.get_attr("encoding") {
        Some("base64") => base64::prelude::BASE64_STANDARD.decode(text).ok(),
        _ => Some(text.into_bytes()),
    }
}

/// XEP-0060 §6.5.
async fn read_last(client: &XmppClient, payload: &str, topic: &str) -> anyhow::Result<()> {
    let action = Element::new(PUBSUB, "items").attr("node", topic.to_owned()).attr("max_items", "1");
    let answer = pubsub(client, "get", action).await?;
    let items = answer.get_child(PUBSUB, "pubsub").and_then(|pubsub| pubsub.get_child(PUBSUB, "items"));
    let item = items.and_then(|items| items.elements().last()).context("no item")?;
    let found = item.elements().find_map(payload_of).context("no data")?;
    ensure!(found == payload.as_bytes(), "the last item is {:?}", String::from_utf8_lossy(&found));
    Ok(())
}

async fn nothing_more(client: &XmppClient) -> anyhow::Result<()> {
    client.settle().await?;
    match client.take_now(|e| e.is(CLIENT, "message").then(|| e.to_xml(CLIENT))) {
        None => Ok(()),
        Some(message) => bail!("it sees {message}"),
    }
}
