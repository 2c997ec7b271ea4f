//! The rules, policy routes, connection tracking and the helper, tried by real packets in namespaces of their own.
#![allow(clippy::disallowed_methods, reason = "these tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on shall say where")]

mod commands;
mod helper;
mod lab;
mod packets;
mod routes;
mod verdicts;

use std::io::Cursor;
use std::path::Path;

use tproxyd::config::{Config, Env, Moment, Zone, parse};
use tproxyd::netfilter::load::{self, Objects};
use tproxyd::netfilter::{Facts, Installation, look, questions, render};

/// 2026-01-01 12:00.
const NOON: i64 = 1_767_268_800;

/// A configuration from UCI text, at noon.
fn config(text: &str) -> Config {
    let mut none = |_: &Path| Ok(Box::new(Cursor::new(Vec::new())) as Box<dyn std::io::BufRead>);
    let mut config = parse("test", text.as_bytes(), &Env { total_memory: 0, descriptors: u64::MAX }, &mut none)
        .unwrap_or_else(|errors| panic!("{errors}"));
    config.keep_hours(&Moment { utc: NOON, zone: Zone::default() });
    config
}

const PLAIN: &str = "
config globals
    option kernel_verdicts '0'
config listener 'lan'
    option port '2333'
    list device 'lan0'
config outbound 'proxy'
    option type 'socks5'
    option server '203.0.113.2'
    option port '1080'
";

/// What `run` does at the start, without a helper in between; in the current thread's namespace.
fn install(cfg: &Config, before: &Objects) -> (Installation, Objects) {
    let (networks, devices) = questions(cfg);
    let facts = Facts::new(cfg, &look(&networks, &devices).unwrap(), &[]);
    let installation = Installation::new(&cfg.globals);
    installation.routes.install().unwrap();
    (installation, load::replace(&render(cfg, &facts), before).unwrap())
}

impl lab::Lab {
    fn install(&self, text: &str) -> (Installation, Objects) {
        let text = text.to_string();
        self.router.run(move || install(&config(&text), &Objects::default()))
    }

    fn reinstall(&self, text: &str, before: Objects) -> (Installation, Objects) {
        let text = text.to_string();
        self.router.run(move || install(&config(&text), &before))
    }

    fn remove(&self, installation: Installation) {
        let errors = self.router.run(move || installation.remove());
        assert!(errors.is_empty(), "{errors:?}");
    }

    /// Everything that could be left behind in the router.
    fn state(&self) -> String {
        self.router.sh("nft list ruleset; ip rule; ip -6 rule; ip route show table all | grep -v '^fe80'; \
             ip -6 route show table all | grep -v ' fe80\\|^fe80\\|ff00'")
    }
}
