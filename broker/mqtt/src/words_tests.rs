//! Words come back from their bytes as they were, and no bytes bring anybody down.

use super::*;
use crate::packet::{Body, PublishProperties};
use proptest::prelude::*;
use tavi_core::Principal;
use tavi_core::publication::{Change, Rendered};

fn body() -> Body {
    let properties = PublishProperties { expiry: Some(9), ..PublishProperties::default() };
    Body::encode(Version::V5, "d/pump/up/x", &properties, b"value")
}

fn answer() -> Answer {
    Answer::published(Qos::ExactlyOnce, 7, Reason::QUOTA)
}

fn to_seat() -> Vec<ToSeat> {
    let will = Will { body: body(), qos: Qos::AtLeastOnce, retain: true, delay: 3 };
    let attach = |will| Attach {
        subject: "reader@localhost".into(),
        client_id: "wächter".into(),
        version: Version::V5,
        clean: true,
        expiry: 3600,
        receive_maximum: 10,
        will,
    };
    let options = Options {
        qos: Qos::ExactlyOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::IfNew,
    };
    let filters =
        vec![Wish { filter: "d/#".into(), options }, Wish { filter: "+".into(), options: Options::default() }];
    let words = [
        Word::Publish(Publish { body: body(), qos: Qos::ExactlyOnce, retain: true, dup: true, packet_id: 9 }),
        Word::Repeated(answer()),
        Word::Release(answer()),
        Word::Taken(u64::MAX),
        Word::Skipped(5, Qos::AtLeastOnce),
        Word::Received(6, Answer::published(Qos::AtMostOnce, 0, Reason::SUCCESS)),
        Word::Subscribe(Subscribe { packet_id: 1, has_identifier: true, filters }),
        Word::Unsubscribe(Unsubscribe { packet_id: 2, filters: vec!["d/#".into(), "".into()] }),
        Word::Leave(Disconnect { reason: Reason::SUCCESS, expiry: None }),
        Word::Leave(Disconnect { reason: Reason::DISCONNECT_WITH_WILL, expiry: Some(7) }),
    ];
    let others = [ToSeat::Attach(attach(None)), ToSeat::Attach(attach(Some(will))), ToSeat::Detach(Parting::Cut)];
    words.into_iter().map(|word| ToSeat::Word(word, 77)).chain(others).collect()
}

fn to_link() -> Vec<ToLink> {
    let publication = Arc::new(Publication {
        id: 7,
        time_ms: 8,
        topic: "d/x".into(),
        change: Change::Value,
        payload: Bytes::from_static(b"payload"),
        content_type: None,
        qos: Qos::AtLeastOnce,
        retain: true,
        from: Principal::Anon { loopback: true },
        from_session: 0,
        item: None,
        properties: None,
        rendered: Rendered::default(),
    });
    // Its stored form is made here, as encoding would.
    publication.stored();
    let delivery = Delivery { row: 9, packet_id: 8, qos: Qos::AtLeastOnce, retain: true, dup: false, publication };
    let said = [
        Said::Answer(answer()),
        Said::Subscribed(4, vec![Ok(Qos::ExactlyOnce), Err(Reason::QUOTA)]),
        Said::Unsubscribed(5, vec![true, false]),
        Said::ReleaseAgain(6, 7),
        Said::Deliver(delivery),
    ];
    let others = [ToLink::Attached(true, vec![1, 65_535]), ToLink::Refused(Reason::QUOTA), ToLink::Close(Reason::BUSY)];
    said.into_iter().map(ToLink::Said).chain(others).collect()
}

#[test]
fn what_is_said_is_heard() {
    for word in to_seat() {
        let heard = ToSeat::decode(word.encode()).unwrap_or_else(|| panic!("{word:?}"));
        assert_eq!(format!("{heard:?}"), format!("{word:?}"));
    }
    for word in to_link() {
        let heard = ToLink::decode(word.encode()).unwrap_or_else(|| panic!("{word:?}"));
        if let ToLink::Said(Said::Deliver(delivery)) = &heard {
            delivery.publication.stored();
        }
        assert_eq!(format!("{heard:?}"), format!("{word:?}"));
    }
}

proptest! {
    #[test]
    fn no_bytes_bring_anybody_down(bytes: Vec<u8>, kind in 0u8..4, cut in 0usize..60, flip: u8) {
        let bytes = [&[kind], &bytes[..]].concat();
        let _ = (ToSeat::decode(bytes.clone().into()), ToLink::decode(bytes.into()));
        for good in to_seat().iter().map(ToSeat::encode).chain(to_link().iter().map(ToLink::encode)) {
            let mut bad = good.to_vec();
            let at = cut % bad.len();
            bad[at] ^= flip;
            let _ = (ToSeat::decode(bad.clone().into()), ToLink::decode(bad.clone().into()));
            bad.truncate(at);
            let _ = (ToSeat::decode(bad.clone().into()), ToLink::decode(bad.into()));
        }
    }
}
