//! What the machine lends runs out, and processes die or stand still.

use std::io::{ErrorKind, Write};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Exit, Ground};
use crate::lab::Family;
use crate::sock::{accept, connect, exchange, read_n, receive, refusal, udp};

#[test]
fn without_a_descriptor_for_the_client_accepting_pauses_and_nothing_spins() {
    let ground = Ground::new(Exit::Direct, |uci| uci);
    let (listener, at) = ground.listen();
    let (mut old, mut its_server) = ground.join(&listener, at);
    exchange(&mut old, &mut its_server, b"ask", b"answer");
    ground.leave_descriptors(0);
    let mut waiting: Vec<_> = (0..20).map(|_| connect(&ground.lab.client, at)).collect();
    ground.daemon.process().wait_for_line(&["accept at listener 'lan'", "it pauses"]);
    let worked = ground.spun();
    assert!(worked < Duration::from_millis(300), "it worked {worked:?} of a second");
    exchange(&mut old, &mut its_server, b"a live one", b"goes on");
    ground.give_descriptors_back();
    for client in &mut waiting {
        client.write_all(b"at last").expect("send");
    }
    for _ in &waiting {
        assert_eq!(read_n(&mut accept(&listener), 7), b"at last");
    }
}

#[test]
fn without_a_descriptor_for_the_server_the_client_is_reset_and_the_next_is_served() {
    let ground = Ground::new(Exit::Direct, |uci| uci);
    let (listener, at) = ground.listen();
    ground.leave_descriptors(1);
    for _ in 0..10 {
        assert_eq!(refusal(&ground.lab.client, at), ErrorKind::ConnectionReset);
    }
    let worked = ground.spun();
    assert!(worked < Duration::from_millis(300), "it worked {worked:?} of a second");
    ground.give_descriptors_back();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    drop((client, server));
    ground.daemon.wait_idle();
}

#[test]
fn without_descriptors_for_pipes_bulk_is_copied_and_arrives_whole() {
    const SIZE: usize = 8 << 20;
    let ground = Ground::new(Exit::Direct, |uci| uci);
    let (listener, at) = ground.listen();
    ground.leave_descriptors(2);
    let (mut client, mut server) = ground.join(&listener, at);
    let bytes: Vec<u8> = (0..=250u8).cycle().take(SIZE).collect();
    thread::scope(|scope| {
        scope.spawn(|| server.write_all(&bytes).expect("send"));
        assert!(read_n(&mut client, SIZE) == bytes, "not the bytes that were sent");
    });
    ground.give_descriptors_back();
}

#[test]
fn without_a_descriptor_for_a_flow_its_datagrams_are_counted_and_later_ones_pass() {
    let ground = Ground::new(Exit::Direct, |uci| uci);
    let echo = udp(&ground.lab.server, Family::V4.destination(7), 4_000);
    let socket = udp(&ground.lab.client, Family::V4.client(), 0);
    ground.leave_descriptors(0);
    socket.send_to(b"lost", echo.local_addr().expect("bound")).expect("send");
    let worked = ground.spun();
    assert!(worked < Duration::from_millis(300), "it worked {worked:?} of a second");
    ground.give_descriptors_back();
    ground.daemon.status_until("it is counted", |status| status.number("drops.no_descriptor") == 1);
    socket.send_to(b"found", echo.local_addr().expect("bound")).expect("send");
    assert_eq!(receive(&echo).0, b"found");
}

/// All its memory is taken at the start, so that nothing is needed when there is none.
#[test]
fn with_no_more_memory_to_be_had_sessions_and_flows_are_served_as_ever() {
    let ground = Ground::new(Exit::Direct, |uci| uci.globals(&[("log_level", "info")]));
    let (listener, at) = ground.listen();
    let (mut first, mut its_server) = ground.join(&listener, at);
    exchange(&mut first, &mut its_server, b"ask", b"answer");
    let pid = ground.daemon.process().pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("a size");
    let kilobytes: u64 = size.trim().trim_end_matches("kB").trim().parse().expect("a number");
    // but for the buffer through which a change of the network is read, which may come at any time: less than sessions would take
    let limit = format!("--as={}:", (kilobytes + 40) * 1024);
    ground.lab.router.tool("prlimit", &["--pid", &pid.to_string(), &limit], "");
    let mut pairs: Vec<_> = (0..200).map(|_| ground.join(&listener, at)).collect();
    for (client, server) in &mut pairs {
        exchange(client, server, &[1; 10_000], &[2; 10_000]);
    }
    let echo = udp(&ground.lab.server, Family::V4.destination(7), 4_000);
    let sockets: Vec<_> = (0..200).map(|_| udp(&ground.lab.client, Family::V4.client(), 0)).collect();
    for socket in &sockets {
        socket.send_to(b"hello", echo.local_addr().expect("bound")).expect("send");
        let (_, from) = receive(&echo);
        echo.send_to(b"answer", from).expect("answer");
        assert_eq!(receive(socket).0, b"answer");
    }
    ground.lab.router.tool("prlimit", &["--pid", &pid.to_string(), "--as=unlimited:"], "");
    let status = ground.daemon.status();
    assert_eq!((status.number("tcp.active"), status.number("udp.active")), (201, 200), "{status}");
}

/// The helper of a daemon: the child of that name.
fn helper_of(pid: u32) -> i32 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
    let named = |child: &&str| {
        std::fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.starts_with("tproxyd-helper"))
    };
    let helper = children.split_whitespace().find(named).unwrap_or_else(|| panic!("no helper among {children:?}"));
    helper.parse().expect("a number")
}

#[test]
fn when_the_helper_is_killed_all_goes_on_and_a_restart_mends_it() {
    let mut ground = Ground::new(Exit::Direct, |uci| uci);
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    kill(Pid::from_raw(helper_of(ground.daemon.process().pid())), Signal::SIGKILL).expect("kill");
    ground.daemon.process().wait_for_line(&["the privileged helper has ended"]);
    exchange(&mut client, &mut server, b"still", b"here");
    let (mut new, mut its_server) = ground.join(&listener, at);
    exchange(&mut new, &mut its_server, b"new", b"too");
    let worked = ground.spun();
    assert!(worked < Duration::from_millis(300), "it worked {worked:?} of a second");
    // nobody is left who would take the rules away: that is what `clear`, or the next start, is for
    ground.daemon.process().signal(Signal::SIGTERM);
    ground.daemon.end();
    ground.daemon.restart();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"once", b"more");
    ground.daemon.stop();
    assert_eq!(ground.lab.router.tool("nft", &["list", "ruleset"], ""), "", "nothing may be left");
}

#[test]
fn stopped_and_continued_it_loses_nothing_that_waited() {
    let ground = Ground::new(Exit::Direct, |uci| uci);
    let (listener, at) = ground.listen();
    let (mut old, mut its_server) = ground.join(&listener, at);
    exchange(&mut old, &mut its_server, b"ask", b"answer");
    ground.daemon.process().signal(Signal::SIGSTOP);
    let mut waiting: Vec<_> = (0..50).map(|_| connect(&ground.lab.client, at)).collect();
    for (n, client) in (0u32..).zip(&mut waiting) {
        client.write_all(&n.to_be_bytes()).expect("the kernel takes it");
    }
    old.write_all(&[7; 20_000]).expect("the kernel takes it");
    let echo = udp(&ground.lab.server, Family::V4.destination(7), 4_000);
    let socket = udp(&ground.lab.client, Family::V4.client(), 0);
    for n in 0..20u8 {
        socket.send_to(&[n], echo.local_addr().expect("bound")).expect("send");
    }
    thread::sleep(Duration::from_secs(2));
    ground.daemon.process().signal(Signal::SIGCONT);
    let mut heard: Vec<_> = waiting.iter().map(|_| read_n(&mut accept(&listener), 4)).collect();
    heard.sort_unstable();
    assert_eq!(heard, (0u32..50).map(|n| n.to_be_bytes().to_vec()).collect::<Vec<_>>());
    assert_eq!(read_n(&mut its_server, 20_000), [7; 20_000]);
    let mut came: Vec<_> = (0..20).map(|_| receive(&echo).0[0]).collect();
    came.sort_unstable();
    assert_eq!(came, (0..20).collect::<Vec<_>>());
}
