//! What the README documents, field by field and metric by metric, against a running daemon.

use super::json::Json;
use super::ns::Namespace;
use super::sock::{self, PATIENCE};
use super::{Daemon, SERVER, intercepting, list};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

const README: &str = include_str!("../../README.md");

/// Path and value of each row of the table in README.md whose first column is headed `heading`.
fn documented(heading: &str) -> Vec<(String, String)> {
    let table = README.split(&format!("| {heading} |")).nth(1).unwrap_or_else(|| panic!("no table '{heading}'"));
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut all = Vec::new();
    for row in rows {
        let mut cells = row.split('|').skip(1).map(str::trim);
        let (paths, value) = (cells.next().expect("a path"), cells.next().expect("a value"));
        all.extend(paths.split(' ').map(|path| (path.trim_matches('`').to_owned(), value.to_owned())));
    }
    all
}

/// The paths of all values in `json`, `[]` for the elements of a list, each with the value.
fn paths<'j>(json: &'j Json, at: &str, found: &mut Vec<(String, &'j Json)>) {
    match json {
        Json::Map(members) => {
            for (name, value) in members {
                let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                if matches!(value, Json::Map(_)) && at.ends_with("[]") {
                    found.push((path.clone(), value));
                }
                paths(value, &path, found);
            }
        }
        Json::List(list) => list.iter().for_each(|element| paths(element, &format!("{at}[]"), found)),
        value => found.push((at.to_owned(), value)),
    }
}

/// Whether `json` is what a cell of README.md says.
fn is_a(value: &str, json: &Json) -> bool {
    match (value.strip_suffix(" or null"), json) {
        (Some(_), Json::Null) => return true,
        (Some(value), _) => return is_a(value, json),
        (None, _) => {}
    }
    match json {
        Json::Text(_) => value == "text",
        Json::Bool(_) => value == "flag",
        Json::Map(_) => value == "object",
        Json::Number(n) => {
            ["number", "bytes", "seconds", "milliseconds", "time", "bits/s"].contains(&value)
                && *n >= 0.0
                && n.fract() == 0.0
        }
        Json::Null | Json::List(_) => false,
    }
}

/// Every value of `json` stands in the table, as what it is; every row of the table is met, but for `rare` ones.
fn agrees(json: &Json, heading: &str, rare: &[&str]) {
    let rows = documented(heading);
    let mut found = Vec::new();
    paths(json, "", &mut found);
    let fits = |pattern: &str, path: &str| match pattern.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => path == pattern,
    };
    for (path, value) in &found {
        let row = rows.iter().find(|(pattern, _)| fits(pattern, path));
        let (_, kind) = row.unwrap_or_else(|| panic!("README.md does not say what {path} is"));
        assert!(is_a(kind, value), "README.md says that {path} is a {kind}: {value}");
    }
    for (pattern, _) in &rows {
        let met = found.iter().any(|(path, _)| fits(pattern, path));
        assert!(met || rare.contains(&pattern.as_str()), "README.md names {pattern}, which is not in {json}");
    }
}

#[test]
fn the_status_is_what_the_readme_says_field_by_field() {
    let ns = intercepting();
    let daemon = Daemon::start_in(
        ns.clone(),
        "config outbound 'hk'\n\toption type 'socks5'\n\toption server '127.0.0.1'\n\toption port '9'\n\
         config set 'near'\n\tlist entry '192.0.2.0/24'\n\
         config rule\n\tlist dest_port '80'\n\toption outbound 'hk'\n",
    );
    // nobody listens at port 9: an error, and a problem
    sock::refusal(&ns, (SERVER, 80).into());
    let status = daemon.status();
    assert_eq!(status.list("problems").len(), 1);
    agrees(&status, "field of `status --json`", &[]);
    let reasons: Vec<_> = documented("reason in `drops`").into_iter().map(|(reason, _)| reason).collect();
    let Json::Map(drops) = status.at("drops") else { panic!("no drops") };
    assert_eq!(reasons.len(), drops.len(), "{reasons:?} are documented, {drops:?} are there");
    assert!(reasons.iter().all(|reason| drops.contains_key(reason)));
}

/// Sends `request` to the metrics listener and reads to the end.
fn http(ns: &Namespace, request: &str) -> String {
    let mut stream = sock::connect(ns, METRICS.parse().expect("an address"));
    stream.write_all(request.as_bytes()).expect("send");
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        Err(e) => panic!("read an answer: {e}"),
    }
    String::from_utf8(bytes).expect("text")
}

const METRICS: &str = "127.0.0.1:9233";

/// A daemon that serves metrics, and has something to tell by them.
fn with_metrics() -> Daemon {
    let ns = intercepting();
    let daemon = Daemon::start_in(
        ns.clone(),
        "config globals\n\toption metrics '127.0.0.1:9233'\n\
         config outbound 'hk'\n\toption type 'socks5'\n\toption server '127.0.0.1'\n\toption port '9'\n\
         config rule\n\toption name 'a \"b\" \\\\c'\n\tlist dest_port '80'\n\toption outbound 'hk'\n",
    );
    sock::refusal(&ns, (SERVER, 80).into());
    daemon
}

#[test]
fn prometheus_is_answered_at_the_address_of_the_option_and_its_own_tool_finds_no_fault() {
    let daemon = with_metrics();
    let answer = http(&daemon.ns, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4"), "{head}");
    let printed = daemon.says(&["metrics"]);
    let names = |text: &str| -> Vec<String> {
        let samples = text.lines().map(|line| line.rsplit_once(' ').map_or(line, |(name, _)| name).to_owned());
        samples.collect()
    };
    assert_eq!(names(body), names(&printed), "the command and the listener say the same");
    assert!(body.contains("tproxyd_outbound_errors_total{outbound=\"hk\"} 1\n"), "{body}");
    for (name, kind) in documented("metric") {
        let of_it = format!("# TYPE {name} {kind}\n");
        assert!(body.contains(&of_it), "README.md names {name} as a {kind}");
    }
    assert_eq!(body.matches("# TYPE ").count(), documented("metric").len(), "README.md has all of them");
    let tool = daemon.ns.tool("promtool", &["check", "metrics"], body);
    assert_eq!(tool, "", "promtool complains");
}

#[test]
fn only_get_of_metrics_is_answered_there() {
    let daemon = with_metrics();
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("nonsense\r\n\r\n", "405 Method Not Allowed"),
    ] {
        assert!(http(&daemon.ns, request).starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}");
    }
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(10_000));
    assert!(http(&daemon.ns, &long).starts_with("HTTP/1.1 431 "));
    // those who stall keep nobody out for ever, and the control socket not at all
    let stalled: Vec<_> = (0..3).map(|_| sock::connect(&daemon.ns, METRICS.parse().expect("an address"))).collect();
    assert_eq!(daemon.status().number("v"), 1);
    assert!(http(&daemon.ns, "GET /metrics?x=1 HTTP/1.0\r\n\r\n").contains("tproxyd_build_info"));
    drop(stalled);
}

#[test]
fn the_metrics_listener_follows_a_reload() {
    let daemon = Daemon::start("");
    let at: SocketAddr = METRICS.parse().expect("an address");
    assert!(sock::try_connect(&daemon.ns, at).is_err());
    daemon.write_config("config globals\n\toption metrics '127.0.0.1:9233'\n");
    daemon.says(&["reload"]);
    assert!(http(&daemon.ns, "GET /metrics HTTP/1.1\r\n\r\n").contains("tproxyd_build_info"));
    daemon.write_config("");
    daemon.says(&["reload"]);
    assert!(sock::try_connect(&daemon.ns, at).is_err());
}

#[test]
fn clients_are_told_with_what_they_moved_as_the_readme_says() {
    let ns = intercepting();
    let daemon = Daemon::start_in(ns.clone(), "");
    let listener = sock::listen(&ns, SERVER.into(), 80);
    let mut client = sock::connect(&ns, (SERVER, 80).into());
    let mut server = sock::accept(&listener);
    sock::exchange(&mut client, &mut server, b"to the server", b"back");
    let live = Json::parse(&daemon.says(&["clients", "--json"]));
    agrees(&live, "field of `clients --json`", &[]);
    assert_eq!((live.number("clients.0.sessions"), live.number("clients.0.total")), (1, 1));
    drop((client, server));
    let begin = std::time::Instant::now();
    let ended = loop {
        let clients = Json::parse(&daemon.says(&["clients", "--json"]));
        if clients.number("clients.0.sessions") == 0 {
            break clients;
        }
        assert!(begin.elapsed() < PATIENCE, "the session never ends");
    };
    assert_eq!(ended.text("clients.0.client"), "203.0.113.9");
    assert_eq!((ended.number("clients.0.bytes_up"), ended.number("clients.0.bytes_down")), (13, 4));
    let screen = daemon.says(&["clients"]);
    assert!(screen.contains("203.0.113.9") && screen.contains("13 B"), "{screen}");
}

#[test]
fn sessions_are_sorted_paged_and_rated_as_the_readme_says() {
    let ns = intercepting();
    let daemon = Daemon::start_in(ns.clone(), "");
    let listener = sock::listen(&ns, SERVER.into(), 80);
    let mut pairs: Vec<_> =
        (0..3).map(|_| (sock::connect(&ns, (SERVER, 80).into()), sock::accept(&listener))).collect();
    for (n, (client, server)) in pairs.iter_mut().enumerate() {
        sock::exchange(client, server, &vec![b'x'; [200, 3000, 10][n]], b"!");
    }
    let listed = Json::parse(&daemon.says(&["sessions", "--json", "--rates"]));
    agrees(&listed, "field of `sessions --json`", &[]);
    let up = |args: &[&str]| -> Vec<u64> {
        let all = list(&daemon.says(&[&["sessions", "--json"], args].concat()));
        all.iter().map(|session| session.number("bytes_up")).collect()
    };
    assert_eq!(up(&["--sort", "up"]), [3000, 200, 10]);
    assert_eq!(up(&["--sort", "up", "--offset", "1", "--limit", "1"]), [200]);
    assert_eq!(up(&["--limit", "2"]).len(), 2);
    assert_eq!(up(&["--offset", "5"]), [0_u64; 0]);
    assert_eq!(up(&["--sort", "bytes", "--offset", "5"]), [0_u64; 0]);
    let table = daemon.says(&["sessions", "--sort", "rate"]);
    assert!(table.contains("DOWN/s") && table.contains("0 bit/s"), "{table}");
    let wrong = daemon.run(&["sessions", "--sort", "colour"]);
    assert!(wrong.status == "exit 2" && wrong.err.contains("rate, bytes"), "{}", wrong.err);
    let nobody_looks = daemon.run(&["sessions", "--watch"]);
    assert!(nobody_looks.status == "exit 2" && nobody_looks.err.contains("--watch"), "{}", nobody_looks.err);
}
