//! A client over a link that loses, repeats and delays datagrams, in virtual time: each write is done once (RFC 7252 §4.2, §4.5).

use super::*;
use proptest::prelude::*;

/// One confirmable PUT of a client that follows RFC 7252 §4.2, over a link whose luck is `luck`.
struct Try<'a> {
    world: &'a mut World,
    luck: std::iter::Cycle<std::slice::Iter<'a, u8>>,
}

impl Try<'_> {
    fn arrives(&mut self) -> u8 {
        // 0: lost, 1: twice, else: once.
        match self.luck.next() {
            Some(0 | 1) => 0,
            Some(2) => 2,
            _ => 1,
        }
    }

    fn send(&mut self, message: &Datagram) {
        for _ in 0..self.arrives() {
            self.world.sends(message);
        }
    }

    /// What reaches the client of all that the server said; acknowledges what wants it.
    fn receive(&mut self, token: Token) -> (bool, Option<Code>) {
        let (mut acknowledged, mut answer) = (false, None);
        while let Some(message) = self.world.hears() {
            if self.arrives() == 0 {
                continue;
            }
            if message.kind == Kind::Confirmable {
                self.send(&Datagram::empty(Kind::Acknowledgement, message.id));
            }
            acknowledged |= message.kind == Kind::Acknowledgement;
            if message.code() != Code::EMPTY && message.token() == token {
                answer = Some(message.code());
            }
        }
        (acknowledged, answer)
    }

    fn put(&mut self, body: &[u8]) -> Option<Code> {
        let put = self.world.put(body);
        let (mut acknowledged, mut answer) = (false, None);
        let mut next_copy = 0;
        for second in 0..100u32 {
            if second == next_copy && !acknowledged && answer.is_none() && second < 45 {
                self.send(&put);
                next_copy = (next_copy + 1) * 2 + 1;
            }
            if self.luck.next().is_some_and(|luck| luck % 2 == 0) {
                self.world.store.release_all();
            }
            self.world.passes(Duration::from_secs(1));
            let (now_acknowledged, now_answer) = self.receive(put.token());
            acknowledged |= now_acknowledged;
            answer = answer.or(now_answer);
        }
        answer
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn each_write_is_done_at_most_once_and_what_is_answered_was_done(
        luck in proptest::collection::vec(0u8..8, 20..200)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut world = runtime.block_on(world_over(MemoryStore::delayed(), "publish,retrieve"));
        let log = Arc::new(Log { id: world.seams.topics.next_subscriber(), ..Log::default() });
        let reader: Arc<dyn Subscriber> = log.clone();
        world.seams.topics.restore(&reader, "d/1/#", SubOptions::default());
        drop(world.seams.permit.add(Grant::new(2, "log@localhost", "subscribe".parse().unwrap(), "d/1/#").unwrap()));
        let mut answered = Vec::new();
        for n in 0..5u8 {
            let answer = Try { world: &mut world, luck: luck.iter().cycle() }.put(&[n]);
            prop_assert!(answer.is_none_or(|code| code.class() == 2));
            answered.extend(answer.map(|_| n));
        }
        let done = log.seen.lock().clone();
        for n in 0..5u8 {
            let times = done.iter().filter(|body| **body == [n]).count();
            prop_assert!(times <= 1, "{n} was done {times} times");
            prop_assert!(times == 1 || !answered.contains(&n), "{n} was answered and not done");
        }
    }
}

/// Sees what was published.
struct Log {
    id: u64,
    who: Principal,
    seen: parking_lot::Mutex<Vec<Vec<u8>>>,
}

impl Default for Log {
    fn default() -> Self {
        let who = Principal::Account("log@localhost".parse().unwrap());
        Self { id: 0, who, seen: parking_lot::Mutex::default() }
    }
}

impl Subscriber for Log {
    fn id(&self) -> u64 {
        self.id
    }
    fn principal(&self) -> &Principal {
        &self.who
    }
    fn deliver(&self, publication: &Arc<Publication>, _: &[SubOptions]) {
        self.seen.lock().push(publication.payload.to_vec());
    }
}
