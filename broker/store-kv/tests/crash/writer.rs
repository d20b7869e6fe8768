//! The child: commits as fast as it can, and says on its standard output what was acknowledged.
//!
//! Lines: `open`, `ack ID` (durable), `del ID` (about to delete the queue row of ID).

use std::{
    collections::VecDeque,
    env,
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};
use tavi_store::{
    Body, Commit, Expect, Op, Owner, Store, Table,
    conformance::{body, wait},
};
use tavi_store_kv::{Engine, Options, open};

/// How many commits the child keeps in flight.
const WINDOW: usize = 64;
/// Among so many owners the ids are dealt out.
pub const OWNERS: u64 = 16;
/// Each of whom has so many correspondents.
pub const WITHS: u64 = 3;

/// What the child is to do.
#[derive(Clone, Debug)]
pub struct Job {
    pub writer: Writer,
    pub folder: PathBuf,
    /// Bytes of a value.
    pub size: usize,
    /// The first id.
    pub first: u64,
}

/// Through what the child writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The product's store.
    Store(Engine),
    /// sled as it is shipped: insert, flush, acknowledge.
    ShippedSled,
}

/// A running child.
pub struct Running {
    pub child: Child,
    pub lines: Lines<BufReader<ChildStdout>>,
}

impl Job {
    /// Starts a child on this job; `dress` adds to its command.
    pub fn start(&self, dress: impl FnOnce(&mut Command)) -> Running {
        let writer = match self.writer {
            Writer::Store(engine) => engine.name(),
            Writer::ShippedSled => "shipped",
        };
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["the_writer_of_the_suites", "--exact", "--nocapture", "--test-threads=1"]);
        command.env("CRASH_WRITER", writer).env("CRASH_STORE", &self.folder);
        command.env("CRASH_SIZE", self.size.to_string()).env("CRASH_FIRST", self.first.to_string());
        dress(&mut command);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, lines }
    }
}

/// Does the job that the environment tells, for ever; returns at once where there is none.
pub fn run_if_child() {
    let Ok(writer) = env::var("CRASH_WRITER") else { return };
    let number = |name| env::var(name).unwrap().parse::<u64>().unwrap();
    let (folder, size, first) = (env::var("CRASH_STORE").unwrap(), number("CRASH_SIZE"), number("CRASH_FIRST"));
    match writer.as_str() {
        "shipped" => shipped(Path::new(&folder), size as usize, first),
        engine => store(Path::new(&folder), engine.parse().unwrap(), (size as usize, first)),
    }
}

fn store(folder: &Path, engine: Engine, (size, first): (usize, u64)) {
    let store = open(folder, &Options { engine, cache: 16 << 20, ..Options::default() }).unwrap();
    assert!(store.last_id() < first);
    say("open", 0);
    let mut window: VecDeque<(u64, Commit)> = VecDeque::new();
    for id in first.. {
        window.push_back((id, store.commit(&owner(id), ops(id, size))));
        if window.len() < WINDOW {
            continue;
        }
        let (oldest, commit) = window.pop_front().unwrap();
        wait(commit).unwrap();
        say("ack", oldest);
        if is_deleted(oldest) {
            say("del", oldest);
            drop(store.commit(&owner(oldest), vec![Op::QueueDelete { id: oldest }]));
        }
    }
}

fn shipped(folder: &Path, size: usize, first: u64) {
    let db = sled::Config::new().path(folder).flush_every_ms(None).open().unwrap();
    say("open", 0);
    for id in first.. {
        db.insert(id.to_be_bytes(), body(id, size).to_vec()).unwrap();
        db.flush().unwrap();
        say("ack", id);
    }
}

fn say(what: &str, id: u64) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{what} {id}").unwrap();
    out.flush().unwrap();
}

pub fn owner(id: u64) -> Owner {
    Owner::account(&format!("owner{}@example.org", id % OWNERS))
}

pub fn with(id: u64) -> String {
    format!("with{}@example.net", id / OWNERS % WITHS)
}

/// Half of the even ids, and every fourth body with all its rows.
fn is_deleted(id: u64) -> bool {
    id.is_multiple_of(4) || id / 8 % 4 == 1
}

/// Even ids are queued as views of the archive or by value; odd ones share a body with their neighbours, who have other
/// owners.
fn queued(id: u64, size: usize) -> Op {
    match shared(id) {
        None if is_view(id) => Op::QueueArchived { id },
        None => Op::QueuePush { id, value: body(id, size) },
        Some(shared) => Op::QueueShare { id, head: body(id, 20), body: Body { id: shared, bytes: body(shared, size) } },
    }
}

/// Two thirds of the even ids.
pub fn is_view(id: u64) -> bool {
    id.is_multiple_of(2) && !id.is_multiple_of(3)
}

/// The body that a queued row shares.
pub fn shared(id: u64) -> Option<u64> {
    (!id.is_multiple_of(2)).then_some(id / 8 * 8 + 1)
}

/// One message: a row of every kind.
fn ops(id: u64, size: usize) -> Vec<Op> {
    let value = body(id, size);
    vec![
        Op::Archive { id, with: with(id).into(), value: value.clone() },
        Op::Inbox { with: with(id).into(), last: id, unread: Some(1), preview: id.to_string().into() },
        queued(id, size),
        Op::Put { table: Table::Item, item: id.to_string().into(), value, expect: Expect::Absent },
        Op::Outbox { id },
    ]
}
