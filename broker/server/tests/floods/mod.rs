//! Peers that harm by their number or their slowness: each is told so and let go, others do not feel them, and the
//! broker's memory returns. (What peers say wrongly is in the scenarios `malformed_…` and `too_large`.)

mod coap;
mod link;
mod login;
mod people;
mod silent;
mod stalled;

use std::future::Future;
use std::time::{Duration, Instant};

use tavi_testkit::Broker;
use tokio::sync::{Mutex, MutexGuard};

/// What one flood does to the machine must not be taken for what another does.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// How long something that has to come may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Files that the test needs for itself, and the broker for its store.
const OWN_FILES: usize = 500;

/// A broker with this configuration, and the right to flood it.
async fn flooded(config: &str) -> (Broker, MutexGuard<'static, ()>) {
    let turn = ONE_AT_A_TIME.lock().await;
    raise_file_limit();
    (Broker::start_with(config, &[]).unwrap(), turn)
}

/// Asks until the answer is yes.
async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The number of open connections, as `/metrics` shows it.
fn connections(broker: &Broker) -> usize {
    broker.metric("tavi_connections").unwrap() as usize
}

/// The broker's memory before a flood.
struct Memory {
    before: u64,
}

impl Memory {
    /// Of what a flood took this part may stay, and a fixed amount beside it: an allocator keeps pages on which one
    /// small thing still lives, threads and tables grow once, and the store writes in the background.
    const PART: u64 = 4;
    const FIXED_KIB: u64 = 6 * 1024;

    fn of(broker: &Broker) -> Self {
        Self { before: broker.resident_kib().unwrap() }
    }

    /// Waits until it is near what it was; `peak` is what it was in the flood.
    async fn returns(&self, broker: &Broker, peak: u64) {
        let (before, limit) =
            (self.before, self.before + peak.saturating_sub(self.before) / Self::PART + Self::FIXED_KIB);
        let what = format!("{before} KiB before, {peak} KiB in the flood, at most {limit} KiB after");
        eventually(&what, || async { broker.resident_kib().unwrap() <= limit }).await;
        println!("{what}: {} KiB", broker.resident_kib().unwrap());
    }

    /// What it has grown by, in KiB.
    fn grown(&self, broker: &Broker) -> u64 {
        broker.resident_kib().unwrap().saturating_sub(self.before)
    }
}

/// Raises our limit of open files to the highest that is allowed, for us and for the broker that we start.
fn raise_file_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one rlimit that lives on this stack.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// As many connections as asked for, or as the limit of open files allows; then it says so.
fn affordable(wanted: usize) -> usize {
    let allowed = raise_file_limit().saturating_sub(OWN_FILES);
    if allowed < wanted {
        println!("only {allowed} of {wanted} connections: that is the limit of open files (ulimit -Hn)");
    }
    assert!(allowed >= wanted / 2, "raise the limit of open files: {allowed} connections show too little");
    wanted.min(allowed)
}
