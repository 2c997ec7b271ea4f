//! What an owner sees of the running daemon: the state of everything, and why something does not work.

use crate::daemon::{Daemon, Uci};
use crate::json::Json;
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_tcp};
use crate::passage::socks_uci;
use crate::sock::refusal;

fn listener(status: &Json, what: &str) -> u64 {
    status.number(&format!("listeners.0.{what}"))
}

#[test]
fn the_status_tells_rules_without_traffic_from_traffic() {
    let lab = Lab::new();
    let mirror = Mirror::start(&lab.server, Family::V4.destination(80));
    let daemon = Daemon::start(&lab, &Uci::new("direct"));
    let status = daemon.status();
    assert_eq!((listener(&status, "packets"), listener(&status, "accepted")), (0, 0));
    assert!(daemon.command("status", &[]).contains("Rules are in place, but no packet has come"));

    seen_by_tcp(&lab.client, mirror.at).expect("an answer");
    let status = daemon.status();
    assert_eq!(listener(&status, "accepted"), 1);
    assert!(listener(&status, "packets") >= 3, "{status}");
    assert!(!daemon.command("status", &[]).contains("no packet"));

    lab.router.tool("nft", &["delete", "table", "inet", "tproxyd"], "");
    assert_eq!(daemon.status().at("listeners.0.packets"), &Json::Null);
}

#[test]
fn the_status_says_when_an_outbound_failed_last_and_why_and_what_was_in_the_log() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &socks_uci(Family::V4));
    let outbound = |status: &Json| status.list("outbounds").iter().find(|o| o.text("name") == "out").cloned();
    assert_eq!(outbound(&daemon.status()).expect("it is there").at("last_error"), &Json::Null);
    assert_eq!(daemon.status().list("problems").len(), 0);

    // nobody listens at the proxy's address
    refusal(&lab.client, (Family::V4.destination(80), 443).into());
    let status = daemon.status_until("the failure is counted", |status| status.number("problem_count") > 0);
    let out = outbound(&status).expect("it is there");
    assert_eq!((out.text("state"), out.number("errors")), ("down", 1));
    assert_eq!(out.text("last_error.text"), "203.0.113.80:443: connection refused");
    assert!(out.number("last_error.time").abs_diff(status.number("time")) < 60);
    let problem = &status.list("problems")[0];
    assert_eq!(problem.text("level"), "warn");
    assert!(problem.text("text").contains("via 'out' (server 198.51.100.2:1080)"), "{problem}");
    let screen = daemon.command("status", &[]);
    assert!(screen.contains("out: last error") && screen.contains("Problems in the log: 1, the last"), "{screen}");
}
