//! Stream management: acknowledgements in both directions and what resumption says, XEP-0198.

use std::collections::VecDeque;

use crate::element::Element;
use crate::error::{StreamCondition, StreamError};
use crate::ns;

/// The state of a managed stream. `T` is what the caller needs of a stanza that the peer has not acknowledged.
#[derive(Debug)]
pub struct StreamManagement<T> {
    /// Stanzas of the peer that are dealt with, modulo 2³² (XEP-0198 §4).
    handled: u32,
    /// Stanzas that the peer has acknowledged, modulo 2³².
    acknowledged: u32,
    unacknowledged: VecDeque<T>,
    /// We asked and have no answer yet.
    asked: bool,
}

/// What a peer asks of stream management.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SmRequest {
    /// `<enable/>`: starts it.
    Enable {
        /// The stream is to be resumable.
        resume: bool,
    },
    /// `<resume/>`: goes on with a stream whose connection is gone (§5).
    Resume {
        /// The stream, as `<enabled/>` named it.
        previous: Box<str>,
        /// How many of its stanzas the peer has handled.
        handled: u32,
    },
    /// `<r/>`: wants to know what is handled.
    Ask,
    /// `<a h='…'/>`: the peer has handled this many.
    Answer(u32),
}

impl SmRequest {
    /// Reads an element of stream management; `None` when it is none or has a wrong form.
    pub fn read(element: &Element) -> Option<SmRequest> {
        if element.ns() != ns::SM {
            return None;
        }
        match element.name() {
            "enable" => {
                let resume = matches!(element.get_attr("resume"), Some("true" | "1"));
                Some(SmRequest::Enable { resume })
            }
            "resume" => {
                let handled: Option<u32> = element.get_attr("h").and_then(|h| h.parse().ok());
                // Without a count it names nothing that could be resumed.
                let previous = element.get_attr("previd").filter(|_| handled.is_some()).unwrap_or_default();
                Some(SmRequest::Resume { previous: previous.into(), handled: handled.unwrap_or_default() })
            }
            "r" => Some(SmRequest::Ask),
            "a" => element.get_attr("h")?.parse().ok().map(SmRequest::Answer),
            _ => None,
        }
    }
}

impl<T> Default for StreamManagement<T> {
    fn default() -> StreamManagement<T> {
        StreamManagement::new()
    }
}

impl<T> StreamManagement<T> {
    /// Starts counting, at `<enable/>` (XEP-0198 §4).
    pub fn new() -> StreamManagement<T> {
        StreamManagement { handled: 0, acknowledged: 0, unacknowledged: VecDeque::new(), asked: false }
    }

    /// The state of a stream from before the process was started anew: what was handled and acknowledged, and what the
    /// peer has not acknowledged, in order.
    pub fn restored(handled: u32, acknowledged: u32, unacknowledged: impl IntoIterator<Item = T>) -> Self {
        let unacknowledged = unacknowledged.into_iter().collect();
        StreamManagement { handled, acknowledged, unacknowledged, asked: false }
    }

    /// One more stanza of the peer is dealt with: what had to be durable is.
    pub fn count_handled(&mut self) {
        self.handled = self.handled.wrapping_add(1);
    }

    /// How many stanzas of the peer are dealt with.
    pub fn handled(&self) -> u32 {
        self.handled
    }

    /// Notes a stanza that is being sent.
    pub fn sent(&mut self, item: T) {
        self.unacknowledged.push_back(item);
    }

    /// The peer has handled `h` stanzas; gives those that are new.
    ///
    /// # Errors
    /// It acknowledges more than it was sent (XEP-0198 §4, handled-count-too-high).
    pub fn acknowledge(&mut self, h: u32) -> Result<impl Iterator<Item = T> + '_, StreamError> {
        let new = h.wrapping_sub(self.acknowledged) as usize;
        if new > self.unacknowledged.len() && h < self.acknowledged {
            let text = format!("you acknowledged {h} stanzas, but had acknowledged {} before", self.acknowledged);
            return Err(StreamError::new(StreamCondition::UndefinedCondition).text(text));
        }
        if new > self.unacknowledged.len() {
            let too_high = Element::new(ns::SM, "handled-count-too-high")
                .attr("h", h.to_string())
                .attr("send-count", self.sent_count().to_string());
            let text = "you acknowledged stanzas that were not sent";
            return Err(StreamError::new(StreamCondition::UndefinedCondition).text(text).specific(too_high));
        }
        self.acknowledged = h;
        self.asked = false;
        Ok(self.unacknowledged.drain(..new))
    }

    /// Appends `<r/>` when there is something to ask for and no question is open.
    pub fn ask(&mut self, out: &mut Vec<u8>) {
        if !self.asked && !self.unacknowledged.is_empty() {
            self.asked = true;
            out.extend_from_slice(b"<r xmlns='urn:xmpp:sm:3'/>");
        }
    }

    /// Appends `<a h='…'/>`.
    pub fn answer(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("<a xmlns='urn:xmpp:sm:3' h='{}'/>", self.handled).as_bytes());
    }

    /// A new connection goes on with the stream: gives `<resumed/>` (§5). What is not acknowledged is to be sent again.
    pub fn resume(&mut self, previous: &str) -> Element {
        self.asked = false;
        let h = self.handled.to_string();
        Element::new(ns::SM, "resumed").attr("previd", previous.to_owned()).attr("h", h)
    }

    /// Of what is not acknowledged only this is sent again.
    pub fn retain(&mut self, still: impl FnMut(&T) -> bool) {
        self.unacknowledged.retain(still);
    }

    /// How many stanzas wait for an acknowledgement.
    pub fn waiting(&self) -> usize {
        self.unacknowledged.len()
    }

    /// The stream ended: what the peer has not acknowledged, in order.
    pub fn into_unacknowledged(self) -> impl Iterator<Item = T> {
        self.unacknowledged.into_iter()
    }

    fn sent_count(&self) -> u32 {
        self.acknowledged.wrapping_add(self.unacknowledged.len() as u32)
    }
}

/// A stream that can be resumed (§3).
#[derive(Debug, Clone, Copy)]
pub struct Resumable<'a> {
    /// Its name, which nobody can guess.
    pub id: &'a str,
    /// How long it waits for its client, in seconds.
    pub max: u64,
}

/// Appends `<enabled/>` (§3).
pub fn write_enabled(out: &mut Vec<u8>, resumable: Option<Resumable<'_>>) {
    enabled(resumable).write_to(out, ns::CLIENT);
}

/// `<enabled/>`, to be written alone or with the answer to a binding (XEP-0386 §4).
pub fn enabled(resumable: Option<Resumable<'_>>) -> Element {
    let mut enabled = Element::new(ns::SM, "enabled");
    if let Some(Resumable { id, max }) = resumable {
        enabled = enabled.attr("id", id.to_owned()).attr("resume", "true").attr("max", max.to_string());
    }
    enabled
}

/// Appends `<failed/>`: it is too early, or there is nothing to resume (XEP-0198 §3 and §5).
pub fn write_failed(out: &mut Vec<u8>, condition: crate::error::Condition) {
    failed(condition).write_to(out, ns::CLIENT);
}

/// `<failed/>`, to be written alone or with the success of a login (XEP-0388 §2.6).
pub fn failed(condition: crate::error::Condition) -> Element {
    Element::new(ns::SM, "failed").child(Element::new(ns::STANZA_ERRORS, condition.name()))
}

/// `<failed/>` to a stream that can not be resumed, with the count of what was handled of it, if that is known (§5).
pub fn not_resumed(handled: Option<u32>) -> Element {
    let failed = failed(crate::error::Condition::ItemNotFound);
    match handled {
        Some(handled) => failed.attr("h", handled.to_string()),
        None => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_sent_is_acknowledged_in_order() {
        let mut sm = StreamManagement::new();
        for item in ["a", "b", "c"] {
            sm.sent(item);
        }
        assert_eq!(text(|out| sm.ask(out)), "<r xmlns='urn:xmpp:sm:3'/>");
        assert_eq!(text(|out| sm.ask(out)), "", "one question at a time");
        assert_eq!(sm.acknowledge(2).unwrap().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(sm.acknowledge(2).unwrap().count(), 0);
        assert_eq!(sm.into_unacknowledged().collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn a_count_of_more_than_was_sent_is_too_high_however_great_and_a_lower_one_is_not() {
        let too_high = |sm: &mut StreamManagement<u32>, h| {
            let error = sm.acknowledge(h).map(drop).unwrap_err();
            error.specific.is_some_and(|element| element.is(ns::SM, "handled-count-too-high"))
        };
        let mut sm = StreamManagement::new();
        (0..3).for_each(|item| sm.sent(item));
        assert!(too_high(&mut sm, u32::MAX));
        assert_eq!(sm.acknowledge(2).unwrap().count(), 2);
        assert!(too_high(&mut sm, 4) && too_high(&mut sm, u32::MAX));
        assert!(!too_high(&mut sm, 1));
    }

    #[test]
    fn acknowledging_what_was_not_sent_ends_the_stream() {
        let mut sm = StreamManagement::new();
        sm.sent(());
        assert!(sm.acknowledge(2).is_err());
        assert_eq!(sm.acknowledge(1).unwrap().count(), 1);
        let Err(back) = sm.acknowledge(0) else { panic!("counts do not go back") };
        assert!(!format!("{back:?}").contains("too-high"), "{back:?}");
    }

    #[test]
    fn counts_wrap_around() {
        let mut sm = StreamManagement { handled: u32::MAX, acknowledged: u32::MAX, ..StreamManagement::new() };
        sm.count_handled();
        assert_eq!(text(|out| sm.answer(out)), "<a xmlns='urn:xmpp:sm:3' h='0'/>");
        sm.sent(1);
        sm.sent(2);
        assert_eq!(sm.acknowledge(1).unwrap().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn nothing_is_asked_for_without_need_and_again_over_a_new_connection() {
        let mut sm = StreamManagement::new();
        assert_eq!(text(|out| sm.ask(out)), "", "nothing was sent");
        sm.sent("a");
        assert_eq!(text(|out| sm.ask(out)), "<r xmlns='urn:xmpp:sm:3'/>");
        sm.resume("name");
        assert_eq!(text(|out| sm.ask(out)), "<r xmlns='urn:xmpp:sm:3'/>", "the answer went with the old one");
        assert_eq!(sm.acknowledge(1).unwrap().count(), 1);
        assert_eq!(text(|out| sm.ask(out)), "");
    }

    #[test]
    fn a_stream_of_an_earlier_process_counts_on() {
        let mut sm = StreamManagement::restored(5, 3, ["d", "e"]);
        let Err(error) = sm.acknowledge(6) else { panic!("five were sent") };
        let too_high = error.specific.unwrap();
        assert_eq!((too_high.get_attr("h"), too_high.get_attr("send-count")), (Some("6"), Some("5")), "§4");
        assert_eq!(sm.acknowledge(4).unwrap().collect::<Vec<_>>(), ["d"]);
        let resumed = sm.resume("name");
        assert_eq!((resumed.get_attr("previd"), resumed.get_attr("h")), (Some("name"), Some("5")));
        assert_eq!(sm.into_unacknowledged().collect::<Vec<_>>(), ["e"]);
    }

    #[test]
    fn requests_are_read() {
        let read = |xml: &str| SmRequest::read(&Element::parse(xml.as_bytes(), ns::SM).unwrap());
        assert_eq!(read("<a h='7'/>"), Some(SmRequest::Answer(7)));
        assert_eq!(read("<a h='-7'/>"), None);
        assert_eq!(read("<r/>"), Some(SmRequest::Ask));
        assert_eq!(read("<r xmlns='x'/>"), None);
        for (resume, wanted) in [("", false), ("resume='false'", false), ("resume='true'", true), ("resume='1'", true)]
        {
            assert_eq!(read(&format!("<enable {resume}/>")), Some(SmRequest::Enable { resume: wanted }));
        }
        let resume = |previous: &str, handled| Some(SmRequest::Resume { previous: previous.into(), handled });
        assert_eq!(read("<resume previd='x' h='7'/>"), resume("x", 7));
        assert_eq!(read("<resume previd='x'/>"), resume("", 0), "without a count it names nothing");
    }
}
