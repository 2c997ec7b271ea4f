//! What a piece of work cost: time on the clock, of the whole machine, and of some processes.

use std::fs;
use std::time::{Duration, Instant};

/// Figures at one moment.
pub(crate) struct Meter {
    started: Instant,
    idle: Option<u64>,
    charged: u64,
}

impl Meter {
    /// Begins.
    pub(crate) fn start() -> Meter {
        let (charged, idle) = (charged(), idle());
        Meter { started: Instant::now(), idle, charged }
    }

    /// Ends, when what is done late (closing, late acknowledgements) had its time, and tells as one line. `waits`: how long
    /// each unit took.
    pub(crate) fn finish(self, units: usize, failed: usize, mut waits: Vec<Duration>) -> String {
        let wall = self.started.elapsed();
        let settle = std::env::var("LOAD_SETTLE_MS").ok().and_then(|ms| ms.parse().ok()).unwrap_or(50);
        std::thread::sleep(Duration::from_millis(settle));
        let all = self.started.elapsed();
        let mut line = format!("units {units} failed {failed} wall_us {}", wall.as_micros());
        if let (Some(before), Some(after)) = (self.idle, idle()) {
            let busy = (all.as_nanos() as u64).saturating_sub(after - before);
            line += &format!(" busy_ns {busy}");
        }
        line += &format!(" charged_ns {}", charged() - self.charged);
        waits.sort_unstable();
        if let (Some(middle), Some(late)) = (waits.get(waits.len() / 2), waits.get(waits.len() * 99 / 100)) {
            line += &format!(" p50_us {} p99_us {}", middle.as_micros(), late.as_micros());
        }
        line
    }
}

/// Nanoseconds that the machine has done nothing; `None` if it does not tell. Where the clock counts instructions, the rest
/// of the time is what all programs and the kernel executed.
fn idle() -> Option<u64> {
    let list = fs::read_to_string("/proc/timer_list").ok()?;
    let times = list.lines().filter_map(|line| line.trim_start().strip_prefix(".idle_sleeptime"));
    let ns = times.filter_map(|rest| rest.trim_start_matches([' ', ':']).split(' ').next()?.parse::<u64>().ok());
    let all: Vec<u64> = ns.collect();
    if all.is_empty() { None } else { Some(all.iter().sum()) }
}

/// Nanoseconds on a processor of all threads of the processes in `LOAD_PIDS`.
fn charged() -> u64 {
    let pids = std::env::var("LOAD_PIDS").unwrap_or_default();
    let threads = pids.split_whitespace().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten();
    threads
        .filter_map(|thread| {
            let stat = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            stat.split(' ').next()?.parse::<u64>().ok()
        })
        .sum()
}
