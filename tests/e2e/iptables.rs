//! Routers without nftables: both kinds of iptables, of which each daemon here finds one and no nft. (`ci/test iptables` also
//! has the tests of every way in run over them.)

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use crate::daemon::{Daemon, PROGRAM, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_tcp, seen_by_udp};
use crate::ns::Namespace;
use crate::passage::{Way, uci};
use crate::process::{TempDir, until_within};
use crate::sock::{PATIENCE, try_connect, udp};

/// Long enough for an answer that should not come.
const BRIEF: Duration = Duration::from_millis(250);

/// A folder with the tools of a kind, and nothing else.
struct Tools(TempDir);

impl Tools {
    fn of(kind: &str) -> Tools {
        let dir = TempDir::new();
        for family in ["iptables", "ip6tables"] {
            for name in [family.to_string(), format!("{family}-save"), format!("{family}-restore")] {
                symlink(format!("/usr/sbin/xtables-{kind}-multi"), dir.path().join(name)).expect("symlink");
            }
        }
        symlink("/usr/sbin/ipset", dir.path().join("ipset")).expect("symlink");
        Tools(dir)
    }

    fn start(&self, lab: &Lab, config: &Uci) -> Daemon {
        let config = config.clone().globals(&[("backend", "auto")]);
        let daemon = Daemon::launch_by(lab, &config, &[], |router| self.command(router, PROGRAM));
        daemon.process().wait_for_line(&["tproxyd", "ready"]);
        daemon
    }

    fn command(&self, ns: &Namespace, program: &str) -> Command {
        let mut command = ns.command(program);
        command.env("PATH", self.0.path());
        command
    }

    /// Runs one of them, or the program itself, in `ns`.
    fn run(&self, ns: &Namespace, line: &str) -> String {
        let mut words = line.split(' ');
        let program = words.next().expect("a program");
        let there = self.0.path().join(program);
        let program = if there.exists() { there.display().to_string() } else { PROGRAM.to_owned() };
        let output = self.command(ns, &program).args(words).output().expect("run it");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line}: {out}{err}");
        out.into_owned()
    }

    /// All rules, and all chains and sets of ours.
    fn state(&self, lab: &Lab) -> String {
        let all = ["iptables-save", "ip6tables-save", "ipset save"].map(|line| self.run(&lab.router, line)).concat();
        let kept = |line: &&str| line.starts_with("-A") || line.contains("tproxyd");
        let ip = [["-4", "rule"], ["-6", "rule"]].map(|args| lab.router.tool("ip", &args, "")).concat();
        all.lines().filter(kept).collect::<Vec<_>>().join("\n") + &ip
    }
}

/// Whether TCP and UDP of a family are relayed; both must arrive.
fn relayed(lab: &Lab, family: Family, port: u16) -> [bool; 2] {
    let mirror = Mirror::start_at(&lab.server, family.destination(80), port);
    let tcp = seen_by_tcp(&lab.client, mirror.at).expect("a connection").ip();
    let datagram = seen_by_udp(&udp(&lab.client, family.client(), 0), mirror.at, PATIENCE).expect("an answer").ip();
    [tcp, datagram].map(|seen| seen == family.router_wan())
}

/// One test for each kind.
macro_rules! over_both_kinds {
    ($name:ident, $body:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn nft() {
                let body: fn(&Tools, Lab) = $body;
                body(&Tools::of("nft"), Lab::new());
            }

            #[test]
            fn legacy() {
                let (tools, lab) = (Tools::of("legacy"), Lab::new());
                // newer kernels may be built without it
                let mut list = tools.command(&lab.router, "/usr/sbin/xtables-legacy-multi");
                if list.args(["iptables", "-t", "mangle", "-nL"]).output().is_ok_and(|o| o.status.success()) {
                    let body: fn(&Tools, Lab) = $body;
                    body(&tools, lab);
                }
            }
        }
    };
}

over_both_kinds!(without_nft_iptables_carries_the_rules_and_nothing_stays_behind, |tools, lab| {
    // others' rules and marks are not touched
    tools.run(&lab.router, "iptables -t mangle -A PREROUTING -j MARK --set-xmark 0x100/0x100");
    tools.run(&lab.router, "iptables -t nat -A POSTROUTING -o nowhere -j MASQUERADE");
    let before = tools.state(&lab);
    for (way, end) in [(Way::Direct, "stop"), (Way::Redirect, "stop"), (Way::Direct, "kill"), (Way::Redirect, "kill")] {
        let daemon = tools.start(&lab, &uci(way, Family::V4).listener(&[("router", "1")]));
        for family in Family::BOTH {
            assert_eq!(relayed(&lab, family, 4_000), [true; 2], "{way:?} {family:?}");
        }
        let packets = tools.run(&lab.router, "iptables -t mangle -nvxL PREROUTING");
        assert!(packets.contains("tproxyd_pre") && packets.contains("MARK or 0x100"), "{packets}");
        let saved = tools.run(&lab.router, "iptables-save");
        assert_eq!(saved.matches("-A PREROUTING -j tproxyd_pre").count(), 1, "{saved}");
        // each reload replaces, and adds nothing
        let count = tools.state(&lab);
        daemon.reload(&["reloaded"]);
        assert_eq!(tools.state(&lab), count);
        match end {
            "stop" => daemon.stop(),
            _ => daemon.kill(),
        }
        assert_eq!(tools.state(&lab), before, "after {end} of {way:?}");
        assert_eq!(relayed(&lab, Family::V4, 4_001), [false; 2]);
    }
});

over_both_kinds!(sets_are_ipsets_that_follow_the_configuration, |tools, lab| {
    let before = tools.state(&lab);
    let with = |nets: &str| {
        let set = |net: &str| format!("\tlist entry '{net}'\n");
        let entries: String = nets.split(' ').map(set).collect();
        Uci::new("direct")
            .listener(&[("src_ip", "192.168.0.0/16 fd00::/8"), ("dest_ip", "@far"), ("dest_port", "4000-4001")])
            .section(&format!("config set 'far'\n{entries}"))
    };
    let daemon = tools.start(&lab, &with("203.0.113.0/25 2001:db8:77::/64 0.0.0.0/32"));
    for family in Family::BOTH {
        assert_eq!(relayed(&lab, family, 4_000), [true; 2], "{family:?}");
        assert_eq!(relayed(&lab, family, 4_002), [false; 2], "{family:?}");
    }
    daemon.write_config(&with("203.0.113.128/25").globals(&[("backend", "auto")]));
    daemon.reload(&["reloaded"]);
    for family in Family::BOTH {
        assert_eq!(relayed(&lab, family, 4_001), [false; 2], "{family:?}");
    }
    assert_eq!(tools.run(&lab.router, "ipset list -n").lines().count(), 2, "those of before are gone");
    daemon.stop();
    assert_eq!(tools.state(&lab), before);
});

over_both_kinds!(with_on_failure_block_nothing_passes_without_the_daemon, |tools, lab| {
    let before = tools.state(&lab);
    for mode in ["tproxy", "redirect"] {
        let config = Uci::new("direct").listener(&[("mode", mode)]).globals(&[("on_failure", "block")]);
        let daemon = tools.start(&lab, &config);
        assert_eq!(relayed(&lab, Family::V4, 4_000), [true; 2]);
        let file = daemon.config().display().to_string();
        daemon.kill();
        let blocked = |lab: &Lab, port: u16| {
            for family in Family::BOTH {
                let mirror = Mirror::start_at(&lab.server, family.destination(80), port);
                seen_by_udp(&udp(&lab.client, family.client(), 0), mirror.at, BRIEF).expect_err("it is blocked");
            }
            let mirror = Mirror::start_at(&lab.server, Family::V4.destination(80), port);
            let tried = lab.client.within(|| TcpStream::connect_timeout(&mirror.at, BRIEF));
            let error = tried.expect_err("it is blocked");
            assert!([ErrorKind::TimedOut, ErrorKind::ConnectionRefused].contains(&error.kind()), "{error}");
        };
        blocked(&lab, 4_001);
        tools.run(&lab.router, &format!("tproxyd clear --config {file}"));
        assert_eq!(tools.state(&lab), before);
        assert_eq!(relayed(&lab, Family::V6, 4_002), [false; 2]);
        // what an init script loads before the network is up, as it is
        let text = tools.run(&lab.router, &format!("tproxyd rules --block-only --config {file}"));
        for tool in ["iptables-restore", "ip6tables-restore"] {
            let path = tools.0.path().join(tool).display().to_string();
            lab.router.tool(&path, &["--noflush", "--test"], &text);
        }
        let once = {
            load_by_init_script(tools, &lab, &file);
            tools.state(&lab)
        };
        load_by_init_script(tools, &lab, &file);
        assert_eq!(tools.state(&lab), once, "loaded twice it is there once");
        blocked(&lab, 4_003);
        tools.run(&lab.router, &format!("tproxyd clear --config {file}"));
        assert_eq!(tools.state(&lab), before);
    }
});

/// As `/etc/init.d/tproxyd boot` does.
fn load_by_init_script(tools: &Tools, lab: &Lab, config: &str) {
    let init = concat!(env!("CARGO_MANIFEST_DIR"), "/files/tproxyd.init");
    let functions =
        ["say", "load_block", "load_rules", "load_tables"].map(|name| format!("/^{name}()/,/^}}/p; ")).concat();
    let script = format!("eval \"$(sed -n '{functions}' {init})\"; PROG={PROGRAM} CONF={config}; load_block");
    let mut command = lab.router.command("sh");
    command.env("PATH", format!("{}:/usr/bin:/bin", tools.0.path().display())).args(["-c", &script]);
    let output = command.output().expect("run sh");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

over_both_kinds!(rules_that_somebody_flushes_are_put_back, |tools, lab| {
    let daemon = tools.start(&lab, &uci(Way::Direct, Family::V4));
    let whole = tools.state(&lab);
    // Between two commands the daemon may have put back the first half: the table is emptied in one.
    let emptied = TempDir::new();
    let emptied = emptied.write("emptied", "*mangle\nCOMMIT\n");
    tools.run(&lab.router, &format!("iptables-restore {}", emptied.display()));
    tools.run(&lab.router, "ip6tables -t mangle -F PREROUTING");
    until_within(4 * PATIENCE, || "nobody notices".to_owned(), || tools.state(&lab) == whole);
    daemon.process().wait_for_line(&["rules had been taken away: everything is in place again"]);
    assert_eq!(relayed(&lab, Family::V6, 4_000), [true; 2]);
    assert!(daemon_is_content(tools, &lab, &daemon), "check finds the rules in place");
});

fn daemon_is_content(tools: &Tools, lab: &Lab, daemon: &Daemon) -> bool {
    let mut command = tools.command(&lab.router, PROGRAM);
    let output = command.args(["check", "--config"]).arg(daemon.config()).output().expect("run check");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    said.contains("iptables and the kernel take the rules") && said.contains("the daemon runs, with its rules in place")
}

over_both_kinds!(a_zone_whose_input_is_closed_is_relayed_and_gets_nowhere_else, |tools, lab| {
    for tool in ["iptables", "ip6tables"] {
        let icmp = if tool == "iptables" { "icmp" } else { "ipv6-icmp" };
        for rule in [
            "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT".to_string(),
            "-A INPUT -m conntrack --ctstate INVALID -j DROP".to_string(),
            format!("-A INPUT -p {icmp} -j ACCEPT"),
            "-A INPUT -i lan0 -j REJECT".to_string(),
        ] {
            tools.run(&lab.router, &format!("{tool} {rule}"));
        }
    }
    let daemon = tools.start(&lab, &uci(Way::Direct, Family::V4).outbound(&[("keep_source", "1")]));
    for family in Family::BOTH {
        let mirror = Mirror::start(&lab.server, family.destination(80));
        assert_eq!(seen_by_tcp(&lab.client, mirror.at).expect("a connection").ip(), family.client());
        let socket = udp(&lab.client, family.client(), 0);
        assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), family.client());
        let service = Mirror::start(&lab.router, family.router_wan());
        try_connect(&lab.client, service.at).expect_err("the router itself stays closed");
    }
    let status = daemon.status();
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (2, 2));
});
