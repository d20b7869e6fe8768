//! Prints the table of storage.md from the product: each message is 300 bytes in the archive and an inbox row.
//!
//! `cargo run --release -p tavi-store-kv --example table -- [--million] [--engine sled|fjall] [--dir FOLDER]`
//! FOLDER must be on the disk that is to be measured; it is the current folder by default.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::{
    collections::VecDeque,
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tavi_store::{ArchiveQuery, Commit, Op, Owner, Store};
use tavi_store_kv::{Engine, KvStore, Options, open};

const SIZE: usize = 300;
const OWNERS: u64 = 1_000;
const WITHS: u64 = 10;
/// Commits on their way: sixteen sessions with a full window of tickets.
const IN_FLIGHT: usize = 1_024;
const PAGES: u64 = 20_000;

struct Figures {
    acks: f64,
    /// Processor time of the whole process for one acknowledged message: it tells more than the rate does on a
    /// machine that is busy with other things.
    cpu: Duration,
    p50: Duration,
    p99: Duration,
    disk: u64,
    pages: f64,
    reopen: Duration,
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let value = |name| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let dir = value("--dir").map_or(env::current_dir().expect("a current folder"), PathBuf::from);
    let engines = value("--engine").map_or(Engine::ALL.to_vec(), |name| vec![name.parse().expect("sled or fjall")]);
    let counts: &[u64] = if args.iter().any(|arg| arg == "--million") { &[150_000, 1_000_000] } else { &[150_000] };
    println!(
        "| engine | messages | pipelined acks/s | CPU us/ack | ack p50/p99 ms | disk B/message | 50-row pages/s | reopen s |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for engine in engines {
        for count in counts {
            let folder = dir.join(format!("store-table-{engine}-{count}-{}", std::process::id()));
            let figures = measure(&folder, engine, *count);
            fs::remove_dir_all(&folder).expect("removing what was written");
            print(engine, *count, &figures);
        }
    }
}

fn print(engine: Engine, count: u64, figures: &Figures) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (p50, p99, reopen) = (ms(figures.p50), ms(figures.p99), figures.reopen.as_secs_f64());
    let per_message = figures.disk / count;
    let (acks, pages, cpu) = (figures.acks, figures.pages, figures.cpu.as_micros());
    println!(
        "| {engine} | {count} | {acks:.0} | {cpu} | {p50:.1}/{p99:.1} | {per_message} | {pages:.0} | {reopen:.3} |"
    );
}

fn measure(folder: &Path, engine: Engine, count: u64) -> Figures {
    let options = Options { engine, ..Options::default() };
    let store = open(folder, &options).expect("opening");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let before = cpu_time();
    let (took, mut latencies) = runtime.block_on(write(&store, count));
    let cpu = (cpu_time() - before) / count as u32;
    latencies.sort_unstable();
    let quantile = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize];
    let (p50, p99) = (quantile(0.5), quantile(0.99));
    let pages = runtime.block_on(read(&store));
    eprintln!("{:?}", store.stats().batch);
    close(store);
    let disk = size_of(folder);
    let started = Instant::now();
    let store = open(folder, &options).expect("opening again");
    let reopen = started.elapsed();
    close(store);
    Figures { acks: count as f64 / took.as_secs_f64(), cpu, p50, p99, disk, pages, reopen }
}

fn close(store: Arc<KvStore>) {
    store.close();
    drop(store);
}

async fn write(store: &KvStore, count: u64) -> (Duration, Vec<Duration>) {
    let mut in_flight: VecDeque<(Instant, Commit)> = VecDeque::with_capacity(IN_FLIGHT);
    let mut latencies = Vec::with_capacity(count as usize);
    let started = Instant::now();
    for id in 1..=count {
        if in_flight.len() == IN_FLIGHT {
            land(&mut in_flight, &mut latencies).await;
        }
        in_flight.push_back((Instant::now(), store.commit(&owner(id), message(id))));
    }
    while !in_flight.is_empty() {
        land(&mut in_flight, &mut latencies).await;
    }
    (started.elapsed(), latencies)
}

async fn land(in_flight: &mut VecDeque<(Instant, Commit)>, latencies: &mut Vec<Duration>) {
    if let Some((since, commit)) = in_flight.pop_front() {
        commit.await.expect("a commit");
        latencies.push(since.elapsed());
    }
}

/// The newest page of one owner after another, in an order that the cache does not guess.
async fn read(store: &KvStore) -> f64 {
    let started = Instant::now();
    for number in 0..PAGES {
        let query = ArchiveQuery { newest: true, limit: 50, ..ArchiveQuery::default() };
        let rows = store.archive(&owner(number * 7_919), &query).await.expect("a page");
        assert_eq!(rows.len(), 50);
    }
    PAGES as f64 / started.elapsed().as_secs_f64()
}

fn owner(id: u64) -> Owner {
    Owner::account(&format!("owner{}@example.org", id.wrapping_mul(0x9e37_79b9) % OWNERS))
}

/// A message as it is: text, so an engine that compresses may.
fn message(id: u64) -> Vec<Op> {
    let with: Box<str> = format!("with{}@example.net", id % WITHS).into();
    let head = format!("<message id='{id:016x}' type='chat' to='owner@example.org'><body>");
    let mut state = id;
    let mut text = head;
    while text.len() < SIZE {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(id);
        text.push_str(
            ["lorem ", "ipsum ", "dolor ", "sit ", "amet ", "why ", "4", "quite ", "x"][(state >> 60) as usize % 9],
        );
        text.push(char::from(b'a' + (state >> 40) as u8 % 26));
    }
    text.truncate(SIZE);
    let preview = text[66..106].into();
    vec![
        Op::Archive { id, with: with.clone(), value: text.into() },
        Op::Inbox { with, last: id, unread: Some(1), preview },
    ]
}

/// Processor time of this process so far, from proc(5): the fields 14 and 15 of `stat`, in hundredths of a second.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("/proc");
    let behind_name = stat.rsplit(')').next().expect("a name in parentheses");
    let ticks = behind_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number"));
    Duration::from_millis(10 * ticks.sum::<u64>())
}

fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).expect("a folder").filter_map(Result::ok);
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => size_of(&entry.path()),
        // Blocks in use: files that were made longer than what is in them count with what is in them.
        _ => entry.metadata().map_or(0, |data| std::os::unix::fs::MetadataExt::blocks(&data) * 512),
    };
    entries.map(size).sum()
}
