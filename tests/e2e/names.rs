//! A SOCKS5 server by name: found by DNS, kept while DNS is down, followed when it moves.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Instant;

use crate::daemon::{Daemon, Uci};
use crate::dns::{Dns, NAME, Zone};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_tcp};
use crate::process::TempDir;
use crate::sock::{PATIENCE, refusal};
use crate::socks::{Manners, Socks};

const DAY: u32 = 86_400;
const V4: Family = Family::V4;
const V6: Family = Family::V6;

fn zone(addresses: &[IpAddr], ttl: u32) -> Zone {
    Zone { addresses: addresses.to_vec(), ttl, ..Zone::default() }
}

fn proxy(lab: &Lab, ip: IpAddr) -> Socks {
    Socks::start(&lab.server, ip, 1080, Manners::default())
}

/// Everything goes to the proxy by its name, asked for at the laboratory's name server.
fn named() -> Uci {
    let resolver = V4.proxy().to_string();
    Uci::new("socks5").globals(&[("resolver", &resolver)]).outbound(&[("server", NAME), ("port", "1080")])
}

fn mirror(lab: &Lab) -> Mirror {
    Mirror::start(&lab.server, V4.destination(80))
}

/// One connection through the daemon that must work.
fn works(lab: &Lab, mirror: &Mirror) {
    seen_by_tcp(&lab.client, mirror.at).expect("a connection through the proxy");
}

#[test]
fn a_proxy_by_name_is_found_over_either_family() {
    for family in Family::BOTH {
        let lab = Lab::new();
        let _dns = Dns::start(&lab.server, V4.proxy(), zone(&[family.proxy()], DAY));
        let _proxy = proxy(&lab, family.proxy());
        let _daemon = Daemon::start(&lab, &named());
        works(&lab, &mirror(&lab));
    }
}

#[test]
fn a_resolver_may_have_an_ipv6_address_or_come_from_a_file() {
    let (lab, files) = (Lab::new(), TempDir::new());
    let _dns = Dns::start(&lab.server, V6.proxy(), zone(&[V4.proxy()], DAY));
    let _proxy = proxy(&lab, V4.proxy());
    let file = files.write("resolv.conf", "# the provider's\nsearch lan\nnameserver 2001:db8:1::2\n");
    for resolver in ["2001:db8:1::2", file.to_str().expect("a plain path")] {
        let daemon = Daemon::start(&lab, &named().globals(&[("resolver", resolver)]));
        works(&lab, &mirror(&lab));
        daemon.stop();
    }
}

#[test]
fn a_truncated_answer_is_asked_for_again_over_tcp() {
    let lab = Lab::new();
    let dns = Dns::start(&lab.server, V4.proxy(), Zone { truncates: true, ..zone(&[V4.proxy()], DAY) });
    let _proxy = proxy(&lab, V4.proxy());
    let _daemon = Daemon::start(&lab, &named());
    works(&lab, &mirror(&lab));
    assert!(dns.asked().iter().any(|question| question.over_tcp));
}

#[test]
fn questions_carry_changing_ids_from_changing_ports() {
    let lab = Lab::new();
    let dns = Dns::start(&lab.server, V4.proxy(), zone(&[V4.proxy()], DAY));
    let _proxy = proxy(&lab, V4.proxy());
    for _ in 0..3 {
        let _daemon = Daemon::start(&lab, &named());
        works(&lab, &mirror(&lab));
    }
    let asked = dns.asked();
    let ids: BTreeSet<_> = asked.iter().map(|question| question.id).collect();
    let ports: BTreeSet<_> = asked.iter().map(|question| question.from.port()).collect();
    assert!(asked.len() >= 3 && ids.len() == asked.len() && ports.len() > 1, "{asked:?}");
}

#[test]
fn a_proxy_by_name_keeps_working_while_dns_is_down() {
    let lab = Lab::new();
    let dns = Dns::start(&lab.server, V4.proxy(), zone(&[V4.proxy()], 1));
    let (_proxy, mirror) = (proxy(&lab, V4.proxy()), mirror(&lab));
    let _daemon = Daemon::start(&lab, &named());
    works(&lab, &mirror);
    dns.change(|zone| zone.down = true);
    dns.asked();
    // The answer was good for one second: go on until the daemon has asked in vain, and beyond.
    let (begin, mut in_vain) = (Instant::now(), 0);
    while in_vain < 3 {
        works(&lab, &mirror);
        in_vain += dns.asked().len();
        assert!(begin.elapsed() < PATIENCE, "the daemon does not ask again after the answer's time");
    }
    works(&lab, &mirror);
}

#[test]
fn a_proxy_that_moves_is_followed_long_before_its_old_answer_expires() {
    let lab = Lab::new();
    let dns = Dns::start(&lab.server, V4.proxy(), zone(&[V4.proxy()], DAY));
    let (old, mirror) = (proxy(&lab, V4.proxy()), mirror(&lab));
    let _daemon = Daemon::start(&lab, &named());
    works(&lab, &mirror);
    drop(old);
    let _new = proxy(&lab, V4.second_proxy());
    dns.change(|zone| zone.addresses = vec![V4.second_proxy()]);
    let (begin, mut tries) = (Instant::now(), 1);
    while seen_by_tcp(&lab.client, mirror.at).is_err() {
        tries += 1;
        assert!(begin.elapsed() < PATIENCE, "still at the old address after {tries} connections");
    }
    println!("the new address was taken after {:?}, at connection {tries}", begin.elapsed());
    works(&lab, &mirror);
}

#[test]
fn a_name_that_does_not_exist_resets_the_client_and_is_named_in_the_log() {
    let lab = Lab::new();
    let _dns = Dns::start(&lab.server, V4.proxy(), Zone::default());
    let daemon = Daemon::start(&lab, &named().outbound(&[("server", "nowhere.example")]));
    assert_eq!(refusal(&lab.client, mirror(&lab).at), ErrorKind::ConnectionReset);
    daemon.process().wait_for_line(&["nowhere.example"]);
    daemon.wait_idle();
}

#[test]
fn a_silent_name_server_ends_the_client_at_connect_timeout_and_later_all_is_well() {
    let lab = Lab::new();
    let dns = Dns::start(&lab.server, V4.proxy(), Zone { down: true, ..zone(&[V4.proxy()], DAY) });
    let (_proxy, mirror) = (proxy(&lab, V4.proxy()), mirror(&lab));
    let daemon = Daemon::start(&lab, &named().outbound(&[("connect_timeout", "2s")]));
    let begin = Instant::now();
    assert_eq!(refusal(&lab.client, mirror.at), ErrorKind::ConnectionReset);
    assert!(begin.elapsed().as_secs() < 4, "it took {:?}", begin.elapsed());
    daemon.process().wait_for_line(&[NAME]);
    daemon.wait_idle();

    dns.change(|zone| zone.down = false);
    let begin = Instant::now();
    while seen_by_tcp(&lab.client, mirror.at).is_err() {
        assert!(begin.elapsed() < PATIENCE, "DNS is back, the proxy is not");
    }
}
