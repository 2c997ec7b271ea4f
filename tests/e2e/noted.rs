//! `option dnsmasq`: a real dnsmasq notes the addresses that it tells, and the kernel decides by them.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::daemon::{Daemon, PROGRAM, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{self, Mirror, seen_by_tcp};
use crate::ns::Namespace;
use crate::process::{Process, TempDir, until_within};
use crate::sock::{PATIENCE, connect, udp, until_listening};
use crate::socks::{Manners, Socks};

/// A router with a dnsmasq of its own, which asks one at the server's; a default by proxy.
struct Noted {
    lab: Lab,
    files: TempDir,
    daemon: Daemon,
    uci: Uci,
    _proxy: Socks,
    _dns: [Process; 2],
}

/// Stands for procd: starts dnsmasq, and anew when there is a file `restart`.
const SUPERVISOR: &str = "cd \"$0\"; while :; do
    dnsmasq --keep-in-foreground -C \"$0/dnsmasq.conf\" & pid=$!
    echo >>starts; rm -f restart
    while kill -0 $pid && [ ! -e restart ]; do sleep 0.05; done
    kill $pid; wait $pid
done";

/// Stands for OpenWrt's init script: returns when dnsmasq serves again.
const INIT: &str = "#!/bin/sh
touch DIR/restart
while [ -e DIR/restart ]; do sleep 0.01; done
";

/// As the daemon sees it, `/etc/init.d/dnsmasq` is [`INIT`].
const WITH_INIT: &str =
    "mkdir -p /etc/init.d && mount -t tmpfs none /etc/init.d && cp \"$0\" /etc/init.d/dnsmasq && exec \"$@\"";

const ZONE: &str = "address=/video.example/203.0.113.80\naddress=/video.example/2001:db8:77::50\n\
    address=/other.example/203.0.113.81\naddress=/films.example/203.0.113.82\n";

impl Noted {
    fn start(rules: &str) -> Noted {
        let (lab, files) = (Lab::new(), TempDir::new());
        let dir = files.path().display().to_string();
        let upstream = files.write(
            "upstream.conf",
            &format!("no-resolv\nno-hosts\nuser=root\npid-file=\nlisten-address=198.51.100.2\nbind-interfaces\n{ZONE}"),
        );
        let mut command = contained(&lab.server);
        command.args(["sh", "-c", "dnsmasq --keep-in-foreground -C \"$0\" & wait"]).arg(upstream);
        let upstream = Process::start(command);
        fs::create_dir(files.path().join("conf.d")).expect("a folder");
        let config = format!(
            "no-resolv\nno-hosts\nuser=root\nlisten-address=192.168.1.1\nbind-interfaces\nserver=198.51.100.2\npid-file={dir}/dnsmasq.pid\nconf-dir={dir}/conf.d\n"
        );
        files.write("dnsmasq.conf", &config);
        let mut command = contained(&lab.router);
        command.args(["sh", "-c", SUPERVISOR, &dir]);
        let own = Process::start(command);
        until_listening(
            &lab.router,
            (Family::V4.client().to_string().replace(".2", ".1").parse::<IpAddr>().expect("an address"), 53).into(),
        );
        let init = files.write("init", &INIT.replace("DIR", &dir));
        fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        let proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
        let uci = Uci::new("socks5")
            .globals(&[("kernel_verdicts", "1"), ("dnsmasq", "1")])
            .outbound(&[("server", "198.51.100.2"), ("port", "1080")]);
        let daemon = Daemon::launch_by(&lab, &uci.clone().section(rules), &[], |router| {
            let mut command = router.command("sh");
            command.args(["-c", WITH_INIT]).arg(&init).arg(PROGRAM);
            command
        });
        daemon.process().wait_for_line(&["ready"]);
        let noted = Noted { lab, files, daemon, uci, _proxy: proxy, _dns: [upstream, own] };
        noted.until("dnsmasq is told", || noted.lines().contains("nftset="));
        noted.until("dnsmasq has started anew", || noted.starts() == 2);
        noted
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        until_within(PATIENCE, || format!("{what}; it said {}", self.daemon.process().said()), done);
    }

    fn lines(&self) -> String {
        fs::read_to_string(self.files.path().join("conf.d/tproxyd.conf")).unwrap_or_default()
    }

    /// How often the router's dnsmasq was started.
    fn starts(&self) -> usize {
        fs::read_to_string(self.files.path().join("starts")).unwrap_or_default().lines().count()
    }

    /// The client asks the router for a name; it is answered.
    fn ask(&self, name: &str, v4: bool) {
        let socket = udp(&self.lab.client, Family::V4.client(), 0);
        let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(label.len() as u8);
            question.extend(label.as_bytes());
        }
        question.extend([0, 0, if v4 { 1 } else { 28 }, 0, 1]);
        let begin = Instant::now();
        socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).expect("SO_RCVTIMEO");
        loop {
            // one that has just started may not hear the first
            let _ = socket.send_to(&question, "192.168.1.1:53");
            let mut answer = [0; 512];
            match socket.recv(&mut answer) {
                Ok(n) if n > question.len() && answer[3] & 15 == 0 && answer[7] > 0 => return,
                _ => assert!(
                    begin.elapsed() < PATIENCE,
                    "no answer for {name}; it said {}",
                    self.daemon.process().said()
                ),
            }
        }
    }

    /// Whom a mirror at the destination sees: the client, forwarded by the kernel, or the proxy.
    fn is_forwarded(&self, mirror: &Mirror) -> bool {
        let family = if mirror.at.is_ipv4() { Family::V4 } else { Family::V6 };
        seen_by_tcp(&self.lab.client, mirror.at).expect("a connection").ip() == family.client()
    }

    fn reload(&self, rules: &str) {
        self.daemon.write_config(&self.uci.clone().section(rules));
        self.daemon.reload(&["reloaded"]);
    }
}

/// Runs what follows as the first process of a process namespace, which takes all others along when it ends: dnsmasq gives
/// up privileges, and with them the wish to be killed with its parent.
fn contained(ns: &Namespace) -> Command {
    let mut command = ns.command("unshare");
    command.args(["--pid", "--fork", "--kill-child"]);
    command
}

fn mirror(lab: &Lab, family: Family, n: u8) -> Mirror {
    // a port where no name is looked for
    Mirror::start_at(&lab.server, family.destination(n), 2222)
}

const DIRECT: &str = "config rule\n\toption name 'video'\n\tlist domain 'video.example'\n\toption outbound 'direct'\n";

#[test]
fn names_become_verdicts_of_the_kernel_in_both_families() {
    let noted = Noted::start(DIRECT);
    let (video, other, video6) =
        (mirror(&noted.lab, Family::V4, 80), mirror(&noted.lab, Family::V4, 81), mirror(&noted.lab, Family::V6, 80));
    assert!(!noted.is_forwarded(&video), "nobody has asked for the name yet");
    noted.ask("www.video.example", true);
    noted.ask("video.example", false);
    noted.ask("other.example", true);
    assert!(noted.is_forwarded(&video) && noted.is_forwarded(&video6) && !noted.is_forwarded(&other));
    let status = noted.daemon.status();
    assert_eq!((status.number("rules.0.hits"), status.number("tcp.total")), (2, 2), "{status}");
    let explained =
        noted.daemon.command("explain", &["tcp", "192.168.1.2:4", "203.0.113.80:22", "--domain", "video.example"]);
    assert!(explained.contains("dnsmasq"), "{explained}");
}

#[test]
fn the_order_of_the_list_is_kept() {
    let noted = Noted::start(
        "config set 'films'\n\toption type 'domain'\n\tlist entry 'films.example'\n\tlist entry 'www.video.example'
config rule\n\tlist domain 'video.example'\n\tlist dest_port '2222'\n\toption outbound 'reject'
config rule\n\tlist domain '@films'\n\toption outbound 'direct'
config rule\n\tlist dest_ip '203.0.113.82'\n\toption outbound 'drop'\n",
    );
    noted.ask("www.video.example", true);
    noted.ask("films.example", true);
    let (video, films) = (Family::V4.destination(80), mirror(&noted.lab, Family::V4, 82));
    assert_eq!(crate::sock::refusal(&noted.lab.client, SocketAddr::new(video, 2222)), ErrorKind::ConnectionRefused);
    let elsewhere = Mirror::start_at(&noted.lab.server, video, 2223);
    assert!(noted.is_forwarded(&elsewhere), "the second rule means the name, too");
    assert!(noted.is_forwarded(&films), "before the third");
    assert_eq!(noted.daemon.status().number("tcp.total"), 0);
}

#[test]
fn what_was_noted_survives_a_reload_and_dnsmasq_starts_anew_only_for_other_names() {
    let noted = Noted::start(DIRECT);
    let video = mirror(&noted.lab, Family::V4, 80);
    noted.ask("video.example", true);
    let mut live = connect(&noted.lab.client, video.at);
    assert_eq!(mirror::ask(&mut live).expect("an answer").ip(), Family::V4.client());
    noted.reload(&format!("config rule\n\tlist dest_port '9'\n\toption outbound 'drop'\n{DIRECT}"));
    assert!(noted.is_forwarded(&video), "the same names, at another place in the list");
    noted.reload(&DIRECT.replace("video.example", "films.example"));
    noted.until("dnsmasq is told", || noted.lines().contains("/films.example/") && noted.starts() == 3);
    assert!(!noted.is_forwarded(&video), "it is not noted for films");
    noted.reload("");
    noted.until("nothing is left to note", || noted.lines().is_empty() && noted.starts() == 4);
    assert_eq!(mirror::ask(&mut live).expect("an answer").ip(), Family::V4.client());
}

#[test]
fn at_the_stop_and_after_a_crash_nothing_is_left_with_dnsmasq() {
    let noted = Noted::start(DIRECT);
    noted.daemon.stop();
    assert!(noted.lines().is_empty());
    assert_eq!(noted.starts(), 3);
    let noted = Noted::start(DIRECT);
    noted.daemon.kill();
    assert!(noted.lines().is_empty());
}

#[test]
fn a_table_that_is_made_anew_is_filled_anew_although_dnsmasq_knows_the_answers() {
    let noted = Noted::start(DIRECT);
    let video = mirror(&noted.lab, Family::V4, 80);
    noted.ask("video.example", true);
    noted.lab.router.tool("nft", &["delete", "table", "inet", "tproxyd"], "");
    noted.daemon.process().wait_for_line(&["everything is in place again"]);
    noted.until("it is noted again", || {
        noted.ask("video.example", true);
        noted.is_forwarded(&video)
    });
    assert_eq!(noted.starts(), 2);
}

#[test]
fn a_dnsmasq_that_cannot_is_left_alone_and_named() {
    let (lab, files) = (Lab::new(), TempDir::new());
    // what runs under this name says nothing of nftset when it is asked for its version
    let mut command = lab.router.command("sh");
    let script = "cp /bin/bash \"$0/dnsmasq\" && mkfifo \"$0/wait\" && exec \"$0/dnsmasq\" -c 'echo up; read x <\"$0/wait\"' \"$0\" --conf-dir=\"$0\"";
    command.args(["-c", script]).arg(files.path());
    let process = Process::start(command);
    process.wait_for_line(&["up"]);
    let uci = Uci::new("direct").globals(&[("kernel_verdicts", "1"), ("dnsmasq", "1")]).section(DIRECT);
    let daemon = Daemon::start(&lab, &uci);
    daemon.process().wait_for_line(&["without nftset", "dnsmasq-full"]);
    assert!(!files.path().join("tproxyd.conf").exists());
    let found = daemon.check();
    assert!(found.contains("fail  dnsmasq") && found.contains("without nftset"), "{found}");
    process.signal(Signal::SIGKILL);
    process.wait_end(PATIENCE);
    assert!(daemon.check().contains("warn  no dnsmasq runs here"));
}
