//! `sessions`: the live ones as a list, sorted and in parts, with their rates, or as a view that renews itself.

#[cfg(feature = "watch")]
mod watch;

use super::ask::{Answer, Output, PATIENCE, address, document};
use super::tree::Tree;
use super::units::{bits, bytes, seconds};
use super::{DEFAULT_CONFIG, Failure};
use crate::control::{Address, Request, Selection};
use argh::FromArgs;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// List live TCP sessions and UDP flows.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "sessions",
    example = "{command_name} --client 192.168.1.20\n{command_name} --sort rate --limit 10\n{command_name} --json --outbound hk --dst 203.0.113.9:443"
)]
pub(super) struct Sessions {
    /// configuration file that names the control socket (default: /etc/config/tproxyd)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    pub(super) config: PathBuf,
    /// as a JSON list
    #[argh(switch)]
    json: bool,
    /// only those of this client: an address, with or without a port
    #[argh(option, from_str_fn(address))]
    client: Option<Address>,
    /// only those through this outbound
    #[argh(option)]
    outbound: Option<String>,
    /// only those to this destination: an address, with or without a port
    #[argh(option, from_str_fn(address))]
    dst: Option<Address>,
    /// largest first by age, up, down, bytes or rate; in order by client, dst or outbound
    #[argh(option, from_str_fn(sort))]
    sort: Option<Sort>,
    /// how many to pass over
    #[argh(option, default = "0")]
    offset: u32,
    /// how many to show at most
    #[argh(option)]
    limit: Option<u32>,
    /// with what they move now, looked at for a second
    #[argh(switch)]
    rates: bool,
    /// a view that renews itself, the busiest first; q ends it
    #[argh(switch)]
    watch: bool,
}

/// What sessions are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Age,
    Up,
    Down,
    Bytes,
    Rate,
    Client,
    Dst,
    Outbound,
}

impl Sort {
    pub(super) const ALL: [(Sort, &'static str); 8] = [
        (Sort::Rate, "rate"),
        (Sort::Bytes, "bytes"),
        (Sort::Up, "up"),
        (Sort::Down, "down"),
        (Sort::Age, "age"),
        (Sort::Client, "client"),
        (Sort::Dst, "dst"),
        (Sort::Outbound, "outbound"),
    ];
}

fn sort(text: &str) -> Result<Sort, String> {
    let found = Sort::ALL.into_iter().find(|(_, name)| *name == text);
    found.map(|(sort, _)| sort).ok_or_else(|| {
        let names: Vec<&str> = Sort::ALL.into_iter().map(|(_, name)| name).collect();
        format!("'{text}' is nothing to sort by: one of {}", names.join(", "))
    })
}

/// One session as the daemon told of it.
pub(super) struct Row {
    /// Its object, without comma and line break.
    json: String,
    tree: Tree,
    /// Bits per second up and down, if they were looked at.
    rates: Option<(u64, u64)>,
}

impl Row {
    fn read(element: &str) -> Result<Row, Failure> {
        let json = element.trim_end_matches([',', '\n']).to_owned();
        let tree = document(&json)?;
        Ok(Row { json, tree, rates: None })
    }

    fn moved(&self) -> (u64, u64) {
        (self.tree.number("bytes_up"), self.tree.number("bytes_down"))
    }

    pub(super) fn rate(&self) -> u64 {
        self.rates.map_or(0, |(up, down)| up.saturating_add(down))
    }

    /// As it was told, with the rates.
    fn object(&self) -> String {
        match (self.rates, self.json.strip_suffix('}')) {
            (Some((up, down)), Some(rest)) => format!("{rest},\"rate_up\":{up},\"rate_down\":{down}}}"),
            _ => self.json.clone(),
        }
    }
}

impl Sessions {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.watch {
            return self.watch();
        }
        let by_rate = self.sort == Some(Sort::Rate);
        if self.sort.is_none() && !self.rates {
            return self.list();
        }
        let mut rows = self.rows(self.selection())?;
        if self.rates || by_rate {
            let before = Moved::of(&rows);
            std::thread::sleep(Duration::from_secs(1));
            rows = self.rows(self.selection())?;
            before.rate(&mut rows);
        }
        if let Some(by) = self.sort {
            order(&mut rows, by);
        }
        let shown = rows.iter().skip(self.offset as usize).take(self.limit.map_or(usize::MAX, |limit| limit as usize));
        let mut out = Output::new();
        if self.json {
            let objects: Vec<String> = shown.map(Row::object).collect();
            out.write(&format!("[\n{}\n]\n", objects.join(",\n")))?;
        } else {
            out.write(if rows.iter().any(|row| row.rates.is_some()) { HEADER_RATES } else { HEADER })?;
            shown.map(line).try_for_each(|line| out.write(&line))?;
        }
        out.flush()
    }

    /// As the daemon has them, one by one: neither here nor there a whole list is held.
    fn list(&self) -> Result<(), Failure> {
        let selection = Selection { offset: self.offset, limit: self.limit, ..self.selection() };
        let mut answer = Answer::to(&Request::Sessions(selection), &self.config, PATIENCE)?;
        answer.list_begins("sessions")?;
        let mut out = Output::new();
        out.write(if self.json { "[\n" } else { HEADER })?;
        while let Some(element) = answer.element()? {
            out.write(&if self.json { element } else { line(&Row::read(&element)?) })?;
        }
        out.write(if self.json { "]\n" } else { "" })?;
        out.flush()
    }

    pub(super) fn selection(&self) -> Selection {
        Selection { client: self.client, outbound: self.outbound.clone(), dst: self.dst, ..Selection::default() }
    }

    pub(super) fn rows(&self, selection: Selection) -> Result<Vec<Row>, Failure> {
        rows(&self.config, selection)
    }

    #[cfg(not(feature = "watch"))]
    fn watch(&self) -> Result<(), Failure> {
        Err(Failure::Usage("--watch is not in this build: ask again by `sessions --sort rate --limit 20`".into()))
    }
}

fn rows(config: &Path, selection: Selection) -> Result<Vec<Row>, Failure> {
    let mut answer = Answer::to(&Request::Sessions(selection), config, PATIENCE)?;
    answer.list_begins("sessions")?;
    let mut rows = Vec::new();
    while let Some(element) = answer.element()? {
        rows.push(Row::read(&element)?);
    }
    Ok(rows)
}

/// What each session had moved at one moment.
pub(super) struct Moved {
    at: SystemTime,
    by_id: HashMap<u64, (u64, u64)>,
}

impl Moved {
    pub(super) fn of(rows: &[Row]) -> Moved {
        let by_id = rows.iter().map(|row| (row.tree.number("id"), row.moved())).collect();
        Moved { at: SystemTime::now(), by_id }
    }

    /// Says of each row what it has moved since, by the second. One that is new has moved all of it since.
    pub(super) fn rate(&self, rows: &mut [Row]) {
        let millis = self.at.elapsed().map_or(1, |span| span.as_millis().max(1)) as u64;
        for row in rows {
            let (up, down) = row.moved();
            let (up_before, down_before) = self.by_id.get(&row.tree.number("id")).copied().unwrap_or((0, 0));
            let bits = |now: u64, before: u64| now.saturating_sub(before).saturating_mul(8000) / millis;
            row.rates = Some((bits(up, up_before), bits(down, down_before)));
        }
    }
}

/// Sorts by `by`; among equals the order stays.
pub(super) fn order(rows: &mut [Row], by: Sort) {
    let largest = |amount: fn(&Row) -> u64| move |row: &Row| std::cmp::Reverse(amount(row));
    match by {
        Sort::Age => rows.sort_by_key(largest(|row| row.tree.number("age_s"))),
        Sort::Up => rows.sort_by_key(largest(|row| row.moved().0)),
        Sort::Down => rows.sort_by_key(largest(|row| row.moved().1)),
        Sort::Bytes => rows.sort_by_key(largest(|row| row.moved().0.saturating_add(row.moved().1))),
        Sort::Rate => rows.sort_by_key(largest(Row::rate)),
        Sort::Client => rows.sort_by_cached_key(|row| in_order(row.tree.text("client"))),
        Sort::Dst => rows.sort_by_cached_key(|row| in_order(row.tree.text("orig_dst"))),
        Sort::Outbound => rows.sort_by(|a, b| a.tree.text("outbound").cmp(b.tree.text("outbound"))),
    }
}

fn in_order(address: &str) -> Option<std::net::SocketAddr> {
    address.parse().ok()
}

/// The columns of `sessions`.
const HEADER: &str = concat!(
    "ID          PROTO  CLIENT                 DESTINATION            OUTBOUND      RULE  AGE            ",
    "UP        DOWN      STATE\n"
);

/// The same with rates.
const HEADER_RATES: &str = concat!(
    "ID          PROTO  CLIENT                 DESTINATION            OUTBOUND      RULE  AGE            ",
    "UP        DOWN      UP/s         DOWN/s       STATE\n"
);

fn line(row: &Row) -> String {
    let session = &row.tree;
    let rates = match row.rates {
        Some((up, down)) => format!("{:<11}  {:<11}  ", bits(up), bits(down)),
        None => String::new(),
    };
    format!(
        "{:<10}  {:<5}  {:<21}  {:<21}  {:<12}  {:<4}  {:<13}  {:<8}  {:<8}  {rates}{}{}\n",
        session.number("id"),
        session.text("proto"),
        session.text("client"),
        session.text("orig_dst"),
        session.text("outbound"),
        rule(session),
        seconds(session.number("age_s")),
        bytes(session.number("bytes_up")),
        bytes(session.number("bytes_down")),
        session.text("state"),
        name(session),
    )
}

/// Number of the rule that decided, or a dash.
pub(super) fn rule(session: &Tree) -> &str {
    match session.get("rule") {
        Tree::Number(number) => number,
        _ => "-",
    }
}

/// The name that the client asked for, where it is known.
fn name(session: &Tree) -> String {
    match session.get("domain") {
        Tree::Text(name) => format!("  {name}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64, up: u64, down: u64, dst: &str) -> Row {
        let text = format!(
            "{{\"id\":{id},\"proto\":\"tcp\",\"client\":\"192.168.1.2:{}\",\"orig_dst\":\"{dst}\",\"domain\":null,\
             \"rule\":3,\"outbound\":\"hk\",\"age_s\":{id},\"bytes_up\":{up},\"bytes_down\":{down},\"state\":\"relaying\"}},\n",
            40_000 + id
        );
        Row::read(&text).unwrap_or_else(|_| panic!("{text}"))
    }

    fn ids(rows: &[Row]) -> Vec<u64> {
        rows.iter().map(|row| row.tree.number("id")).collect()
    }

    fn three() -> Vec<Row> {
        vec![row(1, 10, 500, "10.0.0.9:1"), row(2, 30, 100, "9.0.0.1:443"), row(3, 20, 900, "10.0.0.10:1")]
    }

    #[test]
    fn rows_are_sorted_by_amounts_downwards_and_by_addresses_upwards() {
        let mut rows = three();
        for (by, expected) in [
            (Sort::Up, [2, 3, 1]),
            (Sort::Down, [3, 1, 2]),
            (Sort::Bytes, [3, 1, 2]),
            (Sort::Age, [3, 2, 1]),
            (Sort::Dst, [2, 1, 3]),
            (Sort::Client, [1, 2, 3]),
        ] {
            order(&mut rows, by);
            assert_eq!(ids(&rows), expected, "{by:?}");
        }
    }

    #[test]
    fn rates_are_what_was_moved_since_in_bits_per_second() {
        let before = Moved { at: SystemTime::now() - Duration::from_secs(2), ..Moved::of(&three()) };
        let mut rows = three();
        rows[0] = row(1, 10 + 2000, 500, "10.0.0.9:1");
        before.rate(&mut rows);
        let (up, down) = rows[0].rates.unwrap();
        assert!((7000..=8000).contains(&up) && down == 0, "{up} {down}");
        assert_eq!(rows[1].rates, Some((0, 0)));
        let object = rows[1].object();
        assert!(object.ends_with("\"state\":\"relaying\",\"rate_up\":0,\"rate_down\":0}"), "{object}");
    }

    #[cfg(feature = "watch")]
    #[test]
    fn a_frame_has_as_many_lines_and_columns_as_the_terminal() {
        let status = Tree::parse(r#"{"version":"1","uptime_s":5,"tcp":{"active":3,"limit":9}}"#).unwrap();
        let mut rows = three();
        Moved::of(&[]).rate(&mut rows);
        for (columns, lines) in [(80, 24), (40, 6), (1, 1)] {
            let frame = watch::frame(&status, &rows, Sort::Rate, (columns, lines));
            let text = frame.replace("\x1b[7m", "").replace("\x1b[0m", "").replace("\x1b[H", "").replace("\x1b[J", "");
            let drawn: Vec<_> = text.split("\x1b[K\r\n").collect();
            assert!(drawn.iter().all(|line| line.chars().count() <= usize::from(columns)), "{drawn:?}");
            assert_eq!(drawn.len() - 1, 4 + usize::from(lines).saturating_sub(5).min(3));
        }
        let frame = watch::frame(&status, &rows, Sort::Rate, (200, 24));
        assert!(frame.contains("3 of 9") && frame.contains("9.0.0.1:443"), "{frame}");
    }
}
