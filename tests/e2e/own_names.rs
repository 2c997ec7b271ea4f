//! The recipe of README.md: names that the router's own dnsmasq asks for go through the proxy, whose name does not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Uci};
use crate::dns::{Dns, NAME, Zone};
use crate::lab::{Family, Lab};
use crate::ns::Namespace;
use crate::process::{Process, TempDir};
use crate::sock::{PATIENCE, udp, until_listening};
use crate::socks::{Asked, Manners, Socks};

const README: &str = include_str!("../../README.md");

/// The router's address towards its clients, where its dnsmasq listens.
const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));

/// What the far name server says of the name, and the provider's does not.
const TRUE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);

/// The sections of the recipe, and its lines for dnsmasq, with this laboratory's names and addresses.
fn recipe() -> (String, String) {
    let text = README.split("## The router's own names through a proxy").nth(1).expect("the recipe");
    let blocks: Vec<&str> = text.split("```\n").skip(1).step_by(2).take(2).collect();
    let here = |text: &str| {
        let text = text.replace("9.9.9.9", "203.0.113.9").replace("list network 'lan'", "list device 'lan0'");
        text.replace("/tmp/resolv.conf.d/resolv.conf.auto", "PROVIDER")
    };
    (here(blocks[0]), here(blocks[1]))
}

/// What UCI's lists of servers become in dnsmasq's own file.
fn dnsmasq(lab: &Lab, files: &TempDir, dhcp: &str, asked: &str) -> Process {
    let servers = dhcp.lines().filter_map(|line| line.trim().strip_prefix("list server '")?.strip_suffix('\''));
    let servers: String = servers.map(|server| format!("server={server}\n")).collect();
    assert!(servers.contains(asked), "{dhcp}");
    let text = format!(
        "no-resolv\nno-hosts\nuser=root\npid-file=\nlisten-address={ROUTER}\nbind-interfaces\ncache-size=0\n{servers}"
    );
    let config = files.write("dnsmasq.conf", &text);
    let mut command = lab.router.command("dnsmasq");
    command.arg("--keep-in-foreground").arg("-C").arg(config);
    let process = Process::start(command);
    until_listening(&lab.router, SocketAddr::new(ROUTER, 53));
    process
}

fn zone(address: IpAddr) -> Zone {
    Zone { addresses: vec![address], ttl: 60, ..Zone::default() }
}

/// What the client is told by the router of the name, or nothing.
fn told(lab: &Lab, patience: Duration) -> Option<Ipv4Addr> {
    let socket = udp(&lab.client, Family::V4.client(), 0);
    let mut question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    for label in NAME.split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend(b"\0\0\x01\0\x01");
    socket.set_read_timeout(Some(patience)).expect("SO_RCVTIMEO");
    socket.send_to(&question, (ROUTER, 53)).expect("ask");
    let mut answer = [0; 512];
    let n = socket.recv(&mut answer).ok()?;
    // no error, and one record, which ends by its address
    (answer[3] & 15 == 0 && answer[7] == 1).then(|| Ipv4Addr::from(*answer[..n].last_chunk::<4>().expect("an address")))
}

/// The daemon with these sections, whose own questions the provider answers.
fn started(lab: &Lab, files: &TempDir, sections: &str, provider: IpAddr) -> Daemon {
    let resolver = files.write("resolv.conf.auto", &format!("nameserver {provider}\n"));
    let sections = sections.replace("PROVIDER", resolver.to_str().expect("a plain path"));
    let control = files.path().join("control.sock");
    // the recipe is a whole file; what a test adds are where it listens to commands, and what it tells
    let globals = format!("config globals\n\toption control '{}'\n\toption log_level 'debug'\n", control.display());
    let daemon = Daemon::launch(lab, &Uci::new("direct"));
    daemon.process().wait_for_line(&["ready"]);
    daemon.stop();
    let mut daemon = daemon;
    daemon.write_config_text(&sections.replacen("config globals\n", &globals, 1));
    daemon.restart();
    daemon
}

#[test]
fn the_routers_own_names_go_through_the_proxy_and_the_proxys_name_does_not() {
    let (lab, files) = (Lab::new(), TempDir::new());
    let (provider, far) = (Family::V4.proxy(), Family::V4.destination(9));
    // the provider knows where the proxy is, and lies about everything else: here, the same name elsewhere
    let near = Dns::start(&lab.server, provider, zone(provider));
    let other = Dns::start(&lab.server, far, zone(TRUE.into()));
    let socks = Socks::start(&lab.server, provider, 1_080, Manners::default());
    let (sections, dhcp) = recipe();
    let daemon = started(&lab, &files, &sections, provider);
    let _dnsmasq = dnsmasq(&lab, &files, &dhcp, "203.0.113.9");
    let begin = Instant::now();
    // the association is made with the first; dnsmasq's own patience is longer than a client's
    while told(&lab, Duration::from_secs(2)) != Some(TRUE) {
        assert!(begin.elapsed() < PATIENCE, "not told; the daemon said {}", daemon.process().said());
    }
    socks.find(|asked| matches!(asked, Asked::Associate(_)).then_some(()));
    let wan = Family::V4.router_wan();
    let asked = other.asked();
    assert!(!asked.is_empty() && asked.iter().all(|question| question.from.ip() != wan), "{asked:?}");
    let asked = near.asked();
    assert!(!asked.is_empty() && asked.iter().all(|question| question.from.ip() == wan), "the daemon's own: {asked:?}");
    // a proxy that moves is asked for at the provider's again, not through the proxy that is gone
    drop(socks);
    let moved = Socks::start(&lab.server, Family::V4.second_proxy(), 1_080, Manners::default());
    near.change(|zone| zone.addresses = vec![Family::V4.second_proxy()]);
    let begin = Instant::now();
    while told(&lab, Duration::from_secs(2)) != Some(TRUE) {
        assert!(begin.elapsed() < PATIENCE, "the circle: it said {}", daemon.process().said());
    }
    moved.find(|asked| matches!(asked, Asked::Associate(_)).then_some(()));
}

/// dnsdist in `ns`, once it listens at `at`.
fn dnsdist(ns: &Namespace, files: &TempDir, name: &str, text: &str, at: SocketAddr) -> Process {
    let mut command = ns.command("dnsdist");
    command.args(["--supervised", "--disable-syslog", "-C"]).arg(files.write(name, text));
    let process = Process::start(command);
    until_listening(ns, at);
    process
}

/// dnsdist stands in for https-dns-proxy, which Debian has not: it too hands on what dnsmasq asks by HTTPS.
#[test]
fn the_routers_own_names_go_by_https_through_the_proxy() {
    let (lab, files) = (Lab::new(), TempDir::new());
    let (provider, far) = (Family::V4.proxy(), Family::V4.destination(9));
    let near = Dns::start(&lab.server, provider, zone(provider));
    let other = Dns::start(&lab.server, far, zone(TRUE.into()));
    let socks = Socks::start(&lab.server, provider, 1_080, Manners::default());
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| files.path().join(name).display().to_string());
    let mut command = lab.server.command("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9"]);
    command.args(["-subj", "/CN=dns.example", "-keyout", &key, "-out", &cert]);
    assert!(command.output().expect("openssl runs").status.success());
    let text = format!(
        "setLocal('{far}:8053')\nsetACL('0.0.0.0/0')\naddDOHLocal('{far}:443', '{cert}', '{key}', '/dns-query')\n\
         newServer('{far}:53'):setUp()\n"
    );
    let _far = dnsdist(&lab.server, &files, "far.conf", &text, SocketAddr::new(far, 443));
    let (sections, dhcp) = recipe();
    let rule = "list dest_port '53'";
    assert!(sections.contains(rule));
    let _daemon = started(&lab, &files, &sections.replace(rule, &format!("{rule}\n\tlist dest_port '443'")), provider);
    let text = format!(
        "setLocal('127.0.0.1:5053')\nnewServer({{address='{far}:443', tls='openssl', dohPath='/dns-query', \
         subjectName='dns.example', validateCertificates=false}}):setUp()\n"
    );
    let local = SocketAddr::from(([127, 0, 0, 1], 5_053));
    let _local = dnsdist(&lab.router, &files, "local.conf", &text, local);
    let _dnsmasq = dnsmasq(&lab, &files, &dhcp.replace("203.0.113.9", "127.0.0.1#5053"), "127.0.0.1#5053");
    let begin = Instant::now();
    while told(&lab, Duration::from_secs(2)) != Some(TRUE) {
        assert!(begin.elapsed() < PATIENCE, "not told");
    }
    let at = SocketAddr::new(far, 443);
    socks.find(|asked| matches!(asked, Asked::Connect(to) if to == at).then_some(()));
    let asked = other.asked();
    assert!(!asked.is_empty() && asked.iter().all(|question| question.from.ip() == far), "not by HTTPS: {asked:?}");
    let asked = near.asked();
    assert!(asked.iter().all(|question| question.from.ip() == Family::V4.router_wan()), "the daemon's own: {asked:?}");
}
