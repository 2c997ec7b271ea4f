//! `sessions --watch`: a `top` of the sessions, in plain ANSI. A terminal library would cost more than the view.

use super::{Failure, Moved, Row, Sessions, Sort, in_order, order, rule};
use crate::cli::ask::{Answer, PATIENCE, document};
use crate::cli::tree::Tree;
use crate::cli::units::{bits, bytes, seconds};
use crate::control::Request;
use crate::error::Error;
use crate::sys::passing::wait_readable;
use crate::sys::terminal::{self, KeyMode};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the first column of the first line.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K\r\n";
const REST_OF_SCREEN: &str = "\x1b[J";

/// Leaves the other screen however the view ends.
struct Screen;

impl Drop for Screen {
    fn drop(&mut self) {
        // a terminal that has gone needs no mending
        let _ = io::stdout().write_all(LEAVE.as_bytes()).and_then(|()| io::stdout().flush());
    }
}

impl Sessions {
    pub(super) fn watch(&self) -> Result<(), Failure> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let no_terminal = || Failure::Usage("--watch needs a terminal: `sessions --rates` prints a list".into());
        let keys = KeyMode::set(stdin.as_fd()).map_err(|_| no_terminal())?;
        terminal::size(stdout.as_fd()).ok_or_else(no_terminal)?;
        // an error of the first question is shown where the user is
        let mut before = Moved::of(&self.rows(self.selection())?);
        let screen = Screen;
        put(ENTER)?;
        let mut by = self.sort.unwrap_or(Sort::Rate);
        loop {
            let status = document(&Answer::to(&Request::Status, &self.config, PATIENCE)?.line()?)?;
            let mut rows = self.rows(self.selection())?;
            let now = Moved::of(&rows);
            before.rate(&mut rows);
            before = now;
            order(&mut rows, by);
            let size = terminal::size(stdout.as_fd()).unwrap_or((80, 24));
            put(&frame(&status, &rows, by, size))?;
            let ready = wait_readable(stdin.as_fd(), PERIOD);
            if ready.is_ok_and(|ready| ready) {
                let mut key = [0; 16];
                let n = stdin.lock().read(&mut key).unwrap_or(0);
                match key[..n].first() {
                    None | Some(b'q' | 3 | 4) => break,
                    Some(b's') => by = next(by),
                    Some(_) => {}
                }
            }
        }
        drop(screen);
        drop(keys);
        Ok(())
    }
}

fn put(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::Failed(Error::new("write to the terminal", &e).to_string()))
}

fn next(by: Sort) -> Sort {
    let place = Sort::ALL.iter().position(|(sort, _)| *sort == by).unwrap_or(0);
    Sort::ALL[(place + 1) % Sort::ALL.len()].0
}

/// All that is on the screen, of this many columns and lines.
pub(super) fn frame(status: &Tree, rows: &[Row], by: Sort, (columns, lines): (u16, u16)) -> String {
    let (columns, lines) = (usize::from(columns), usize::from(lines));
    let mut out = String::from(HOME);
    let mut line = |text: &str, reversed: bool| {
        let shown: String = text.chars().take(columns).collect();
        let (on, off) = if reversed { ("\x1b[7m", "\x1b[0m") } else { ("", "") };
        let pad = if reversed { columns.saturating_sub(shown.chars().count()) } else { 0 };
        // text in memory takes everything
        let _ = write!(out, "{on}{shown}{:pad$}{off}{REST_OF_LINE}", "");
    };
    let (tcp, udp, memory) = (status.get("tcp"), status.get("udp"), status.get("memory"));
    let rates = rows.iter().filter_map(|row| row.rates);
    let (up, down) = rates.fold((0_u64, 0_u64), |(up, down), rate| (up + rate.0, down + rate.1));
    let counts = |table: &Tree| format!("{} of {}", table.number("active"), table.number("limit"));
    line(
        &format!(
            "tproxyd {}  up {}  tcp {}  udp {}  memory {} of {}",
            status.text("version"),
            seconds(status.number("uptime_s")),
            counts(tcp),
            counts(udp),
            bytes(memory.number("used")),
            bytes(memory.number("bound")),
        ),
        false,
    );
    let sort = Sort::ALL.iter().find(|(sort, _)| *sort == by).map_or("", |(_, name)| name);
    let all = rows.len();
    line(&format!("{all} shown  up {}  down {}  by {sort}  (s: sort, q: quit)", bits(up), bits(down)), false);
    line("", false);
    line(
        &format!(
            "{:>11} {:>11} {:>8} {:>8}  {:<5} {:<21} {:<10} {:>4}  {:<13} DESTINATION",
            "UP/s", "DOWN/s", "UP", "DOWN", "PROTO", "CLIENT", "OUTBOUND", "RULE", "AGE"
        ),
        true,
    );
    // five lines are taken, and the last stays empty, since a break in it would scroll
    for row in rows.iter().take(lines.saturating_sub(5)) {
        let (up, down) = row.rates.unwrap_or_default();
        let session = &row.tree;
        let port = in_order(session.text("orig_dst")).map_or(0, |at| at.port());
        let destination = match session.get("domain") {
            Tree::Text(name) => format!("{name}:{port}"),
            _ => session.text("orig_dst").to_owned(),
        };
        let state = if session.text("state") == "relaying" { "" } else { session.text("state") };
        line(
            &format!(
                "{:>11} {:>11} {:>8} {:>8}  {:<5} {:<21} {:<10} {:>4}  {:<13} {destination} {state}",
                bits(up),
                bits(down),
                bytes(session.number("bytes_up")),
                bytes(session.number("bytes_down")),
                session.text("proto"),
                session.text("client"),
                session.text("outbound"),
                rule(session),
                seconds(session.number("age_s")),
            ),
            false,
        );
    }
    out + REST_OF_SCREEN
}
