//! End-to-end tests: real packets through a real kernel, in network namespaces of each test's own.
//!
//! `ci/test e2e` runs them, as root or not. Each test builds client – router – server ([`lab`]), starts what lies
//! between ([`passage`]), and speaks through it with plain sockets ([`sock`]).

#![allow(unreachable_pub, reason = "one program in several files: `pub` is for the reader")]
#![allow(clippy::disallowed_methods, reason = "these tests measure real time")]

mod browsers;
mod chance;
mod daemon;
mod dns;
mod doctor;
mod json;
mod lab;
mod mirror;
mod noted;
mod ns;
mod passage;
mod process;
mod proxies;
#[cfg(target_env = "gnu")]
mod quic;
mod sock;
mod socks;

mod bad_servers;
mod bridges;
mod citizen;
mod connect;
mod costs;
mod decisions;
mod departed;
mod domains;
mod dying;
mod failures;
mod faults;
mod forward;
mod groups;
mod half_close;
mod hours;
mod integrity;
mod iptables;
mod keep_source;
mod kernel;
mod lifecycle;
mod limits;
mod listeners;
mod mending;
mod names;
mod operation;
mod own_names;
mod quotas;
mod rates;
mod redirect;
mod reloads;
mod router;
mod segment;
#[cfg(feature = "shadowsocks")]
mod shadowsocks;
mod soak;
mod spares;
mod tcp;
mod told;
mod udp;
mod updates;
mod uplinks;
mod without_udp;
