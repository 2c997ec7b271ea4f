//! Where log lines go: `/dev/log` with the true priority when nobody watches, else the terminal.
//!
//! procd would file every line of stderr as an error, so a service speaks to syslog itself. The last warnings and errors
//! are kept beside that, for `status`.

use crate::stats::events::{Bounded, unix_time};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io::{IsTerminal, Stderr};
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, PoisonError};

/// Starts logging up to `level`. Must be called once.
pub fn start(level: LevelFilter) {
    let syslog = if std::io::stderr().is_terminal() { None } else { Syslog::connect() };
    let sink = match syslog {
        Some(syslog) => Sink::Syslog(syslog),
        None => Sink::terminal(),
    };
    let started = log::set_boxed_logger(Box::new(sink)).is_ok();
    debug_assert!(started, "logging is started once");
    log::set_max_level(level);
}

enum Sink {
    Syslog(Syslog),
    /// Standard error.
    Terminal(Box<simplelog::WriteLogger<Stderr>>),
}

impl Sink {
    fn terminal() -> Sink {
        let config = simplelog::ConfigBuilder::new()
            .set_thread_level(LevelFilter::Off)
            .set_target_level(LevelFilter::Off)
            .set_location_level(LevelFilter::Off)
            .build();
        // the level of the logger itself stays open, since a reload may raise it
        Sink::Terminal(simplelog::WriteLogger::new(LevelFilter::Trace, config, std::io::stderr()))
    }
}

impl Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() <= Level::Warn {
            note(record);
        }
        match self {
            Sink::Syslog(syslog) => syslog.log(record),
            Sink::Terminal(terminal) => terminal.log(record),
        }
    }

    fn flush(&self) {}
}

/// A warning or an error that was logged.
#[derive(Debug, Clone, Default)]
pub struct Problem {
    /// Seconds since 1970.
    pub at: u64,
    /// True: an error; else a warning.
    pub error: bool,
    /// Its text, cut if it is long.
    pub text: Bounded<240>,
}

/// How many problems are kept.
pub const PROBLEMS_KEPT: usize = 16;

struct Problems {
    /// The first `count` of them, if that is fewer than there is room for.
    kept: [Problem; PROBLEMS_KEPT],
    /// How many there were in all.
    count: u64,
}

/// Nothing but zeros, so that it takes no room in the file.
static PROBLEMS: Mutex<Problems> = Mutex::new(Problems {
    kept: [const { Problem { at: 0, error: false, text: Bounded::EMPTY } }; PROBLEMS_KEPT],
    count: 0,
});

fn note(record: &Record<'_>) {
    let error = record.level() == Level::Error;
    let problem = Problem { at: unix_time(), error, text: Bounded::of(record.args()) };
    let mut problems = PROBLEMS.lock().unwrap_or_else(PoisonError::into_inner);
    let place = (problems.count % PROBLEMS_KEPT as u64) as usize;
    problems.kept[place] = problem;
    problems.count += 1;
}

/// The last problem but `n`; `None` if there were not so many, or they are not kept.
pub fn problem(n: usize) -> Option<Problem> {
    let problems = PROBLEMS.lock().unwrap_or_else(PoisonError::into_inner);
    if n >= PROBLEMS_KEPT {
        return None;
    }
    let number = problems.count.checked_sub(n as u64 + 1)?;
    Some(problems.kept[(number % PROBLEMS_KEPT as u64) as usize].clone())
}

/// How many warnings and errors were logged since the start.
pub fn problem_count() -> u64 {
    PROBLEMS.lock().unwrap_or_else(PoisonError::into_inner).count
}

/// A sender to the local syslog daemon (RFC 3164, as syslog(3) speaks it).
struct Syslog {
    socket: UnixDatagram,
}

/// `LOG_DAEMON` of syslog(3), shifted into place.
const FACILITY: u8 = 3 << 3;

impl Syslog {
    fn connect() -> Option<Syslog> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect("/dev/log").ok()?;
        // a syslog daemon that hangs must not hang the loop: a line is lost instead
        socket.set_nonblocking(true).ok()?;
        Some(Syslog { socket })
    }
}

impl Syslog {
    fn log(&self, record: &Record<'_>) {
        let priority = FACILITY | severity(record.level());
        let line = format!("<{priority}>tproxyd[{}]: {}", std::process::id(), record.args());
        if self.socket.send(line.as_bytes()).is_err() && self.socket.connect("/dev/log").is_ok() {
            // logd was started anew in the meantime
            let _ = self.socket.send(line.as_bytes());
        }
    }
}

/// Severities of syslog(3).
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test, since the problems are those of the whole process.
    #[test]
    fn the_last_problems_are_kept_newest_first_and_old_ones_make_room() {
        let sink = Sink::terminal();
        let say = |level, n: usize| {
            sink.log(&Record::builder().level(level).args(format_args!("problem {n}")).build());
        };
        assert!(problem(0).is_none());
        say(Level::Info, 0);
        assert_eq!(problem_count(), 0, "only warnings and errors are problems");
        say(Level::Error, 0);
        assert!(problem(0).unwrap().error && problem(1).is_none());
        for n in 1..=PROBLEMS_KEPT {
            say(Level::Warn, n);
        }
        assert_eq!(problem_count(), PROBLEMS_KEPT as u64 + 1);
        let kept: Vec<_> = (0..).map_while(problem).map(|problem| problem.text.to_string()).collect();
        assert_eq!(kept.len(), PROBLEMS_KEPT);
        assert_eq!((kept[0].as_str(), kept[PROBLEMS_KEPT - 1].as_str()), ("problem 16", "problem 1"));
    }
}
