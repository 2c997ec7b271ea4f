//! The network under it fails, and comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::{Exit, Ground};
use crate::lab::Family;
use crate::over_exits;
use crate::sock::{PATIENCE, accept, connect, exchange, read_n, receive, refusal, try_connect, udp};

over_exits!(a_session_lives_on_when_the_way_out_goes_down_and_up, |exit| {
    let ground = Ground::new(exit, |uci| uci);
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    for device in ["wan0", "lan0"] {
        ground.lab.router.tool("ip", &["link", "set", device, "down"], "");
        ground.lab.router.tool("ip", &["link", "set", device, "up"], "");
        if device == "wan0" {
            // the kernel forgets it with the device
            ground.lab.router.tool("ip", &["route", "replace", "default", "via", "198.51.100.2"], "");
        }
        exchange(&mut client, &mut server, device.as_bytes(), b"back");
        let (mut client, mut server) = ground.join(&listener, at);
        exchange(&mut client, &mut server, b"new", b"too");
    }
});

#[test]
fn without_a_route_clients_are_refused_at_once_and_served_when_it_is_back() {
    let ground = Ground::new(Exit::Direct, |uci| uci);
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    ground.lab.router.tool("ip", &["route", "del", "default"], "");
    let begin = Instant::now();
    // the client's packets need no route of the router's to come in
    let kind = refusal(&ground.lab.client, at);
    assert_eq!(kind, ErrorKind::ConnectionReset);
    assert!(begin.elapsed() < Duration::from_secs(4), "it took {:?}", begin.elapsed());
    let socket = udp(&ground.lab.client, Family::V4.client(), 0);
    socket.send_to(b"hello", SocketAddr::new(Family::V4.destination(7), 4_000)).expect("send");
    ground.daemon.status_until("it is counted", |status| status.number("drops.unsendable") == 1);
    ground.lab.router.tool("ip", &["route", "add", "default", "via", "198.51.100.2"], "");
    exchange(&mut client, &mut server, b"still", b"here");
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"new", b"too");
}

/// What a full table of connection tracking does to a router's own packets: they are dropped at `output`, and the sender is told
/// `EPERM`. (The table's real size is the whole machine's, and can't be set from within a namespace.)
#[test]
fn packets_that_connection_tracking_refuses_are_counted_and_nothing_is_lost_for_ever() {
    let ground = Ground::new(Exit::Direct, |uci| uci.outbound(&[("connect_timeout", "2s")]));
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    let full = "table inet full {\n chain output {\n type filter hook output priority -150; policy accept;\n\
                oifname wan0 ct state new drop\n }\n}\n";
    ground.lab.router.tool("nft", &["-f", "-"], full);
    let socket = udp(&ground.lab.client, Family::V4.client(), 0);
    let echo = udp(&ground.lab.server, Family::V4.destination(7), 4_000);
    socket.send_to(b"lost", echo.local_addr().expect("bound")).expect("send");
    ground.daemon.status_until("it is counted", |status| status.number("drops.unsendable") > 0);
    assert_eq!(refusal(&ground.lab.client, at), ErrorKind::ConnectionReset);
    exchange(&mut client, &mut server, b"a live one", b"goes on");
    ground.lab.router.tool("nft", &["delete", "table", "inet", "full"], "");
    socket.send_to(b"again", echo.local_addr().expect("bound")).expect("send");
    assert_eq!(receive(&echo).0, b"again");
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"new", b"too");
}

/// Ten megabytes each way while the firewall reloads all the time, as `fw4 reload` does: its own table is replaced.
fn transfer_while(ground: &Ground, disturb: impl Fn() + Sync) {
    const SIZE: usize = 10 << 20;
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    let bytes: Vec<u8> = (0..=250u8).cycle().take(SIZE).collect();
    let (mut up, mut down) = (client.try_clone().expect("dup"), server.try_clone().expect("dup"));
    thread::scope(|scope| {
        // the first half, disturbance, the second half: so that it always falls into the transfer
        for writer in [&mut up, &mut down] {
            let (bytes, disturb) = (&bytes, &disturb);
            scope.spawn(move || {
                writer.write_all(&bytes[..SIZE / 2]).expect("send");
                disturb();
                writer.write_all(&bytes[SIZE / 2..]).expect("send");
            });
        }
        let arrived = scope.spawn(|| read_n(&mut server, SIZE));
        assert!(read_n(&mut client, SIZE) == bytes, "what came down is not what was sent");
        assert!(arrived.join().expect("no panic") == bytes, "what came up is not what was sent");
    });
}

over_exits!(a_transfer_is_whole_though_the_firewall_reloads_in_its_midst, |exit| {
    let ground = Ground::new(exit, |uci| uci);
    ground.lab.track_connections();
    transfer_while(&ground, || {
        for _ in 0..5 {
            ground.lab.router.tool("nft", &["flush", "table", "inet", "firewall"], "");
            ground.lab.track_connections();
        }
    });
    ground.daemon.wait_idle();
});

/// Between the theft of the rules and their mending the kernel takes packets of a relayed connection for the server's own
/// affair; whatever becomes of those that speak in that moment, new ones work, and nothing hangs.
#[test]
fn rules_flushed_in_mid_transfer_leave_no_session_stuck_and_new_ones_work() {
    let ground = Ground::new(Exit::Direct, |uci| uci.outbound(&[("idle_timeout", "3s")]));
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    let (mut quiet, mut its_server) = ground.join(&listener, at);
    exchange(&mut quiet, &mut its_server, b"ask", b"answer");
    thread::scope(|scope| {
        scope.spawn(|| {
            let chunk = [5; 65_536];
            while server.write_all(&chunk).is_ok() {}
        });
        let mut buffer = vec![0; 1 << 20];
        client.read_exact(&mut buffer).expect("it runs");
        ground.lab.router.tool("nft", &["flush", "ruleset"], "");
        ground.daemon.process().wait_for_line(&["in place again"]);
        exchange(&mut quiet, &mut its_server, b"a quiet one", b"goes on");
        let begin = Instant::now();
        loop {
            // the mended rules are there; a connection that an unmended moment has spoilt is not waited for
            if let Ok(mut new) = try_connect(&ground.lab.client, at) {
                exchange(&mut new, &mut accept(&listener), b"new", b"too");
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "no new connection works");
        }
        drop(client);
    });
    drop((quiet, its_server));
    ground.daemon.wait_idle();
}

#[test]
fn a_client_that_changes_its_address_is_served_at_the_new_one() {
    let ground = Ground::new(Exit::Direct, |uci| uci.outbound(&[("idle_timeout", "3s")]));
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    for command in ["addr del 192.168.1.2/24 dev eth0", "addr add 192.168.1.7/24 dev eth0"] {
        ground.lab.client.tool("ip", &command.split(' ').collect::<Vec<_>>(), "");
    }
    ground.lab.client.tool("ip", &["route", "replace", "default", "via", "192.168.1.1"], "");
    let (mut new, mut its_server) = (connect(&ground.lab.client, at), accept(&listener));
    exchange(&mut new, &mut its_server, b"as another", b"welcome");
    // whoever it was is given up
    ground.daemon.status_until("the old one has ended", |status| status.number("tcp.active") <= 1);
}
