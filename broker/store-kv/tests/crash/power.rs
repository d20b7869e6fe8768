//! Power loss: a preloaded shim copies only synced bytes to a second folder, and that one is opened.

use crate::{
    judge::{Said, inspect, judge, reopen},
    kill::{Random, scale},
    writer::{Job, Writer},
};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};
use tavi_store_kv::Engine;
use tempfile::TempDir;

const ROUNDS: usize = 4;
const PAGE: usize = 4_096;

#[test]
fn sled_loses_nothing_to_a_power_loss_at_300_bytes() {
    rounds(Engine::Sled, 300, Unsynced::Gone);
}

#[test]
fn sled_loses_nothing_to_a_power_loss_at_20_kilobytes() {
    rounds(Engine::Sled, 20_000, Unsynced::Gone);
}

#[test]
fn fjall_loses_nothing_to_a_power_loss_at_300_bytes() {
    rounds(Engine::Fjall, 300, Unsynced::Gone);
}

#[test]
fn fjall_loses_nothing_to_a_power_loss_at_20_kilobytes() {
    rounds(Engine::Fjall, 20_000, Unsynced::Gone);
}

#[test]
fn sled_loses_nothing_when_unsynced_writes_survive_in_part() {
    rounds(Engine::Sled, 300, Unsynced::Torn);
}

#[test]
fn fjall_loses_nothing_when_unsynced_writes_survive_in_part() {
    rounds(Engine::Fjall, 300, Unsynced::Torn);
}

/// The model can fail: sled as it is shipped acknowledges what the disk does not have.
#[test]
fn sled_without_our_sync_loses_what_it_acknowledged() {
    let places = Places::new();
    let job = Job { writer: Writer::ShippedSled, folder: places.live.join("db"), size: 300, first: 1 };
    let mut said = Said::default();
    run(&job, &places, (500, &mut said));
    let kept = match sled::open(places.shadow.join("db")) {
        Ok(db) => said.acked.iter().filter(|id| db.contains_key(id.to_be_bytes()).unwrap_or(false)).count(),
        Err(_) => 0,
    };
    println!("shipped sled: {} acknowledged, {kept} kept", said.acked.len());
    assert!(kept < said.acked.len() / 2, "the model lets unsynced bytes survive");
}

/// What of the unsynced writes is on the disk when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unsynced {
    /// Nothing.
    Gone,
    /// Any pages of it, not in the order in which they were written: a disk's cache is not a queue.
    Torn,
}

/// Each round starts from what the one before left on the disk.
fn rounds(engine: Engine, size: usize, unsynced: Unsynced) {
    let mut places = Places::new();
    let mut random = Random::seeded();
    let (mut said, mut first) = (Said::default(), 1);
    for round in 0..ROUNDS {
        let acks = scale() * (1 + random.below(if size > 4_096 { 300 } else { 6_000 }));
        let job = Job { writer: Writer::Store(engine), folder: places.live.join("store"), size, first };
        run(&job, &places, (acks as usize, &mut said));
        if unsynced == Unsynced::Torn {
            tear(&places.live, &places.shadow, &mut random);
        }
        places.lose_power();
        let store = reopen(&places.live.join("store"), engine);
        let last = judge(&store, &said, size);
        println!(
            "{engine} round {round}: {size} bytes, power lost behind {acks} acks, {} in all, last id {last}",
            said.acked.len()
        );
        first = last + 1;
        inspect(store, &places.live.join("store"));
        places.settle();
    }
}

fn run(job: &Job, places: &Places, (acks, said): (usize, &mut Said)) {
    let mut running = job.start(|command| {
        command.env("LD_PRELOAD", shim()).env("CRASH_ROOT", &places.live).env("CRASH_SHADOW", &places.shadow);
    });
    let mut left = acks;
    while left > 0 {
        let line = running.lines.next().expect("the child ended by itself").unwrap();
        left -= usize::from(said.hear(&line));
    }
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    running.lines.map_while(Result::ok).for_each(|line| _ = said.hear(&line));
}

/// Where the child writes, and what the disk has of it.
struct Places {
    live: PathBuf,
    shadow: PathBuf,
    _dir: TempDir,
}

impl Places {
    fn new() -> Places {
        let dir = tempfile::tempdir().unwrap();
        // The shim compares paths, so they must be the ones that the child will use.
        let base = dir.path().canonicalize().unwrap();
        let places = Places { live: base.join("live"), shadow: base.join("disk"), _dir: dir };
        fs::create_dir(&places.live).unwrap();
        fs::create_dir(&places.shadow).unwrap();
        places
    }

    /// What was not on the disk is gone.
    fn lose_power(&mut self) {
        fs::remove_dir_all(&self.live).unwrap();
        fs::rename(&self.shadow, &self.live).unwrap();
    }

    /// After a clean stop the disk has everything.
    fn settle(&mut self) {
        copy(&self.live, &self.shadow);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Copies every other page, at random, in which the disk lags behind.
fn tear(live: &Path, shadow: &Path, random: &mut Random) {
    for entry in fs::read_dir(live).unwrap().map(Result::unwrap) {
        let disk = shadow.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            tear(&entry.path(), &disk, random);
        } else if disk.exists() {
            tear_file(&entry.path(), &disk, random);
        }
    }
}

fn tear_file(live: &Path, disk: &Path, random: &mut Random) {
    let (live, disk) = (File::open(live).unwrap(), File::options().read(true).write(true).open(disk).unwrap());
    let (mut new, mut old) = ([0; PAGE], [0; PAGE]);
    for at in (0..live.metadata().unwrap().len()).step_by(PAGE) {
        let len = live.read_at(&mut new, at).unwrap();
        let had = disk.read_at(&mut old, at).unwrap();
        if new[..len] != old[..had] && random.below(2) == 0 {
            disk.write_all_at(&new[..len], at).unwrap();
        }
    }
}

/// Compiles the shim, once a run.
fn shim() -> &'static Path {
    static SHIM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = SHIM.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/shim.c");
        let built =
            Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).args([&path, &source]).arg("-ldl").status();
        assert!(built.expect("a C compiler named cc is needed").success(), "the shim does not compile");
        (dir, path)
    });
    path
}
