//! Policy routes and connected prefixes.

use crate::lab::lab;
use crate::{Installation, PLAIN, config};

fn installation() -> Installation {
    Installation::new(&config(PLAIN).globals)
}

#[test]
fn rules_and_routes_come_once_and_go_without_a_trace() {
    lab(|lab| {
        let before = lab.state();
        lab.router.run(|| {
            installation().routes.install().unwrap();
            installation().routes.install().unwrap();
        });
        for family in ["-4", "-6"] {
            let rules = lab.router.sh(&format!("ip {family} rule show priority 533"));
            assert_eq!(rules.trim(), "533:\tfrom all fwmark 0x1000000/0x3000000 lookup 233");
            let routes = lab.router.sh(&format!("ip {family} route show table 233"));
            assert!(routes.starts_with("local default dev lo"), "{routes}");
            assert_eq!(routes.lines().count(), 1);
        }
        lab.router.run(|| {
            installation().routes.remove().unwrap();
            installation().routes.remove().unwrap();
        });
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn a_rule_of_someone_else_at_our_priority_is_an_error_and_is_left_alone() {
    lab(|lab| {
        lab.router.sh("ip -6 rule add priority 533 from fd00:9::/64 lookup 100");
        let before = lab.state();
        let error = lab.router.run(|| installation().routes.install()).unwrap_err().to_string();
        assert!(error.contains("rule_priority") && error.contains("IPv6"), "{error}");
        assert_eq!(lab.state(), before, "what was done for IPv4 is undone");
        lab.router.run(|| installation().routes.remove()).unwrap();
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn a_table_that_others_use_is_an_error_that_names_the_option() {
    lab(|lab| {
        lab.router.sh("ip route add 198.51.100.0/24 via 203.0.113.2 table 233");
        let before = lab.state();
        let error = lab.router.run(|| installation().routes.install()).unwrap_err().to_string();
        assert!(error.contains("option table"), "{error}");
        assert_eq!(lab.state(), before);
        assert_eq!(lab.router.run(|| installation().routes.clashes()).unwrap().len(), 1);
    });
}

#[test]
fn connected_prefixes_are_those_of_the_lan_and_of_what_leads_nowhere_else() {
    lab(|lab| {
        lab.router.sh("ip link add guest0 type veth peer name vpn0; ip link set guest0 up; ip link set vpn0 up
             ip addr add 10.7.0.1/16 dev guest0 noprefixroute; ip addr add 10.8.0.1/24 dev vpn0
             ip route add 128.0.0.0/1 dev vpn0");
        let found = |devices: &'static [&str]| {
            let names: Vec<String> = devices.iter().map(|name| name.to_string()).collect();
            let ranges = lab.router.run(move || tproxyd::netfilter::links::on_link(&names)).unwrap();
            ranges.iter().map(|range| range.first.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found(&["lan0"]), ["10.7.0.0", "192.168.1.0", "fd00:1::"]);
        assert_eq!(found(&["lan0", "vpn*"]), ["10.7.0.0", "10.8.0.0", "192.168.1.0", "fd00:1::"]);
        assert!(found(&["wan0"]).contains(&"203.0.113.0".to_string()));
    });
}
