//! Are the listeners' ports free, and if not, who has them?

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use super::{Finding, Findings};
use crate::config::{Config, Listener};
use crate::netfilter::kernel_families;
use crate::sys::socket::{self, Family, Transport};
use crate::sys::sockopt;

pub(super) fn check(findings: &mut Findings, cfg: &Config) {
    for listener in &cfg.listeners {
        let before = findings.len();
        for (wanted, transport) in [(listener.protos.tcp, Transport::Tcp), (listener.protos.udp, Transport::Udp)] {
            for family in [Family::V4, Family::V6] {
                if wanted
                    && let Some(address) = address(listener, family)
                    && let Err(error) = try_bind(address, transport)
                {
                    findings.push(taken(listener, address, transport, &error));
                }
            }
        }
        if findings.len() == before {
            findings.push(Finding::ok("port", format!("listener '{}': port {} is free", listener.name, listener.port)));
        }
    }
}

/// Where `listener` would listen in `family`.
fn address(listener: &Listener, family: Family) -> Option<SocketAddr> {
    let (any, wanted): (IpAddr, bool) = match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), listener.families.v4 && kernel_families().v4),
        Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), listener.families.v6 && kernel_families().v6),
    };
    let ip = listener.address.unwrap_or(any);
    (wanted && ip.is_ipv4() == any.is_ipv4()).then(|| SocketAddr::new(ip, listener.port))
}

fn try_bind(address: SocketAddr, transport: Transport) -> io::Result<()> {
    let fd = socket::open(Family::of(address), transport)?;
    if address.is_ipv6() {
        sockopt::set_v6_only(fd.as_fd(), true)?;
    }
    if transport == Transport::Tcp {
        // Connections that have ended (TIME_WAIT) are no obstacle.
        sockopt::set_reuse_address(fd.as_fd())?;
    }
    socket::bind(fd.as_fd(), address)?;
    if transport == Transport::Tcp { socket::listen(fd.as_fd(), 1) } else { Ok(()) }
}

fn taken(listener: &Listener, address: SocketAddr, transport: Transport, error: &io::Error) -> Finding {
    let proto = if transport == Transport::Tcp { "tcp" } else { "udp" };
    let holder = match error.kind() {
        io::ErrorKind::AddrInUse => holder(Path::new("/proc"), proto, listener.port),
        _ => None,
    };
    if let Some((name, id)) = holder {
        if name == "tproxyd" {
            return Finding::ok(
                "port",
                format!("listener '{}': tproxyd (process {id}) has {address}/{proto}", listener.name),
            );
        }
        let text = format!("listener '{}': {name} (process {id}) has {address}/{proto}", listener.name);
        return Finding::fail("port", text, format!("stop {name}, or change `option port`"));
    }
    let text = format!("listener '{}': cannot listen on {address}/{proto}: {error}", listener.name);
    Finding::fail("port", text, "change `option port` or `option address`, or stop who has it (netstat -lnp)")
}

/// Name and id of a process with a socket on `port`: by the socket's inode in `net/tcp` and so on, see proc_pid_net(5).
pub(super) fn holder(proc_root: &Path, proto: &str, port: u16) -> Option<(String, u32)> {
    let mut inodes = Vec::new();
    for family in ["", "6"] {
        let table = std::fs::read_to_string(proc_root.join(format!("thread-self/net/{proto}{family}")));
        inodes.extend(table.unwrap_or_default().lines().skip(1).filter_map(|line| bound_inode(line, proto, port)));
    }
    let processes = std::fs::read_dir(proc_root).ok()?.flatten();
    for process in processes {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let has_it = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|target| {
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            inode.is_some_and(|inode: u64| inodes.contains(&inode))
        });
        if has_it {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((name.trim().to_string(), id));
        }
    }
    None
}

/// The inode in a line `sl local_address rem_address st … inode …`, if it is bound to `port`; of TCP only what listens.
fn bound_inode(line: &str, proto: &str, port: u16) -> Option<u64> {
    let mut words = line.split_whitespace().skip(1);
    let (_, local) = words.next()?.rsplit_once(':')?;
    let state = words.nth(1)?;
    let listens = proto == "udp" || state == "0A";
    let inode = words.nth(5)?.parse().ok()?;
    (u16::from_str_radix(local, 16) == Ok(port) && listens).then_some(inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_net_tcp_gives_the_inode_of_who_listens() {
        let line = "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18456 1 00000000 100 0 0 10 0";
        assert_eq!(bound_inode(line, "tcp", 8080), Some(18456));
        assert_eq!(bound_inode(line, "tcp", 8081), None);
        assert_eq!(bound_inode(&line.replace(" 0A ", " 01 "), "tcp", 8080), None);
        assert_eq!(bound_inode(&line.replace(" 0A ", " 07 "), "udp", 8080), Some(18456));
        assert_eq!(bound_inode("", "tcp", 1), None);
    }

    #[test]
    fn the_process_that_has_a_port_is_found_by_name() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let (name, id) = holder(Path::new("/proc"), "tcp", port).unwrap();
        assert_eq!(id, std::process::id());
        assert!(!name.is_empty());
        assert!(try_bind(taken.local_addr().unwrap(), Transport::Tcp).is_err());
    }
}
