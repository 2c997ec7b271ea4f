//! The control socket and the commands that ask over it, against a real daemon: `run --no-rules` in a network namespace of
//! each test's own, where a rule of the test's own intercepts what goes over the loopback device.
#![allow(clippy::disallowed_methods, reason = "these tests measure real time")]
#![allow(unreachable_pub, reason = "one program in several files: `pub` is for the reader")]

#[path = "control/documented.rs"]
mod documented;
#[path = "e2e/json.rs"]
mod json;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "e2e/ns.rs"]
mod ns;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "e2e/process.rs"]
mod process;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "e2e/sock.rs"]
mod sock;

use json::Json;
use nix::sys::signal::Signal;
use ns::Namespace;
use process::{Process, TempDir, describe};
use sock::PATIENCE;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tproxyd");

/// An address that a server has, and to which the test's clients speak.
const SERVER: [u8; 4] = [203, 0, 113, 9];

/// A daemon in a namespace, and its configuration.
struct Daemon {
    ns: Namespace,
    process: Process,
    dir: TempDir,
}

/// What a command printed, and how it ended.
struct Ended {
    status: String,
    out: String,
    err: String,
}

impl Daemon {
    fn start(sections: &str) -> Daemon {
        let ns = Namespace::new();
        ns.tool("ip", &["link", "set", "lo", "up"], "");
        Daemon::start_in(ns, sections)
    }

    fn start_in(ns: Namespace, sections: &str) -> Daemon {
        let dir = TempDir::new();
        let config = dir.write("tproxyd", &text(&dir, sections));
        let process = launch(&ns, &config);
        process.wait_for_line(&["ready"]);
        Daemon { ns, process, dir }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("tproxyd")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/control.sock")
    }

    fn run(&self, args: &[&str]) -> Ended {
        let config = self.config();
        let config = config.to_str().expect("a plain path");
        run(&[&args[..1], &["--config", config], &args[1..]].concat())
    }

    /// What a command prints that ends well and complains of nothing.
    fn says(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!((ended.status.as_str(), ended.err.as_str()), ("exit 0", ""), "{args:?}");
        ended.out
    }

    fn status(&self) -> Json {
        Json::parse(&self.says(&["status", "--json"]))
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("the daemon listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
        stream.set_write_timeout(Some(PATIENCE)).expect("SO_SNDTIMEO");
        stream
    }

    /// Sends `bytes` and reads to the end.
    fn tell(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // a daemon that has had enough hangs up
        let _ = stream.write_all(bytes);
        answer(&mut stream)
    }

    fn write_config(&self, sections: &str) {
        self.dir.write("tproxyd", &text(&self.dir, sections));
    }

    fn stop(&self) {
        self.process.signal(Signal::SIGTERM);
        assert_eq!(describe(self.process.wait_end(PATIENCE)), "exit 0", "{}", self.process.said());
    }
}

fn answer(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // what it did not read makes its end a reset, behind the answer
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        Err(e) => panic!("read an answer: {e}"),
    }
    String::from_utf8(bytes).expect("an answer is text")
}

/// A document that is a list.
fn list(text: &str) -> Vec<Json> {
    match Json::parse(text) {
        Json::List(list) => list,
        other => panic!("not a list: {other}"),
    }
}

fn text(dir: &TempDir, sections: &str) -> String {
    let control = dir.path().join("run/control.sock");
    // a test's own options of `globals` come first
    let (globals, sections) = match sections.strip_prefix("config globals\n") {
        Some(rest) => rest.split_at(rest.find("config ").unwrap_or(rest.len())),
        None => ("", sections),
    };
    format!(
        "config globals\n{globals}\toption log_level 'debug'\n\toption control '{}'\n\toption udp_sessions '2000'\n\
         config listener 'lan'\n\toption port '2333'\n\tlist device 'lan0'\n{sections}",
        control.display()
    )
}

fn launch(ns: &Namespace, config: &std::path::Path) -> Process {
    let mut command = ns.command(PROGRAM);
    command.args(["run", "--no-rules", "--config"]).arg(config);
    Process::start(command)
}

fn run(args: &[&str]) -> Ended {
    let output = Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
    Ended { status: describe(output.status), out: text(output.stdout), err: text(output.stderr) }
}

/// A namespace in which TCP to port 80 and UDP to port 5000 go to the daemon, unless they come from it.
fn intercepting() -> Namespace {
    let ns = Namespace::new();
    ns.tool("ip", &["link", "set", "lo", "up"], "");
    ns.tool("ip", &["address", "add", "203.0.113.9/32", "dev", "lo"], "");
    let rules = "table inet test {
        chain prerouting {
            type filter hook prerouting priority mangle
            meta mark & 0x03000000 == 0 tcp dport 80 tproxy to :2333 accept
            meta mark & 0x03000000 == 0 udp dport 5000 tproxy to :2333 accept
        }
    }";
    ns.tool("nft", &["-f", "-"], rules);
    ns
}

#[test]
fn the_status_has_every_field_of_the_contract() {
    let daemon = Daemon::start(
        "config outbound 'hk'\n\toption type 'socks5'\n\toption server '127.0.0.1'\n\toption port '9'\n\
         config outbound 'wall'\n\toption type 'reject'\n\
         config rule\n\toption enabled '0'\n\toption outbound 'hk'\n\
         config rule\n\toption name 'video \"4k\"'\n\tlist dest_port '443'\n\toption outbound 'hk'\n",
    );
    let status = daemon.status();
    assert_eq!(status.number("v"), 1);
    assert_eq!(status.text("version"), env!("CARGO_PKG_VERSION"));
    assert!(status.number("uptime_s") < 3600);
    assert_eq!((status.text("listeners.0.name"), status.text("listeners.0.address")), ("lan", "[::]:2333"));
    assert_eq!((status.at("listeners.0.tcp"), status.at("listeners.0.udp")), (&Json::Bool(true), &Json::Bool(true)));
    assert_eq!(status.number("listeners.0.accepted"), 0);
    for (n, (name, kind, state)) in
        [("direct", "direct", "unknown"), ("hk", "socks5", "unknown"), ("wall", "reject", "up")].into_iter().enumerate()
    {
        let text = |field| status.text(&format!("outbounds.{n}.{field}"));
        assert_eq!((text("name"), text("type"), text("state")), (name, kind, state));
        assert_eq!(status.at(&format!("outbounds.{n}.latency_ms")), &Json::Null);
        for field in ["sessions", "bytes_up", "bytes_down", "errors"] {
            assert_eq!(status.number(&format!("outbounds.{n}.{field}")), 0);
        }
    }
    assert_eq!(status.list("rules").len(), 1);
    assert_eq!((status.number("rules.0.number"), status.text("rules.0.name")), (1, "video \"4k\""));
    assert_eq!(status.number("rules.0.hits"), 0);
    for table in ["tcp", "udp"] {
        for field in ["active", "total", "refused", "evicted"] {
            assert_eq!(status.number(&format!("{table}.{field}")), 0);
        }
    }
    assert_eq!(status.number("udp.limit"), 2000);
    assert!(status.number("tcp.limit") >= 16);
    let (used, peak, bound) =
        (status.number("memory.used"), status.number("memory.peak"), status.number("memory.bound"));
    assert!(0 < used && used <= peak && peak <= bound, "{used} {peak} {bound}");
    let reasons = ["not_intercepted", "no_destination", "too_large", "no_room", "not_ready", "by_rule"];
    assert!(reasons.into_iter().all(|reason| status.number(&format!("drops.{reason}")) == 0));
    assert!(status.number("pool.capacity") > 0);
    assert_eq!(status.number("pool.lent") + status.number("pool.peak") + status.number("pool.empty"), 0);
    assert_eq!(status.number("destinations.used") + status.number("destinations.evicted"), 0);
    assert_eq!(status.number("accept_paused"), 0);

    let screen = daemon.says(&["status"]);
    for words in ["tproxyd ", "lan", "[::]:2333  tcp udp", "hk", "socks5", "video \"4k\"", "no rules of ours"] {
        assert!(screen.contains(words), "{words} in\n{screen}");
    }
}

#[test]
fn the_socket_is_for_its_owner_alone_and_gone_after_the_stop() {
    let daemon = Daemon::start("");
    let mode = |path: PathBuf| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o7777;
    assert_eq!((mode(daemon.socket()), mode(daemon.dir.path().join("run"))), (0o600, 0o750));
    daemon.stop();
    assert!(!daemon.socket().exists());
}

#[test]
fn the_socket_of_a_killed_daemon_is_replaced() {
    let mut daemon = Daemon::start("");
    daemon.process.signal(Signal::SIGKILL);
    daemon.process.wait_end(PATIENCE);
    assert!(daemon.socket().exists());
    daemon.process = launch(&daemon.ns, &daemon.config());
    daemon.process.wait_for_line(&["ready"]);
    assert_eq!(daemon.status().number("v"), 1);
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::start("");
    let second = launch(&daemon.ns, &daemon.config());
    let line = second.wait_for_line(&["control.sock", "another process answers there", "stop it first"]);
    assert!(line.contains("cannot listen on the control socket"), "{line}");
    assert_eq!(describe(second.wait_end(PATIENCE)), "exit 1");
    assert_eq!(daemon.status().number("v"), 1);
}

#[test]
fn clients_that_stall_or_flood_hold_up_nobody() {
    let daemon = Daemon::start("");
    let silent: Vec<UnixStream> = (0..3).map(|_| daemon.connect()).collect();
    let flood = daemon.tell(&vec![b'x'; 1 << 20]);
    assert!(flood.contains("longer than 1024 bytes"), "{flood}");
    assert!(daemon.tell(&b"{}\n".repeat(100_000)).contains("version"));
    assert!(daemon.tell(b"\n").contains("\"error\""));
    assert_eq!(daemon.status().number("v"), 1);
    drop(silent);
}

#[test]
fn a_fifth_client_waits_for_a_place_and_gets_it() {
    let daemon = Daemon::start("");
    let mut silent: Vec<UnixStream> = (0..4).map(|_| daemon.connect()).collect();
    let mut fifth = daemon.connect();
    fifth.write_all(b"{\"v\":1,\"cmd\":\"ping\"}\n").expect("it waits in the kernel");
    fifth.set_nonblocking(true).expect("fcntl");
    assert_eq!(fifth.read(&mut [0]).expect_err("no place yet").kind(), ErrorKind::WouldBlock);
    fifth.set_nonblocking(false).expect("fcntl");
    silent.pop();
    assert!(answer(&mut fifth).contains("version"));
    // the others are told when their time is over
    let last = answer(&mut silent[2]);
    assert!(last.contains("no request came within 5 s"), "{last}");
}

#[test]
fn a_reload_tells_what_changed_or_everything_that_is_wrong() {
    let daemon = Daemon::start("");
    assert_eq!(daemon.says(&["reload"]), "reloaded; changed: nothing\n");

    daemon.write_config("config rule\n\toption outbund 'direct'\nconfig rule\n\toption outbound 'nowhere'\n");
    let ended = daemon.run(&["reload"]);
    assert_eq!(ended.status, "exit 2");
    let lines: Vec<&str> = ended.err.lines().collect();
    assert_eq!(lines[0], "configuration not taken, the running one goes on");
    let config = daemon.config().display().to_string();
    assert!(lines[1..].iter().all(|line| line.starts_with(&format!("{config}:"))), "{}", ended.err);
    assert!(ended.err.contains("outbund") && ended.err.contains("nowhere"), "{}", ended.err);
    assert!(daemon.status().list("rules").is_empty());

    daemon.write_config("config set 'empty'\nconfig rule\n\tlist dest_ip '!@empty'\n\toption outbound 'reject'\n");
    let ended = daemon.run(&["reload"]);
    assert_eq!((ended.status.as_str(), ended.out.as_str()), ("exit 0", "reloaded; changed: rules\n"));
    assert!(ended.err.contains("empty"), "the warnings too: {}", ended.err);
    let status = daemon.status();
    assert_eq!((status.text("rules.0.outbound"), status.at("rules.0.active")), ("reject", &Json::Bool(false)));
}

#[test]
fn the_control_socket_follows_a_reload_that_names_another() {
    let daemon = Daemon::start("");
    let old = daemon.socket();
    let text = text(&daemon.dir, "").replace("run/control.sock", "elsewhere/c");
    daemon.dir.write("tproxyd", &text);
    let mut stream = daemon.connect();
    stream.write_all(b"{\"v\":1,\"cmd\":\"reload\"}\n").expect("it listens at the old place");
    let told = answer(&mut stream);
    assert!(told.contains("\"changed\":[\"globals\"]") && told.contains("\"warnings\":[]"), "{told}");
    assert!(!old.exists());
    assert_eq!(daemon.status().number("v"), 1, "at the new place");
    daemon.stop();
    assert!(!daemon.dir.path().join("elsewhere/c").exists());
}

#[test]
fn a_mistake_in_the_file_does_not_hide_the_socket() {
    let daemon = Daemon::start("");
    daemon.write_config("config rule\n\toption nonsense '1'\nconfig what\n");
    assert_eq!(daemon.status().number("v"), 1);
}

#[test]
fn sessions_are_listed_with_what_they_move_and_kicked() {
    let daemon = Daemon::start_in(
        intercepting(),
        "config outbound 'out'\n\toption type 'direct'\n\
         config rule\n\tlist dest_port '80'\n\toption outbound 'out'\n",
    );
    let listener = sock::listen(&daemon.ns, IpAddr::from(SERVER), 80);
    let at = SocketAddr::from((SERVER, 80));
    let (mut first, mut second) = (sock::connect(&daemon.ns, at), sock::connect(&daemon.ns, at));
    let (mut a, mut b) = (sock::accept(&listener), sock::accept(&listener));
    sock::exchange(&mut first, &mut a, b"hello", b"hi");
    sock::exchange(&mut second, &mut b, b"question", b"a longer answer");

    let list = list(&daemon.says(&["sessions", "--json", "--outbound", "out", "--dst", "203.0.113.9"]));
    assert_eq!(list.len(), 2);
    let of = |stream: &std::net::TcpStream| {
        let address = stream.local_addr().expect("connected").to_string();
        list.iter().find(|session| session.text("client") == address).expect("it is in the list")
    };
    let session = of(&second);
    assert_eq!((session.text("proto"), session.text("orig_dst")), ("tcp", "203.0.113.9:80"));
    assert_eq!((session.at("domain"), session.number("rule")), (&Json::Null, 0));
    assert_eq!((session.text("outbound"), session.text("state")), ("out", "relaying"));
    assert_eq!((session.number("bytes_up"), session.number("bytes_down")), (8, 15));
    assert!(session.number("age_s") < 60);

    let status = daemon.status();
    assert_eq!((status.number("tcp.active"), status.number("tcp.total")), (2, 2));
    assert_eq!((status.text("outbounds.1.name"), status.text("outbounds.1.state")), ("out", "up"));
    assert_eq!(status.number("outbounds.1.sessions"), 2);
    let moved = (status.number("outbounds.1.bytes_up"), status.number("outbounds.1.bytes_down"));
    assert_eq!(moved, (13, 17), "live sessions count");
    assert_eq!((status.number("rules.0.hits"), status.number("listeners.0.accepted")), (2, 2));

    let client = second.local_addr().expect("connected").to_string();
    let only = daemon.says(&["sessions", "--client", &client]);
    assert_eq!(only.lines().count(), 2, "a title and one session:\n{only}");
    assert!(only.contains(&client) && only.contains("15 B"), "{only}");
    assert_eq!(daemon.says(&["sessions", "--json", "--client", "192.0.2.1"]), "[\n]\n");
    let ended = daemon.run(&["sessions", "--outbound", "no"]);
    assert_eq!((ended.status.as_str(), ended.err.as_str()), ("exit 1", "there is no outbound 'no'\n"));

    let id = of(&first).number("id").to_string();
    assert_eq!(daemon.says(&["kick", &id]), "1 session ended\n");
    sock::expect_reset(&mut first);
    let ended = daemon.run(&["kick", &id]);
    assert_eq!((ended.status, ended.err), ("exit 1".into(), format!("there is no session {id}\n")));
    sock::exchange(&mut second, &mut b, b"still", b"here");
    assert_eq!(
        daemon.says(&["kick", "--client", &second.local_addr().expect("connected").ip().to_string()]),
        "1 session ended\n"
    );
    sock::expect_reset(&mut second);
    let status = daemon.status();
    assert_eq!(status.number("tcp.active"), 0);
    let moved = (status.number("outbounds.1.bytes_up"), status.number("outbounds.1.bytes_down"));
    assert_eq!(moved, (18, 21), "and count on when they have ended");
}

#[test]
fn an_outbound_is_down_when_its_proxy_refuses_and_up_when_it_answers() {
    let daemon = Daemon::start_in(
        intercepting(),
        "config outbound 'hk'\n\toption type 'socks5'\n\toption server '127.0.0.1'\n\toption port '1080'\n\
         config rule\n\toption outbound 'hk'\n",
    );
    let at = SocketAddr::from((SERVER, 80));
    assert_eq!(sock::refusal(&daemon.ns, at), ErrorKind::ConnectionReset);
    let status = daemon.status();
    assert_eq!((status.text("outbounds.1.state"), status.number("outbounds.1.errors")), ("down", 1));
    let metrics = daemon.says(&["metrics"]);
    assert!(metrics.contains("tproxyd_outbound_up{outbound=\"hk\"} 0\n"), "{metrics}");

    let proxy = sock::listen(&daemon.ns, IpAddr::from([127, 0, 0, 1]), 1080);
    let mut client = sock::connect(&daemon.ns, at);
    let mut server = sock::accept(&proxy);
    assert_eq!(sock::read_n(&mut server, 3), [5, 1, 0]);
    server.write_all(&[5, 0]).expect("answer");
    sock::read_n(&mut server, 10);
    // the proxy works, the destination does not: RFC 1928 section 6, "host unreachable"
    server.write_all(&[5, 4, 0, 1, 0, 0, 0, 0, 0, 0]).expect("answer");
    sock::expect_reset(&mut client);
    let status = daemon.status();
    assert_eq!((status.text("outbounds.1.state"), status.number("outbounds.1.errors")), ("up", 2));
}

#[test]
fn two_thousand_flows_are_listed_whole_while_another_client_does_not_read_its_list() {
    const FLOWS: u16 = 2000;
    let daemon = Daemon::start_in(intercepting(), "config rule\n\toption outbound 'direct'\n");
    let server = sock::udp(&daemon.ns, IpAddr::from(SERVER), 5000);
    for n in 0..FLOWS {
        let client = sock::udp(&daemon.ns, IpAddr::from([127, 0, 0, 1]), 10_000 + n);
        client.send_to(b"?", (IpAddr::from(SERVER), 5000)).expect("send");
        sock::receive(&server);
    }
    let mut deaf = daemon.connect();
    deaf.write_all(b"{\"v\":1,\"cmd\":\"sessions\"}\n").expect("send");
    let status = daemon.status();
    assert_eq!((status.number("udp.active"), status.number("udp.evicted")), (FLOWS.into(), 0));
    let text = daemon.says(&["sessions", "--json"]);
    let list = list(&text);
    let mut clients: Vec<&str> = list.iter().map(|session| session.text("client")).collect();
    clients.sort_unstable();
    clients.dedup();
    assert_eq!(clients.len(), FLOWS.into());
    assert!(list.iter().all(|flow| flow.text("proto") == "udp" && flow.number("bytes_up") == 1));
    assert_eq!(daemon.says(&["sessions"]).lines().count(), usize::from(FLOWS) + 1);
    // it begins to read before its time is over
    assert!(answer(&mut deaf).ends_with("\n],\"next\":null}\n"));

    let ended = daemon.run(&["kick", "--client", "127.0.0.1"]);
    assert_eq!(ended.out, format!("{FLOWS} sessions ended\n"));
    assert_eq!(daemon.status().number("udp.active"), 0);
    let (used, bound) = (daemon.status().number("memory.peak"), daemon.status().number("memory.bound"));
    assert!(used <= bound, "{used} {bound}");
}

#[test]
fn metrics_are_lines_of_the_text_format() {
    let daemon = Daemon::start("config rule\n\toption name 'a \"b\" \\\\'\n\toption outbound 'direct'\n");
    let metrics = daemon.says(&["metrics"]);
    assert!(metrics.contains("# TYPE tproxyd_sessions_opened_total counter\n"), "{metrics}");
    assert!(metrics.contains("\ntproxyd_sessions{proto=\"udp\"} 0\n"), "{metrics}");
    assert!(metrics.contains("tproxyd_rule_hits_total{rule=\"0\",name=\"a \\\"b\\\""), "{metrics}");
    for line in metrics.lines() {
        let value = line.rsplit_once(' ').map(|(_, value)| value).unwrap_or_default();
        assert!(line.starts_with("# ") || value.parse::<u64>().is_ok(), "{line}");
    }
}

#[test]
fn without_a_daemon_a_command_names_the_socket_and_what_to_do() {
    let dir = TempDir::new();
    let config = dir.write("tproxyd", &text(&dir, ""));
    let config = config.to_str().expect("a plain path");
    for command in [&["status"][..], &["sessions"], &["metrics"], &["kick", "1"], &["reload"]] {
        let ended = run(&[&command[..1], &["--config", config], &command[1..]].concat());
        assert_eq!((ended.status.as_str(), ended.out.as_str()), ("exit 1", ""), "{command:?}");
        assert!(
            ended.err.contains("run/control.sock") && ended.err.contains("/etc/init.d/tproxyd start"),
            "{}",
            ended.err
        );
        assert_eq!(ended.err.lines().count(), 1);
    }
}

#[test]
fn what_is_wrong_on_the_command_line_or_not_in_this_build_ends_with_status_2() {
    for (args, said) in [
        (&["sessions", "--watch"][..], "--watch"),
        (&["explain", "tcp", "192.168.1.20:1", "[2001:db8::1]:443"], "two families"),
        (&["explain", "icmp", "192.168.1.20:1", "192.0.2.1:443"], "neither tcp nor udp"),
        (&["explain", "--mac", "x", "tcp", "192.168.1.20:1", "192.0.2.1:443"], "no MAC address"),
        (&["kick"], "either the id of a session or --client"),
        (&["kick", "1", "--client", "::1"], "either the id of a session or --client"),
        (&["kick", "x"], "x"),
        (&["sessions", "--client", "lan"], "'lan' is not an address"),
        (&["status", "--config", "/nonexistent/file"], "cannot read /nonexistent/file"),
        (&["dance"], "dance"),
    ] {
        let ended = run(args);
        assert_eq!((ended.status.as_str(), ended.out.as_str()), ("exit 2", ""), "{args:?}");
        assert!(ended.err.contains(said), "{args:?}: {}", ended.err);
    }
}

#[test]
fn the_help_of_each_command_has_an_example() {
    for command in ["run", "status", "sessions", "metrics", "kick", "reload"] {
        let ended = run(&[command, "--help"]);
        assert_eq!(ended.status, "exit 0");
        assert!(ended.out.contains(&format!("Examples:\n  tproxyd {command}")), "{}", ended.out);
    }
    assert!(run(&["--help"]).out.contains("sessions"));
}
