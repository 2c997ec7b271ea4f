//! The most memory that a configuration can take: the sum of every table at its largest. `status` shows it beside what is
//! in use, `check` before the start.

use crate::config::{AddressMatch, Config, Globals, Listener, Outbound, PortRange, Rule, Set, Values};
use crate::control;
use crate::resolve::Resolver;
use crate::session::associated::Associated;
use crate::session::checks::Checks;
use crate::session::origin::Origins;
use crate::session::outbound::OUTBOUNDS_MAX;
use crate::session::spares::Spares;
use crate::session::{outbound, redirect, tcp, udp};
use crate::stats::Stats;
use crate::store::meters::Meters;
use crate::store::names::Names;
use crate::store::pool::Pool;
use crate::store::quotas::Quotas;
use crate::store::shares::Shares;
use crate::sys::dgram::ReceiveBatch;

/// Sizes of the tables. They are those of the start: a reload does not change them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tables {
    /// TCP sessions that fit.
    pub tcp: usize,
    /// UDP mappings that fit.
    pub udp: usize,
    /// Buffers in the pool.
    pub buffers: usize,
}

impl Tables {
    /// Those of a process that starts with `globals`.
    pub fn of(globals: &Globals) -> Tables {
        Tables {
            tcp: globals.tcp_sessions as usize,
            udp: globals.udp_sessions as usize,
            buffers: Pool::capacity_for(globals.relay_memory).into(),
        }
    }
}

/// Copies of sets: the one in force, and the one that a reload reads, with what it takes while it grows and is sorted. All
/// copies of a configuration share the same.
const SET_COPIES: usize = 4;

/// Copies of rules that a reload has at its height: the configuration and the policy in force, the new ones, and
/// two that are compared.
const COPIES: usize = 6;

/// Stack of the only thread.
const STACK: usize = 256 << 10;

/// Private pages of the helper.
const HELPER: usize = 512 << 10;

/// Log, events, listeners, batches to send, idle pipes, what the C library and the allocator keep for themselves, and the answers of control clients
/// that are written at once.
const REST: usize = 512 << 10;

/// Most bytes of private memory, binary and libraries included, that the process and its helper take with `config` in
/// force. `mapped_files`: see [`crate::sys::memory::mapped_files`]. Memory of the kernel (sockets, connection tracking) is
/// not in it.
pub fn bound(tables: Tables, config: &Config, mapped_files: u64) -> u64 {
    let fixed = tcp::memory_max(tables.tcp)
        + udp::memory_max(tables.udp)
        + redirect::memory_max(tables.udp)
        + Pool::memory_max(tables.buffers)
        + ReceiveBatch::MEMORY_MAX
        + Names::memory_max(tables.tcp + tables.udp)
        + Shares::memory_max(tables.tcp + tables.udp)
        + Origins::MEMORY_MAX
        + Associated::memory_max(tables.tcp)
        + Resolver::MEMORY_MAX
        + OUTBOUNDS_MAX * size_of::<outbound::Outbound>()
        + Stats::MEMORY_MAX
        + Checks::MEMORY
        + Spares::MEMORY
        + control::MEMORY_MAX;
    // untouched, and so without memory, before the first flow under such a rule
    let flows = tables.tcp + tables.udp;
    let rates = config.rules.iter().any(|rule| rule.rate.is_some());
    let quotas = config.rules.iter().any(|rule| rule.quota.is_some());
    let limited =
        if rates { Meters::memory_max(flows) } else { 0 } + if quotas { Quotas::memory_max(flows) } else { 0 };
    let variable = limited + SET_COPIES * sets(config) + COPIES * sections(config) + lines_for_dnsmasq(config);
    (fixed + variable + STACK + HELPER + REST) as u64 + mapped_files
}

/// Bytes of the kernel's memory for full tables: sockets of sessions and flows with little on its way, their epoll and
/// connection tracking entries, and `nft` while it loads the rules. An estimate, for people who plan; a test holds it.
pub fn kernel(tables: Tables) -> u64 {
    (tables.tcp * KERNEL_PER_SESSION + tables.udp * KERNEL_PER_FLOW + NFT) as u64
}

/// Two TCP sockets whose buffers are nearly empty.
const KERNEL_PER_SESSION: usize = 8 << 10;

/// One UDP socket.
const KERNEL_PER_FLOW: usize = 2 << 10;

/// `nft` with few rules.
const NFT: usize = 3 << 20;

fn sets(config: &Config) -> usize {
    config.sets.iter().map(|set| set.entries.memory()).sum()
}

/// The lines for dnsmasq as they are put together: a domain name has 253 octets at most, and 30 as a rule.
fn lines_for_dnsmasq(config: &Config) -> usize {
    let fitting = config.sets.iter().map(|set| set.entries.domains().len());
    let names: usize = fitting.filter(|names| *names <= config.globals.kernel_set_max as usize).sum();
    if config.globals.dnsmasq { names * 128 } else { 0 }
}

/// Of everything but the entries of sets, with the texts as they were typed.
fn sections(config: &Config) -> usize {
    let rule = |rule: &Rule| {
        let addresses = [&rule.src_ip, &rule.dest_ip].map(values::<AddressMatch>).iter().sum::<usize>();
        let ports = [&rule.src_port, &rule.dest_port].map(values::<PortRange>).iter().sum::<usize>();
        size_of::<Rule>() + rule.name.as_ref().map_or(0, String::len) + addresses + ports
    };
    config.listeners.len() * (size_of::<Listener>() + TEXTS)
        + config.outbounds.len() * (size_of::<Outbound>() + TEXTS)
        + config.sets.len() * (size_of::<Set>() + TEXTS)
        + config.rules.iter().map(rule).sum::<usize>()
}

/// Names, labels, servers and credentials of one section.
const TEXTS: usize = 1024;

fn values<T>(values: &Values<T>) -> usize {
    (values.plain.len() + values.not.len()) * size_of::<T>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Env, parse};

    fn config(text: &str) -> Config {
        parse("f", text.as_bytes(), &Env { total_memory: 64 << 20, descriptors: 1 << 20 }, &mut |_| {
            Err(std::io::ErrorKind::NotFound.into())
        })
        .unwrap()
    }

    const LISTENER: &str = "config listener 'lan'\n\toption port '2333'\n\tlist device 'lan0'\n";

    #[test]
    fn a_router_of_64_mb_keeps_most_of_its_memory() {
        let config = config(LISTENER);
        let bound = bound(Tables::of(&config.globals), &config, 1 << 20);
        assert!((4 << 20..16 << 20).contains(&bound), "{bound}");
    }

    #[test]
    fn each_table_and_each_range_counts() {
        let small = config(LISTENER);
        let tables = Tables::of(&small.globals);
        let base = bound(tables, &small, 0);
        for larger in [
            Tables { tcp: tables.tcp + 1000, ..tables },
            Tables { udp: tables.udp + 1000, ..tables },
            Tables { buffers: tables.buffers + 10, ..tables },
        ] {
            assert!(bound(larger, &small, 0) >= base + 200_000, "{larger:?}");
        }
        let entries: String = (0..100).map(|n| format!("\tlist entry '192.0.2.{}'\n", 2 * n)).collect();
        let more = config(&format!("{LISTENER}config set 'x'\n{entries}"));
        assert!(bound(tables, &more, 0) >= base + 100 * 8);
        assert_eq!(bound(tables, &small, 77), base + 77);
    }
}
