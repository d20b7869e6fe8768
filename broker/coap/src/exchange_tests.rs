//! Dialogues with the message layer in virtual time, with datagrams that get lost (RFC 7252 §4, §5).

use super::*;
use proptest::prelude::*;
use std::net::SocketAddr;

const PEER: ([u8; 4], u16) = ([127, 0, 0, 1], 40_000);

/// The layer with its clock. Each test says what arrives and sees what leaves.
struct Dialogue {
    layer: Exchanges,
    start: Instant,
    now: Instant,
    peer: SocketAddr,
}

impl Dialogue {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let start = Instant::now();
        Self { layer: Exchanges::new(limits, 7), start, now: start, peer: PEER.into() }
    }

    /// The peer sends; gives the request if it is a new one.
    fn hears(&mut self, message: &Datagram) -> Option<(Exchange, Message)> {
        self.hears_bytes(&message.encode())
    }

    fn hears_bytes(&mut self, datagram: &[u8]) -> Option<(Exchange, Message)> {
        self.layer.receive(self.now, self.peer, datagram);
        match self.layer.poll_event() {
            Some(Event::Request { exchange, message }) => Some((exchange, message)),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    fn request(&mut self, message: &Datagram) -> Exchange {
        self.hears(message).expect("a new request").0
    }

    fn answers(&mut self, exchange: Exchange, code: Code) {
        self.layer.respond(self.now, exchange, Message::new(code));
    }

    fn says(&mut self) -> Option<Datagram> {
        self.layer.poll_transmit().map(|transmit| Datagram::decode(&transmit.bytes).unwrap())
    }

    fn passes(&mut self, time: Duration) {
        self.now += time;
        self.layer.tick(self.now);
    }

    /// Goes to the next moment at which something is due; gives it as the time since the start.
    fn next_moment(&mut self) -> Duration {
        let at = self.layer.poll_timeout().expect("something is due");
        self.passes(at - self.now);
        at - self.start
    }
}

fn con(code: Code, id: u16) -> Datagram {
    let mut message = Datagram::new(Kind::Confirmable, code);
    message.id = id;
    message.set_token(Token::new(&[9, id as u8]));
    message
}

fn non(code: Code, id: u16) -> Datagram {
    let mut message = con(code, id);
    message.kind = Kind::NonConfirmable;
    message
}

fn head(message: Option<Datagram>) -> (Kind, Code, u16) {
    let message = message.expect("a message");
    (message.kind, message.code(), message.id)
}

const ACK: Kind = Kind::Acknowledgement;
const MS: Duration = Duration::from_millis(1);

#[test]
fn a_quick_answer_is_piggybacked() {
    let mut d = Dialogue::new();
    let get = d.request(&con(Code::GET, 1));
    d.answers(get, Code::CONTENT);
    let answer = d.says().unwrap();
    assert_eq!((answer.kind, answer.code(), answer.id), (ACK, Code::CONTENT, 1));
    assert_eq!(answer.token(), Token::new(&[9, 1]));
    assert_eq!(d.layer.peers(), 0, "a GET leaves nothing behind");
    assert_eq!(d.layer.poll_timeout(), None);
}

#[test]
fn a_slow_answer_is_acknowledged_first_and_follows_separately() {
    let mut d = Dialogue::new();
    let put = d.request(&con(Code::PUT, 1));
    assert_eq!(d.next_moment(), PIGGYBACK_DELAY);
    assert_eq!(head(d.says()), (ACK, Code::EMPTY, 1));
    // The acknowledgement was lost: the client repeats, and hears it again.
    assert!(d.hears(&con(Code::PUT, 1)).is_none());
    assert_eq!(head(d.says()), (ACK, Code::EMPTY, 1));

    d.answers(put, Code::CHANGED);
    let response = d.says().unwrap();
    assert_eq!((response.kind, response.code()), (Kind::Confirmable, Code::CHANGED));
    assert_eq!(response.token(), Token::new(&[9, 1]));
    assert!(d.hears(&con(Code::PUT, 1)).is_none(), "still the same request");
    assert_eq!(head(d.says()), (ACK, Code::EMPTY, 1));

    d.layer.receive(d.now, d.peer, &Datagram::empty(ACK, response.id).encode());
    assert!(matches!(d.layer.poll_event(), Some(Event::Acknowledged { round_trip: Some(_), .. })));
    d.passes(EXCHANGE_LIFETIME);
    assert_eq!((d.says(), d.layer.peers()), (None, 0));
}

#[test]
fn a_separate_response_is_repeated_with_growing_pauses_and_then_given_up() {
    let mut d = Dialogue::new();
    let put = d.request(&con(Code::GET, 1));
    d.passes(PIGGYBACK_DELAY);
    d.says();
    d.answers(put, Code::CONTENT);
    let first = d.says().unwrap();
    let mut moments = vec![d.now - d.start];
    for _ in 0..MAX_RETRANSMIT {
        moments.push(d.next_moment());
        assert_eq!(d.says(), Some(first.clone()), "the same bytes under the same id");
    }
    let pauses: Vec<_> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] >= ACK_TIMEOUT && pauses[0] <= ACK_TIMEOUT * 3 / 2, "{pauses:?}");
    assert!(pauses.windows(2).all(|pair| pair[1] == pair[0] * 2), "{pauses:?}");
    d.next_moment();
    assert!(matches!(d.layer.poll_event(), Some(Event::GaveUp { id, .. }) if id == first.id));
    assert_eq!(d.says(), None);
}

#[test]
fn the_round_trip_of_a_repeated_message_is_not_known() {
    let mut d = Dialogue::new();
    let id = d.layer.send(d.now, d.peer, (Kind::Confirmable, Message::new(Code::CONTENT)));
    d.next_moment();
    d.layer.receive(d.now, d.peer, &Datagram::empty(ACK, id).encode());
    assert!(matches!(d.layer.poll_event(), Some(Event::Acknowledged { round_trip: None, .. })));
}

#[test]
fn a_repeated_put_is_done_once_and_answered_alike() {
    let mut d = Dialogue::new();
    let put = con(Code::PUT, 5);
    let exchange = d.request(&put);
    assert!(d.hears(&put).is_none(), "while it is being done a repetition is silent");
    assert_eq!(d.says(), None);
    d.answers(exchange, Code::CHANGED);
    let answer = d.says();
    d.passes(Duration::from_secs(90));
    assert!(d.hears(&put).is_none());
    assert_eq!(d.says(), answer);
    d.passes(EXCHANGE_LIFETIME);
    assert!(d.hears(&put).is_some(), "after EXCHANGE_LIFETIME the id stands for a new message");
}

#[test]
fn another_request_under_the_same_id_is_a_new_request() {
    let mut d = Dialogue::new();
    let exchange = d.request(&con(Code::PUT, 5));
    d.answers(exchange, Code::CHANGED);
    d.says();
    let mut other = con(Code::PUT, 5);
    other.set_payload(b"a client that started anew on this port");
    let again = d.request(&other);
    d.answers(again, Code::CREATED);
    assert_eq!(head(d.says()), (ACK, Code::CREATED, 5));
    d.answers(exchange, Code::INTERNAL);
    assert_eq!(d.says(), None, "the former exchange is over");
}

#[test]
fn a_non_confirmable_request_gets_one_non_confirmable_answer() {
    let mut d = Dialogue::new();
    let post = d.request(&non(Code::POST, 8));
    d.passes(Duration::from_secs(1));
    assert_eq!(d.says(), None, "nothing to acknowledge");
    d.answers(post, Code::CHANGED);
    let answer = d.says().unwrap();
    assert_eq!((answer.kind, answer.code()), (Kind::NonConfirmable, Code::CHANGED));
    assert!(d.hears(&non(Code::POST, 8)).is_none());
    assert_eq!(d.says(), None);
}

#[test]
fn a_refused_put_is_not_remembered() {
    let mut d = Dialogue::new();
    let put = d.request(&con(Code::PUT, 1));
    d.answers(put, Code::UNAUTHORIZED);
    assert_eq!(head(d.says()), (ACK, Code::UNAUTHORIZED, 1));
    assert_eq!(d.layer.peers(), 0);
}

#[test]
fn a_ping_and_an_unasked_response_are_reset() {
    let mut d = Dialogue::new();
    assert!(d.hears(&Datagram::empty(Kind::Confirmable, 77)).is_none());
    assert_eq!(head(d.says()), (Kind::Reset, Code::EMPTY, 77));
    assert!(d.hears(&con(Code::CONTENT, 78)).is_none());
    assert_eq!(head(d.says()), (Kind::Reset, Code::EMPTY, 78));
    assert!(d.hears(&non(Code::CONTENT, 79)).is_none());
    assert_eq!(d.says(), None);
}

#[test]
fn malformed_datagrams_are_reset_or_ignored() {
    let mut d = Dialogue::new();
    assert!(d.hears_bytes(&[0x40, 1, 0, 9, 0xFF]).is_none());
    assert_eq!(head(d.says()), (Kind::Reset, Code::EMPTY, 9));
    for silent in [&[0x50, 1, 0, 9, 0xFF][..], &[0xC0, 1, 0, 9], &[], &[0x70, 0, 0, 9, 1]] {
        assert!(d.hears_bytes(silent).is_none());
        assert_eq!(d.says(), None);
    }
}

#[test]
fn nothing_is_sent_to_a_group_or_a_forged_address() {
    let mut d = Dialogue::new();
    for peer in ["224.0.1.187:5683", "255.255.255.255:5683", "0.0.0.0:5683", "127.0.0.1:0", "[ff02::fd]:5683"] {
        d.peer = peer.parse().unwrap();
        assert!(d.hears(&con(Code::GET, 1)).is_none());
        assert_eq!(d.says(), None, "{peer}");
    }
}

#[test]
fn unknown_critical_options_are_refused_and_elective_ones_ignored() {
    let mut d = Dialogue::new();
    let with = |number: u16, kind: Kind| {
        let mut message = con(Code::GET, number);
        message.kind = kind;
        message.add(option::URI_PATH, b"long enough");
        message.add(number, &[1]);
        message
    };
    assert!(d.hears(&with(2049, Kind::Confirmable)).is_none());
    let refusal = d.says().unwrap();
    assert_eq!((refusal.code(), refusal.token()), (Code::BAD_OPTION, Token::new(&[9, 1])));
    assert!(String::from_utf8_lossy(refusal.payload()).contains("2049"));
    assert!(d.hears(&with(2049, Kind::NonConfirmable)).is_none());
    assert_eq!(d.says(), None);
    assert!(d.hears(&with(2050, Kind::Confirmable)).is_some());
    assert!(d.hears(&with(option::PROXY_URI, Kind::Confirmable)).is_none());
    assert_eq!(d.says().unwrap().code(), Code::NO_PROXYING);
    let mut twice = with(option::ACCEPT, Kind::Confirmable);
    twice.add_uint(option::ACCEPT, 50);
    assert!(d.hears(&twice).is_none(), "RFC 7252 §5.4.5");
    assert_eq!(d.says().unwrap().code(), Code::BAD_OPTION);
    let mut long = con(Code::GET, 2);
    long.add(option::URI_PORT, &[1, 2, 3]);
    assert!(d.hears(&long).is_none(), "RFC 7252 §5.4.3");
    assert_eq!(d.says().unwrap().code(), Code::BAD_OPTION);
}

#[test]
fn a_peer_with_too_many_open_requests_is_told_to_wait_and_others_are_served() {
    let mut d = Dialogue::new();
    let open: Vec<_> = (0..64).map(|id| d.request(&con(Code::PUT, id))).collect();
    assert!(d.hears(&con(Code::PUT, 100)).is_none());
    let refusal = d.says().unwrap();
    assert_eq!((refusal.code(), refusal.uint(option::MAX_AGE)), (Code::UNAVAILABLE, Some(2)));
    d.peer.set_port(1);
    let other = d.request(&con(Code::PUT, 100));
    d.answers(other, Code::CHANGED);
    assert_eq!(d.says().unwrap().code(), Code::CHANGED);
    d.peer = PEER.into();
    d.answers(open[0], Code::CHANGED);
    assert!(d.hears(&con(Code::PUT, 100)).is_some());
}

#[test]
fn peers_that_acknowledge_nothing_cost_nobody_else() {
    let mut d = Dialogue::new();
    for port in 1..=5000 {
        d.peer.set_port(port);
        d.layer.send(d.now, d.peer, (Kind::Confirmable, Message::new(Code::CONTENT)));
    }
    d.peer = PEER.into();
    assert!(d.hears(&con(Code::GET, 1)).is_some());
}

#[test]
fn beyond_the_bound_of_separate_responses_they_go_out_once() {
    let mut d = Dialogue::with(Limits { separate: 1, ..Limits::default() });
    let both = [1, 2].map(|id| d.request(&con(Code::PUT, id)));
    d.passes(PIGGYBACK_DELAY);
    while d.says().is_some() {}
    let kinds = both.map(|exchange| {
        d.answers(exchange, Code::CHANGED);
        d.says().unwrap().kind
    });
    assert_eq!(kinds, [Kind::Confirmable, Kind::NonConfirmable]);
}

#[test]
fn a_flood_of_others_makes_no_repetition_run_again() {
    let mut d = Dialogue::with(Limits { answers_per_peer: 100, answers: 200, ..Limits::default() });
    let post = con(Code::POST, 7);
    let exchange = d.request(&post);
    d.answers(exchange, Code::CHANGED);
    for port in 1..=20 {
        d.peer.set_port(port);
        for id in 0..100 {
            let put = d.request(&con(Code::PUT, id));
            d.answers(put, Code::CHANGED);
            d.passes(MS);
        }
    }
    d.peer = PEER.into();
    assert!(d.hears(&post).is_none(), "it is a repetition still");
    assert_eq!(d.layer.answers.len(), 200);
}

#[test]
fn when_all_have_no_more_than_their_share_new_writes_are_refused_and_reads_served() {
    let mut d = Dialogue::with(Limits { answers: 40, ..Limits::default() });
    let put = |d: &mut Dialogue, port: u16, id: u16| {
        d.peer.set_port(port);
        let asked = d.hears(&con(Code::PUT, id));
        asked.map(|(exchange, _)| d.answers(exchange, Code::CHANGED)).is_some()
    };
    for port in 1..=10 {
        assert!((0..4).all(|id| put(&mut d, port, id)));
    }
    assert!(!put(&mut d, 11, 1));
    assert!((1..=10).all(|port| (0..4).all(|id| !put(&mut d, port, id))), "all are repetitions");
    assert!(d.hears(&con(Code::GET, 50)).is_some());
    d.passes(EXCHANGE_LIFETIME);
    assert!(put(&mut d, 11, 2));
}

#[test]
fn an_error_has_at_most_three_times_the_bytes_until_the_address_is_proven() {
    let mut d = Dialogue::new();
    let short = [0x40, 1, 0, 1, 0x90];
    assert!(d.hears_bytes(&short).is_none());
    let refusal = d.says().unwrap();
    assert_eq!((refusal.code(), refusal.payload()), (Code::BAD_OPTION, &b""[..]));
    let id = d.layer.send(d.now, d.peer, (Kind::Confirmable, Message::new(Code::CONTENT)));
    d.says();
    let open = d.request(&con(Code::PUT, 60));
    d.layer.receive(d.now, d.peer, &Datagram::empty(ACK, id).encode());
    assert!(matches!(d.layer.poll_event(), Some(Event::Acknowledged { .. })));
    assert!(d.hears_bytes(&short).is_none());
    assert_eq!(d.says().unwrap().payload(), b"option 9 is not supported here");
    d.answers(open, Code::CHANGED);
}

#[test]
fn what_is_remembered_is_bounded_for_each_peer_and_in_all() {
    let mut d = Dialogue::with(Limits { answers_per_peer: 10, answers: 25, ..Limits::default() });
    for port in 1..=5 {
        d.peer.set_port(port);
        for id in 0..100 {
            let put = d.request(&con(Code::PUT, id));
            d.answers(put, Code::CHANGED);
            d.passes(MS);
        }
    }
    let kept = |d: &Dialogue| d.layer.peers.values().map(|peer| peer.answers.len()).sum::<usize>();
    assert_eq!((kept(&d), d.layer.answers.len()), (25, 25));
    while d.says().is_some() {}
    assert!(d.hears(&con(Code::PUT, 99)).is_none(), "the newest is remembered");
    assert!(d.hears(&con(Code::PUT, 80)).is_some(), "the oldest is not");
    d.passes(EXCHANGE_LIFETIME + MS);
    assert_eq!((d.layer.peers(), d.layer.answers.len(), d.layer.open), (1, 0, 1));
}

#[test]
fn after_a_flood_from_many_ports_the_memory_returns() {
    let mut d = Dialogue::new();
    for port in 1..=60_000 {
        d.peer.set_port(port);
        let put = d.request(&con(Code::PUT, 1));
        d.answers(put, Code::CHANGED);
        d.says();
    }
    assert_eq!(d.layer.peers(), 60_000);
    d.passes(EXCHANGE_LIFETIME);
    assert_eq!((d.layer.peers(), d.layer.answers.len()), (0, 0));
    assert!(d.layer.peers.capacity() < 4 * KEPT_CAPACITY);
}

#[test]
fn ids_are_not_reused_towards_a_peer() {
    let mut d = Dialogue::new();
    let ids: std::collections::HashSet<u16> =
        (0..60_000).map(|_| d.layer.send(d.now, d.peer, (Kind::NonConfirmable, Message::new(Code::CONTENT)))).collect();
    assert_eq!(ids.len(), 60_000);
    assert_eq!(d.layer.peers(), 0);
}

proptest! {
    #[test]
    fn arbitrary_datagrams_never_panic_and_are_never_answered_at_length(datagram: Vec<u8>) {
        crate::fuzz_message(&datagram);
        let mut d = Dialogue::new();
        let asked = d.hears_bytes(&datagram);
        if let Some(transmit) = d.layer.poll_transmit() {
            prop_assert!(asked.is_none());
            prop_assert!(transmit.bytes.len() <= AMPLIFICATION * datagram.len());
        }
    }

    #[test]
    fn almost_messages_never_panic(
        first in 0x40u8..0x80, code: u8, rest in proptest::collection::vec(any::<u8>(), 0..64)
    ) {
        let mut datagram = vec![first, code, 1, 2];
        datagram.extend(rest);
        crate::fuzz_message(&datagram);
    }
}
