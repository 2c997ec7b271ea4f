//! Clocks that an hour passes on in a moment, or that are set: libfaketime stands between the daemon and its C library.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Exit, Ground};
use crate::daemon::{Daemon, PROGRAM};
use crate::lab::Family;
use crate::over_exits;
use crate::process::TempDir;
use crate::sock::{exchange, read_all, read_n, receive, udp};

const HOUR: i64 = 3_600;

/// What the daemon takes for the time.
struct Clock {
    dir: TempDir,
    /// The wall's alone; else also the one that counts since the start.
    wall_only: bool,
}

impl Clock {
    fn new(wall_only: bool) -> Clock {
        let clock = Clock { dir: TempDir::new(), wall_only };
        clock.turn(0);
        clock
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("clock")
    }

    /// So many seconds from the true time, from now on.
    fn turn(&self, seconds: i64) {
        let next = self.dir.write("next", &format!("{seconds:+}\n"));
        std::fs::rename(next, self.file()).expect("rename");
    }

    fn ground(&self, exit: Exit, change: impl FnOnce(crate::daemon::Uci) -> crate::daemon::Uci) -> Ground {
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
        assert!(std::path::Path::new(&library).exists(), "{library} is of Debian's package libfaketime");
        Ground::start(exit, "", change, |lab, uci| {
            let daemon = Daemon::launch_by(lab, uci, &[], |router| {
                let mut command = router.command(PROGRAM);
                command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", self.file());
                command
                    .env("FAKETIME_NO_CACHE", "1")
                    .env("DONT_FAKE_MONOTONIC", if self.wall_only { "1" } else { "0" });
                command
            });
            daemon.process().wait_for_line(&["tproxyd", "ready"]);
            daemon
        })
    }
}

// An hour in which one direction is closed and the other silent is nothing; idle_timeout, two hours, is an end.
// (tinyproxy and ss-server end both directions by themselves when one of them ends.)
over_exits!(half_closed_for_an_hour_a_session_still_carries_the_other_direction, |exit| {
    if !matches!(exit, Exit::Direct | Exit::Redirect | Exit::Forward | Exit::Socks5 | Exit::Group) {
        return;
    }
    let clock = Clock::new(false);
    let ground = clock.ground(exit, |uci| uci);
    let descriptors = ground.daemon.descriptors();
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    client.shutdown(Shutdown::Write).expect("half-close");
    assert_eq!(read_all(&mut server), b"");
    clock.turn(HOUR);
    let status = ground.daemon.status();
    assert!(status.number("uptime_s") >= 3_600, "an hour has passed: {status}");
    assert_eq!(status.number("tcp.active"), 1, "{status}");
    server.write_all(b"after an hour").expect("send");
    assert_eq!(read_n(&mut client, 13), b"after an hour");
    clock.turn(4 * HOUR);
    ground.wait_clean(descriptors);
    // an end, or a reset
    assert!(matches!(client.read(&mut [0; 1]), Ok(0) | Err(_)));
});

/// Seconds since midnight of the last line that the daemon has written to its log.
fn time_of_last_line(daemon: &Daemon) -> i64 {
    let said = daemon.process().said();
    let line = said.lines().rfind(|line| line.contains('[')).expect("a line");
    let mut fields = line.split([':', ' ']).map(|field| field.parse::<i64>().expect("a time"));
    let mut next = || fields.next().expect("hours, minutes and seconds");
    next() * HOUR + next() * 60 + next()
}

/// NTP, a battery that is empty, or somebody with `date` sets the wall's clock: forward by years, and back before all began.
#[test]
fn a_clock_that_is_set_ends_no_session_and_stops_no_timer() {
    const DAY: i64 = 24 * HOUR;
    let clock = Clock::new(true);
    let ground = clock.ground(Exit::Group, |uci| {
        let more = "config outbound 'straight'\n\toption type 'direct'\n\toption udp_timeout '4s'\n\
                    config rule\n\toption proto 'udp'\n\toption outbound 'straight'\n\
                    config outbound 'two'\n\toption type 'socks5'\n\toption server '192.0.2.77'\n\
                    \toption port '1'\n\toption check_interval '1s'\n\toption check_timeout '1s'\n";
        uci.section(more).outbound(&[("member", "one two")])
    });
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    let echo = udp(&ground.lab.server, Family::V4.destination(7), 4_000);
    let socket = udp(&ground.lab.client, Family::V4.client(), 0);
    for jump in [10 * 365 * DAY + 6 * HOUR, -2 * DAY - 3 * HOUR, -30 * 365 * DAY + 9 * HOUR, 0] {
        exchange(&mut client, &mut server, b"before", b"the jump");
        socket.send_to(b"hello", echo.local_addr().expect("bound")).expect("send");
        let (_, from) = receive(&echo);
        echo.send_to(b"answer", from).expect("answer");
        assert_eq!(receive(&socket).0, b"answer");
        let refused = |status: &crate::json::Json| status.number("tcp.total");
        let before = ground.daemon.status();

        clock.turn(jump);
        ground.daemon.reload(&["reloaded"]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs() as i64;
        let off = (time_of_last_line(&ground.daemon) - now - jump).rem_euclid(DAY);
        assert!(!(120..=DAY - 120).contains(&off), "the daemon's clock was to jump by {jump}, and is {off} s off that");
        let status = ground.daemon.status();
        assert_eq!(status.number("tcp.active"), 1, "{status}");
        assert!((0..1_200).contains(&status.number("uptime_s")), "{status}");
        assert_eq!(refused(&before), refused(&status));
        exchange(&mut client, &mut server, b"after", b"the jump");
        let (mut new, mut its_server) = ground.join(&listener, at);
        exchange(&mut new, &mut its_server, b"new", b"too");
        drop((new, its_server));
        // deadlines come as they would have
        ground.daemon.status_until("the flow has ended", |status| status.number("udp.active") == 0);
        ground.daemon.status_until("the new session has ended", |status| status.number("tcp.active") == 1);
    }
    let (begin, spun) = (std::time::Instant::now(), ground.spun());
    assert!(spun < Duration::from_millis(500), "it worked {spun:?} of {:?}", begin.elapsed());
    drop((client, server));
    ground.daemon.wait_idle();
    ground.daemon.stop();
}
