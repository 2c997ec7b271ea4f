//! What whoever takes it over, or looks at it from aside, would get.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::daemon::{Daemon, PROGRAM, Uci};
use crate::lab::{Family, Lab};
use crate::over_ways;
use crate::passage::uci;
use crate::process::TempDir;
use crate::sock::{accept, connect, exchange, listen, refusal, udp};

fn field(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    status.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim().to_owned()
}

/// CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW: numbers 10, 12 and 13 of capabilities(7).
const THREE: u64 = 1 << 10 | 1 << 12 | 1 << 13;

#[test]
fn the_network_process_is_its_own_user_with_three_capabilities_and_no_way_back() {
    let (lab, files) = (Lab::new(), TempDir::new());
    let map = std::fs::read_to_string("/proc/self/uid_map").expect("a map of users");
    let alone = map.split_ascii_whitespace().last().is_none_or(|count| count.len() < 5);
    let accounts = std::fs::read_to_string("/etc/passwd").expect("accounts");
    let passwd = files.write("passwd", &format!("{accounts}tproxyd:x:453:453::/var/run/tproxyd:/bin/false\n"));
    // in a user namespace with one user nobody else can be had
    let daemon = if alone {
        Daemon::launch(&lab, &Uci::new("direct"))
    } else {
        Daemon::launch_by(&lab, &Uci::new("direct"), &[], |router| {
            let mut command = router.command("sh");
            let script = "mount --bind \"$0\" /etc/passwd && exec \"$@\"";
            command.args(["-c", script]).arg(&passwd).arg(PROGRAM);
            command
        })
    };
    daemon.process().wait_for_line(&["tproxyd", "ready"]);
    let pid = daemon.process().pid();
    for kind in ["CapEff:", "CapPrm:"] {
        let bits = u64::from_str_radix(&field(pid, kind), 16).expect("a hexadecimal number");
        assert_eq!(bits, THREE, "{kind}");
    }
    assert_eq!(u64::from_str_radix(&field(pid, "CapInh:"), 16), Ok(0));
    assert_eq!(field(pid, "NoNewPrivs:"), "1");
    assert_eq!(field(pid, "Seccomp:"), if tproxyd::sys::sandbox::BUILT { "2" } else { "0" });
    if !alone {
        assert_eq!(field(pid, "Uid:").split_whitespace().collect::<Vec<_>>(), ["453"; 4]);
        assert_eq!(field(pid, "Gid:").split_whitespace().collect::<Vec<_>>(), ["453"; 4]);
        assert_eq!(field(pid, "Groups:"), "");
    }
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let (mut client, mut server) = (connect(&lab.client, listener.local_addr().expect("bound")), accept(&listener));
    exchange(&mut client, &mut server, b"and it", b"works");
    daemon.stop();
}

#[test]
fn no_secret_is_in_any_log_answer_or_command_line() {
    const SECRETS: [&str; 2] = ["sesame-91", "hunter2-37"];
    let lab = Lab::new();
    let server = Family::V4.proxy().to_string();
    let config = Uci::new("socks5")
        .globals(&[("log_level", "trace")])
        .outbound(&[("server", &server), ("port", "1080"), ("username", "me"), ("password", SECRETS[0])])
        .section(&format!(
            "config outbound 'web'\n\toption type 'http'\n\toption server '{server}'\n\toption port '3128'\n\
             \toption username 'me'\n\toption password '{}'\nconfig rule\n\toption dest_port '81'\n\toption outbound 'web'\n",
            SECRETS[1]
        ));
    let daemon = Daemon::start(&lab, &config);
    // both fail, and say why
    for port in [80, 81] {
        refusal(&lab.client, SocketAddr::new(Family::V4.destination(80), port));
    }
    daemon.reload(&["reload"]);
    // a mistake beside a secret
    daemon.write_config_text(&config.clone().section("config rule\n\toption nonsense '1'\n").text("/run/x.sock"));
    daemon.reload(&["configuration not taken"]);
    daemon.write_config(&config);
    let flow = ["tcp", "192.168.1.2:40000", "203.0.113.80:81"];
    let mut said = daemon.process().said();
    for (command, args) in [
        ("status", &["--json"][..]),
        ("status", &[]),
        ("sessions", &["--json"]),
        ("metrics", &[]),
        ("rules", &[]),
        ("explain", &flow),
    ] {
        said += &daemon.command(command, args);
    }
    said += &daemon.check();
    let pid = daemon.process().pid();
    for file in ["cmdline", "environ", "comm", "status"] {
        said += &String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{file}")).expect("it runs"));
    }
    assert!(said.contains("203.0.113.80:81") && said.contains("web"), "something was said at all:\n{said}");
    for secret in SECRETS {
        assert!(!said.contains(secret), "{secret} is in:\n{said}");
    }
    // what it writes is its socket, which is for its user alone
    let socket = daemon.config().with_file_name("control.sock");
    let mode = std::fs::metadata(&socket).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    daemon.stop();
}

// Whoever calls the listener's own port, from either side or from the router itself, by either protocol, gets nowhere: it is
// no open proxy, and no loop comes of it.
over_ways!(whoever_calls_the_listeners_own_port_gets_nowhere, |way, _family| {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &uci(way, Family::V4));
    for (ns, address) in [(&lab.client, "192.168.1.1"), (&lab.server, "198.51.100.1")] {
        let port = SocketAddr::new(address.parse().expect("an address"), 2_333);
        let called = ns.within(|| TcpStream::connect_timeout(&port, Duration::from_millis(500)));
        assert!(called.is_err(), "{address} was answered");
        udp(ns, Family::V4.any(), 0).send_to(b"hello", port).expect("send");
    }
    let own = SocketAddr::new("192.168.1.1".parse().expect("an address"), 2_333);
    assert_eq!(refusal(&lab.router, own), ErrorKind::ConnectionReset, "the port is open, and of no use");
    udp(&lab.router, Family::V4.any(), 0).send_to(b"hello", own).expect("send");
    let status = daemon.status_until("both of the router's are counted", |status| {
        // a redirected datagram that was not redirected has no destination
        status.number("drops.not_intercepted") + status.number("drops.no_destination") == 2
    });
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (0, 0), "{status}");
}, tproxy Direct V4, redirect Redirect V4);
