//! The codec guard: good packets against the crate's own encoder, bad ones one by one, and arbitrary bytes.
#![allow(missing_docs)]

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use rumqttd::protocol::{self as wire, Protocol};
use tavi_mqtt::Fault;
use tavi_mqtt::codec::{Codec, fuzz_codec};
use tavi_mqtt::packet::{Body, Packet, PublishProperties, Qos, Reason, Version};
use tavi_mqtt::publish::{self, Head};

const CONNECT4: &[u8] = b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01p";
const CONNECT5: &[u8] = b"\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01p";

fn codec(connect: &[u8]) -> Codec {
    let mut codec = Codec::new(1 << 16);
    let (packet, used) = codec.decode(connect).unwrap().unwrap();
    assert!(matches!(packet, Packet::Connect(_)));
    assert_eq!(used, connect.len());
    codec
}

fn decode(connect: &[u8], packet: &[u8]) -> Result<Packet, Fault> {
    let (packet, used) = codec(connect).decode(packet)?.expect("a whole packet");
    assert!(used > 0);
    Ok(packet)
}

#[test]
fn a_connect_with_everything_comes_through() {
    let connect = wire::Connect { keep_alive: 30, client_id: "pump".into(), clean_session: false };
    let properties = wire::ConnectProperties {
        session_expiry_interval: Some(600),
        receive_maximum: Some(7),
        max_packet_size: Some(5000),
        topic_alias_max: Some(3),
        request_response_info: Some(0),
        request_problem_info: Some(1),
        user_properties: vec![("a".into(), "b".into()), ("a".into(), "c".into())],
        authentication_method: None,
        authentication_data: None,
    };
    let will = wire::LastWill {
        topic: Bytes::from_static(b"d/pump/up/gone"),
        message: Bytes::from_static(b"\0\xff"),
        qos: wire::QoS::AtLeastOnce,
        retain: true,
    };
    let will_properties = wire::LastWillProperties {
        delay_interval: Some(5),
        payload_format_indicator: Some(0),
        message_expiry_interval: Some(60),
        content_type: Some("text/plain".into()),
        response_topic: Some("answers".into()),
        correlation_data: Some(Bytes::from_static(&[1, 2])),
        user_properties: vec![("x".into(), "y".into())],
    };
    let login = wire::Login { username: "pump".into(), password: "secret".into() };
    let mut out = BytesMut::new();
    wire::v5::V5
        .write(
            wire::Packet::Connect(connect, Some(properties), Some(will), Some(will_properties), Some(login)),
            &mut out,
        )
        .unwrap();
    let Ok(Some((Packet::Connect(connect), used))) = Codec::new(1 << 16).decode(&out) else { panic!() };
    assert_eq!(used, out.len());
    assert_eq!((connect.client_id.as_str(), connect.clean, connect.keep_alive), ("pump", false, 30));
    assert_eq!((connect.expiry, connect.receive_maximum, connect.maximum_packet), (600, 7, 5000));
    assert_eq!(
        (connect.user.as_deref(), connect.password.as_ref().map(|p| p.expose())),
        (Some("pump"), Some("secret"))
    );
    assert!(!format!("{connect:?}").contains("secret"));
    let will = connect.will.as_ref().unwrap();
    assert_eq!((will.qos, will.retain, will.delay), (Qos::AtLeastOnce, true, 5));
    assert_eq!((will.body.topic(), &will.body.payload()[..]), ("d/pump/up/gone", &b"\0\xff"[..]));
    assert_eq!(will.body.properties().content_type.as_deref(), Some(&b"text/plain"[..]));
}

#[test]
fn the_sessions_end_follows_from_version_and_clean_flag() {
    let expiry = |bytes: &[u8]| match Codec::new(999).decode(bytes) {
        Ok(Some((Packet::Connect(connect), _))) => connect.expiry,
        other => panic!("{other:?}"),
    };
    assert_eq!(expiry(CONNECT4), 0);
    assert_eq!(expiry(b"\x10\x0d\0\x04MQTT\x04\x00\0\x3c\0\x01p"), u32::MAX);
    assert_eq!(expiry(CONNECT5), 0);
}

#[test]
fn bad_connects_are_told_why() {
    let cases: &[(&[u8], Fault)] = &[
        (b"\x10\x0e\0\x06MQIsdp\x03\x02\0\x3c\0\0", Fault::Version(3)),
        (b"\x10\x0c\0\x04MQTT\x06\x02\0\x3c\0\0", Fault::Version(6)),
        (b"\x10\x0c\0\x04HTTP\x04\x02\0\x3c\0\0", Fault::Malformed("the protocol is not MQTT")),
        (b"\x10\x0c\0\x04MQTT\x04\x03\0\x3c\0\0", Fault::Malformed("reserved connect flag")),
        (b"\x10\x0c\0\x04MQTT\x04\x0a\0\x3c\0\0", Fault::Malformed("will flags without a will")),
        (b"\x10\x12\0\x04MQTT\x04\x1e\0\x3c\0\0\0\x01t\0\x01m", Fault::Malformed("will of QoS 3")),
        (b"\x10\x0f\0\x04MQTT\x04\x42\0\x3c\0\0\0\x01p", Fault::Malformed("password without user name")),
        (b"\x10\x12\0\x04MQTT\x04\xc2\0\x3c\0\0\0\x01u\0\x01\xff", Fault::PasswordNotText),
        (b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\0x", Fault::Malformed("bytes after the last field")),
        (b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01\0", Fault::Malformed("U+0000 in a string")),
        (b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01\xff", Fault::Malformed("a string is not UTF-8")),
        (b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x09x", Fault::Malformed("a field is cut")),
        // properties: of another packet, twice, out of its section, zero where zero is not allowed
        (b"\x10\x0f\0\x04MQTT\x05\x02\0\x3c\x02\x01\x00\0\0", Fault::Protocol("a property that does not belong here")),
        (b"\x10\x13\0\x04MQTT\x05\x02\0\x3c\x06\x21\0\x01\x21\0\x01\0\0", Fault::Protocol("a property twice")),
        (b"\x10\x10\0\x04MQTT\x05\x02\0\x3c\x02\x21\0\x01\0\0", Fault::Malformed("a field is cut")),
        (b"\x10\x10\0\x04MQTT\x05\x02\0\x3c\x03\x21\0\0\0\0", Fault::Protocol("receive maximum 0")),
        (b"\x10\x12\0\x04MQTT\x05\x02\0\x3c\x05\x27\0\0\0\0\0\0", Fault::Protocol("maximum packet size 0")),
        (b"\x10\x0f\0\x04MQTT\x05\x02\0\x3c\x02\x17\x02\0\0", Fault::Protocol("a flag that is neither 0 nor 1")),
        (
            b"\x10\x11\0\x04MQTT\x05\x02\0\x3c\x04\x16\0\x01x\0\0",
            Fault::Protocol("authentication data without a method"),
        ),
    ];
    for (bytes, fault) in cases {
        assert_eq!(Codec::new(999).decode(bytes).unwrap_err(), *fault, "{bytes:x?}");
    }
}

#[test]
fn only_a_connect_comes_first_and_only_once() {
    for first in [0x30u8, 0x82, 0xC0, 0xE0] {
        assert!(matches!(Codec::new(999).decode(&[first]), Err(Fault::Protocol(_))));
    }
    assert!(matches!(codec(CONNECT4).decode(CONNECT4), Err(Fault::Protocol("a second CONNECT"))));
    assert!(matches!(Codec::new(64).decode(b"\x10\x80\x01"), Err(Fault::TooLarge)));
}

#[test]
fn bad_packets_after_connect_are_told_why() {
    let both: &[(&[u8], Fault)] = &[
        (b"\x32\x05\0\x01a\0\0", Fault::Protocol("packet id 0")),
        (b"\x30\x03\0\x05a", Fault::Malformed("a field is cut")),
        (b"\x30\x04\0\x02\xc3\x28", Fault::Malformed("a string is not UTF-8")),
        (b"\x30\x05\0\x03\xed\xa0\x80", Fault::Malformed("a string is not UTF-8")),
        (b"\x30\x03\0\x01\0", Fault::Malformed("U+0000 in a string")),
        (b"\x40\x01\0", Fault::Malformed("a field is cut")),
        (b"\x40\x02\0\0", Fault::Protocol("packet id 0")),
        (b"\xc0\x01\0", Fault::Malformed("bytes after the last field")),
        (b"\x82\x02\0\x01", Fault::Protocol("SUBSCRIBE without a filter")),
    ];
    for (bytes, fault) in both {
        assert_eq!(decode(CONNECT4, bytes).unwrap_err(), *fault, "3.1.1 {bytes:x?}");
    }
    let old: &[(&[u8], Fault)] = &[
        (b"\x40\x03\0\x01\0", Fault::Malformed("bytes after the last field")),
        (b"\x82\x06\0\x01\0\x01a\x04", Fault::Malformed("reserved subscription options")),
        (b"\xa2\x02\0\x01", Fault::Protocol("UNSUBSCRIBE without a filter")),
        (b"\xe0\x01\0", Fault::Malformed("bytes after the last field")),
    ];
    for (bytes, fault) in old {
        assert_eq!(decode(CONNECT4, bytes).unwrap_err(), *fault, "3.1.1 {bytes:x?}");
    }
    let new: &[(&[u8], Fault)] = &[
        (b"\x30\x07\0\x01a\x03\x23\0\x01", Fault::TopicAlias),
        (b"\x30\x06\0\x01a\x02\x0b\x01", Fault::Protocol("a property that does not belong here")),
        (b"\x30\x08\0\x01a\x04\x08\0\x01#", Fault::Protocol("a response topic that is a filter")),
        (b"\x30\x04\0\x01a\x05", Fault::Malformed("a field is cut")),
        (b"\x30\x06\0\x01a\x82\x00\x01", Fault::Malformed("overlong length")),
        (b"\x30\x06\0\x01a\x02\x01\x02", Fault::Protocol("a flag that is neither 0 nor 1")),
        (b"\x40\x05\0\x01\0\x00x", Fault::Malformed("bytes after the last field")),
        (b"\x82\x07\0\x01\0\0\x01a\x30", Fault::Malformed("reserved subscription options")),
        (b"\x82\x09\0\x01\x02\x0b\x00\0\x01a\x00", Fault::Protocol("subscription identifier 0")),
        (b"\xe0\x04\0\x02\x01\x00", Fault::Protocol("a property that does not belong here")),
    ];
    for (bytes, fault) in new {
        assert_eq!(decode(CONNECT5, bytes).unwrap_err(), *fault, "5 {bytes:x?}");
    }
}

#[test]
fn subscriptions_keep_their_options() {
    let Ok(Packet::Subscribe(subscribe)) = decode(CONNECT5, b"\x82\x0a\0\x09\0\0\x04a/+b\x2e") else { panic!() };
    let options = subscribe.filters[0].options;
    assert_eq!((subscribe.packet_id, subscribe.filters[0].filter.as_str()), (9, "a/+b"));
    assert_eq!((options.qos, options.no_local, options.retain_as_published), (Qos::ExactlyOnce, true, true));
    let Ok(Packet::Subscribe(subscribe)) = decode(CONNECT5, b"\x82\x09\0\x09\x02\x0b\x07\0\x01a\x01") else { panic!() };
    assert!(subscribe.has_identifier);
    assert_eq!(subscribe.filters.len(), 1);
}

#[test]
fn disconnects_come_in_four_lengths() {
    for (bytes, reason, expiry) in [
        (&b"\xe0\x00"[..], 0, None),
        (b"\xe0\x01\x04", 4, None),
        (b"\xe0\x02\x04\x00", 4, None),
        (b"\xe0\x07\x00\x05\x11\0\0\0\x09", 0, Some(9)),
    ] {
        let Ok(Packet::Disconnect(disconnect)) = decode(CONNECT5, bytes) else { panic!("{bytes:x?}") };
        assert_eq!((disconnect.reason, disconnect.expiry), (Reason(reason), expiry));
    }
}

fn crate_decode(version: Version, packet: &[u8]) -> wire::Packet {
    let mut stream = BytesMut::from(packet);
    let decoded = match version {
        Version::V4 => wire::v4::V4.read_mut(&mut stream, packet.len()),
        Version::V5 => wire::v5::V5.read_mut(&mut stream, packet.len()),
    };
    decoded.expect("our own packet decodes")
}

fn properties() -> impl Strategy<Value = PublishProperties> {
    let text = "[a-zA-Z/é]{1,9}";
    let bytes = |s: String| Bytes::from(s);
    (
        any::<Option<bool>>(),
        any::<Option<u32>>(),
        proptest::option::of(text.prop_map(bytes)),
        proptest::option::of(text.prop_map(bytes)),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)),
        proptest::collection::vec((text.prop_map(bytes), text.prop_map(bytes)), 0..4),
    )
        .prop_map(|(utf8, expiry, content_type, response_topic, correlation, user)| PublishProperties {
            utf8,
            expiry,
            content_type,
            response_topic,
            correlation,
            user,
        })
}

/// A connection's packets, one of each kind that carries something.
fn good_stream(five: bool) -> Vec<u8> {
    let packets: &[&[u8]] = if five {
        &[
            CONNECT5,
            b"\x82\x0e\0\x09\x07\x26\0\x01a\0\x01b\0\x01a\x0e",
            b"\xa2\x06\0\x01\0\0\x01a",
            b"\x32\x0e\0\x01a\0\x05\x05\x02\0\0\0\x09pay",
            b"\xe0\x07\x00\x05\x11\0\0\0\x09",
        ]
    } else {
        &[
            CONNECT4,
            b"\x82\x06\0\x09\0\x01a\x02",
            b"\xa2\x05\0\x01\0\x01a",
            b"\x34\x06\0\x01a\0\x05p",
            b"\x62\x02\0\x05",
            b"\xe0\0",
        ]
    };
    packets.concat()
}

#[test]
fn the_good_streams_are_good() {
    for (five, count) in [(true, 5), (false, 6)] {
        let (mut codec, stream) = (Codec::new(4096), good_stream(five));
        let (mut at, mut packets) = (0, 0);
        while at < stream.len() {
            let (_, size) = codec.decode(&stream[at..]).expect("good").expect("whole");
            (at, packets) = (at + size, packets + 1);
        }
        assert_eq!((at, packets), (stream.len(), count));
    }
}

#[test]
fn a_stranger_is_refused_for_the_same_reason_however_its_bytes_are_cut() {
    fuzz_codec(b"\xa0\xc0\xfd\x2a\x54");
    fuzz_codec(b"\x80\xc0\xff\xff\xff\xff\xff");
}

/// MQTT 5.0 §1.5.5.
fn put_variable(out: &mut Vec<u8>, mut number: u32) {
    while number > 0x7F {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz_codec(&data);
    }

    #[test]
    fn arbitrary_bytes_after_a_connect_never_panic(
        five in any::<bool>(),
        cut in any::<u8>(),
        kinds in proptest::collection::vec((0u8..16, 0u8..16, proptest::collection::vec(any::<u8>(), 0..60)), 1..5),
    ) {
        let mut data = vec![cut];
        data.extend_from_slice(if five { CONNECT5 } else { CONNECT4 });
        for (kind, flags, body) in kinds {
            data.push(kind << 4 | flags);
            data.push(body.len() as u8);
            data.extend_from_slice(&body);
        }
        fuzz_codec(&data);
    }

    #[test]
    fn a_flipped_byte_in_a_good_packet_never_panics(at in 0usize..200, to in any::<u8>(), five in any::<bool>()) {
        let mut data = vec![77];
        data.extend(good_stream(five));
        let at = at % data.len();
        data[at] = to;
        fuzz_codec(&data);
    }

    #[test]
    fn our_publish_is_what_the_crate_reads(
        five in any::<bool>(),
        topic in "[a-z/é]{1,40}",
        payload in proptest::collection::vec(any::<u8>(), 0..400),
        properties in properties(),
        qos in 0u8..3,
        packet_id in 1u16..,
        identifiers in proptest::collection::vec(1u32..=268_435_455, 0..4),
    ) {
        let version = if five { Version::V5 } else { Version::V4 };
        let qos = Qos::from_u8(qos).unwrap();
        let shared = PublishProperties { expiry: None, ..properties.clone() };
        let shared = Body::encode(Version::V5, &topic, &shared, &payload);
        let (dup, expiry) = (qos != Qos::AtMostOnce, properties.expiry);
        let head = Head { dup, qos, retain: true, packet_id, version, expiry, identifiers: &[] };
        let mut out = Vec::new();
        publish::put(&mut out, shared.as_bytes(), head);
        prop_assert_eq!(out.len(), publish::packet_len(shared.as_bytes(), &head));

        let wire::Packet::Publish(publish, found) = crate_decode(version, &out) else { panic!() };
        prop_assert_eq!(&publish.topic[..], topic.as_bytes());
        prop_assert_eq!(&publish.payload[..], &payload[..]);
        prop_assert!(publish.retain);
        if five && properties != PublishProperties::default() {
            let found = found.unwrap();
            prop_assert_eq!(found.message_expiry_interval, properties.expiry);
            prop_assert_eq!(found.content_type.map(Bytes::from), properties.content_type.clone());
            prop_assert_eq!(found.correlation_data, properties.correlation.clone());
            prop_assert_eq!(found.user_properties.len(), properties.user.len());
        }

        // a receiver's subscription identifiers are added; the crate counts their bytes twice, and clients send none
        let head = Head { identifiers: &identifiers, ..head };
        let (mut more, mut own) = (Vec::new(), Vec::new());
        publish::put(&mut more, shared.as_bytes(), head);
        prop_assert_eq!(more.len(), publish::packet_len(shared.as_bytes(), &head));
        for identifier in identifiers.iter().filter(|_| five) {
            own.push(11);
            put_variable(&mut own, *identifier);
        }
        prop_assert!(more.len() >= out.len() + own.len() && more.ends_with(&payload));
        prop_assert!(own.is_empty() || more.windows(own.len()).any(|bytes| bytes == own));

        // and what we read ourselves is what we wrote, with the packet id that the crate hides
        let body = Body::encode(version, &topic, &properties, &payload);
        let connect = if five { CONNECT5 } else { CONNECT4 };
        let Ok(Packet::Publish(publish)) = decode(connect, &out) else { panic!() };
        prop_assert_eq!((publish.qos, publish.retain, publish.dup), (qos, head.retain, head.dup));
        prop_assert_eq!(publish.packet_id, if qos == Qos::AtMostOnce { 0 } else { packet_id });
        prop_assert_eq!(publish.body.payload(), body.payload());
        prop_assert_eq!(publish.body.properties(), body.properties());
        let again = Body::from_bytes(version, body.as_bytes().clone());
        prop_assert_eq!(again.as_ref(), Some(&body));
    }
}
