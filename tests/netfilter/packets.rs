//! Which packets are taken, which pass by, and what becomes of flows.

use crate::lab::{Stub, lab};
use crate::{Objects, PLAIN};

const SERVER: &str = "203.0.113.2:80";
const SERVER6: &str = "[2001:db8::2]:80";

#[test]
fn new_flows_of_both_families_and_protocols_reach_the_listener_with_their_destination() {
    lab(|lab| {
        let stub = Stub::open(&lab, 2333, "stub");
        lab.install(PLAIN);
        for to in [SERVER, SERVER6] {
            let (name, local, _) = lab.connect(to).unwrap().ask().unwrap();
            assert_eq!((name.as_str(), local.as_str()), ("stub", to));
        }
        let socket = lab.udp("192.168.1.2:5000");
        socket.send_to(b"hello", SERVER).unwrap();
        assert_eq!(stub.datagram().unwrap(), ("192.168.1.2:5000".parse().unwrap(), b"hello".to_vec()));
        let socket = lab.udp("[fd00:1::2]:5000");
        socket.send_to(b"hello", SERVER6).unwrap();
        let mut buffer = [0; 64];
        assert_eq!(stub.udp6.recv_from(&mut buffer).unwrap().1.to_string(), "[fd00:1::2]:5000");
        let counter = lab.router.sh("nft list counter inet tproxyd listener_lan");
        assert!(!counter.contains("packets 0 "), "{counter}");
    });
}

#[test]
fn what_the_contract_excludes_passes_by() {
    lab(|lab| {
        let stub = Stub::open(&lab, 2333, "stub");
        lab.router.run(|| {
            crate::lab::tcp_service(std::net::TcpListener::bind("192.168.1.1:8080").unwrap(), "router");
        });
        lab.install(PLAIN);
        assert_eq!(lab.connect("203.0.113.2:1080").unwrap().who(), "server", "an outbound's server by its port");
        assert_eq!(lab.connect("[2001:db8::2]:1080").unwrap().who(), "stub", "the same port of another address");
        assert_eq!(lab.connect("203.0.113.2:81").unwrap().who(), "stub", "another port of that server");
        assert_eq!(lab.connect("192.168.1.1:8080").unwrap().who(), "router", "the router itself");
        let socket = lab.udp("192.168.1.2:5000");
        socket.send_to(b"x", "203.0.113.2:1080").unwrap();
        let mut buffer = [0; 64];
        socket.set_broadcast(true).unwrap();
        assert!(!stub.is_quiet(), "the server is spared for TCP only");
        for to in ["255.255.255.255:9", "192.168.1.255:9", "224.0.0.251:5353", "203.0.113.2:67", "192.168.1.77:9"] {
            socket.send_to(b"x", to).unwrap();
        }
        assert!(stub.is_quiet());
        assert!(socket.recv_from(&mut buffer).is_err());
    });
}

#[test]
fn the_listeners_own_port_is_closed_to_others() {
    lab(|lab| {
        let stub = Stub::open(&lab, 2333, "stub");
        lab.install(PLAIN);
        assert!(lab.connect("192.168.1.1:2333").is_err());
        assert!(lab.connect("[fd00:1::1]:2333").is_err());
        lab.udp("192.168.1.2:0").send_to(b"x", "192.168.1.1:2333").unwrap();
        assert!(stub.is_quiet());
    });
}

#[test]
fn connections_from_before_live_on_through_start_reload_and_stop() {
    lab(|lab| {
        let mut old = lab.connect(SERVER).unwrap();
        let mut old6 = lab.connect(SERVER6).unwrap();
        assert_eq!(old.who(), "server");
        assert_eq!(old6.who(), "server");
        let socket = lab.udp("192.168.1.2:5000");
        socket.send_to(b"x", SERVER).unwrap();
        let mut buffer = [0; 64];
        socket.recv_from(&mut buffer).unwrap();

        let stub = Stub::open(&lab, 2333, "stub");
        let (_, objects) = lab.install(PLAIN);
        assert_eq!(old.who(), "server");
        assert_eq!(old6.who(), "server");
        socket.send_to(b"x", SERVER).unwrap();
        assert!(stub.is_quiet(), "a UDP flow from before stays direct");
        let mut taken = lab.connect(SERVER).unwrap();
        assert_eq!(taken.who(), "stub");

        let (installation, _) = lab.reinstall(PLAIN, objects);
        assert_eq!(old.who(), "server");
        assert_eq!(taken.who(), "stub");
        lab.remove(installation);
        assert_eq!(old.who(), "server");
        assert_eq!(old6.who(), "server");
    });
}

#[test]
fn a_segment_from_the_middle_that_conntrack_does_not_know_is_left_alone() {
    lab(|lab| {
        let mut old = lab.connect(SERVER6).unwrap();
        assert_eq!(old.who(), "server");
        let _stub = Stub::open(&lab, 2333, "stub");
        lab.install(PLAIN);
        lab.router.sh("conntrack -F 2>/dev/null");
        assert_eq!(old.who(), "server");
    });
}

#[test]
fn without_a_process_traffic_flows_direct_and_nothing_is_marked() {
    lab(|lab| {
        lab.install(PLAIN);
        assert_eq!(lab.connect(SERVER).unwrap().who(), "server");
        assert_eq!(lab.connect(SERVER6).unwrap().who(), "server");
        let socket = lab.udp("192.168.1.2:5000");
        socket.send_to(b"x", SERVER).unwrap();
        let mut buffer = [0; 64];
        let (n, _) = socket.recv_from(&mut buffer).unwrap();
        assert!(buffer[..n].starts_with(b"203.0.113.1:"), "it is masqueraded");
        assert!(!lab.router.sh("conntrack -L 2>/dev/null").contains("mark=16777216"));
    });
}

#[test]
fn with_block_and_no_process_what_it_would_take_is_dropped_and_the_excluded_flows() {
    lab(|lab| {
        let text = PLAIN.replace("config globals", "config globals\n option on_failure 'block'");
        let stub = Stub::open(&lab, 2333, "stub");
        lab.install(&text);
        let mut taken = lab.connect(SERVER).unwrap();
        assert_eq!(taken.who(), "stub");
        drop(stub);
        assert!(lab.connect(SERVER).is_err());
        assert!(lab.connect(SERVER6).is_err());
        assert_eq!(lab.connect("203.0.113.2:1080").unwrap().who(), "server");
    });
}

#[test]
fn the_block_before_the_start_drops_new_flows_and_gives_way_to_the_rules() {
    lab(|lab| {
        let mut old = lab.connect(SERVER).unwrap();
        let objects = lab.router.run(|| {
            let cfg = crate::config(PLAIN);
            let facts = crate::Facts::new(&cfg, &crate::look(&[], &["lan0".into()]).unwrap(), &[]);
            crate::load::replace(&tproxyd::netfilter::render_block(&cfg, &facts), &Objects::default()).unwrap()
        });
        assert!(lab.connect(SERVER).is_err());
        assert_eq!(old.who(), "server");
        let _stub = Stub::open(&lab, 2333, "stub");
        let (installation, _) = lab.reinstall(PLAIN, objects);
        assert_eq!(lab.connect(SERVER).unwrap().who(), "stub");
        lab.remove(installation);
    });
}

const TWO: &str = "
config globals
    option kernel_verdicts '0'
config listener 'first'
    option port '2333'
    list device 'lan0'
    list src_ip '192.168.1.2'
config listener 'second'
    option port '2334'
    list device 'lan0'
";

#[test]
fn of_two_listeners_the_first_that_matches_takes_it_and_live_flows_stay_when_narrowing_changes() {
    lab(|lab| {
        let (one, two) = (Stub::open(&lab, 2333, "first"), Stub::open(&lab, 2334, "second"));
        let (_, objects) = lab.install(TWO);
        let mut a = lab.connect_from("192.168.1.2:0", SERVER).unwrap();
        let mut b = lab.connect_from("192.168.1.3:0", SERVER).unwrap();
        assert_eq!((a.who().as_str(), b.who().as_str()), ("first", "second"));
        let (ua, ub) = (lab.udp("192.168.1.2:5000"), lab.udp("192.168.1.3:5000"));
        ua.send_to(b"a", SERVER).unwrap();
        ub.send_to(b"b", SERVER).unwrap();
        assert_eq!((one.datagram().unwrap().1, two.datagram().unwrap().1), (b"a".to_vec(), b"b".to_vec()));

        // Nobody wants .2 any more, and the first wants .3.
        let changed = TWO.replace(".2'", ".3'").replace("'2334'", "'2334'\n list src_ip '192.168.1.9'");
        let (_, objects) = lab.reinstall(&changed, objects);
        assert_eq!((a.who().as_str(), b.who().as_str()), ("first", "second"));
        ua.send_to(b"a", SERVER).unwrap();
        assert_eq!(one.datagram().unwrap().1, b"a", "a flow that no listener wants stays with the process");
        assert_eq!(lab.connect_from("192.168.1.2:0", SERVER).unwrap().who(), "server");
        assert_eq!(lab.connect_from("192.168.1.3:0", SERVER).unwrap().who(), "first");

        // The second listener is gone; its socket is still open for what it has accepted.
        let only = changed.split("config listener 'second'").next().unwrap().to_string();
        lab.reinstall(&only, objects);
        assert_eq!(b.who(), "second");
        let rules = lab.router.sh("nft list table inet tproxyd");
        assert!(!rules.contains("listener_second"), "{rules}");
    });
}

#[test]
fn under_syn_cookies_the_handshake_ends_at_the_listener_where_it_began() {
    lab(|lab| {
        let _stubs = (Stub::open(&lab, 2333, "first"), Stub::open(&lab, 2334, "second"));
        lab.router.sh("echo 2 > /proc/sys/net/ipv4/tcp_syncookies");
        lab.install(TWO);
        for _ in 0..5 {
            assert_eq!(lab.connect_from("192.168.1.3:0", SERVER).unwrap().who(), "second");
            assert_eq!(lab.connect_from("192.168.1.2:0", SERVER).unwrap().who(), "first");
            assert_eq!(lab.connect(SERVER6).unwrap().who(), "second");
        }
    });
}

#[test]
fn bits_of_marks_that_belong_to_others_survive() {
    lab(|lab| {
        let _stub = Stub::open(&lab, 2333, "stub");
        lab.router.sh("nft add table inet others
             nft add chain inet others pre '{ type filter hook prerouting priority -190; }'
             nft add rule inet others pre iifname lan0 meta mark set 0x3f00 ct mark set ct mark and 0xffffff00 or 0x42
             nft add chain inet others in '{ type filter hook input priority 0; }'
             nft add rule inet others in iifname lan0 meta mark 0x01003f00 counter");
        lab.install(PLAIN);
        assert_eq!(lab.connect(SERVER).unwrap().who(), "stub");
        let entries = lab.router.sh("conntrack -L -p tcp 2>/dev/null");
        assert!(entries.contains(&format!("mark={}", 0x0100_0042)), "{entries}");
        let counted = lab.router.sh("nft list chain inet others in");
        assert!(!counted.contains("packets 0 "), "{counted}");
    });
}

#[test]
fn a_clients_answer_to_a_datagram_sent_in_a_strangers_name_comes_to_us() {
    lab(|lab| {
        let stub = Stub::open(&lab, 2333, "stub");
        lab.install(PLAIN);
        let client = lab.udp("192.168.1.2:5000");
        lab.router.run(|| {
            use std::os::fd::AsFd;
            use tproxyd::sys::socket::{self, Family, Transport};
            use tproxyd::sys::sockopt;
            let fd = socket::open(Family::V4, Transport::Udp).unwrap();
            sockopt::set_ipv4_transparent(fd.as_fd()).unwrap();
            sockopt::set_mark(fd.as_fd(), 0x0200_0000).unwrap();
            socket::bind(fd.as_fd(), "198.51.100.7:9".parse().unwrap()).unwrap();
            std::net::UdpSocket::from(fd).send_to(b"hi", "192.168.1.2:5000").unwrap();
        });
        let mut buffer = [0; 64];
        let (_, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(from.to_string(), "198.51.100.7:9");
        client.send_to(b"back", from).unwrap();
        assert_eq!(stub.datagram().unwrap().1, b"back");
    });
}

#[test]
fn after_the_end_a_udp_client_with_a_fixed_port_is_masqueraded_again() {
    lab(|lab| {
        let stub = Stub::open(&lab, 2333, "stub");
        let (installation, _) = lab.install(PLAIN);
        let client = lab.udp("192.168.1.2:51820");
        client.send_to(b"x", SERVER).unwrap();
        stub.datagram().unwrap();
        drop(stub);
        lab.remove(installation);
        client.send_to(b"x", SERVER).unwrap();
        let mut buffer = [0; 64];
        let (n, _) = client.recv_from(&mut buffer).unwrap();
        assert!(buffer[..n].starts_with(b"203.0.113.1:"), "{:?}", String::from_utf8_lossy(&buffer[..n]));
    });
}

#[test]
fn entries_with_our_mark_are_deleted_and_no_others() {
    lab(|lab| {
        let _stub = Stub::open(&lab, 2333, "stub");
        lab.router.sh("nft add table inet others
             nft add chain inet others pre '{ type filter hook prerouting priority -190; }'
             nft add rule inet others pre iifname lan0 th dport 1080 ct mark set 0x02000042");
        let (installation, _) = lab.install(PLAIN);
        let mut kept = lab.connect("203.0.113.2:1080").unwrap();
        assert_eq!(kept.who(), "server");
        for to in [SERVER, SERVER6] {
            assert_eq!(lab.connect(to).unwrap().who(), "stub");
        }
        let deleted = lab.router.run(move || tproxyd::netfilter::conntrack::delete_marked(installation.routes.mark));
        assert_eq!(deleted.unwrap(), 2);
        let entries = lab.router.sh("conntrack -L 2>/dev/null; conntrack -L -f ipv6 2>/dev/null");
        assert!(entries.contains(&format!("mark={}", 0x0200_0042)), "{entries}");
        assert!(!entries.contains("mark=16777216"), "{entries}");
        assert_eq!(kept.who(), "server");
    });
}

#[test]
fn a_set_of_many_thousand_prefixes_is_loaded_in_parts_and_kept_over_a_reload() {
    lab(|lab| {
        let _stub = Stub::open(&lab, 2333, "stub");
        let mut text = PLAIN.replace("list device 'lan0'", "list device 'lan0'\n list dest_ip '!@many'");
        text += "config set 'many'\n";
        for i in 0..6000u32 {
            text += &format!(" list entry '{}'\n", std::net::Ipv4Addr::from_bits(0x0b00_0000 + i * 2));
        }
        let (_, objects) = lab.install(&text);
        assert_eq!(lab.connect(SERVER).unwrap().who(), "stub");
        let (_, objects) = lab.reinstall(&text, objects);
        assert_eq!(lab.connect(SERVER).unwrap().who(), "stub");
        let more = text + " list entry '203.0.113.2'\n";
        lab.reinstall(&more, objects);
        assert_eq!(lab.connect(SERVER).unwrap().who(), "server", "it is in the set now");
        let sets = lab.router.sh("nft list sets inet | grep -c 'set net4_many' ");
        assert_eq!(sets.trim(), "1", "the old set is gone");
    });
}
