//! `rules`, `clear` and `check`, in namespaces.

use tproxyd::check::{self, Finding, Needs, Severity};
use tproxyd::netfilter::commands::{RulesOptions, clear, rules};

use crate::helper::Daemon;
use crate::lab::{Lab, Stub, lab};
use crate::{PLAIN, config};

const MODEST: Needs = Needs { descriptors: 64, descriptors_wanted: 128, memory: 1 << 20, kernel_memory: 0 };

fn clear_here(lab: &Lab) {
    let errors = lab.router.run(|| clear(Some(&config(PLAIN))));
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn clear_takes_away_what_a_killed_daemon_left_and_may_be_repeated() {
    lab(|lab| {
        let before = lab.state();
        clear_here(&lab);
        assert_eq!(lab.state(), before, "there is nothing to clear");
        let text = PLAIN.replace("config globals", "config globals\n option on_failure 'block'");
        let mut daemon = Daemon::start(&lab, &text);
        let stub = Stub::open(&lab, 2333, "stub");
        assert_eq!(lab.connect("203.0.113.2:80").unwrap().who(), "stub");
        drop(stub);
        daemon.kill();
        daemon.wait_for_helper();
        assert_ne!(lab.state(), before, "the block stays");
        clear_here(&lab);
        clear_here(&lab);
        assert_eq!(lab.state(), before);
        assert!(!lab.router.sh("conntrack -L 2>/dev/null").contains("mark=16777216"));
    });
}

#[test]
fn clear_takes_away_halves_and_leaves_what_others_have() {
    lab(|lab| {
        lab.router.sh("ip rule add priority 900 fwmark 0x40/0xff lookup 100; nft add table inet others");
        let before = lab.state();
        for half in [
            "nft add table inet tproxyd",
            "ip -6 rule add priority 533 fwmark 0x01000000/0x03000000 lookup 233",
            "ip route add local default dev lo table 233",
        ] {
            lab.router.sh(half);
            let errors = lab.router.run(|| clear(None));
            assert!(errors.is_empty(), "{errors:?}");
            assert_eq!(lab.state(), before, "{half}");
        }
    });
}

#[test]
fn what_rules_prints_can_be_loaded_as_it_is_and_catches() {
    lab(|lab| {
        let _stub = Stub::open(&lab, 2333, "stub");
        let text = lab.router.run(|| rules(&config(PLAIN), RulesOptions::default()).unwrap().text);
        let commands: String = text
            .lines()
            .filter_map(|line| line.strip_prefix("# ip "))
            .fold(String::new(), |all, rest| all + "ip " + rest + "\n");
        lab.router.sh(&format!("{commands}nft -f - <<'RULES'\n{text}\nRULES\n"));
        assert_eq!(lab.connect("203.0.113.2:80").unwrap().who(), "stub");
        assert_eq!(lab.connect("[2001:db8::2]:80").unwrap().who(), "stub");
        // The daemon finds them as its own.
        lab.router.run(|| tproxyd::netfilter::Installation::new(&config(PLAIN).globals).routes.install()).unwrap();
        clear_here(&lab);
    });
}

fn failures(findings: &[Finding]) -> Vec<&str> {
    findings.iter().filter(|f| f.severity == Severity::Fail).map(|f| f.text.as_str()).collect()
}

#[test]
fn check_finds_nothing_in_a_sound_router_and_changes_nothing() {
    lab(|lab| {
        let before = lab.state();
        // the server of this lab is no proxy, and `check` would notice
        let alone = PLAIN.split("config outbound").next().unwrap();
        let findings = lab.router.run(|| check::machine(&config(alone), MODEST));
        assert_eq!(failures(&findings), [""; 0]);
        assert!(check::works(&findings));
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn check_names_who_has_the_port_the_priority_and_the_table() {
    lab(|lab| {
        let _stub = Stub::open(&lab, 2333, "stub");
        lab.router.sh("ip rule add priority 533 lookup 100; ip -6 route add fd00:9::/64 dev lan0 table 233");
        let findings = lab.router.run(|| check::machine(&config(PLAIN), MODEST));
        let failures = failures(&findings).join("\n");
        for wanted in ["has 0.0.0.0:2333/tcp", "has [::]:2333/udp", "IPv4 rule 533", "IPv6 table 233"] {
            assert!(failures.contains(wanted), "{wanted}: {failures}");
        }
        assert!(failures.contains(&format!("process {}", std::process::id())), "{failures}");
    });
}

#[test]
fn check_says_when_a_network_cannot_be_resolved() {
    lab(|lab| {
        let text = PLAIN.replace("list device 'lan0'", "list network 'lan'");
        let findings = lab.router.run(move || check::machine(&config(&text), MODEST));
        assert!(failures(&findings).join("\n").contains("network 'lan'"), "{findings:?}");
    });
}
