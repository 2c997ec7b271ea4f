//! A bug of its own, or of the C library below it. The kernel, by strace, is made to lie to it, since no other way leads there.

use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use tproxyd::sys::sandbox;

use super::{Exit, Ground};
use crate::lab::Lab;
use crate::process::{Process, describe};
use crate::sock::{PATIENCE, accept, connect, exchange};

/// Has the system calls of process `pid` answered as `injection` says, until it is dropped.
fn lie(lab: &Lab, pid: u32, injection: &str) -> Process {
    let mut command = lab.router.command("strace");
    command.args(["-o", "/dev/null", "-e"]).arg(format!("inject={injection}"));
    command.args(["-p", &pid.to_string()]);
    let strace = Process::start(command);
    // not before this is every call in its hands: a daemon that is traced, but not stopped yet, may get past it
    strace.wait_for_line(&["attached"]);
    strace
}

/// A descriptor for signals gives whole records; that one gives an octet is a panic in the crate that reads it.
fn end_by_a_bug(ground: &Ground) {
    let daemon = &ground.daemon;
    let _strace = lie(&ground.lab, daemon.process().pid(), "read:retval=1");
    daemon.process().signal(Signal::SIGHUP);
    daemon.process().wait_for_line(&["tproxyd ends by a bug, please report it: panicked at", "signalfd"]);
    assert_eq!(describe(daemon.process().wait_end(PATIENCE)), format!("signal {}", Signal::SIGABRT as i32));
    // the helper has done its part
    daemon.process().wait_silence(PATIENCE);
}

#[test]
fn a_bug_ends_it_with_a_message_and_traffic_flows_on() {
    let ground = Ground::new(Exit::Direct, |uci| uci);
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"before", b"the bug");
    end_by_a_bug(&ground);
    ground.daemon.process().wait_for_line(&["the daemon died: its rules are being removed"]);
    let mut client = connect(&ground.lab.client, at);
    exchange(&mut client, &mut accept(&listener), b"straight", b"out");
    assert_eq!(ground.lab.router.tool("nft", &["list", "ruleset"], ""), "", "nothing may be left");
}

#[test]
fn a_bug_ends_it_with_a_message_and_a_kill_switch_holds() {
    let mut ground = Ground::new(Exit::Direct, |uci| uci.globals(&[("on_failure", "block")]));
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"before", b"the bug");
    end_by_a_bug(&ground);
    ground.daemon.process().wait_for_line(&["the daemon died: what it took is dropped until it is back"]);
    let blocked = ground.lab.client.within(|| TcpStream::connect_timeout(&at, Duration::from_millis(500)));
    assert!(blocked.is_err(), "a connection passed");
    ground.daemon.restart();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"back", b"again");
}

#[test]
fn a_system_call_that_is_not_on_the_list_is_refused_and_named_and_all_goes_on() {
    if !sandbox::BUILT {
        return;
    }
    let ground = Ground::new(Exit::Direct, |uci| uci);
    let (listener, at) = ground.listen();
    ground.daemon.refusals_are_meant();
    // what is written is the log: a line is lost to a call that the program never makes
    let strace = lie(&ground.lab, ground.daemon.process().pid(), "write:retval=0:syscall=getppid:when=1");
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    drop((client, server));
    ground.daemon.process().wait_for_line(&["the sandbox has refused system call", "report it"]);
    drop(strace);
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"all", b"goes on");
    drop((client, server));
    ground.daemon.wait_idle();
    ground.daemon.stop();
}

#[test]
fn without_the_sandbox_it_filters_nothing() {
    let ground = Ground::new(Exit::Direct, |uci| uci.globals(&[("sandbox", "0")]));
    let status = std::fs::read_to_string(format!("/proc/{}/status", ground.daemon.process().pid())).expect("it runs");
    assert!(status.contains("Seccomp:\t0\n"), "{status}");
    ground.daemon.stop();
}
