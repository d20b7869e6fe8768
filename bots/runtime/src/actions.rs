//! What a bot does, as stanzas and publications of the broker.

use crate::{
    conversation::Action,
    prompt::{Choice, MAX_CHOICES, readable, wire_value},
    store::Outgoing,
};
use tavi_core::{Draft, Envelope, Node, Origin, Principal, Qos, Ticket};
use tavi_xmpp_proto::{
    element::Element,
    jid::{BareJid, Jid},
    ns,
    stanza::{Head, MessageType, Stanza},
};

/// Sends what a bot committed. The ticket completes when it is durable with its receivers.
///
/// `ear` is the bot's own number as a subscriber: it does not hear itself.
pub async fn send(node: &Node, from: &Principal, ear: u64, outgoing: &Outgoing) -> Ticket {
    match &outgoing.action {
        Action::Message { to, text, expected } => {
            let choices = expected.as_ref().map(|expected| expected.choices()).unwrap_or_default();
            let (Some(from), Ok(to)) = (from.jid(), to.parse::<BareJid>()) else { return Ticket::done() };
            let stanza = message(head(from, &to, outgoing.id), text, &choices);
            node.route(Envelope::received(stanza, Origin::Managed, node.parts.clock.now_ms())).await
        }
        Action::Publish { topic, payload, content_type, retain } => {
            let draft = Draft {
                topic: topic.as_str().into(),
                payload: payload.clone().into(),
                content_type: Some(content_type.as_str().into()),
                qos: Qos::AtLeastOnce,
                retain: *retain,
                from_session: ear,
                ..Draft::default()
            };
            publish(node, from, draft)
        }
    }
}

/// A grant may be gone since the script asked; the refusal is in the log.
fn publish(node: &Node, from: &Principal, draft: Draft) -> Ticket {
    let topic = draft.topic.clone();
    node.parts.topics.publish(from, draft).unwrap_or_else(|refusal| {
        tracing::warn!(bot = %from, %topic, %refusal, "a publication of a bot was refused");
        Ticket::done()
    })
}

/// The id, which is also the origin id (XEP-0359 §3.2), comes from the action's: sent again after a restart, it is
/// the same message.
fn head(from: &BareJid, to: &BareJid, id: u64) -> Head {
    Head::message(MessageType::Chat).id(&format!("tavi-{id:x}")).from(Jid::from(from.clone())).to(Jid::from(to.clone()))
}

/// A chat message; with choices also as quick responses (XEP-0439 §4.1), with their readable form in the body.
fn message(head: Head, text: &str, choices: &[Choice]) -> Stanza {
    let body = Element::new(ns::CLIENT, "body").text(readable(text, choices));
    let origin = Element::new(ns::STANZA_ID, "origin-id").attr_opt("id", head.id.as_deref().map(str::to_owned));
    Stanza::new(head, [body, origin].into_iter().chain(choices.iter().take(MAX_CHOICES).map(response)))
}

fn response(choice: &Choice) -> Element {
    let response = Element::new(ns::QUICK_RESPONSE, "response");
    response.attr("value", wire_value(&choice.value)).attr("label", choice.label.clone())
}

/// What a person wrote, without the text that a reply quotes (XEP-0461 §3, XEP-0428 §3). `None` if there is no body.
pub fn heard(envelope: &Envelope) -> Option<String> {
    let body = envelope.stanza.body()?;
    let fallback = envelope.element(ns::FALLBACK, "fallback").filter(|f| f.get_attr("for") == Some(ns::REPLY));
    let Some(fallback) = fallback else { return Some(body) };
    let Some(range) = fallback.get_child(ns::FALLBACK, "body") else { return Some(body) };
    let bound = |name: &str| range.get_attr(name).and_then(|n| n.parse::<usize>().ok());
    let (start, end) = (bound("start").unwrap_or(0), bound("end").unwrap_or(usize::MAX));
    // The range counts code points (XEP-0426 §4).
    Some(body.chars().enumerate().filter(|(at, _)| *at < start || *at >= end).map(|(_, c)| c).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_question_has_buttons_and_a_readable_text() {
        let (bot, anna) = ("lamp@bots.localhost".parse().unwrap(), "anna@localhost".parse().unwrap());
        let choice = |label: &str| Choice { label: label.into(), value: json!(label.to_lowercase()) };
        let stanza = message(head(&bot, &anna, 255), "Power?", &[choice("On"), choice("Tom's")]);
        let text = String::from_utf8(stanza.to_bytes().to_vec()).unwrap();
        for part in [
            "from='lamp@bots.localhost'",
            "to='anna@localhost'",
            "id='tavi-ff'",
            "type='chat'",
            "<body>Power?\n1. On\n2. Tom's</body>",
            "<origin-id xmlns='urn:xmpp:sid:0' id='tavi-ff'/>",
            "<response xmlns='urn:xmpp:tmp:quick-response' value='on' label='On'/>",
            "label='Tom&apos;s'",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        Stanza::parse(text.as_bytes()).unwrap();
    }

    #[test]
    fn what_a_reply_quotes_is_not_what_was_said() {
        let said = |xml: &str| heard(&Stanza::parse(xml.as_bytes()).unwrap().into());
        let quoted = "<message><body>&gt; Grüße?\nyes</body><reply xmlns='urn:xmpp:reply:0' id='1'/>\
            <fallback xmlns='urn:xmpp:fallback:0' for='urn:xmpp:reply:0'><body start='0' end='9'/></fallback></message>";
        assert_eq!(said(quoted).as_deref(), Some("yes"));
        assert_eq!(said("<message><body>yes</body></message>").as_deref(), Some("yes"));
        assert_eq!(said("<message><active xmlns='http://jabber.org/protocol/chatstates'/></message>"), None);
    }
}
