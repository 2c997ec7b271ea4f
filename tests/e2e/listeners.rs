//! Several listeners in one process: by device, by family, by protocol; the first in the file that matches takes a packet.

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_tcp, seen_by_udp};
use crate::ns::Namespace;
use crate::sock::{PATIENCE, udp};

#[test]
fn each_listener_takes_its_own_device_family_and_protocol() {
    let lab = Lab::new();
    let guest = lab.guest();
    lab.server.tool("ip", &["route", "add", "192.168.2.0/24", "via", "198.51.100.1"], "");
    let uci = Uci::new("direct")
        .globals(&[("kernel_verdicts", "0")])
        .listener(&[("family", "ipv4"), ("proto", "tcp")])
        .section("config listener 'lan_udp'\n\toption port '2334'\n\tlist device 'lan0'\n\toption proto 'udp'\n")
        .section("config listener 'lan6'\n\toption port '2335'\n\tlist device 'lan0'\n\toption family 'ipv6'\n")
        .section("config listener 'guest'\n\toption port '2336'\n\tlist device 'guest0'\n");
    let daemon = Daemon::start(&lab, &uci);
    let expect = |what: &str, accepted: [u64; 4]| {
        let status = daemon.status();
        let counts: [u64; 4] = std::array::from_fn(|n| status.number(&format!("listeners.{n}.accepted")));
        assert_eq!(counts, accepted, "{what}: {status}");
    };
    let [v4, v6] = Family::BOTH.map(|family| Mirror::start(&lab.server, family.destination(80)));
    expect("before", [0, 0, 0, 0]);
    let tcp = |ns: &Namespace, mirror: &Mirror| seen_by_tcp(ns, mirror.at).expect("a connection").ip();
    assert_eq!(tcp(&lab.client, &v4), Family::V4.router_wan());
    expect("TCP over IPv4", [1, 0, 0, 0]);
    assert_eq!(tcp(&lab.client, &v6), Family::V6.router_wan());
    expect("TCP over IPv6", [1, 0, 1, 0]);
    for (family, mirror) in Family::BOTH.into_iter().zip([&v4, &v6]) {
        let socket = udp(&lab.client, family.client(), 0);
        assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), family.router_wan());
    }
    expect("UDP: the first in the file that matches takes it", [1, 2, 1, 0]);
    assert_eq!(tcp(&guest, &v4), Family::V4.router_wan());
    let socket = udp(&guest, "192.168.2.2".parse().expect("an address"), 0);
    assert_eq!(seen_by_udp(&socket, v4.at, PATIENCE).expect("an answer").ip(), Family::V4.router_wan());
    expect("the guest's", [1, 2, 1, 2]);
    // A reload that takes one away leaves the others' sockets alone.
    let mut kept = crate::sock::connect(&lab.client, v6.at);
    crate::mirror::ask(&mut kept).expect("an answer");
    daemon.write_config(&Uci::new("direct").globals(&[("kernel_verdicts", "0")]));
    daemon.reload(&["reloaded"]);
    crate::mirror::ask(&mut kept).expect("an answer after the reload");
    assert_eq!(tcp(&lab.client, &v6), Family::V6.router_wan());
    assert_ne!(tcp(&guest, &v4), Family::V4.router_wan(), "the guest's network is nobody's now");
}
