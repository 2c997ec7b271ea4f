//! Many at once, more than fit, and too little of what the machine lends: served in the end, or refused with a reason;
//! and afterwards everything is back.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, PROGRAM, Uci};
use crate::lab::{Family, Lab};
use crate::passage::{Passage, Way, uci};
use crate::process::describe;
use crate::sock::{PATIENCE, accept, connect, exchange, listen, read_all, read_n, receive, reset, udp};

/// Room for 2,048 of each kind.
fn roomy(uci: Uci) -> Uci {
    uci.globals(&[("tcp_sessions", "2048"), ("udp_sessions", "2048"), ("log_level", "info")])
}

fn family_of(n: u32) -> Family {
    if n.is_multiple_of(2) { Family::V4 } else { Family::V6 }
}

#[test]
fn two_thousand_tcp_sessions_at_once_are_served_and_leave_nothing_behind() {
    const COUNT: u32 = 2_000;
    let passage = Passage::open_with(Way::Direct, Family::V4, roomy);
    let (lab, daemon) = (&passage.lab, passage.daemon());
    let descriptors = daemon.descriptors();
    let listeners = Family::BOTH.map(|family| listen(&lab.server, family.destination(80), 80));

    let (mut clients, mut servers) = thread::scope(|scope| {
        let accepting = listeners
            .each_ref()
            .map(|listener| scope.spawn(move || (0..COUNT / 2).map(|_| accept(listener)).collect::<Vec<_>>()));
        let to = |n| SocketAddr::new(family_of(n).destination(80), 80);
        let clients: Vec<_> = (0..COUNT).map(|n| connect(&lab.client, to(n))).collect();
        (
            clients,
            accepting.map(|accepted| accepted.join().expect("all came")).into_iter().flatten().collect::<Vec<_>>(),
        )
    });
    for (n, client) in (0..COUNT).zip(&mut clients) {
        client.write_all(&n.to_be_bytes()).expect("send");
    }
    for server in &mut servers {
        let ask = read_n(server, 4);
        server.write_all(&[ask.as_slice(), b" heard"].concat()).expect("answer");
    }
    for (n, client) in (0..COUNT).zip(&mut clients) {
        assert_eq!(read_n(client, 10), [&n.to_be_bytes()[..], b" heard"].concat());
    }
    assert_eq!(daemon.status().number("tcp.active"), u64::from(COUNT));

    drop(clients);
    servers.iter_mut().for_each(|server| assert_eq!(read_all(server), b""));
    drop(servers);
    let status = daemon.wait_idle();
    assert_eq!(status.number("tcp.total"), u64::from(COUNT));
    assert_eq!((status.number("tcp.refused"), status.number("tcp.evicted")), (0, 0));
    daemon.wait_descriptors(descriptors);
}

#[test]
fn two_thousand_udp_flows_at_once_are_served_and_leave_nothing_behind() {
    const COUNT: u32 = 2_000;
    let passage = Passage::open_with(Way::Direct, Family::V4, |uci| roomy(uci).outbound(&[("udp_timeout", "300s")]));
    let (lab, daemon) = (&passage.lab, passage.daemon());
    let descriptors = daemon.descriptors();
    let servers = Family::BOTH.map(|family| udp(&lab.server, family.destination(7), 4_000));
    let clients: Vec<_> = (0..COUNT).map(|n| udp(&lab.client, family_of(n).client(), 0)).collect();
    for round in 0..2u8 {
        for (n, client) in (0..COUNT).zip(&clients) {
            let server = &servers[usize::from(family_of(n) == Family::V6)];
            let ask = [&[round], &n.to_be_bytes()[..]].concat();
            client.send_to(&ask, server.local_addr().expect("bound")).expect("send");
            let (arrived, from) = receive(server);
            assert_eq!(arrived, ask);
            server.send_to(&arrived, from).expect("answer");
            assert_eq!(receive(client), (ask, server.local_addr().expect("bound")));
        }
    }
    assert_eq!(daemon.status().number("udp.active"), u64::from(COUNT));
    for family in Family::BOTH {
        daemon.command("kick", &["--client", &family.client().to_string()]);
    }
    let status = daemon.wait_idle();
    assert_eq!(status.number("udp.total"), u64::from(COUNT));
    assert_eq!((status.number("udp.refused"), status.number("udp.evicted")), (0, 0));
    daemon.wait_descriptors(descriptors);
}

#[test]
fn five_hundred_connections_all_get_served_by_a_table_of_one_hundred() {
    const COUNT: u32 = 500;
    let passage = Passage::open_with(Way::Direct, Family::V4, |uci| {
        uci.globals(&[("tcp_sessions", "100"), ("log_level", "info")])
    });
    let (lab, daemon) = (&passage.lab, passage.daemon());
    let (listener, at) = passage.listen();
    let mut clients: Vec<_> = (0..COUNT).map(|_| connect(&lab.client, at)).collect();
    for (n, client) in (0..COUNT).zip(&mut clients) {
        client.write_all(&n.to_be_bytes()).expect("send");
    }
    let status = daemon.status_until("the table is full", |status| status.number("tcp.active") == 100);
    assert_eq!(status.number("tcp.limit"), 100);

    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..COUNT {
                let mut server = accept(&listener);
                let ask = read_n(&mut server, 4);
                server.write_all(&ask).expect("answer");
            }
        });
        // Each client leaves when it has been served, and so makes room for one that waits.
        for (n, mut client) in (0..COUNT).zip(clients) {
            assert_eq!(read_all(&mut client), n.to_be_bytes());
        }
    });
    assert_eq!(daemon.wait_idle().number("tcp.total"), u64::from(COUNT));
}

#[test]
fn a_full_udp_table_gives_the_place_of_the_longest_idle_to_the_newcomer() {
    let passage = Passage::open_with(Way::Direct, Family::V4, |uci| uci.globals(&[("udp_sessions", "16")]));
    let server = udp(&passage.lab.server, Family::V4.destination(7), 4_000);
    let ask = |client: &std::net::UdpSocket| {
        client.send_to(b"hello", server.local_addr().expect("bound")).expect("send");
        receive(&server).1.port()
    };
    let clients: Vec<_> = (0..17).map(|_| udp(&passage.lab.client, Family::V4.client(), 0)).collect();
    let ports: Vec<_> = clients.iter().map(ask).collect();
    let status = passage.daemon().status();
    assert_eq!((status.number("udp.active"), status.number("udp.evicted")), (16, 1), "{status}");
    assert_eq!(ask(&clients[16]), ports[16], "the newcomer has a mapping");
    assert_eq!(ask(&clients[1]), ports[1], "the second oldest has kept its own");
}

#[test]
fn a_descriptor_limit_too_low_for_the_tables_stops_the_start_with_the_remedy() {
    let lab = Lab::new();
    let daemon = Daemon::launch_by(&lab, &uci(Way::Direct, Family::V4), &[], |router| {
        // Without CAP_SYS_RESOURCE nobody can raise the hard limit again, not even root.
        let mut command = router.command("prlimit");
        command.args(["--nofile=100:100", "setpriv", "--bounding-set=-sys_resource", PROGRAM]);
        command
    });
    assert_eq!(describe(daemon.end()), "exit 1");
    daemon.process().wait_silence(PATIENCE);
    let said = daemon.process().said();
    assert!(said.contains("descriptor limit is 100") && said.contains("nofile"), "{said}");
    assert_eq!(lab.router.tool("nft", &["list", "ruleset"], ""), "", "nothing may be installed");
}

#[test]
fn clients_that_do_not_read_cost_no_more_than_relay_memory_and_harm_nobody() {
    const COUNT: u64 = 100;
    const EACH: usize = 50_000_000;
    const RELAY_MEMORY: u64 = 2 << 20;
    const CONSTANT: u64 = 1 << 20;
    let passage = Passage::open_with(Way::Direct, Family::V4, |uci| {
        uci.globals(&[("tcp_sessions", "256"), ("relay_memory", "2M"), ("log_level", "info")])
    });
    let daemon = passage.daemon();
    let (listener, at) = passage.listen();
    let (mut client, mut server) = passage.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    let (before, descriptors) = (daemon.own_memory(), daemon.descriptors());

    let silent: Vec<_> = (0..COUNT).map(|_| passage.join(&listener, at)).collect();
    thread::scope(|scope| {
        for (_, server) in &silent {
            scope.spawn(move || {
                server.set_write_timeout(Some(Duration::from_secs(2))).expect("SO_SNDTIMEO");
                let (mut server, chunk) = (server, vec![7; 1 << 20]);
                let sent = (0..EACH / chunk.len()).find_map(|_| server.write_all(&chunk).err());
                assert_eq!(sent.expect("50 MB went to a client that reads nothing").kind(), ErrorKind::WouldBlock);
            });
        }
    }); // all senders have been stuck for two seconds now
    let grown = daemon.own_memory().saturating_sub(before);
    println!("100 clients that do not read: {} KB more", grown / 1_024);
    assert!(grown < RELAY_MEMORY + CONSTANT, "{grown} bytes more");
    let status = daemon.status();
    assert!(status.number("memory.peak") <= status.number("memory.bound"), "{status}");
    let begin = Instant::now();
    exchange(&mut client, &mut server, b"still", b"there");
    let (mut another, mut its_server) = passage.join(&listener, at);
    exchange(&mut another, &mut its_server, b"and a new", b"one");
    assert!(begin.elapsed() < Duration::from_secs(1), "others waited {:?}", begin.elapsed());

    drop((another, its_server));
    silent.into_iter().for_each(|(client, server)| {
        reset(client);
        reset(server);
    });
    daemon.status_until("one session is left", |status| {
        status.number("tcp.active") == 1 && status.number("pool.lent") == 0
    });
    daemon.wait_descriptors(descriptors);
    exchange(&mut client, &mut server, &[1; 100_000], &[2; 100_000]);
}
