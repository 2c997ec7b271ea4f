//! UDP keeps its datagrams, its addresses and its errors on its way through.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::SocketAddr;

use crate::chance::Chance;
use crate::lab::Family;
use crate::over_every_way;
use crate::over_plain_and_direct;
use crate::over_ways;
use crate::passage::{Passage, Way};
use crate::sock::{receive, udp};
use crate::socks::{Asked, Bound, Manners};

/// Sends every size through the daemon's one dual-stack socket, v4 and v6 mixed, and back.
fn every_size_comes_back(way: Way, sizes: &[usize]) {
    let mut chance = Chance::new();
    let passage = Passage::open(way, Family::V4);
    let lab = &passage.lab;
    let ends = Family::BOTH
        .map(|family| (udp(&lab.client, family.client(), 0), udp(&lab.server, family.destination(7), 4_000), family));
    let mut plan: Vec<_> = ends.iter().flat_map(|end| sizes.iter().map(move |size| (end, *size))).collect();
    for _ in 0..5 {
        chance.shuffle(&mut plan);
        for ((client, server, family), size) in &plan {
            let (ask, answer) = (chance.octets(*size), chance.octets(*size));
            let to = SocketAddr::new(family.destination(7), 4_000);
            client.send_to(&ask, to).unwrap_or_else(|e| panic!("send {size} octets to {to}: {e}"));
            let (arrived, from) = receive(server);
            assert!(arrived == ask, "{size} octets to {to} arrived as {}", arrived.len());
            server.send_to(&answer, from).unwrap_or_else(|e| panic!("answer {size} octets to {from}: {e}"));
            let (arrived, from) = receive(client);
            assert!(arrived == answer, "{size} octets from {to} arrived as {}", arrived.len());
            assert_eq!(from, to, "the answer must come from whom the client asked");
        }
    }
}

#[test]
fn datagrams_of_every_size_come_back_whole_in_any_order_plain() {
    every_size_comes_back(Way::Plain, &[0, 1, 1_472, 1_473, 9_000, 65_507]);
}

#[test]
fn datagrams_of_every_size_come_back_whole_in_any_order_direct() {
    every_size_comes_back(Way::Direct, &[0, 1, 1_472, 1_473, 9_000, 65_507]);
}

#[test]
fn datagrams_of_every_size_come_back_whole_in_any_order_redirected() {
    every_size_comes_back(Way::Redirect, &[0, 1, 1_472, 1_473, 9_000, 65_507]);
}

/// The header of RFC 1928 section 7 takes 10 octets (22 with an IPv6 address) from the 65,507 that fit IPv4.
#[test]
fn datagrams_of_every_size_that_socks5_can_carry_come_back_whole_in_any_order() {
    every_size_comes_back(Way::Socks, &[0, 1, 1_472, 1_473, 9_000, 65_507 - 22]);
}

#[test]
fn datagrams_come_back_whole_through_dante() {
    every_size_comes_back(Way::Dante, &[1, 1_472, 1_473, 9_000]);
}

#[test]
fn a_datagram_too_long_for_socks5_is_dropped_and_counted_and_the_flow_goes_on() {
    let passage = Passage::open(Way::Socks, Family::V4);
    let client = udp(&passage.lab.client, Family::V4.client(), 0);
    let server = udp(&passage.lab.server, Family::V4.destination(7), 4_000);
    let to = server.local_addr().expect("bound");
    client.send_to(b"first", to).expect("send");
    assert_eq!(receive(&server).0, b"first");
    client.send_to(&vec![1; 65_507], to).expect("send");
    client.send_to(b"short", to).expect("send");
    assert_eq!(receive(&server).0, b"short", "the long one must not come, cut or not");
    assert_eq!(passage.daemon().status().number("drops.too_large"), 1);
}

over_ways!(one_client_port_keeps_one_outside_port_for_200_destinations, |way, family| {
    let passage = Passage::open(way, family);
    let client = udp(&passage.lab.client, family.client(), 0);
    let servers: Vec<_> = (1..=200).map(|n| udp(&passage.lab.server, family.destination(n), 4_000)).collect();
    let (mut outside, mut expected) = (BTreeSet::new(), BTreeMap::new());
    for (n, server) in (1..=200u8).zip(&servers) {
        client.send_to(&[n], server.local_addr().expect("bound")).expect("send");
        let (ask, from) = receive(server);
        assert_eq!(ask, [n]);
        outside.insert(from.port());
        server.send_to(&[n, n], from).expect("answer");
        expected.insert(server.local_addr().expect("bound"), vec![n, n]);
    }
    assert_eq!(outside.len(), 1, "outside ports: {outside:?}");
    let answers: BTreeMap<_, _> = (1..=200).map(|_| receive(&client)).map(|(answer, from)| (from, answer)).collect();
    assert_eq!(answers, expected);
},
    plain_v4 Plain V4, plain_v6 Plain V6, direct_v4 Direct V4, direct_v6 Direct V6, socks_v4 Socks V4, socks_v6 Socks V6,
    redirect_v4 Redirect V4, redirect_v6 Redirect V6, dante_v4 Dante V4); // Dante 1.4.2 forgets all but the first IPv6 destination of an association

over_plain_and_direct!(a_third_party_reaches_the_client_and_is_answered_from_the_same_port, |way, family| {
    let passage = Passage::open(way, family);
    let client = udp(&passage.lab.client, family.client(), 0);
    let server = udp(&passage.lab.server, family.destination(1), 4_000);
    let third = udp(&passage.lab.server, family.destination(2), 5_000);
    client.send_to(b"hello", server.local_addr().expect("bound")).expect("send");
    let (_, outside) = receive(&server);

    third.send_to(b"are you there?", outside).expect("send");
    let (heard, from) = receive(&client);
    assert_eq!((heard.as_slice(), from), (&b"are you there?"[..], third.local_addr().expect("bound")));
    client.send_to(b"yes", from).expect("send");
    assert_eq!(receive(&third), (b"yes".to_vec(), outside));
});

over_plain_and_direct!(port_unreachable_reaches_the_client, |way, family| {
    let passage = Passage::open(way, family);
    let client = udp(&passage.lab.client, family.client(), 0);
    client.connect(SocketAddr::new(family.destination(1), 9)).expect("connect");
    client.send(b"anybody?").expect("send");
    let error = client.recv(&mut [0; 1]).expect_err("nobody is there to answer");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
});

over_every_way!(the_server_sees_one_outside_address_of_the_outbound, |way, family| {
    let passage = Passage::open(way, family);
    let client = udp(&passage.lab.client, family.client(), 0);
    let server = udp(&passage.lab.server, family.destination(1), 4_000);
    client.send_to(b"hello", server.local_addr().expect("bound")).expect("send");
    let seen = receive(&server).1;
    match way {
        Way::Plain => assert_eq!(seen, client.local_addr().expect("bound")),
        Way::Direct | Way::Redirect => assert_eq!(seen.ip(), family.router_wan()),
        _ => assert!(seen.ip() != family.client() && seen.ip() != family.router_wan(), "{seen}"),
    }
});

over_ways!(one_association_serves_a_client_port_and_ends_with_its_flows, |way, family| {
    let passage = Passage::open_with(way, family, |uci| uci.outbound(&[("udp_timeout", "2s")]));
    let socks = passage.socks.as_ref().expect("the tests' own SOCKS5 server");
    let client = udp(&passage.lab.client, family.client(), 0);
    let before = passage.daemon().descriptors();
    for n in 1..=20 {
        let server = udp(&passage.lab.server, family.destination(n), 4_000);
        client.send_to(&[n], server.local_addr().expect("bound")).expect("send");
        assert_eq!(receive(&server).0, [n]);
    }
    let asked = socks.asked();
    let associations = asked.iter().filter(|asked| matches!(asked, Asked::Associate(_))).count();
    assert_eq!(associations, 1, "{asked:?}");
    assert_eq!(socks.find(|asked| (asked == Asked::Gone).then_some(asked)), Asked::Gone);
    passage.daemon().wait_idle();
    passage.daemon().wait_descriptors(before);
},
    socks_v4 Socks V4, socks_v6 Socks V6);

over_ways!(a_relay_without_address_of_its_own_is_reached_at_the_proxys, |way, family| {
    let passage = Passage::open(way, family);
    let socks = passage.socks.as_ref().expect("the tests' own SOCKS5 server");
    socks.become_like(Manners { bound: Bound::Unspecified, ..Manners::default() });
    let client = udp(&passage.lab.client, family.client(), 0);
    let server = udp(&passage.lab.server, family.destination(1), 4_000);
    client.send_to(b"hello", server.local_addr().expect("bound")).expect("send");
    let (ask, from) = receive(&server);
    assert_eq!(ask, b"hello");
    server.send_to(b"hello yourself", from).expect("answer");
    assert_eq!(receive(&client), (b"hello yourself".to_vec(), server.local_addr().expect("bound")));
},
    socks_v4 Socks V4, socks_v6 Socks V6);

over_ways!(datagrams_that_come_before_the_association_stands_are_not_lost, |way, family| {
    let passage = Passage::open(way, family);
    let client = udp(&passage.lab.client, family.client(), 0);
    let server = udp(&passage.lab.server, family.destination(1), 4_000);
    let to = server.local_addr().expect("bound");
    for n in 0..4u8 {
        client.send_to(&[n], to).expect("send");
    }
    let arrived: Vec<_> = (0..4).map(|_| receive(&server).0).collect();
    assert_eq!(arrived, [[0], [1], [2], [3]]);
},
    direct_v4 Direct V4, socks_v4 Socks V4, socks_v6 Socks V6, dante_v4 Dante V4, dante_v6 Dante V6);
