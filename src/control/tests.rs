use super::outlet::STALL;
use super::seat::RELOAD_MAX;
use super::*;
use crate::config::lists::Note;
use crate::policy::Proto;
use crate::stats::events::Kind;
use crate::stats::{Drop as Reason, Stats};
use std::cell::Cell;
use std::io::{BufRead, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A process in whose tables every second place is taken.
struct Fake {
    places: u32,
    name: String,
    stats: Stats,
    asked: Cell<u32>,
    kicked: Vec<Kick>,
}

fn fake(places: u32) -> Fake {
    let mut stats = Stats::default();
    stats.drop(Reason::ByRule);
    Fake { places, name: "hk".into(), stats, asked: Cell::new(0), kicked: Vec::new() }
}

fn client_at(place: u32) -> SocketAddr {
    SocketAddr::from(([10, 0, (place >> 8) as u8, place as u8], 40_000))
}

impl Subject for Fake {
    fn watch_client(&self, _: RawFd, _: usize) -> Result<(), Error> {
        Ok(())
    }

    fn totals(&self) -> Totals {
        Totals {
            uptime: Duration::from_secs(77),
            tcp: (self.places as usize / 2, self.places as usize),
            udp: (0, 16),
            pool: Pool { lent: 0, peak: 3, capacity: 8 },
            destinations_used: 5,
            destinations_evicted: 6,
            redirected_evicted: 7,
            descriptors: 1024,
            problems: 2,
            names: (0, 0),
            names_refused: 0,
            meters: (1, 2),
            meters_refused: 0,
            quotas: (3, 4),
            quotas_used_up: 1,
            quotas_refused: 0,
            no_mac: 0,
        }
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }

    fn memory(&self) -> Memory {
        Memory { used: 1, peak: 2, bound: 3 }
    }

    fn listener(&self, n: usize) -> Option<Listener<'_>> {
        let listener = Listener { name: &self.name, address: client_at(1), tcp: true, udp: false, accepted: 9 };
        (n < 2).then_some(listener)
    }

    fn packets(&self) -> Vec<Option<u64>> {
        vec![Some(77), None]
    }

    fn clients(&self) -> Clients {
        let row = |n| ClientRow { ip: client_at(n).ip(), mac: Some([2, 0, 0, 0, 0, n as u8]), ..ClientRow::default() };
        Clients { list: (0..256).map(row).collect(), others: ClientRow { total: 7, ..row(0) }, evicted: 3 }
    }

    fn problem(&self, n: usize) -> Option<Problem> {
        let text = crate::stats::events::Bounded::of(format_args!("problem {n}"));
        (n < 2).then_some(Problem { at: 1_800_000_000, error: n == 0, text })
    }

    fn rule(&self, n: usize) -> Option<Rule<'_>> {
        let (name, holds, changes) = (&*self.name, (n == 0).then_some(true), (n == 0).then_some(1_800_000_003));
        let rule = Rule { number: n as u32, name: Some(name), outbound: name, active: n == 0, hits: 4, holds, changes };
        (n < 100).then_some(rule)
    }

    fn set(&self, n: usize) -> Option<Set<'_>> {
        let update = Some(Note { time: 1_800_000_002, error: Some("no answer".into()) });
        let (file, age) = (Some(Path::new("/etc/tproxyd/hk.list")), Some(Duration::from_secs(9)));
        (n < 2).then_some(Set { name: &self.name, domains: n == 1, entries: 7, file, age, update })
    }

    fn outbounds(&self) -> Vec<Outbound> {
        let outbound = Outbound {
            name: self.name.clone(),
            kind: "socks5",
            state: State::Down,
            sessions: u32::MAX,
            bytes_up: u64::MAX,
            bytes_down: u64::MAX,
            errors: u64::MAX,
            latency_ms: Some(1234),
            last_error: Some((1_800_000_001, crate::stats::events::Bounded::of("refused"))),
            spare: Spare { wanted: 3, ready: 2, ..Spare::default() },
        };
        vec![outbound]
    }

    fn has_outbound(&self, name: &str) -> bool {
        name == self.name
    }

    fn session(&self, place: u32) -> Place<'_> {
        self.asked.set(self.asked.get() + 1);
        match place {
            _ if place >= self.places => Place::End,
            _ if place % 2 == 1 => Place::Vacant,
            _ => Place::Session(Session {
                id: place,
                proto: Proto::Tcp,
                client: client_at(place),
                orig_dst: "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(),
                domain: None,
                rule: Some(3),
                outbound: &self.name,
                age: Duration::from_secs(5),
                bytes_up: u64::MAX,
                bytes_down: u64::MAX,
                state: "relaying",
            }),
        }
    }

    fn explain(&self, _: &Asked) -> Explained {
        Explained { config: "/etc/x".into(), steps: Vec::new() }
    }

    fn kick(&mut self, which: Kick) -> usize {
        self.kicked.push(which);
        usize::from(which == Kick::Id(2))
    }
}

/// A control socket of a test's own, and the loop around it: everybody is told of everything all the time.
struct Lab {
    control: Control,
    subject: Fake,
    now: Tick,
    directory: PathBuf,
}

impl Drop for Lab {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

impl Lab {
    fn new(test: &str, subject: Fake) -> Lab {
        let directory = std::env::temp_dir().join(format!("tproxyd-control-{}-{test}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let control = Control::open(&directory.join("s"), None).unwrap();
        Lab { control, subject, now: Tick(u32::MAX - 100), directory }
    }

    fn turn(&mut self) {
        self.control.note_connections();
        self.control.run(&mut self.subject, self.now);
        for n in 0..CLIENTS_MAX {
            self.control.ready(n, &mut self.subject, self.now);
        }
    }

    fn connect(&mut self) -> UnixStream {
        let stream = UnixStream::connect(self.control.path()).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.turn();
        stream
    }

    fn ask(&mut self, request: &str) -> UnixStream {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        self.turn();
        stream
    }

    /// All that is sent until the connection ends, and how many turns that took.
    fn answer(&mut self, stream: &mut UnixStream) -> (String, u32) {
        let mut text = Vec::new();
        for turns in 1.. {
            match stream.read_to_end(&mut text) {
                Ok(_) => return (String::from_utf8(text).unwrap(), turns),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // what we sent and it did not read makes its end a reset
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return (String::from_utf8(text).unwrap(), turns),
                Err(e) => panic!("{e}"),
            }
            assert!(turns < 100_000, "it never ends");
            self.turn();
        }
        unreachable!()
    }

    fn asked(&mut self, request: &str) -> String {
        let mut stream = self.ask(request);
        self.answer(&mut stream).0
    }

    fn clients(&self) -> usize {
        self.control.seats.iter().filter(|seat| !seat.is_free()).count()
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
        self.turn();
    }
}

const PING: &str = "{\"v\":1,\"cmd\":\"ping\"}\n";
const SESSIONS: &str = "{\"v\":1,\"cmd\":\"sessions\"}\n";
const RELOAD: &str = "{\"v\":1,\"cmd\":\"reload\"}\n";
const PONG: &str = concat!("{\"v\":1,\"version\":\"", env!("CARGO_PKG_VERSION"), "\"}\n");

fn ids(answer: &str) -> Vec<u32> {
    let id = |line: &str| Some(line.strip_prefix("{\"id\":")?.split_once(',')?.0.parse().unwrap());
    answer.lines().filter_map(id).collect()
}

#[test]
fn a_request_in_pieces_or_without_line_break_is_answered() {
    let mut lab = Lab::new("pieces", fake(0));
    let mut stream = lab.connect();
    for byte in PING.as_bytes() {
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        stream.write_all(&[*byte]).unwrap();
        lab.turn();
    }
    assert_eq!(lab.answer(&mut stream).0, PONG);
    let mut stream = lab.connect();
    stream.write_all(PING.trim_end().as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(lab.answer(&mut stream).0, PONG);
    assert_eq!(lab.clients(), 0);
    assert_eq!(lab.control.deadline(), None, "with nobody there nothing wakes the loop");
}

#[test]
fn the_longest_request_is_read_and_a_longer_one_refused() {
    let mut lab = Lab::new("longest", fake(0));
    let padded = |len: usize| format!("{:<len$}\n", PING.trim_end());
    assert_eq!(lab.asked(&padded(REQUEST_MAX)), PONG);
    let refused = "{\"v\":1,\"error\":\"the request is longer than 1024 bytes\"}\n";
    assert_eq!(lab.asked(&padded(REQUEST_MAX + 1)), refused);
    assert_eq!(lab.asked(&"x".repeat(100_000)), refused);
}

#[test]
fn a_large_answer_leaves_in_pieces_and_whole() {
    let mut lab = Lab::new("large", fake(2 * 16_384));
    let mut slow = lab.ask(SESSIONS);
    for _ in 0..100 {
        lab.turn();
    }
    let made = lab.subject.asked.get();
    assert!(made < 4_000, "what nobody reads is not made: {made} sessions were looked at");
    assert_eq!(lab.asked(PING), PONG, "another is not held up");
    let (answer, turns) = lab.answer(&mut slow);
    assert_eq!(ids(&answer), (0..16_384).map(|n| 2 * n).collect::<Vec<_>>());
    assert!(answer.len() > 4_000_000 && turns > 20, "{} bytes in {turns} turns", answer.len());
    assert!(answer.starts_with("{\"v\":1,\"sessions\":[\n{\"id\":0,") && answer.ends_with("}\n],\"next\":null}\n"));
}

#[test]
fn a_long_search_is_spread_over_turns_and_asks_to_be_called_again() {
    let mut lab = Lab::new("search", fake(32_768));
    let mut stream = lab.connect();
    stream.write_all(b"{\"v\":1,\"cmd\":\"sessions\",\"client\":\"192.0.2.1\"}\n").unwrap();
    lab.control.ready(0, &mut lab.subject, lab.now);
    assert!(lab.subject.asked.get() <= 4096);
    assert_eq!(lab.control.deadline(), Some(lab.now));
    let (answer, turns) = lab.answer(&mut stream);
    assert_eq!(answer, "{\"v\":1,\"sessions\":[\n],\"next\":null}\n");
    assert!(turns > 5, "{turns}");
}

#[test]
fn sessions_are_selected_and_paged() {
    let mut lab = Lab::new("pages", fake(100));
    let mut asked = |what: &str| lab.asked(&format!("{{\"v\":1,\"cmd\":\"sessions\",{what}}}\n"));
    assert_eq!(ids(&asked("\"client\":\"10.0.0.4\"")), [4]);
    assert_eq!(ids(&asked("\"client\":\"10.0.0.4:40000\"")), [4]);
    assert_eq!(ids(&asked("\"client\":\"10.0.0.4:1\"")), []);
    assert_eq!(ids(&asked("\"dst\":\"2001:db8:ffff:ffff:ffff:ffff:ffff:ffff\",\"outbound\":\"hk\"")).len(), 50);
    assert_eq!(asked("\"outbound\":\"no\""), "{\"v\":1,\"error\":\"there is no outbound 'no'\"}\n");
    let mut offset = 0;
    let mut seen = Vec::new();
    loop {
        let page = asked(&format!("\"offset\":{offset},\"limit\":7"));
        assert!(ids(&page).len() <= 7);
        seen.extend(ids(&page));
        let next = page.trim_end().rsplit_once(':').unwrap().1.trim_end_matches('}').to_owned();
        match next.parse() {
            Ok(next) => offset = next,
            Err(_) => break assert_eq!(next, "null"),
        }
    }
    assert_eq!(seen, (0..50).map(|n| 2 * n).collect::<Vec<u32>>());
    assert_eq!(asked("\"limit\":0"), "{\"v\":1,\"sessions\":[\n],\"next\":0}\n");
}

#[test]
fn a_client_that_stalls_ends_at_its_deadline_and_holds_up_nobody() {
    let mut lab = Lab::new("stall", fake(32_768));
    let mut silent = lab.connect();
    let mut deaf = lab.ask(SESSIONS);
    // until its socket is full
    (0..10).for_each(|_| lab.turn());
    assert_eq!(lab.control.deadline(), Some(lab.now.after(STALL)));
    assert_eq!(lab.asked(PING), PONG);
    lab.pass(STALL - Tick::STEP);
    assert_eq!(lab.clients(), 2);
    lab.pass(Tick::STEP);
    assert_eq!(lab.clients(), 0);
    assert_eq!(lab.answer(&mut silent).0, "{\"v\":1,\"error\":\"no request came within 5 s\"}\n");
    assert!(!lab.answer(&mut deaf).0.ends_with("}\n"), "the answer is cut short");
}

#[test]
fn a_client_that_reads_a_little_now_and_then_does_not_keep_its_place_for_ever() {
    let mut lab = Lab::new("drip", fake(32_768));
    let mut stream = lab.ask(SESSIONS);
    let mut seconds = 0;
    while lab.clients() == 1 {
        let mut buffer = [0; 50_000];
        let _ = stream.read(&mut buffer);
        lab.pass(Duration::from_secs(1));
        seconds += 1;
    }
    assert_eq!(seconds, 60);
}

#[test]
fn a_fifth_client_waits_until_a_place_is_free() {
    let mut lab = Lab::new("five", fake(0));
    let silent: Vec<UnixStream> = (0..CLIENTS_MAX).map(|_| lab.connect()).collect();
    let mut fifth = lab.ask(PING);
    assert_eq!(fifth.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(lab.control.deadline(), Some(lab.now.after(STALL)), "the full house does not spin");
    drop(silent.into_iter().next());
    assert_eq!(lab.answer(&mut fifth).0, PONG);
}

#[test]
fn who_asked_for_a_reload_hears_what_came_of_that_one() {
    let mut lab = Lab::new("reload", fake(0));
    let mut first = lab.ask(RELOAD);
    assert!(lab.control.wants_reload());
    lab.control.reload_begun(7);
    assert!(!lab.control.wants_reload());
    let mut second = lab.ask(RELOAD);
    lab.control.reload_begun(8);
    assert_eq!(lab.asked(PING), PONG);
    lab.control.reloaded(&Outcome { ticket: 7, result: Err("f:1: bad\nf:2: \"worse\"".into()) }, &mut lab.subject);
    assert_eq!(
        lab.answer(&mut first).0,
        "{\"v\":1,\"error\":\"configuration not taken, the running one goes on\",\
         \"errors\":[\"f:1: bad\",\"f:2: \\\"worse\\\"\"]}\n"
    );
    assert_eq!(second.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let taken = Taken { changed: vec!["rules".into()], warnings: vec!["odd".into()] };
    lab.control.reloaded(&Outcome { ticket: 8, result: Ok(taken) }, &mut lab.subject);
    assert_eq!(lab.answer(&mut second).0, "{\"v\":1,\"changed\":[\"rules\"],\"warnings\":[\"odd\"]}\n");
}

#[test]
fn a_reload_of_which_nothing_is_heard_is_not_waited_for_for_ever() {
    let mut lab = Lab::new("patience", fake(0));
    let mut stream = lab.ask(RELOAD);
    lab.control.reload_begun(1);
    lab.pass(RELOAD_MAX);
    assert!(lab.answer(&mut stream).0.contains("the log will say"));
}

#[test]
fn ten_thousand_errors_reach_the_caller() {
    let mut lab = Lab::new("errors", fake(0));
    let mut stream = lab.ask(RELOAD);
    lab.control.reload_begun(1);
    let errors: String = (0..10_000).map(|n| format!("f:{n}: é is wrong\n")).collect();
    lab.control.reloaded(&Outcome { ticket: 1, result: Err(errors) }, &mut lab.subject);
    let answer = lab.answer(&mut stream).0;
    assert_eq!(answer.matches("é is wrong").count(), 10_000);
}

#[test]
fn a_kick_ends_what_it_names_or_says_that_there_is_none() {
    let mut lab = Lab::new("kick", fake(10));
    assert_eq!(lab.asked("{\"v\":1,\"cmd\":\"kick\",\"id\":2}\n"), "{\"v\":1,\"ended\":1}\n");
    assert_eq!(lab.asked("{\"v\":1,\"cmd\":\"kick\",\"id\":3}\n"), "{\"v\":1,\"error\":\"there is no session 3\"}\n");
    let nobody = lab.asked("{\"v\":1,\"cmd\":\"kick\",\"client\":\"::1\"}\n");
    assert_eq!(nobody, "{\"v\":1,\"error\":\"there is no session of ::1\"}\n");
    assert_eq!(lab.subject.kicked[..2], [Kick::Id(2), Kick::Id(3)]);
}

#[test]
fn every_item_fits_however_long_and_odd_the_names_are() {
    for name in ["\u{7f}".repeat(5000), "€\"".repeat(2000), "\\".repeat(300)] {
        let mut subject = fake(10);
        subject.name = name;
        let mut lab = Lab::new("names", subject);
        for command in ["status", "metrics", "sessions"] {
            let answer = lab.asked(&format!("{{\"v\":1,\"cmd\":\"{command}\"}}\n"));
            let mut tokens = crate::proto::json::Tokens::new(answer.as_bytes());
            while tokens.next().unwrap().is_some() {}
        }
    }
}

#[test]
fn the_status_has_every_part() {
    let mut lab = Lab::new("status", fake(10));
    let answer = lab.asked("{\"v\":1,\"cmd\":\"status\"}\n");
    for part in [
        "\"uptime_s\":77,\"listeners\":[{\"name\":\"hk\",\"address\":\"10.0.0.1:40000\",\"tcp\":true,\"udp\":false,\"packets\":77,\"accepted\":9},",
        "\"outbounds\":[{\"name\":\"hk\",\"type\":\"socks5\",\"state\":\"down\",\"latency_ms\":1234,\"sessions\":4294967295,",
        "\"rules\":[{\"number\":0,\"name\":\"hk\",\"outbound\":\"hk\",\"active\":true,\"hits\":4,\"holds\":true,\"changes\":1800000003},",
        "\"tcp\":{\"active\":5,\"limit\":10,\"total\":0,\"refused\":0,\"evicted\":0},",
        "\"memory\":{\"used\":1,\"peak\":2,\"bound\":3},",
        "\"pool\":{\"lent\":0,\"peak\":3,\"capacity\":8,\"empty\":0},\"destinations\":{\"used\":5,\"evicted\":6},",
        "\"redirected\":{\"evicted\":7},",
        "\"names\":{\"used\":0,\"limit\":0,\"refused\":0},\"meters\":{\"used\":1,\"limit\":2,\"refused\":0},\"quotas\":{\"used\":3,\"limit\":4,\"refused\":0,\"used_up\":1},\"nameless\":0,\"no_mac\":0,",
        "\"by_rule\":1,",
        "\"errors\":18446744073709551615,\"last_error\":{\"time\":1800000001,\"text\":\"refused\"},\"spare\":{\"wanted\":3,\"ready\":2,\"used\":0,\"missing\":0,\"lost\":0}}",
        "\"descriptors\":{\"limit\":1024},\"problem_count\":2,\"problems\":[{\"time\":1800000000,\"level\":\"error\",\"text\":\"problem 0\"},",
    ] {
        assert!(answer.contains(part), "{part}\n{answer}");
    }
    assert_eq!(answer.matches("\"number\":").count(), 100);
}

#[test]
fn clients_come_one_a_line_and_the_others_at_the_end() {
    let mut lab = Lab::new("clients", fake(0));
    let answer = lab.asked("{\"v\":1,\"cmd\":\"clients\"}\n");
    assert_eq!(answer.lines().count(), 258);
    let second = "{\"client\":\"10.0.0.1\",\"mac\":\"02:00:00:00:00:01\",\"sessions\":0,\"total\":0,\"bytes_up\":0,\"bytes_down\":0},";
    assert_eq!(answer.lines().nth(2), Some(second));
    let last = "],\"others\":{\"evicted\":3,\"sessions\":0,\"total\":7,\"bytes_up\":0,\"bytes_down\":0}}";
    assert_eq!(answer.lines().last(), Some(last));
}

#[test]
fn metrics_stand_under_their_type_and_counters_end_in_total() {
    let mut lab = Lab::new("metrics", fake(10));
    let answer = lab.asked("{\"v\":1,\"cmd\":\"metrics\"}\n");
    let mut family = String::new();
    let mut families = std::collections::HashSet::new();
    let mut samples = std::collections::HashSet::new();
    for line in answer.as_bytes().lines().map(Result::unwrap).filter(|line| line.starts_with('"')) {
        let line = line.trim_end_matches(',').trim_matches('"').replace("\\\"", "\"");
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned()), "{name} comes once");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            family = name.to_owned();
        } else if !line.starts_with('#') {
            let (labelled, value) = line.rsplit_once(' ').unwrap();
            assert_eq!(labelled.split('{').next(), Some(family.as_str()));
            assert!(value.parse::<f64>().is_ok(), "{line}");
            // the fake has two listeners of one name
            assert!(samples.insert(labelled.to_owned()) || labelled.contains("listener"), "{line} comes once");
        }
    }
    assert!(families.len() > 20 && samples.len() > 130, "{} {}", families.len(), samples.len());
}

#[test]
fn the_socket_moves_and_clients_stay() {
    let mut lab = Lab::new("move", fake(0));
    let mut stream = lab.connect();
    let (old, new) = (lab.directory.join("s"), lab.directory.join("other/t"));
    assert!(!lab.control.move_to(&old, None).unwrap());
    assert!(lab.control.move_to(&new, None).unwrap());
    assert!(new.exists() && !old.exists());
    assert!(lab.control.move_to(&lab.directory.join("no/such/t"), None).is_err());
    assert!(new.exists());
    stream.write_all(PING.as_bytes()).unwrap();
    assert_eq!(lab.answer(&mut stream).0, PONG);
    assert_eq!(lab.asked(PING), PONG);
}

const EVENTS: &str = "{\"v\":1,\"cmd\":\"events\"}\n";

fn happen(lab: &mut Lab, name: &str) {
    lab.subject.stats.events.push(Kind::OutboundDown, name, "why");
    lab.control.tell(&mut lab.subject, lab.now);
}

/// What waits to be read.
fn waiting(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    match stream.read_to_end(&mut text) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => String::from_utf8(text).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_follows_hears_what_happens_and_wakes_nobody_in_between() {
    let mut lab = Lab::new("follow", fake(0));
    happen(&mut lab, "before");
    let mut stream = lab.ask(EVENTS);
    assert_eq!(waiting(&mut stream), "{\"v\":1}\n");
    lab.control.note_connections();
    lab.turn();
    assert_eq!(lab.control.deadline(), None, "one who waits for events has no deadline");
    lab.pass(Duration::from_secs(100_000));
    for name in ["hk", "us"] {
        happen(&mut lab, name);
        let line = waiting(&mut stream);
        let rest = format!("\"event\":\"outbound_down\",\"name\":\"{name}\",\"detail\":\"why\"}}\n");
        assert!(line.starts_with("{\"time\":") && line.ends_with(&rest), "{line}");
    }
    drop(stream);
    lab.turn();
    assert_eq!(lab.clients(), 0, "its end is seen");
}

#[test]
fn who_follows_too_slowly_is_told_how_much_it_missed_or_loses_its_place() {
    let mut lab = Lab::new("slow", fake(0));
    let mut stream = lab.ask(EVENTS);
    assert_eq!(waiting(&mut stream), "{\"v\":1}\n");
    for n in 0..40 {
        lab.subject.stats.events.push(Kind::OutboundDown, n, "");
    }
    lab.control.tell(&mut lab.subject, lab.now);
    let said = waiting(&mut stream);
    assert!(
        said.starts_with("{\"time\":") && said.contains("\"missed\",\"name\":\"\",\"detail\":\"8 events\""),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1 + crate::stats::events::KEPT);
    // it does not read any more
    for _ in 0..10_000 {
        happen(&mut lab, "x");
    }
    assert_eq!(lab.clients(), 1);
    lab.pass(STALL);
    assert_eq!(lab.clients(), 0);
}

#[test]
fn those_who_follow_leave_places_to_those_who_ask() {
    let mut lab = Lab::new("followers", fake(0));
    let streams: Vec<_> = (0..3).map(|_| lab.ask(EVENTS)).collect();
    let [_first, _second, mut third] = <[UnixStream; 3]>::try_from(streams).unwrap();
    assert_eq!(lab.answer(&mut third).0, "{\"v\":1,\"error\":\"2 clients follow the events already\"}\n");
    assert_eq!(lab.asked(PING), PONG);
}
