//! Who sees whose address, at both ends: TPROXY or REDIRECT on the client's side, the router's address or the client's own on
//! the server's side. With the firewall of OpenWrt in force.

use std::io::ErrorKind;
use std::net::SocketAddr;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_udp};
use crate::over_ways;
use crate::passage::{Way, uci};
use crate::sock::{PATIENCE, accept, connect, exchange, listen, receive, udp};
use crate::told::leads_to_the_true_destination;

fn keeping(way: Way, family: Family) -> Uci {
    uci(way, family).outbound(&[("keep_source", "1")])
}

fn lab() -> Lab {
    let lab = Lab::new();
    lab.firewall();
    lab
}

/// One connection and one datagram, with contents and addresses checked at both ends: the server must see `seen`.
fn pass(lab: &Lab, family: Family, seen: std::net::IpAddr) {
    let listener = listen(&lab.server, family.destination(80), 0);
    let to = listener.local_addr().expect("bound");
    let mut client = connect(&lab.client, to);
    let mut server = accept(&listener);
    assert_eq!(client.peer_addr().expect("connected"), to);
    assert_eq!(server.peer_addr().expect("connected").ip(), seen);
    exchange(&mut client, &mut server, b"ask", b"answer");
    exchange(&mut client, &mut server, &[5; 200_000], &[6; 200_000]);

    let server = udp(&lab.server, family.destination(80), 0);
    let client = udp(&lab.client, family.client(), 0);
    for n in 0..3u8 {
        client.send_to(&[n; 1_000], server.local_addr().expect("bound")).expect("send");
        let (arrived, from) = receive(&server);
        assert_eq!((arrived, from.ip()), (vec![n; 1_000], seen));
        assert_ne!(from.port(), client.local_addr().expect("bound").port(), "it was relayed");
        server.send_to(&[n, n], from).expect("answer");
        assert_eq!(receive(&client), (vec![n, n], server.local_addr().expect("bound")));
    }
}

over_ways!(neither_end_transparent_or_the_listener_alone, |way, family| {
    let lab = lab();
    let _daemon = Daemon::start(&lab, &uci(way, family));
    pass(&lab, family, family.router_wan());
}, neither_v4 Redirect V4, neither_v6 Redirect V6, listener_v4 Direct V4, listener_v6 Direct V6);

over_ways!(the_outgoing_end_transparent_or_both, |way, family| {
    let lab = lab();
    let _daemon = Daemon::start(&lab, &keeping(way, family));
    pass(&lab, family, family.client());
}, outgoing_v4 Redirect V4, outgoing_v6 Redirect V6, both_v4 Direct V4, both_v6 Direct V6);

over_ways!(strict_reverse_paths_do_no_harm, |way, family| {
    let lab = lab();
    lab.router.sysctl(&[("ipv4/conf/all/rp_filter", "1")]);
    let _daemon = Daemon::start(&lab, &keeping(way, family));
    pass(&lab, family, family.client());
}, redirect Redirect V4, tproxy Direct V4);

over_ways!(a_forward_server_sees_the_client, |way, family| {
    let lab = lab();
    let server = family.proxy().to_string();
    let mode = if way == Way::Redirect { "redirect" } else { "tproxy" };
    let config = Uci::new("forward")
        .listener(&[("mode", mode)])
        .outbound(&[("server", &server), ("port", "8000"), ("keep_source", "1")]);
    let _daemon = Daemon::start(&lab, &config);
    let listener = listen(&lab.server, family.proxy(), 8_000);
    let mut client = connect(&lab.client, SocketAddr::new(family.silent(), 80));
    let mut server = accept(&listener);
    assert_eq!(server.peer_addr().expect("connected").ip(), family.client());
    exchange(&mut client, &mut server, b"ask", b"answer");
    let server = udp(&lab.server, family.proxy(), 8_000);
    let client = udp(&lab.client, family.client(), 0);
    client.send_to(b"ask", SocketAddr::new(family.silent(), 80)).expect("send");
    let (arrived, from) = receive(&server);
    assert_eq!((arrived.as_slice(), from.ip()), (&b"ask"[..], family.client()));
    server.send_to(b"answer", from).expect("answer");
    assert_eq!(receive(&client), (b"answer".to_vec(), SocketAddr::new(family.silent(), 80)));
}, redirect_v4 Redirect V4, redirect_v6 Redirect V6, tproxy_v4 Direct V4, tproxy_v6 Direct V6);

// All three of an accelerator pair that hides nothing: by packet and by header the far end learns the same client, and leads it
// where it wanted to go.
over_ways!(a_kept_source_a_sent_header_and_an_accepted_one_agree, |way, family| {
    for version in ["v1", "v2"] {
        let lab = lab();
        let allowed = format!("{}", family.client());
        let far = Uci::new("direct").listener(&[
            ("mode", "plain"),
            ("port", "9000"),
            ("accept_proxy", "1"),
            ("allow_ip", &allowed), // who is let in is asked of the packet's own address
        ]);
        let far = Daemon::start_in(&lab.server, &far);
        let server = family.proxy().to_string();
        let mode = if way == Way::Redirect { "redirect" } else { "tproxy" };
        let near = Uci::new("forward").listener(&[("mode", mode)]).outbound(&[
            ("server", &server),
            ("port", "9000"),
            ("send_proxy", version),
            ("keep_source", "1"),
        ]);
        let _near = Daemon::start(&lab, &near);
        leads_to_the_true_destination(&lab, family, &far);
        if version == "v2" {
            let server = udp(&lab.server, family.destination(9), 4_000);
            let to = server.local_addr().expect("bound");
            let client = udp(&lab.client, family.client(), 0);
            client.send_to(&[7; 500], to).expect("send");
            let (arrived, from) = receive(&server);
            assert_eq!(arrived, [7; 500]);
            server.send_to(b"answer", from).expect("answer");
            assert_eq!(receive(&client), (b"answer".to_vec(), to));
        }
    }
}, redirect_v4 Redirect V4, tproxy_v4 Direct V4, tproxy_v6 Direct V6);

// A socket match would steal them: a flow that is forwarded, beside one of the same two hosts that is relayed.
over_ways!(flows_that_are_forwarded_keep_their_answers, |way, family| {
    let lab = lab();
    let _daemon = Daemon::start(&lab, &keeping(way, family).listener(&[("dest_port", "4000")]));
    let relayed = udp(&lab.client, family.client(), 4_000);
    let forwarded = udp(&lab.client, family.client(), 123);
    let [to_relayed, to_forwarded] = [4_000, 123].map(|port| Mirror::start_at(&lab.server, family.destination(9), port));
    for _ in 0..3 {
        let seen = seen_by_udp(&relayed, to_relayed.at, PATIENCE).expect("an answer");
        assert!(seen.ip() == family.client() && seen.port() != 4_000, "{seen}");
        let seen = seen_by_udp(&forwarded, to_forwarded.at, PATIENCE).expect("an answer");
        assert_eq!(seen, forwarded.local_addr().expect("bound"));
    }
}, redirect_v4 Redirect V4, redirect_v6 Redirect V6, tproxy_v4 Direct V4, tproxy_v6 Direct V6);

over_ways!(port_unreachable_reaches_the_client, |way, family| {
    let lab = lab();
    let _daemon = Daemon::start(&lab, &keeping(way, family));
    let client = udp(&lab.client, family.client(), 0);
    client.connect(SocketAddr::new(family.destination(1), 9)).expect("connect");
    client.send(b"anybody?").expect("send");
    let error = client.recv(&mut [0; 1]).expect_err("nobody is there to answer");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}, redirect_v4 Redirect V4, redirect_v6 Redirect V6, tproxy_v4 Direct V4, tproxy_v6 Direct V6);

// Endpoint-independent in both directions, though every outside port is the client's own address's.
over_ways!(one_outside_port_serves_several_destinations, |way, family| {
    let lab = Lab::new(); // a firewall would not let it in
    let _daemon = Daemon::start(&lab, &keeping(way, family));
    let client = udp(&lab.client, family.client(), 0);
    let server = udp(&lab.server, family.destination(1), 4_000);
    let other = udp(&lab.server, family.destination(2), 5_000);
    client.send_to(b"hello", server.local_addr().expect("bound")).expect("send");
    client.send_to(b"hello", other.local_addr().expect("bound")).expect("send");
    let outside = receive(&server).1;
    assert_eq!(receive(&other).1, outside, "one outside port for all destinations");
    other.send_to(b"yes?", outside).expect("answer");
    assert_eq!(receive(&client), (b"yes?".to_vec(), other.local_addr().expect("bound")));
}, redirect_v4 Redirect V4, tproxy_v4 Direct V4, tproxy_v6 Direct V6);

#[test]
fn check_warns_where_masquerading_makes_it_pointless() {
    let lab = lab();
    let daemon = Daemon::start(&lab, &keeping(Way::Direct, Family::V4));
    assert!(!daemon.check().contains("masquerade"), "nobody masquerades");
    lab.masquerade();
    let said = daemon.check();
    assert!(said.contains("outbound 'out' keeps the clients' addresses, and this router masquerades"), "{said}");
}
