//! Prints what a page of one large archive costs: 50 rows out of a million of 300 bytes, wherever they are.
//!
//! `cargo run --release -p tavi-store-kv --example archive -- [--rows N] [--engine sled|fjall] [--dir FOLDER]`
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::{
    collections::VecDeque,
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tavi_store::{ArchiveQuery, Commit, Op, Owner, Store};
use tavi_store_kv::{Engine, KvStore, Options, open};

const WITHS: u64 = 100;
const PAGE: usize = 50;
const READS: u64 = 2_000;
const IN_FLIGHT: usize = 1_024;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let value = |name| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let dir = value("--dir").map_or(env::current_dir().expect("a current folder"), PathBuf::from);
    let engines = value("--engine").map_or(Engine::ALL.to_vec(), |name| vec![name.parse().expect("sled or fjall")]);
    let rows = value("--rows").map_or(1_000_000, |rows| rows.parse().expect("a number"));
    println!("| engine | rows | which 50 | CPU us/page | slowest ms |");
    println!("|---|---|---|---|---|");
    for engine in engines {
        let folder = dir.join(format!("store-archive-{engine}-{}", std::process::id()));
        measure(&folder, engine, rows);
        fs::remove_dir_all(&folder).expect("removing what was written");
    }
}

fn measure(folder: &Path, engine: Engine, rows: u64) {
    let options = Options { engine, ..Options::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let store = open(folder, &options).expect("opening");
    runtime.block_on(fill(&store, rows));
    store.close();
    drop(store);
    // Nothing of it is in a cache but what the reads themselves bring there.
    let store = open(folder, &options).expect("opening again");
    let with = |n: u64| Some(format!("with{}@example.net", n % WITHS).into());
    type Query<'a> = Box<dyn Fn(u64) -> ArchiveQuery + 'a>;
    let place = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (rows - WITHS * PAGE as u64) + 1;
    let all = || ArchiveQuery { limit: PAGE, ..ArchiveQuery::default() };
    let queries: [(&str, Query<'_>); 6] = [
        ("newest", Box::new(|_| ArchiveQuery { newest: true, ..all() })),
        ("oldest", Box::new(|_| all())),
        ("behind an id", Box::new(|n| ArchiveQuery { after: Some(place(n)), ..all() })),
        (
            "before an id",
            Box::new(|n| ArchiveQuery { before: Some(place(n) + WITHS * PAGE as u64), newest: true, ..all() }),
        ),
        ("newest of a correspondent", Box::new(|n| ArchiveQuery { with: with(n), newest: true, ..all() })),
        (
            "of a correspondent, behind an id",
            Box::new(|n| ArchiveQuery { with: with(n), after: Some(place(n)), ..all() }),
        ),
    ];
    for (name, query) in queries {
        let (before, mut slowest) = (cpu_time(), Duration::ZERO);
        for n in 0..READS {
            let started = Instant::now();
            let page = runtime.block_on(store.archive(&owner(), &query(n))).expect("a page");
            slowest = slowest.max(started.elapsed());
            assert_eq!(page.len(), PAGE);
        }
        let cpu = (cpu_time() - before).as_micros() / u128::from(READS);
        println!("| {engine} | {rows} | {name} | {cpu} | {:.1} |", slowest.as_secs_f64() * 1e3);
    }
}

fn owner() -> Owner {
    Owner::account("juliet@example.org")
}

async fn fill(store: &KvStore, rows: u64) {
    let mut in_flight: VecDeque<Commit> = VecDeque::with_capacity(IN_FLIGHT);
    for id in 1..=rows {
        if in_flight.len() == IN_FLIGHT
            && let Some(commit) = in_flight.pop_front()
        {
            commit.await.expect("a commit");
        }
        let with = format!("with{}@example.net", id % WITHS).into();
        let value = format!("<message id='{id:016x}' type='chat'><body>{}</body></message>", text(id)).into();
        in_flight.push_back(store.commit(&owner(), vec![Op::Archive { id, with, value }]));
    }
    for commit in in_flight {
        commit.await.expect("a commit");
    }
}

/// Words, so that an engine that compresses may.
fn text(id: u64) -> String {
    let mut state = id;
    let mut text = String::new();
    while text.len() < 250 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(id);
        text.push_str(["lorem ", "ipsum ", "dolor ", "sit ", "amet ", "why "][(state >> 60) as usize % 6]);
        text.push(char::from(b'a' + (state >> 40) as u8 % 26));
    }
    text
}

/// Processor time of this process so far, from proc(5): the fields 14 and 15 of `stat`, in hundredths of a second.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("/proc");
    let behind_name = stat.rsplit(')').next().expect("a name in parentheses");
    let ticks = behind_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number"));
    Duration::from_millis(10 * ticks.sum::<u64>())
}
