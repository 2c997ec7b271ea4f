//! One side has said all, and the other one goes on: through real servers of every type of outbound. Most of them make of it
//! an end of both; then what was sent before arrives whole, and so does the end.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::passage::{dante, microsocks, socks_uci};
use crate::process::TempDir;
use crate::proxies::{HTTP_PORT, at, haproxy_before_tinyproxy, passing_on, served, squid, tinyproxy};
use crate::sock::{accept, connect, listen, read_all};

/// What becomes of the direction that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It goes on.
    Kept,
    /// Most servers end it, too.
    ItsAffair,
}

const MUCH: usize = 1 << 20;

/// `first` says something and ends; `second` reads that to its end, then sends much and ends.
fn one_ends_first(mut first: TcpStream, mut second: TcpStream, then: Then) {
    first.write_all(b"that was all").expect("send");
    first.shutdown(Shutdown::Write).expect("half-close");
    assert_eq!(read_all(&mut second), b"that was all");
    thread::scope(|scope| {
        scope.spawn(move || {
            let sent = second.write_all(&[7; MUCH]);
            assert!(sent.is_ok() || then == Then::ItsAffair, "{sent:?}");
        });
        let mut got = Vec::new();
        let end = first.read_to_end(&mut got);
        assert!(got.iter().all(|octet| *octet == 7));
        match then {
            Then::Kept => assert!(end.is_ok() && got.len() == MUCH, "{end:?} after {}", got.len()),
            Then::ItsAffair => assert!(!matches!(end, Err(e) if e.kind() == ErrorKind::WouldBlock), "it hangs"),
        }
    });
}

/// Both ways to end first, with both families. `is_fixed`: what listens is behind a fixed server, not where the client goes.
/// `start` gives `None` if its server is not to be had here.
fn halves_end_apart<S>(
    is_fixed: bool,
    start: impl Fn(&Lab, &TempDir, Family) -> Option<S>,
    uci: impl Fn(Family) -> Uci,
    [client_first, server_first]: [Then; 2],
) {
    for family in Family::BOTH {
        let (lab, files) = (Lab::new(), TempDir::new());
        let listener = listen(&lab.server, if is_fixed { family.proxy() } else { family.destination(80) }, 9_001);
        let Some(_server) = start(&lab, &files, family) else { return };
        let daemon = Daemon::start(&lab, &uci(family));
        let pair = |listener: &TcpListener| (connect(&lab.client, at(family.destination(80), 9_001)), accept(listener));
        let (client, far) = pair(&listener);
        one_ends_first(client, far, client_first);
        let (client, far) = pair(&listener);
        one_ends_first(far, client, server_first);
        daemon.wait_idle();
        daemon.stop();
    }
}

#[test]
fn halves_end_apart_through_dante() {
    halves_end_apart(false, |lab, files, _| Some(dante(lab, files)), socks_uci, [Then::Kept; 2]);
}

#[test]
fn an_end_arrives_and_none_hangs_through_microsocks() {
    halves_end_apart(false, |lab, _, family| Some(microsocks(lab, family, &[])), socks_uci, [Then::ItsAffair; 2]);
}

#[test]
fn an_end_arrives_and_none_hangs_through_tinyproxy() {
    let start = |lab: &Lab, files: &TempDir, family| Some(tinyproxy(lab, files, family, HTTP_PORT, ""));
    halves_end_apart(false, start, |family| served("http", family, HTTP_PORT), [Then::ItsAffair; 2]);
}

#[test]
fn an_end_arrives_and_none_hangs_through_squid() {
    let start = |lab: &Lab, files: &TempDir, family| squid(lab, files, family, "acl SSL_ports port 9001\n");
    halves_end_apart(false, start, |family| served("http", family, HTTP_PORT), [Then::ItsAffair; 2]);
}

#[test]
fn an_end_arrives_and_none_hangs_through_haproxy_before_tinyproxy() {
    let start = |lab: &Lab, files: &TempDir, family| Some(haproxy_before_tinyproxy(lab, files, family));
    halves_end_apart(false, start, |family| served("http", family, HTTP_PORT), [Then::ItsAffair; 2]);
}

#[test]
fn halves_end_apart_through_haproxy_as_a_fixed_server() {
    let start = |lab: &Lab, files: &TempDir, family| Some(passing_on(lab, files, family));
    halves_end_apart(true, start, |family| served("forward", family, 8_000), [Then::Kept; 2]);
}

#[test]
#[cfg(feature = "shadowsocks")]
fn an_end_arrives_and_none_hangs_through_ss_server() {
    use crate::shadowsocks::{OLD, libev, uci};
    let start = |lab: &Lab, _: &TempDir, family| Some(libev(lab, family, OLD[2]));
    halves_end_apart(false, start, |family| uci(family, OLD[2]), [Then::ItsAffair; 2]);
}

#[test]
#[cfg(feature = "shadowsocks")]
fn halves_end_apart_through_ssserver() {
    use crate::shadowsocks::{OLD, rust, uci};
    let start = |lab: &Lab, _: &TempDir, family| -> Option<crate::process::Process> { rust(lab, family, OLD[0]) };
    halves_end_apart(false, start, |family| uci(family, OLD[0]), [Then::Kept; 2]);
}
