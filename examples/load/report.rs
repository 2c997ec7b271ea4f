//! What `ci/bench` makes of its figures: tables, a chart, and the gate against a file of limits.

use std::collections::BTreeMap;
use std::path::Path;

/// One line of figures: numbers by their names.
type Figures = BTreeMap<String, u64>;

/// What was measured, by peer and work, round after round.
#[derive(Default)]
pub(crate) struct Results {
    rows: BTreeMap<(String, String), Vec<(u64, Figures)>>,
    memory: BTreeMap<(String, String), Vec<Figures>>,
}

/// A kind of work: its name in the files, how people call it, and what one figure stands for.
struct Work {
    name: &'static str,
    title: &'static str,
    per: &'static str,
}

const fn work(name: &'static str, title: &'static str, per: &'static str) -> Work {
    Work { name, title, per }
}

const WORKS: &[Work] = &[
    work("up", "TCP up", "MiB"),
    work("down", "TCP down", "MiB"),
    work("up8", "8 TCP up", "MiB"),
    work("down8", "8 TCP down", "MiB"),
    work("up1g", "1 Gbit/s up", "MiB"),
    work("down1g", "1 Gbit/s down", "MiB"),
    work("short", "connection", "connection"),
    work("short8", "connection, 8 at a time", "connection"),
    work("udp64", "UDP 64 B", "round trip"),
    work("udp1200", "UDP 1200 B", "round trip"),
    work("udp64x200", "64 B, 200 ports", "round trip"),
    work("udp1200x200", "1200 B, 200 ports", "round trip"),
    work("udp64x1000", "64 B, 1000 ports", "round trip"),
    work("udp1200x1000", "1200 B, 1000 ports", "round trip"),
    work("newflow", "new UDP flow", "flow"),
];

/// Peers in the order of the tables, and what is subtracted from each.
const PEERS: &[(&str, &str, Option<&str>)] = &[
    ("forward", "plain forwarding", None),
    ("socks5", "client speaks SOCKS5, forwarding", None),
    ("tproxyd_kernel", "tproxyd, direct by the kernel", Some("forward")),
    ("tproxyd", "tproxyd, direct", Some("forward")),
    ("tproxyd_socks5", "tproxyd, SOCKS5", Some("socks5")),
    ("tproxyd_ss", "tproxyd, Shadowsocks (ChaCha20)", Some("forward")),
    ("tproxyd_ss_aes", "tproxyd, Shadowsocks (AES)", Some("forward")),
    ("haproxy", "HAProxy, splicing", Some("forward")),
    ("redsocks", "redsocks, SOCKS5", Some("socks5")),
    ("ss_redir", "ss-redir, Shadowsocks (ChaCha20)", Some("forward")),
    ("floor", "a relay and nothing else", Some("forward")),
];

impl Results {
    /// Reads a file, or all files of a folder.
    pub(crate) fn read(path: &Path) -> Result<Results, String> {
        let fail = |e: std::io::Error| format!("cannot read {}: {e}", path.display());
        let mut files = vec![path.to_path_buf()];
        if path.is_dir() {
            files = std::fs::read_dir(path).map_err(fail)?.flatten().map(|entry| entry.path()).collect();
            files.sort();
        }
        let mut results = Results::default();
        for file in files {
            let octets = std::fs::read(file).map_err(fail)?;
            String::from_utf8_lossy(&octets).lines().for_each(|line| results.take(line));
        }
        Ok(results)
    }

    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind @ ("R" | "M"), round, peer, what, rest @ ..] = words.as_slice() else { return };
        let figures: Figures =
            rest.chunks(2).filter_map(|pair| Some(((*pair.first()?).to_owned(), pair.get(1)?.parse().ok()?))).collect();
        let key = ((*peer).to_owned(), (*what).to_owned());
        if *kind == "R" {
            self.rows.entry(key).or_default().push((round.parse().unwrap_or(0), figures));
        } else {
            self.memory.entry(key).or_default().push(figures);
        }
    }

    fn values(&self, peer: &str, work: &str, value: impl Fn(&Figures) -> Option<f64>) -> Vec<f64> {
        let rows = self.rows.get(&(peer.to_owned(), work.to_owned()));
        rows.into_iter().flatten().filter_map(|(_, figures)| value(figures)).collect()
    }

    /// Thousands of instructions per unit, kernel and all programs; of repetitions the mean.
    fn instructions(&self, peer: &str, work: &str) -> Option<f64> {
        let values = self.values(peer, work, |figures| Some(per_unit(figures, "busy_ns")? / 1000.0));
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// What the peer adds to its baseline.
    fn added(&self, peer: &str, work: &str) -> Option<f64> {
        let (_, _, base) = PEERS.iter().find(|(name, ..)| *name == peer)?;
        Some(self.instructions(peer, work)? - self.instructions((*base)?, work)?)
    }

    fn works(&self) -> Vec<&'static Work> {
        WORKS.iter().filter(|work| self.rows.keys().any(|(_, name)| name == work.name)).collect()
    }

    fn table(&self, title: &str, cell: impl Fn(&str, &Work) -> Option<String>) -> String {
        let works = self.works();
        let mut text = format!("\n**{title}**\n\n|");
        text += &works.iter().map(|work| format!(" | {}", work.title)).collect::<String>();
        text += &format!(" |\n|---|{}\n", "--:|".repeat(works.len()));
        for (peer, name, _) in PEERS {
            let cells: Vec<_> = works.iter().map(|work| cell(peer, work)).collect();
            if cells.iter().any(Option::is_some) {
                let cells: Vec<_> = cells.into_iter().map(Option::unwrap_or_default).collect();
                text += &format!("| {name} | {} |\n", cells.join(" | "));
            }
        }
        text
    }

    /// Of `load ciphers`, if it was asked for.
    fn ciphers(&self) -> String {
        let methods = self.rows.keys().filter(|(peer, _)| peer == "ciphers");
        let rows = methods.filter_map(|(peer, method)| {
            let per_octet = self.values(peer, method, |figures| per_unit(figures, "busy_ns"));
            Some(format!("| `{method}` | {} |\n", figures(median(&per_octet)?)))
        });
        let rows: String = rows.collect();
        if rows.is_empty() {
            return rows;
        }
        format!("\n**Shadowsocks: instructions for an octet that is sealed**\n\n| | |\n|---|--:|\n{rows}")
    }

    fn memory_table(&self) -> String {
        let mut text =
            String::from("\n**Memory of the proxy's processes, KB: proportional (PSS) / private and written**\n\n");
        text += "| | idle | after TCP | after UDP |\n|---|--:|--:|--:|\n";
        for (peer, name, _) in PEERS {
            let at = |when: &str| {
                let rows = self.memory.get(&((*peer).to_owned(), when.to_owned()))?;
                let middle =
                    |name| median(&rows.iter().filter_map(|f| f.get(name).map(|n| *n as f64)).collect::<Vec<_>>());
                Some(format!("{:.0} / {:.0}", middle("pss")?, middle("private_dirty")?))
            };
            if let Some(idle) = at("idle") {
                text += &format!(
                    "| {name} | {idle} | {} | {} |\n",
                    at("short").unwrap_or_default(),
                    at("udp").unwrap_or_default()
                );
            }
        }
        text
    }
}

fn per_unit(figures: &Figures, name: &str) -> Option<f64> {
    let units = (*figures.get("units")?).max(1);
    Some(*figures.get(name)? as f64 / units as f64)
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// `12.3`, `123`: three figures.
fn figures(value: f64) -> String {
    if value.abs() < 9.995 {
        format!("{value:.2}")
    } else if value.abs() < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// The median, and the smallest and largest.
fn spread(values: &[f64]) -> Option<String> {
    let middle = median(values)?;
    let least = values.iter().copied().fold(f64::MAX, f64::min);
    let most = values.iter().copied().fold(f64::MIN, f64::max);
    Some(if values.len() < 2 {
        figures(middle)
    } else {
        format!("{} ({}–{})", figures(middle), figures(least), figures(most))
    })
}

/// Instructions of an emulated machine: as Markdown; the chart goes to `svg`.
pub(crate) fn emulated(folder: &Path, svg: &Path) -> Result<String, String> {
    let results = Results::read(folder)?;
    let mut text = results.table(
        "Added to forwarding by the proxy: thousand instructions of the whole machine per unit",
        |peer, work| results.added(peer, work.name).map(figures),
    );
    text += &results
        .table("The whole machine (client, server, kernel, proxy): thousand instructions per unit", |peer, work| {
            results.instructions(peer, work.name).map(figures)
        });
    text += &results.ciphers();
    text += &results.memory_table();
    let bars = |work: &Work| {
        let bars = PEERS.iter().filter_map(|(peer, name, _)| Some((*name, results.added(peer, work.name)?)));
        bars.filter(|(name, _)| !name.contains("encrypts")).collect()
    };
    let title = "Added to plain forwarding, thousand instructions of an emulated Netgear R7000 (less is better)";
    chart(svg, title, &results.works(), bars)?;
    Ok(text)
}

/// This machine: as Markdown; the chart goes to `svg`.
pub(crate) fn here(file: &Path, svg: &Path) -> Result<String, String> {
    let results = Results::read(file)?;
    let cpu = |peer: &str, work: &Work| {
        results.values(peer, work.name, |figures| {
            let ns = per_unit(figures, "charged_ns")?;
            // per GB of bulk in ms, else in µs
            (ns > 0.0).then(|| if work.per == "MiB" { ns / 1_048_576.0 * 1000.0 } else { ns / 1000.0 })
        })
    };
    let mut text = results.table(
        "Processor time of the proxy: ms per GB, µs per connection and per round trip; median (least–most)",
        |peer, work| spread(&cpu(peer, work)),
    );
    text += &results.table(
        "Speed as a ratio to plain forwarding in the same round; median (least–most)",
        |peer, work| {
            let speed = |peer: &str| -> BTreeMap<u64, f64> {
                let rows = results.rows.get(&(peer.to_owned(), work.name.to_owned()));
                let speeds = rows
                    .into_iter()
                    .flatten()
                    .filter_map(|(round, figures)| Some((*round, 1.0 / per_unit(figures, "wall_us")?)));
                speeds.collect()
            };
            let (own, base) = (speed(peer), speed("forward"));
            let ratios: Vec<f64> = own.iter().filter_map(|(round, speed)| Some(speed / base.get(round)?)).collect();
            if peer == "forward" { None } else { spread(&ratios) }
        },
    );
    text += &results.table("Failed or lost, all rounds", |peer, work| {
        let failed = results.values(peer, work.name, |figures| Some(*figures.get("failed")? as f64));
        (!failed.is_empty()).then(|| format!("{:.0}", failed.iter().sum::<f64>()))
    });
    text += &results.memory_table();
    let bars = |work: &Work| {
        let bars = PEERS.iter().filter_map(|(peer, name, _)| Some((*name, median(&cpu(peer, work))?)));
        bars.filter(|(name, _)| !name.contains("encrypts")).collect()
    };
    let title = "Processor time of the proxy: ms per GB, µs per connection and per round trip (less is better)";
    chart(svg, title, &results.works(), bars)?;
    Ok(text)
}

/// Panels of horizontal bars, one for each work.
fn chart(
    to: &Path,
    title: &str,
    works: &[&Work],
    bars: impl Fn(&Work) -> Vec<(&'static str, f64)>,
) -> Result<(), String> {
    const ROW: usize = 20;
    const NAME: usize = 190;
    const LONGEST: f64 = 170.0;
    const PANEL: usize = 440;
    let panels: Vec<_> = works.iter().map(|work| (work, bars(work))).filter(|(_, bars)| bars.len() > 1).collect();
    let mut body = String::new();
    let mut y = 50;
    for pair in panels.chunks(2) {
        let mut tallest = 0;
        for (column, (work, bars)) in pair.iter().enumerate() {
            let x = column * PANEL + 20;
            let most = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
            body += &format!("<text x='{x}' y='{y}' class='h'>{}, per {}</text>\n", work.title, work.per);
            for (n, (name, value)) in bars.iter().enumerate() {
                let top = y + 10 + n * ROW;
                let length = (value / most * LONGEST).max(1.0);
                let class = if name.starts_with("tproxyd") { "o" } else { "r" };
                body += &format!(
                    "<text x='{}' y='{}' text-anchor='end'>{name}</text><rect x='{}' y='{top}' width='{length:.0}' height='14' class='{class}'/><text x='{:.0}' y='{}'>{}</text>\n",
                    x + NAME - 6,
                    top + 12,
                    x + NAME,
                    (x + NAME) as f64 + length + 4.0,
                    top + 12,
                    figures(*value),
                );
            }
            tallest = tallest.max(bars.len());
        }
        y += tallest * ROW + 40;
    }
    let width = 2 * PANEL + 40;
    let style = "text{font:12px sans-serif;fill:#333}.h{font-weight:bold}.o{fill:#c4420e}.r{fill:#9aa5b1}";
    let svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{y}' viewBox='0 0 {width} {y}'>\n<style>{style}</style>\n<rect width='100%' height='100%' fill='#fff'/>\n<text x='20' y='24' class='h'>{title}</text>\n{body}</svg>\n"
    );
    std::fs::write(to, svg).map_err(|e| format!("cannot write {}: {e}", to.display()))
}

/// Holds what our peers add against a file of limits: lines of peer, work, most thousands of instructions.
pub(crate) fn check(limits: &Path, folder: &Path) -> Result<String, String> {
    let results = Results::read(folder)?;
    let text = std::fs::read_to_string(limits).map_err(|e| format!("cannot read {}: {e}", limits.display()))?;
    let mut shown = format!("{:<16} {:<14} {:>9} {:>9}\n", "peer", "work", "added", "limit");
    let mut over = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty())
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (peer, work, limit) = match words.as_slice() {
            [peer, work, limit] => (*peer, *work, limit.parse::<f64>().ok()),
            _ => ("", "", None),
        };
        let limit = limit.ok_or_else(|| format!("{}:{}: not 'PEER WORK NUMBER'", limits.display(), number + 1))?;
        let added = results.added(peer, work).ok_or_else(|| format!("{peer} {work} was not measured"))?;
        shown += &format!("{peer:<16} {work:<14} {added:>9.1} {limit:>9.1}\n");
        if added > limit {
            over.push(format!("{peer} {work}"));
        }
    }
    let failed: f64 =
        results.rows.values().flatten().filter_map(|(_, figures)| Some(*figures.get("failed")? as f64)).sum();
    if failed > 0.0 {
        over.push(format!("{failed} connections or datagrams were lost"));
    }
    if over.is_empty() {
        Ok(shown + "thousand instructions of the whole machine per unit, minus the baseline's: all within their limits")
    } else {
        Err(format!(
            "\n{shown}a limit is passed: {}; make it cheaper, or say in {} why not",
            over.join(", "),
            limits.display()
        ))
    }
}
