//! SIGKILL at random moments: twenty rounds an engine, one folder all the way.

use crate::{
    judge::{Said, inspect, judge, reopen},
    writer::{Job, Writer},
};
use std::{
    env,
    time::{SystemTime, UNIX_EPOCH},
};
use tavi_store_kv::Engine;

const ROUNDS: usize = 20;

#[test]
fn sled_loses_nothing_to_sigkill() {
    rounds(Engine::Sled);
}

#[test]
fn fjall_loses_nothing_to_sigkill() {
    rounds(Engine::Fjall);
}

/// Odd rounds write 300 bytes, even ones 20 kB in chunks; each in a folder of its own.
fn rounds(engine: Engine) {
    let mut random = Random::seeded();
    for size in [300, 20_000] {
        let dir = tempfile::tempdir().unwrap();
        let (mut said, mut first) = (Said::default(), 1);
        for round in 0..ROUNDS / 2 {
            let acks = scale() * random.below(if size > 4_096 { 300 } else { 3_000 });
            let job = Job { writer: Writer::Store(engine), folder: dir.path().join("store"), size, first };
            run(&job, acks as usize, &mut said);
            let store = reopen(&job.folder, engine);
            let last = judge(&store, &said, size);
            println!(
                "{engine} round {round}: {size} bytes, killed behind {acks} acks, {} in all, last id {last}",
                said.acked.len()
            );
            first = last + 1;
            inspect(store, &job.folder);
        }
    }
}

/// Runs a child until it has acknowledged `acks` commits (0: at some moment of its opening), then kills it.
fn run(job: &Job, acks: usize, said: &mut Said) {
    let mut running = job.start(|_| {});
    let mut left = acks;
    while left > 0 {
        let line = running.lines.next().expect("the child ended by itself").unwrap();
        left -= usize::from(said.hear(&line));
    }
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    // What was said before the kill counts, though it is heard only now.
    running.lines.map_while(Result::ok).for_each(|line| _ = said.hear(&line));
}

/// How much longer than usual the rounds are: for a night's run, `CRASH_SCALE=50`.
pub fn scale() -> u64 {
    env::var("CRASH_SCALE").ok().and_then(|scale| scale.parse().ok()).unwrap_or(1)
}

/// A small generator; its seed is printed so that a failing run can be looked at.
pub struct Random(u64);

impl Random {
    pub fn seeded() -> Random {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
        println!("seed {seed}");
        Random(seed)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
