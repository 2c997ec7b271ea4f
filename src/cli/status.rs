//! `status` for people: one screen.

use super::tree::Tree;
use super::units::{bytes, moment, seconds};
use std::fmt::Write;

/// What the daemon's document says.
pub(super) fn screen(status: &Tree) -> String {
    let (time, uptime) = (status.number("time"), status.number("uptime_s"));
    let since = moment(time.saturating_sub(uptime));
    let mut text = format!("tproxyd {}, up {} (since {since})\n", status.text("version"), seconds(uptime));
    listeners(status, &mut text);
    outbounds(status, &mut text);
    rules(status, &mut text);
    sets(status, &mut text);
    tables(status, &mut text);
    memory(status, &mut text);
    drops(status, &mut text);
    problems(status, &mut text);
    text
}

fn listeners(status: &Tree, text: &mut String) {
    let all = status.list("listeners");
    let mut table = Table::new(&["Listeners", "address", "", ">packets", ">arrived"]);
    for listener in all {
        let protos: Vec<&str> = ["tcp", "udp"].into_iter().filter(|proto| listener.flag(proto)).collect();
        table.row(&[
            listener.text("name"),
            listener.text("address"),
            &protos.join(" "),
            &maybe(listener, "packets"),
            &listener.number("accepted").to_string(),
        ]);
    }
    table.write(text);
    if let Some(hint) = hint(all) {
        text.push_str("  ");
        text.push_str(hint);
        text.push('\n');
    }
}

/// What it means that nothing comes.
fn hint(listeners: &[Tree]) -> Option<&'static str> {
    let none = |member: &str| listeners.iter().all(|listener| listener.number(member) == 0);
    let intercepted = listeners.iter().any(|listener| matches!(listener.get("packets"), Tree::Number(_)));
    if listeners.is_empty() {
        Some("none: nothing is intercepted")
    } else if !none("accepted") {
        None
    } else if !intercepted {
        Some("Nothing has arrived yet, and no rules of ours count packets. `tproxyd check` says what is wrong.")
    } else if none("packets") {
        Some("Rules are in place, but no packet has come to them yet. `tproxyd rules` shows what they take.")
    } else {
        Some("Packets come to the rules, but none to the process: `tproxyd check` says what is in the way.")
    }
}

fn outbounds(status: &Tree, text: &mut String) {
    let mut table = Table::new(&["Outbounds", "type", "state", ">latency", ">sessions", ">up", ">down", ">errors"]);
    let all = status.list("outbounds");
    for outbound in all {
        let latency = maybe(outbound, "latency_ms");
        table.row(&[
            outbound.text("name"),
            outbound.text("type"),
            outbound.text("state"),
            &if latency == "-" { latency } else { latency + " ms" },
            &outbound.number("sessions").to_string(),
            &bytes(outbound.number("bytes_up")),
            &bytes(outbound.number("bytes_down")),
            &outbound.number("errors").to_string(),
        ]);
    }
    table.write(text);
    for outbound in all {
        let error = outbound.get("last_error");
        if *error != Tree::Null {
            let (name, ago) = (outbound.text("name"), ago(status, error));
            let _ = writeln!(text, "  {name}: last error {ago}: {}", error.text("text"));
        }
    }
}

/// The number of that member as it is shown; a dash if it is null.
fn maybe(tree: &Tree, member: &str) -> String {
    match tree.get(member) {
        Tree::Number(digits) => digits.clone(),
        _ => "-".to_owned(),
    }
}

/// `3 min ago`.
fn ago(status: &Tree, what: &Tree) -> String {
    format!("{} ago", seconds(status.number("time").saturating_sub(what.number("time"))))
}

/// Rules shown: `--json` has all of them.
const RULES_SHOWN: usize = 20;

fn rules(status: &Tree, text: &mut String) {
    let all = status.list("rules");
    if all.is_empty() {
        return;
    }
    let mut table = Table::new(&["Rules", "name", "outbound", ">hits"]);
    for rule in all.iter().take(RULES_SHOWN) {
        let hits = rule.number("hits").to_string();
        table.row(&[
            &rule.number("number").to_string(),
            rule.text("name"),
            rule.text("outbound"),
            if rule.flag("active") { &hits } else { "inactive: its set could not be read" },
        ]);
    }
    table.write(text);
    for rule in all.iter().take(RULES_SHOWN).filter(|rule| *rule.get("holds") != Tree::Null) {
        let until = rule.number("changes").checked_sub(status.number("time")).map(seconds);
        let (number, holds) = (rule.number("number"), rule.flag("holds"));
        let _ = match (holds, until) {
            (true, Some(until)) => writeln!(text, "  {number}: holds now, for {until}"),
            (false, Some(until)) => writeln!(text, "  {number}: holds not now, but in {until}"),
            (holds, None) => writeln!(text, "  {number}: holds{} now", if holds { "" } else { " not" }),
        };
    }
    if let Some(more) = all.len().checked_sub(RULES_SHOWN).filter(|more| *more > 0) {
        let _ = writeln!(text, "  and {more} more: see --json");
    }
}

fn sets(status: &Tree, text: &mut String) {
    let all = status.list("sets");
    if all.is_empty() {
        return;
    }
    let mut table = Table::new(&["Sets", "type", ">entries", ">age"]);
    for set in all {
        let age = if *set.get("age_s") == Tree::Null { "-".to_owned() } else { seconds(set.number("age_s")) };
        table.row(&[set.text("name"), set.text("type"), &set.number("entries").to_string(), &age]);
    }
    table.write(text);
    for set in all.iter().filter(|set| *set.get("update_error") != Tree::Null) {
        let _ = writeln!(text, "  {}: not updated: {}", set.text("name"), set.text("update_error"));
    }
}

fn tables(status: &Tree, text: &mut String) {
    let mut table = Table::new(&["Sessions", ">live", ">limit", ">since start", ">refused", ">evicted"]);
    for name in ["tcp", "udp"] {
        let one = status.get(name);
        let number = |member| one.number(member).to_string();
        table.row(&[
            name,
            &number("active"),
            &number("limit"),
            &number("total"),
            &number("refused"),
            &number("evicted"),
        ]);
    }
    table.write(text);
    match status.number("accept_paused") {
        0 => {}
        times => {
            let _ = writeln!(text, "  accepting paused {times} times: descriptors or kernel memory had run out");
        }
    }
}

fn memory(status: &Tree, text: &mut String) {
    let (memory, pool) = (status.get("memory"), status.get("pool"));
    let _ = writeln!(
        text,
        "\nMemory: {} in use, {} at most so far, bound {}; buffers: {} of {} in use, {} at most so far",
        bytes(memory.number("used")),
        bytes(memory.number("peak")),
        bytes(memory.number("bound")),
        pool.number("lent"),
        pool.number("capacity"),
        pool.number("peak"),
    );
}

fn drops(status: &Tree, text: &mut String) {
    let counted: Vec<String> = status
        .members("drops")
        .iter()
        .filter_map(|(reason, _)| match status.get("drops").number(reason) {
            0 => None,
            count => Some(format!("{} {count}", reason.replace('_', " "))),
        })
        .collect();
    let list = if counted.is_empty() { "none".to_owned() } else { counted.join(", ") };
    let _ = writeln!(text, "Drops: {list}");
}

/// Problems shown: `--json` has some more.
const PROBLEMS_SHOWN: usize = 5;

fn problems(status: &Tree, text: &mut String) {
    let all = status.list("problems");
    if all.is_empty() {
        text.push_str("Problems in the log: none\n");
        return;
    }
    let _ = writeln!(text, "\nProblems in the log: {}, the last", status.number("problem_count"));
    for problem in all.iter().take(PROBLEMS_SHOWN) {
        let _ = writeln!(text, "  {} ({}): {}", ago(status, problem), problem.text("level"), problem.text("text"));
    }
}

/// Columns as wide as they need to be.
struct Table {
    /// Of each column: right-aligned, and what it holds.
    columns: Vec<(bool, Vec<String>)>,
}

impl Table {
    /// A column whose title begins with `>` is aligned to the right.
    fn new(titles: &[&str]) -> Table {
        let column = |title: &&str| {
            let right = title.strip_prefix('>');
            (right.is_some(), vec![right.unwrap_or(title).to_owned()])
        };
        Table { columns: titles.iter().map(column).collect() }
    }

    /// The first cell stands under its title a little to the right.
    fn row(&mut self, cells: &[&str]) {
        for (n, ((_, column), cell)) in self.columns.iter_mut().zip(cells).enumerate() {
            column.push(format!("{}{cell}", if n == 0 { "  " } else { "" }));
        }
    }

    fn write(&self, text: &mut String) {
        text.push('\n');
        let rows = self.columns.first().map_or(0, |(_, cells)| cells.len());
        for row in 0..rows {
            let mut line = String::new();
            for (n, (right, cells)) in self.columns.iter().enumerate() {
                let gap = if n == 0 { "" } else { "  " };
                let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
                let cell = cells.get(row).map_or("", String::as_str);
                let _ = if *right { write!(line, "{gap}{cell:>width$}") } else { write!(line, "{gap}{cell:<width$}") };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = r#"{"v":1,"version":"0.1.0","time":1795572633,"uptime_s":7980,
        "listeners":[{"name":"lan","address":"[::]:2333","tcp":true,"udp":true,"packets":51234,"accepted":4123}],
        "outbounds":[{"name":"direct","type":"direct","state":"up","latency_ms":20,"sessions":12,"bytes_up":1300000,
            "bytes_down":34000000,"errors":0},
            {"name":"hk","type":"socks5","state":"down","latency_ms":null,"sessions":0,"bytes_up":0,"bytes_down":0,
            "errors":7,"last_error":{"time":1795572453,"text":"203.0.113.9:443: connection refused"}}],
        "rules":[{"number":0,"name":"video","outbound":"hk","active":true,"hits":77,"holds":true,"changes":1795580000},
            {"number":3,"name":null,"outbound":"direct","active":false,"hits":0,"holds":null,"changes":null}],
        "sets":[{"name":"cn","type":"net","entries":8120,"file":"/etc/tproxyd/cn.list","age_s":259200,
            "update_time":1795572633,"update_error":"the server refused it"}],
        "tcp":{"active":12,"limit":4096,"total":5521,"refused":0,"evicted":0},
        "udp":{"active":3,"limit":4096,"total":1024,"refused":1,"evicted":2},
        "memory":{"used":3200000,"peak":4100000,"bound":28000000},
        "pool":{"lent":1,"peak":4,"capacity":128,"empty":0},"destinations":{"used":9,"evicted":0},"accept_paused":2,
        "drops":{"not_intercepted":3,"no_room":0,"by_rule":10},
        "problem_count":9,"problems":[{"time":1795572573,"level":"warn","text":"look up 'hk.example': no answer"}]}"#;

    #[test]
    fn a_person_sees_all_of_it_on_one_screen() {
        assert_eq!(
            screen(&Tree::parse(STATUS).unwrap()),
            "\
tproxyd 0.1.0, up 2 h 13 min (since 2026-11-24 23:57:33 UTC)

Listeners  address             packets  arrived
  lan      [::]:2333  tcp udp    51234     4123

Outbounds  type    state  latency  sessions       up    down  errors
  direct   direct  up       20 ms        12  1.2 MiB  32 MiB       0
  hk       socks5  down         -         0      0 B     0 B       7
  hk: last error 3 min ago: 203.0.113.9:443: connection refused

Rules  name   outbound                                 hits
  0    video  hk                                         77
  3           direct    inactive: its set could not be read
  0: holds now, for 2 h 2 min

Sets  type  entries  age
  cn  net      8120  3 d
  cn: not updated: the server refused it

Sessions  live  limit  since start  refused  evicted
  tcp       12   4096         5521        0        0
  udp        3   4096         1024        1        2
  accepting paused 2 times: descriptors or kernel memory had run out

Memory: 3.1 MiB in use, 3.9 MiB at most so far, bound 27 MiB; buffers: 1 of 128 in use, 4 at most so far
Drops: not intercepted 3, by rule 10

Problems in the log: 9, the last
  1 min ago (warn): look up 'hk.example': no answer
"
        );
    }

    #[test]
    fn rules_to_which_nothing_comes_are_told_from_traffic_that_is_direct() {
        let quiet = STATUS.replace("4123", "0");
        let said = |text: &str| screen(&Tree::parse(text).unwrap());
        assert!(said(&quiet).contains("Packets come to the rules, but none to the process"));
        assert!(said(&quiet.replace("51234", "0")).contains("but no packet has come"));
        assert!(said(&quiet.replace("51234", "null")).contains("no rules of ours"));
        let none = r#"{"listeners":[]}"#;
        assert!(screen(&Tree::parse(none).unwrap()).contains("none: nothing is intercepted"));
    }
}
