//! The session by itself: packets in, replies and steps out.

use super::*;
use crate::codec::Codec;

fn session(receive_maximum: u16) -> Session {
    let mut codec = Codec::new(1 << 16);
    let connect = b"\x10\x10\0\x04MQTT\x05\x02\0\x0a\x03\x21\0\x02\0\0";
    let Ok(Some((Packet::Connect(connect), _))) = codec.decode(connect) else { panic!("a bad CONNECT") };
    assert_eq!((connect.receive_maximum, connect.keep_alive), (2, 10));
    Session::new(&connect, Bounds { receive_maximum, in_flight: 10 }, &[], 1_000)
}

fn packet(bytes: &[u8]) -> Packet {
    let mut codec = Codec::new(1 << 16);
    // The version is known from CONNECT.
    codec.decode(b"\x10\x0d\0\x04MQTT\x05\x02\0\0\0\0\0").unwrap();
    codec.decode(bytes).unwrap().unwrap().0
}

fn receive(session: &mut Session, bytes: &[u8]) -> (Step, Vec<u8>) {
    let mut out = Vec::new();
    (session.receive(packet(bytes), 1_000, &mut out).unwrap(), out)
}

const PUBLISH: &[u8] = b"\x34\x07\0\x01a\0\x05\0v";

fn answer(session: &mut Session, answer: Answer) -> Vec<u8> {
    let mut out = Vec::new();
    session.answer(answer, &mut out);
    out
}

#[test]
fn a_qos_2_publish_that_comes_again_before_its_pubrec_is_neither_published_nor_answered_twice() {
    let mut session = session(10);
    assert!(matches!(receive(&mut session, PUBLISH).0, Step::Publish(_)));
    assert!(matches!(receive(&mut session, PUBLISH), (Step::Idle, out) if out.is_empty()));
    // A PUBREL that did not wait for PUBREC releases nothing.
    let (Step::Release(early), _) = receive(&mut session, b"\x62\x02\0\x05") else { panic!("a release") };
    assert!(early.is_failure());
    assert!(matches!(receive(&mut session, PUBLISH).0, Step::Idle));
    answer(&mut session, Answer::published(Qos::ExactlyOnce, 5, Reason::SUCCESS));
    assert!(matches!(receive(&mut session, PUBLISH).0, Step::Repeated(_)));
    let (Step::Release(release), _) = receive(&mut session, b"\x62\x02\0\x05") else { panic!("a release") };
    assert!(!release.is_failure());
    assert!(matches!(receive(&mut session, PUBLISH).0, Step::Publish(_)), "the id means another message");
}

#[test]
fn a_refused_qos_2_publish_gives_its_id_and_its_room_back() {
    let mut session = session(1);
    assert!(matches!(receive(&mut session, PUBLISH).0, Step::Publish(_)));
    let refused = Answer::published(Qos::ExactlyOnce, 5, Reason::NOT_AUTHORIZED);
    assert_eq!(answer(&mut session, refused), b"\x50\x03\0\x05\x87");
    assert!(matches!(receive(&mut session, PUBLISH).0, Step::Publish(_)), "MQTT 5.0 §4.3.3");
}

fn head(qos: Qos) -> Head<'static> {
    Head { dup: false, qos, retain: false, packet_id: 7, version: Version::V5, expiry: None, identifiers: &[] }
}

#[test]
fn a_pubrec_that_refuses_ends_the_exchange() {
    let mut session = session(10);
    let body = b"\0\x01a\0v";
    assert_eq!(session.deliver(body, head(Qos::ExactlyOnce), 42, &mut Vec::new()), Sent::Written);
    let (step, out) = receive(&mut session, b"\x50\x04\0\x07\x80\0");
    assert!(matches!(step, Step::Taken { row: 42 }) && out.is_empty(), "no PUBREL: {step:?} {out:?}");
    assert_eq!(session.in_flight(), 0);
}

#[test]
fn the_window_is_the_smaller_of_the_client_s_and_the_broker_s() {
    let mut session = session(10);
    for _ in 0..2 {
        assert!(session.has_room(Qos::AtLeastOnce));
        session.deliver(b"\0\x01a\0v", Head { packet_id: 0, ..head(Qos::AtLeastOnce) }, 0, &mut Vec::new());
    }
    assert!(!session.has_room(Qos::AtLeastOnce) && session.has_room(Qos::AtMostOnce));
}

#[test]
fn the_silence_of_a_client_that_is_not_read_begins_anew() {
    let mut session = session(10);
    assert_eq!(session.deadline_ms(), Some(16_000));
    assert!(session.check_alive(15_999).is_ok() && session.check_alive(16_000).is_err());
    session.is_not_read(9_000);
    assert_eq!(session.deadline_ms(), Some(24_000));
    assert!(session.check_alive(23_999).is_ok());
}
