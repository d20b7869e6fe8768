//! Dialogues of CoAP clients with topics in virtual time: a pump publishes over the core, a lamp is a CoAP client.

use super::*;
use crate::block::Block;
use crate::datagram::Datagram;
use std::net::SocketAddr;
use std::task::Waker;
use tavi_core::FakeClock;
use tavi_core::permit::Grant;
use tavi_store::{IdSource, MemoryStore, SharedStore};

const PLACE: &str = "d/1/up/temp";
const LAMP: ([u8; 4], u16) = ([127, 0, 0, 1], 40_000);

struct World {
    service: Service,
    store: Arc<MemoryStore>,
    seams: Seams,
    clock: Arc<FakeClock>,
    now: Instant,
    lamp: SocketAddr,
    next_id: u16,
}

async fn world(grants: &str) -> World {
    world_over(MemoryStore::default(), grants).await
}

async fn world_over(store: MemoryStore, grants: &str) -> World {
    let store = Arc::new(store);
    let shared: SharedStore = store.clone();
    let clock = Arc::new(FakeClock::at(1_760_000_000_000));
    let permit = Arc::new(Permit::load(shared.clone()).await.unwrap());
    if !grants.is_empty() {
        drop(permit.add(Grant::new(1, "anon-clear", grants.parse().unwrap(), "d/1/#").unwrap()));
        store.release_all();
    }
    let ids = Arc::new(IdSource::new(0, 0));
    let topics = Arc::new(Topics::load(shared.clone(), permit.clone(), ids, clock.clone()).await.unwrap());
    let seams = Seams { topics, store: shared, permit, metrics: Arc::default(), clock: clock.clone() };
    let service = Service::new(seams.clone(), Limits::default(), 1);
    World { service, store, seams, clock, now: Instant::now(), lamp: LAMP.into(), next_id: 0 }
}

impl World {
    /// A confirmable request for a topic under `/t/`, with a fresh id and a token of that id.
    fn request(&mut self, code: Code, topic: &str) -> Datagram {
        self.next_id += 1;
        let mut message = Datagram::new(Kind::Confirmable, code);
        message.id = self.next_id;
        message.set_token(Token::new(&self.next_id.to_be_bytes()));
        message.add(option::URI_PATH, b"t");
        topic.split('/').for_each(|level| message.add(option::URI_PATH, level.as_bytes()));
        message
    }

    fn get(&mut self) -> Datagram {
        self.request(Code::GET, PLACE)
    }

    fn put(&mut self, body: &[u8]) -> Datagram {
        let mut message = self.request(Code::PUT, PLACE);
        message.set_payload(body);
        message
    }

    fn observe(&mut self, number: u64) -> Datagram {
        let mut message = self.get();
        message.add_uint(option::OBSERVE, number);
        message
    }

    /// The lamp sends, the core works, the lamp hears the next datagram.
    fn asks(&mut self, message: &Datagram) -> Datagram {
        self.sends(message);
        self.hears().expect("an answer")
    }

    fn sends(&mut self, message: &Datagram) {
        self.service.receive(self.now, self.lamp, &message.encode());
        self.core_works();
    }

    fn hears(&mut self) -> Option<Datagram> {
        let transmit = self.service.poll_transmit()?;
        assert_eq!(transmit.to, PeerId::Udp(self.lamp));
        Some(Datagram::decode(&transmit.bytes).unwrap())
    }

    /// The lamp hears a notification and acknowledges it if that is wanted.
    fn hears_and_acknowledges(&mut self) -> Datagram {
        let message = self.hears().expect("a notification");
        if message.kind == Kind::Confirmable {
            self.sends(&Datagram::empty(Kind::Acknowledgement, message.id));
        }
        message
    }

    fn core_works(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        while self.service.poll_core(self.now, &mut cx).is_ready() {}
    }

    fn passes(&mut self, time: Duration) {
        self.now += time;
        self.clock.advance(time.as_millis() as u64);
        self.service.tick(self.now);
        self.core_works();
    }

    /// The pump publishes past the access model.
    fn pump(&mut self, draft: Draft) {
        let who = Principal::Device("1@things.localhost".parse().unwrap());
        let mut ticket = self.seams.topics.publish_unasked(&who, Draft { topic: PLACE.into(), ..draft });
        self.store.release_all();
        let done = ticket.poll_done(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(done, Poll::Ready(Ok(()))));
        self.core_works();
    }

    fn pumps(&mut self, body: &[u8]) {
        let payload = Bytes::copy_from_slice(body);
        self.pump(Draft { payload, content_type: Some("application/json".into()), ..Draft::default() });
    }
}

#[tokio::test]
async fn the_last_value_is_read_with_its_format_and_tag() {
    let mut w = world("retrieve").await;
    let get = w.get();
    assert_eq!(w.asks(&get).code(), Code::NOT_FOUND);
    w.pump(Draft { payload: "old".into(), retain: true, ..Draft::default() });
    w.pumps(b"{\"t\":21}");
    let mut get = w.get();
    let answer = w.asks(&get);
    assert_eq!(
        (answer.code(), answer.payload()),
        (Code::CONTENT, &b"{\"t\":21}"[..]),
        "the newer one, not the retained"
    );
    assert_eq!((answer.uint(option::CONTENT_FORMAT), answer.uint(option::MAX_AGE)), (Some(50), Some(0)));
    get.add(option::ETAG, answer.value(option::ETAG).unwrap());
    get.id = 900;
    assert_eq!(w.asks(&get).code(), Code::VALID);
}

#[tokio::test]
async fn no_cache_keeps_an_answer_for_longer_than_it_holds() {
    let mut w = world("retrieve,subscribe").await;
    let get = w.get();
    let none = w.asks(&get);
    assert_eq!((none.code(), none.uint(option::MAX_AGE)), (Code::NOT_FOUND, Some(0)), "it may come at any moment");
    let properties = tavi_core::Properties { expires_ms: Some(w.seams.clock.now_ms() + 9_000), ..Default::default() };
    w.pump(Draft { payload: "1".into(), properties: Some(Box::new(properties)), ..Draft::default() });
    let mut xml = w.get();
    xml.add_uint(option::ACCEPT, 41);
    let refused = w.asks(&xml);
    assert_eq!((refused.code(), refused.uint(option::MAX_AGE)), (Code::NOT_ACCEPTABLE, Some(0)));
    let observe = w.observe(0);
    assert_eq!(w.asks(&observe).uint(option::MAX_AGE), Some(9), "the value expires sooner than the next notification");
    w.passes(Duration::from_secs(4));
    let properties = tavi_core::Properties { expires_ms: Some(w.seams.clock.now_ms() + 2_000), ..Default::default() };
    w.pump(Draft { payload: "2".into(), properties: Some(Box::new(properties)), ..Draft::default() });
    assert_eq!(w.hears_and_acknowledges().uint(option::MAX_AGE), Some(2));
    w.pump(Draft { change: Change::Clear, ..Draft::default() });
    let end = w.hears_and_acknowledges();
    assert_eq!((end.code(), end.uint(option::MAX_AGE)), (Code::NOT_FOUND, Some(0)));
}

#[tokio::test]
async fn a_put_is_kept_and_a_delete_takes_it_away() {
    let mut w = world("retrieve,publish,delete").await;
    let mut put = w.put(b"on");
    put.add_uint(option::CONTENT_FORMAT, 0);
    assert_eq!(w.asks(&put).code(), Code::CREATED);
    let kept = w.seams.topics.retained(PLACE).pop().unwrap();
    assert_eq!((&*kept.payload, kept.content_type.as_deref()), (&b"on"[..], Some("text/plain;charset=utf-8")));
    assert_eq!(
        (kept.qos, kept.retain, kept.from.clone()),
        (Qos::AtLeastOnce, true, Principal::Anon { loopback: true })
    );
    let empty = w.put(b"");
    assert_eq!(w.asks(&empty).code(), Code::CHANGED, "an empty value is a value");
    let get = w.get();
    assert_eq!((w.asks(&get).code(), w.seams.topics.retained(PLACE).len()), (Code::CONTENT, 1));
    let delete = w.request(Code::DELETE, PLACE);
    assert_eq!(w.asks(&delete).code(), Code::DELETED);
    let get = w.get();
    assert_eq!(w.asks(&get).code(), Code::NOT_FOUND);
}

#[tokio::test]
async fn strangers_are_refused_whether_or_not_there_is_a_value() {
    let mut w = world("").await;
    let missing = w.get();
    let before = w.asks(&missing);
    w.pumps(b"1");
    let there = w.get();
    let after = w.asks(&there);
    assert_eq!((before.code(), before.payload()), (Code::UNAUTHORIZED, &b""[..]));
    assert_eq!((after.code(), after.payload()), (Code::UNAUTHORIZED, &b""[..]));
    for code in [Code::PUT, Code::POST, Code::DELETE] {
        let write = w.request(code, PLACE);
        assert_eq!(w.asks(&write).code(), Code::UNAUTHORIZED);
    }
    let observe = w.observe(0);
    assert_eq!(w.asks(&observe).code(), Code::UNAUTHORIZED);
    assert_eq!(w.seams.topics.counts().0, 0, "no subscription is left behind");
    assert_eq!(w.seams.metrics.messages(Protocol::Coap, Outcome::Refused).get(), 6);
}

#[tokio::test]
async fn the_grant_counts_on_this_machine_only() {
    let mut w = world("retrieve").await;
    w.pumps(b"1");
    for (peer, code) in [
        ("[::1]:5", Code::CONTENT),
        ("[::ffff:127.0.0.1]:5", Code::CONTENT),
        ("192.0.2.1:5", Code::UNAUTHORIZED),
        ("[2001:db8::1]:5", Code::UNAUTHORIZED),
    ] {
        w.lamp = peer.parse().unwrap();
        let get = w.get();
        assert_eq!(w.asks(&get).code(), code, "{peer}");
    }
}

#[tokio::test]
async fn an_answer_to_a_put_waits_for_the_store_and_an_acknowledgement_goes_first() {
    let mut w = world_over(MemoryStore::delayed(), "publish").await;
    let put = w.put(b"on");
    w.sends(&put);
    assert_eq!(w.hears(), None, "nothing is acknowledged before it is durable");
    w.passes(crate::exchange::PIGGYBACK_DELAY);
    let acknowledgement = w.hears().unwrap();
    assert_eq!((acknowledgement.kind, acknowledgement.code()), (Kind::Acknowledgement, Code::EMPTY));
    assert!(w.seams.topics.retained(PLACE).is_empty());
    w.store.release_all();
    w.core_works();
    let response = w.hears_and_acknowledges();
    assert_eq!((response.kind, response.code(), response.token()), (Kind::Confirmable, Code::CREATED, put.token()));
    assert_eq!(w.seams.topics.retained(PLACE).len(), 1);
    w.passes(Duration::from_secs(100));
    assert_eq!(w.hears(), None, "it was acknowledged, so it is not repeated");
}

#[tokio::test]
async fn a_put_that_arrives_twice_is_published_once() {
    let mut w = world_over(MemoryStore::delayed(), "publish").await;
    let put = w.put(b"on");
    w.sends(&put);
    w.sends(&put);
    assert_eq!(w.store.waiting(), 1);
    w.store.release_all();
    w.core_works();
    let first = w.hears();
    w.sends(&put);
    assert_eq!((w.store.waiting(), w.hears()), (0, first));
    assert_eq!(w.hears(), None);
}

#[tokio::test]
async fn a_failed_save_is_no_success() {
    let mut w = world_over(MemoryStore::delayed(), "publish").await;
    let put = w.put(b"on");
    w.sends(&put);
    w.store.refuse(StoreError::Unavailable("full".into()));
    w.core_works();
    let answer = w.hears().unwrap();
    assert_eq!((answer.code(), answer.uint(option::MAX_AGE)), (Code::UNAVAILABLE, Some(5)));
    assert!(w.seams.topics.retained(PLACE).is_empty());
}

#[tokio::test]
async fn an_observer_sees_the_value_and_the_next_ones_until_it_says_stop() {
    let mut w = world("retrieve,subscribe").await;
    w.pumps(b"1");
    let observe = w.observe(0);
    let first = w.asks(&observe);
    assert_eq!((first.code(), first.payload()), (Code::CONTENT, &b"1"[..]));
    let mut number = first.uint(option::OBSERVE).unwrap();
    for body in [b"2", b"3", b"4"] {
        w.pumps(body);
        let seen = w.hears_and_acknowledges();
        assert_eq!((seen.code(), seen.payload(), seen.token()), (Code::CONTENT, &body[..], observe.token()));
        assert!(seen.uint(option::OBSERVE).unwrap() > number);
        number = seen.uint(option::OBSERVE).unwrap();
        w.passes(Duration::from_millis(50));
    }
    let mut stop = w.observe(1);
    stop.set_token(observe.token());
    let last = w.asks(&stop);
    assert_eq!((last.code(), last.uint(option::OBSERVE)), (Code::CONTENT, None));
    w.pumps(b"5");
    assert_eq!((w.hears(), w.seams.topics.counts().0), (None, 0));
}

#[tokio::test]
async fn a_lost_notification_is_repeated_and_followed_by_the_newest_value() {
    let mut w = world("retrieve,subscribe").await;
    w.pumps(b"1");
    let observe = w.observe(0);
    w.asks(&observe);
    w.pumps(b"2");
    let lost = w.hears().unwrap();
    w.pumps(b"3");
    w.pumps(b"4");
    assert_eq!(w.hears(), None);
    w.passes(Duration::from_secs(3));
    assert_eq!(w.hears(), Some(lost.clone()));
    w.sends(&Datagram::empty(Kind::Acknowledgement, lost.id));
    assert_eq!(w.hears().unwrap().payload(), b"4");
    assert_eq!(w.hears(), None);
}

#[tokio::test]
async fn a_reset_ends_the_observation_and_the_subscription() {
    let mut w = world("retrieve,subscribe").await;
    w.pumps(b"1");
    let observe = w.observe(0);
    w.asks(&observe);
    assert_eq!(w.seams.topics.counts().0, 1);
    w.pumps(b"2");
    let unwanted = w.hears().unwrap();
    w.sends(&Datagram::empty(Kind::Reset, unwanted.id));
    w.pumps(b"3");
    w.passes(Duration::from_secs(200));
    assert_eq!((w.hears(), w.seams.topics.counts().0), (None, 0));
}

#[tokio::test]
async fn an_observer_that_went_away_is_given_up() {
    let mut w = world("retrieve,subscribe").await;
    w.pumps(b"1");
    let observe = w.observe(0);
    w.asks(&observe);
    w.pumps(b"2");
    let mut copies = 0;
    for _ in 0..120 {
        copies += usize::from(w.hears().is_some());
        w.passes(Duration::from_secs(1));
    }
    assert_eq!((copies, w.seams.topics.counts().0), (5, 0));
}

#[tokio::test]
async fn a_delete_ends_the_observation_with_not_found() {
    let mut w = world("retrieve,subscribe,delete").await;
    w.pumps(b"1");
    let observe = w.observe(0);
    w.asks(&observe);
    w.pump(Draft { change: Change::Clear, ..Draft::default() });
    let end = w.hears_and_acknowledges();
    assert_eq!((end.code(), end.token(), end.value(option::OBSERVE)), (Code::NOT_FOUND, observe.token(), None));
    assert_eq!(w.seams.topics.counts().0, 0);
}

#[tokio::test]
async fn a_permission_that_is_taken_away_ends_the_observation_within_a_second() {
    let mut w = world("retrieve,subscribe").await;
    w.pumps(b"1");
    let observe = w.observe(0);
    w.asks(&observe);
    drop(w.seams.permit.remove(|_| true));
    w.pumps(b"2");
    assert_eq!(w.hears(), None, "at once no value goes out");
    w.passes(PERMISSION_CHECK);
    assert_eq!(w.hears_and_acknowledges().code(), Code::UNAUTHORIZED);
    assert_eq!(w.seams.topics.counts().0, 0);
}

#[tokio::test]
async fn a_second_observer_is_asked_for_its_permission_too() {
    let mut w = world("retrieve,subscribe").await;
    w.pumps(b"1");
    let observe = w.observe(0);
    w.asks(&observe);
    drop(w.seams.permit.remove(|_| true));
    drop(w.seams.permit.add(Grant::new(2, "anon-clear", "retrieve".parse().unwrap(), "d/1/#").unwrap()));
    let second = w.observe(0);
    assert_eq!(w.asks(&second).code(), Code::UNAUTHORIZED);
}

#[tokio::test]
async fn an_observation_that_is_not_begun_leaves_no_subscription() {
    let mut w = world("retrieve,subscribe").await;
    let nothing_there = w.observe(0);
    assert_eq!(w.asks(&nothing_there).code(), Code::NOT_FOUND);
    assert_eq!(w.seams.topics.counts().0, 0);
    w.pumps(b"1");
    let mut other_format = w.observe(0);
    other_format.add_uint(option::ACCEPT, 60);
    assert_eq!(w.asks(&other_format).code(), Code::NOT_ACCEPTABLE);
    assert_eq!(w.seams.topics.counts().0, 0);
}

#[tokio::test]
async fn beyond_the_bound_an_observation_is_an_ordinary_get() {
    let mut w = world("retrieve,subscribe").await;
    w.pumps(b"1");
    for _ in 0..64 {
        let observe = w.observe(0);
        assert!(w.asks(&observe).value(option::OBSERVE).is_some());
    }
    let observe = w.observe(0);
    let answer = w.asks(&observe);
    assert_eq!((answer.code(), answer.value(option::OBSERVE)), (Code::CONTENT, None));
}

#[tokio::test]
async fn a_large_body_is_read_block_by_block_and_a_change_midway_shows_in_the_tag() {
    let mut w = world("retrieve").await;
    let body: Vec<u8> = (0..50_000u32).map(|n| (n / 7) as u8).collect();
    w.pumps(&body);
    let read = |w: &mut World, number: u32| {
        let mut get = w.get();
        get.add_uint(option::BLOCK2, Block { number, ..Block::FIRST }.emit());
        w.asks(&get)
    };
    let get = w.get();
    let first = w.asks(&get);
    assert_eq!((first.payload().len(), first.uint(option::SIZE2)), (1024, Some(50_000)));
    let tag = first.value(option::ETAG).unwrap().to_vec();
    let mut whole = first.payload().to_vec();
    for number in 1..49 {
        let part = read(&mut w, number);
        assert_eq!(part.value(option::ETAG), Some(tag.as_slice()));
        whole.extend_from_slice(part.payload());
        assert_eq!(Block::parse(part.value(option::BLOCK2).unwrap()).unwrap().more, number < 48);
    }
    assert_eq!(whole, body);

    w.pumps(&body[1..]);
    let changed = read(&mut w, 20);
    assert_eq!(changed.code(), Code::CONTENT);
    assert_ne!(changed.value(option::ETAG), Some(tag.as_slice()), "the reader sees that it must begin again");
    w.pumps(b"short");
    assert_eq!(read(&mut w, 20).code(), Code::BAD_REQUEST);
}

#[tokio::test]
async fn a_large_value_is_notified_by_its_first_block() {
    let mut w = world("retrieve,subscribe").await;
    w.pumps(b"1");
    let observe = w.observe(0);
    w.asks(&observe);
    w.pumps(&[7; 3000]);
    let seen = w.hears_and_acknowledges();
    assert_eq!((seen.payload().len(), seen.uint(option::SIZE2)), (1024, Some(3000)));
    assert!(Block::parse(seen.value(option::BLOCK2).unwrap()).unwrap().more);
}

#[tokio::test]
async fn the_list_names_what_the_asker_may_retrieve() {
    let mut w = world("retrieve").await;
    w.pump(Draft {
        payload: "{}".into(),
        retain: true,
        content_type: Some("application/json".into()),
        ..Draft::default()
    });
    let secret = Draft { topic: "u/juliet/diary".into(), payload: "x".into(), retain: true, ..Draft::default() };
    let mut ticket = w.seams.topics.publish_unasked(&Principal::Anon { loopback: true }, secret);
    assert!(ticket.poll_done(&mut Context::from_waker(Waker::noop())).is_ready());
    let mut get = Datagram::new(Kind::Confirmable, Code::GET);
    get.add(option::URI_PATH, b".well-known");
    get.add(option::URI_PATH, b"core");
    let list = w.asks(&get);
    assert_eq!(list.payload(), b"</t/d/1/up/temp>;rt=\"tavi.topic\";obs;ct=50");
    assert_eq!(list.uint(option::CONTENT_FORMAT), Some(40));
    get.add(option::URI_QUERY, b"rt=oic.*");
    get.id = 2;
    assert_eq!(w.asks(&get).payload(), b"");
    w.lamp = "192.0.2.1:5".parse().unwrap();
    assert_eq!(w.asks(&get).code(), Code::UNAUTHORIZED);
}

#[tokio::test]
async fn while_the_store_has_no_room_a_write_is_told_to_come_again_and_nothing_is_begun() {
    let mut w = world("retrieve,publish,delete").await;
    w.store.set_room(false);
    let put = w.put(b"1");
    let busy = w.asks(&put);
    assert_eq!((busy.code(), busy.uint(option::MAX_AGE)), (Code::UNAVAILABLE, Some(1)));
    let get = w.get();
    assert_eq!(w.asks(&get).code(), Code::NOT_FOUND, "reads are served");
    w.store.set_room(true);
    let put = w.put(b"1");
    assert_eq!(w.asks(&put).code(), Code::CREATED);
}

#[tokio::test]
async fn a_peer_s_write_is_answered_though_another_s_is_still_being_saved() {
    let mut w = world_over(MemoryStore::delayed(), "retrieve,publish").await;
    let put = w.put(b"1");
    w.sends(&put);
    let first = w.store.waiting();
    let lamp = w.lamp;
    w.lamp = ([127, 0, 0, 1], 40_001).into();
    let mut other = w.request(Code::PUT, "d/1/up/other");
    other.set_payload(b"2");
    w.sends(&other);
    assert!(w.store.waiting() > first && w.hears().is_none());
    while w.store.waiting() > first {
        w.store.release_at(first);
    }
    w.core_works();
    let answer = w.hears().expect("the second peer's answer");
    assert_eq!((answer.code(), answer.token()), (Code::CREATED, other.token()));
    w.lamp = lamp;
    w.store.release_all();
    w.core_works();
    assert_eq!(w.hears().expect("the first peer's answer").token(), put.token());
}

#[tokio::test]
async fn observers_are_told_when_the_broker_stops() {
    let mut w = world("retrieve,subscribe").await;
    w.pumps(b"1");
    let observe = w.observe(0);
    w.asks(&observe);
    w.service.end_observations(w.now);
    let end = w.hears().unwrap();
    assert_eq!((end.kind, end.code(), end.token()), (Kind::NonConfirmable, Code::UNAVAILABLE, observe.token()));
    assert_eq!(w.seams.topics.counts().0, 0);
    let metrics = w.seams.metrics.clone();
    w.service.close();
    assert_eq!(metrics.connections(Protocol::Coap).get(), 0);
}

#[path = "loss_tests.rs"]
mod loss;

#[tokio::test]
async fn who_keeps_as_much_as_one_may_keep_is_told_so() {
    let mut w = world("publish,retrieve").await;
    w.seams.topics.set_quota(tavi_core::topics::Quota { topics: 0, bytes: 10_000 });
    // A short request gets no long answer (RFC 7252 §11.3).
    let write = w.put(&[b'x'; 200]);
    let answer = w.asks(&write);
    assert_eq!(answer.code(), Code::TOO_LARGE);
    let text = String::from_utf8_lossy(answer.payload());
    assert!(text.contains("retained_topics"), "{text}");
}

#[tokio::test]
async fn a_list_of_what_is_mostly_expired_says_where_it_goes_on() {
    let mut w = world("retrieve").await;
    let names = (0..3_000).map(|n| (format!("d/1/gone/{n:04}"), Some(1)));
    for (topic, expires_ms) in names.chain([(PLACE.to_owned(), None)]) {
        let properties = tavi_core::Properties { expires_ms, ..tavi_core::Properties::default() };
        let properties = Some(Box::new(properties));
        let draft = Draft { topic: topic.into(), retain: true, properties, ..Draft::default() };
        let ticket = w.seams.topics.publish_unasked(&Principal::Anon { loopback: false }, draft);
        ticket.complete().await.unwrap();
    }
    let (mut after, mut requests) = (String::new(), 0);
    let list = loop {
        w.next_id += 1;
        let mut request = Datagram::new(Kind::Confirmable, Code::GET);
        request.id = w.next_id;
        request.set_token(Token::new(&w.next_id.to_be_bytes()));
        request.add(option::URI_PATH, b".well-known");
        request.add(option::URI_PATH, b"core");
        if !after.is_empty() {
            request.add(option::URI_QUERY, format!("after={after}").as_bytes());
        }
        let list = String::from_utf8(w.asks(&request).payload().to_vec()).unwrap();
        requests += 1;
        match list.split_once("core?after=") {
            Some((_, next)) => after = next.split_once('>').unwrap().0.to_owned(),
            None => break list,
        }
    };
    assert!((2..=10).contains(&requests) && list.starts_with("</t/d/1/"), "{requests} {list}");
}
