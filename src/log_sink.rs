//! Where log lines go: `/dev/log` with the true priority when nobody watches, else the terminal.
//!
//! procd would file every line of stderr as an error, so a service speaks to syslog itself.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io::IsTerminal;
use std::os::unix::net::UnixDatagram;

/// Starts logging up to `level`. Must be called once.
pub fn start(level: LevelFilter) {
    let syslog = if std::io::stderr().is_terminal() { None } else { Syslog::connect() };
    let started = match syslog {
        Some(syslog) => log::set_boxed_logger(Box::new(syslog)).is_ok(),
        None => {
            let config = simplelog::ConfigBuilder::new()
                .set_thread_level(LevelFilter::Off)
                .set_target_level(LevelFilter::Off)
                .set_location_level(LevelFilter::Off)
                .build();
            // the level of the logger itself stays open, since a reload may raise it
            simplelog::WriteLogger::init(LevelFilter::Trace, config, std::io::stderr()).is_ok()
        }
    };
    debug_assert!(started, "logging is started once");
    log::set_max_level(level);
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

impl Log for Syslog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let priority = FACILITY | severity(record.level());
        let line = format!("<{priority}>tproxyd[{}]: {}", std::process::id(), record.args());
        if self.socket.send(line.as_bytes()).is_err() && self.socket.connect("/dev/log").is_ok() {
            // logd was started anew in the meantime
            let _ = self.socket.send(line.as_bytes());
        }
    }

    fn flush(&self) {}
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
