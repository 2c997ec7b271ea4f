//! The router loses an address, as when a PPPoE line dials again: what is bound to it ends at once, and nothing else does.

use std::net::{IpAddr, SocketAddr};

use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_udp};
use crate::over_the_daemons_ways;
use crate::over_ways;
use crate::passage::{Passage, Way};
use crate::sock::{PATIENCE, exchange, expect_reset, udp};

/// The address that the line gets next.
fn next(family: Family) -> IpAddr {
    match family {
        Family::V4 => [198, 51, 100, 9].into(),
        Family::V6 => [0x2001, 0xdb8, 1, 0, 0, 0, 0, 9].into(),
    }
}

/// `ip addr VERB` on the router's line, and the default route, which may go with the address.
fn change(lab: &Lab, family: Family, verb: &str, ip: IpAddr) {
    let length = if family == Family::V4 { 24 } else { 64 };
    let all = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
    let nodad = if family == Family::V6 && verb == "add" { " nodad" } else { "" };
    let commands = format!(
        "addr {verb} {ip}/{length} dev wan0{nodad}\nroute replace {all} via {} dev wan0 onlink\n",
        family.proxy()
    );
    lab.router.tool("ip", &["-batch", "-"], &commands);
}

over_the_daemons_ways!(
    sessions_bound_to_an_address_that_goes_are_reset_at_once_and_new_ones_use_the_next,
    |way, family| {
        let passage = Passage::open(way, family);
        let (mut old, mut server) = passage.pair();
        exchange(&mut old, &mut server, b"before", b"it goes");
        change(&passage.lab, family, "del", family.router_wan());
        change(&passage.lab, family, "add", next(family));
        // far sooner than any timeout: the reading end waits no longer than its patience
        expect_reset(&mut old);
        let (mut new, mut server) = passage.pair();
        exchange(&mut new, &mut server, b"after", b"it went");
        if way == Way::Direct {
            assert_eq!(server.peer_addr().expect("connected").ip(), next(family));
        }
        passage.daemon().process().wait_for_line(&["lost", "1 TCP sessions"]);
    }
);

over_the_daemons_ways!(sessions_bound_to_another_address_go_on_when_one_goes, |way, family| {
    let passage = Passage::open(way, family);
    // one that the kernel chooses for nothing here
    let other: IpAddr = match family {
        Family::V4 => [198, 18, 0, 1].into(),
        Family::V6 => [0xfd00, 5, 0, 0, 0, 0, 0, 1].into(),
    };
    change(&passage.lab, family, "add", other);
    let (mut client, mut server) = passage.pair();
    change(&passage.lab, family, "del", other);
    // a session that begins afterwards shows that the loop has heard of it
    let (mut later, mut its_server) = passage.pair();
    exchange(&mut later, &mut its_server, b"later", b"later");
    exchange(&mut client, &mut server, b"still", b"there");
});

over_ways!(a_client_port_gets_a_new_association_when_the_address_of_the_old_one_goes, |way, family| {
    let passage = Passage::open(way, family);
    let mirror = Mirror::start(&passage.lab.server, family.destination(80));
    let socket = udp(&passage.lab.client, family.client(), 0);
    seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer before");
    change(&passage.lab, family, "del", family.router_wan());
    change(&passage.lab, family, "add", next(family));
    passage.daemon().process().wait_for_line(&["lost", "1 UDP flows"]);
    seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer after");
}, socks_v4 Socks V4, socks_v6 Socks V6);

over_ways!(a_client_port_keeps_its_outside_port_when_the_address_goes, |way, family| {
    let passage = Passage::open(way, family);
    let mirror = Mirror::start(&passage.lab.server, family.destination(80));
    let socket = udp(&passage.lab.client, family.client(), 0);
    let before = seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer before");
    change(&passage.lab, family, "del", family.router_wan());
    change(&passage.lab, family, "add", next(family));
    let after = seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer after");
    assert_eq!(after, SocketAddr::new(next(family), before.port()));
}, direct_v4 Direct V4, direct_v6 Direct V6);
