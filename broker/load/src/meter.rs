//! What a process costs, read from /proc (proc(5)).

use std::fs;
use std::time::Instant;

use anyhow::Context;

/// What a load cost.
#[derive(Clone, Copy, Debug)]
pub enum Cost {
    /// A flow of messages.
    Flow {
        /// Messages delivered to receivers.
        deliveries: u64,
        /// Wall time in seconds.
        seconds: f64,
        /// CPU time of the server, user and system, in milliseconds.
        server_ms: f64,
        /// CPU time of this injector in milliseconds.
        injector_ms: f64,
        /// What the server had written to disk, in KiB (proc(5), `write_bytes`).
        written_kib: f64,
    },
    /// How long single publications took until they were acknowledged.
    Latency {
        /// Publications.
        publications: u64,
        /// Half of them took no longer, in µs.
        p50_us: f64,
        /// 99 of 100 took no longer, in µs.
        p99_us: f64,
    },
    /// What a server holds that clients have left there.
    Held {
        /// Retained topics.
        topics: u64,
        /// All of the server's resident memory, in MiB.
        resident_mib: f64,
    },
    /// Idle connections.
    Idle {
        /// Connections between the two measurements.
        connections: u64,
        /// Growth of the server's resident memory between them, in KiB.
        resident_kib: f64,
    },
}

impl Cost {
    /// The figure that is compared: milliseconds of CPU for 1,000 deliveries, KiB for one connection, µs that half of
    /// the publications took, or MiB in all.
    pub fn figure(&self) -> f64 {
        match *self {
            Self::Flow { deliveries, server_ms, .. } => 1000.0 * server_ms / deliveries.max(1) as f64,
            Self::Latency { p50_us, .. } => p50_us,
            Self::Held { resident_mib, .. } => resident_mib,
            Self::Idle { connections, resident_kib } => resident_kib / connections.max(1) as f64,
        }
    }
}

/// A stopwatch for the CPU of a server and of ourselves.
pub struct Meter {
    pid: u32,
    start: Instant,
    server_ms: f64,
    injector_ms: f64,
    written_kib: f64,
}

impl Meter {
    /// Starts to measure.
    pub fn start(pid: u32) -> anyhow::Result<Self> {
        let (server_ms, injector_ms) = (cpu_ms(pid)?, cpu_ms(std::process::id())?);
        Ok(Self { pid, start: Instant::now(), server_ms, injector_ms, written_kib: written_kib(pid)? })
    }

    /// What was used since the start.
    pub fn stop(self, deliveries: u64) -> anyhow::Result<Cost> {
        Ok(Cost::Flow {
            deliveries,
            seconds: self.start.elapsed().as_secs_f64(),
            server_ms: cpu_ms(self.pid)? - self.server_ms,
            injector_ms: cpu_ms(std::process::id())? - self.injector_ms,
            written_kib: written_kib(self.pid)? - self.written_kib,
        })
    }
}

/// User and system time of a process in milliseconds, in the kernel's ticks of 10 ms.
fn cpu_ms(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the server is gone")?;
    // The name in parentheses may hold spaces; utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')').context("a strange stat file")?.1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 * 1000.0 / ticks_per_second())
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf only reads a constant of the system.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    ticks as f64
}

/// Resident memory in KiB.
pub fn resident_kib(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the server is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// What a process has had written to disk, in KiB.
fn written_kib(pid: u32) -> anyhow::Result<f64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).context("the server is gone, or is another user's")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:")).context("no write_bytes")?;
    Ok(line.trim().parse::<f64>()? / 1024.0)
}

/// Raises our limit of open files to the highest that is allowed; servers that we start inherit it.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one rlimit that lives on this stack.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_its_own_work() {
        let own = std::process::id();
        let meter = Meter::start(own).unwrap();
        let until = Instant::now() + std::time::Duration::from_millis(60);
        while Instant::now() < until {
            std::hint::black_box(0);
        }
        let Cost::Flow { server_ms, .. } = meter.stop(1).unwrap() else { panic!("a flow") };
        assert!(server_ms >= 10.0, "{server_ms}");
        assert!(resident_kib(own).unwrap() > 100.0);
    }

    #[test]
    fn figures_are_for_a_thousand_and_for_one() {
        let flow = Cost::Flow { deliveries: 2000, seconds: 1.0, server_ms: 10.0, injector_ms: 0.0, written_kib: 0.0 };
        assert_eq!(flow.figure(), 5.0);
        assert_eq!(Cost::Idle { connections: 4, resident_kib: 10.0 }.figure(), 2.5);
    }
}
