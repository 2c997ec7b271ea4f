//! One client of the control socket: its request as it comes, its answer as the connection takes it.

use super::answer::{Answer, Fill, Output};
use super::explain;
use super::outlet::{ANSWER_MAX, Outlet, Pace, Refill, STALL};
use super::request::{REQUEST_MAX, Request};
use super::subject::{Kick, Subject};
use crate::proto::json::Writer;
use crate::stats::events::{Event, Events, unix_time};
use crate::store::timers::Tick;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long a client waits for the reload that it asked for. The helper gives up before that.
pub(super) const RELOAD_MAX: Duration = Duration::from_secs(150);

/// Most clients that follow the events at once: the other places are for those who ask.
pub(super) const FOLLOWERS_MAX: usize = 2;

/// A place for one client.
pub(super) struct Seat {
    client: Option<Client>,
    input: heapless::Vec<u8, REQUEST_MAX>,
    outlet: Outlet,
}

struct Client {
    stream: UnixStream,
    stage: Stage,
    pace: Pace,
}

enum Stage {
    /// Its line is not complete.
    Asking,
    /// It has asked for a reload that has not begun.
    WantsReload,
    /// It waits for the outcome of this one.
    AwaitsReload(u32),
    /// It is told of events, of this one next; `None`: not even that it will be. It keeps its place as long as it likes, if it takes what it is sent.
    Following(Option<u64>),
    Answering(Answer),
    /// All of the answer is written into the buffer.
    Ending,
}

impl Seat {
    pub(super) fn new() -> Seat {
        Seat { client: None, input: heapless::Vec::new(), outlet: Outlet::new() }
    }

    pub(super) fn is_free(&self) -> bool {
        self.client.is_none()
    }

    /// When [`Self::run`] has something to do.
    pub(super) fn deadline(&self, now: Tick) -> Option<Tick> {
        let client = self.client.as_ref()?;
        match client.stage {
            _ if client.pace.queued => Some(now),
            Stage::Following(_) if self.outlet.is_empty() => None,
            _ => Some(client.pace.deadline),
        }
    }

    /// True if it follows the events.
    pub(super) fn follows(&self) -> bool {
        self.client.as_ref().is_some_and(|client| matches!(client.stage, Stage::Following(_)))
    }

    /// Sends what has happened.
    pub(super) fn tell(&mut self, subject: &mut dyn Subject, now: Tick) {
        self.now_idle(now);
        if self.follows() && self.write(subject, now) {
            self.client = None;
        }
    }

    /// One that had nothing to take has its whole time for what comes now.
    fn now_idle(&mut self, now: Tick) {
        if self.outlet.is_empty()
            && let Some(client) = &mut self.client
        {
            client.pace.latest = now.after(ANSWER_MAX);
            client.pace.deadline = now.after(STALL);
        }
    }

    pub(super) fn wants_reload(&self) -> bool {
        self.client.as_ref().is_some_and(|client| matches!(client.stage, Stage::WantsReload))
    }

    pub(super) fn reload_begun(&mut self, ticket: u32) {
        if let Some(client) = self.client.as_mut().filter(|client| matches!(client.stage, Stage::WantsReload)) {
            client.stage = Stage::AwaitsReload(ticket);
        }
    }

    pub(super) fn awaits_reload(&self, ticket: u32) -> bool {
        let awaits = |client: &Client| matches!(client.stage, Stage::AwaitsReload(awaited) if awaited == ticket);
        self.client.as_ref().is_some_and(awaits)
    }

    pub(super) fn answer(&mut self, answer: Answer, now: Tick) {
        if let Some(client) = &mut self.client {
            client.answer(answer, now);
        }
    }

    pub(super) fn take(&mut self, stream: UnixStream, now: Tick) {
        self.input.clear();
        self.outlet.clear();
        let mut pace = Pace::new(now);
        pace.latest = pace.deadline;
        // its first event is on its way: whoever registers is told what is ready already
        self.client = Some(Client { stream, stage: Stage::Asking, pace });
    }

    /// Goes on with an answer that is longer than a turn, or ends who has passed the deadline.
    pub(super) fn run(&mut self, may_follow: bool, subject: &mut dyn Subject, now: Tick) {
        let Some(client) = &mut self.client else { return };
        let idle = matches!(client.stage, Stage::Following(_)) && self.outlet.is_empty();
        if now.reached(client.pace.deadline) && !idle {
            self.expire();
        } else if std::mem::take(&mut client.pace.queued) {
            self.serve(may_follow, subject, now);
        }
    }

    /// Goes as far as the connection allows, and not beyond a turn's share.
    pub(super) fn serve(&mut self, may_follow: bool, subject: &mut dyn Subject, now: Tick) {
        let Some(client) = &mut self.client else { return };
        if matches!(client.stage, Stage::Following(_)) {
            // it has nothing more to say: what can be read is its end
            match client.stream.read(&mut [0]) {
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::Interrupted => {}
                _ => return self.client = None,
            }
        }
        if matches!(client.stage, Stage::Asking) {
            match read_line(&mut client.stream, &mut self.input) {
                Line::Incomplete => return,
                Line::Gone => return self.client = None,
                Line::TooLong => {
                    let why = format!("the request is longer than {REQUEST_MAX} bytes");
                    client.answer(Answer::error(&why), now);
                }
                Line::Complete => match Request::parse(self.input.trim_ascii()) {
                    Ok(Request::Events) if !may_follow => {
                        let why = format!("{FOLLOWERS_MAX} clients follow the events already");
                        client.answer(Answer::error(&why), now);
                    }
                    Ok(request) => client.take(request, subject, now),
                    Err(why) => client.answer(Answer::error(&why), now),
                },
            }
        }
        if self.write(subject, now) {
            self.client = None;
        }
    }

    /// Sends what the socket takes; true if there is no more to send, or nobody to send it to.
    fn write(&mut self, subject: &dyn Subject, now: Tick) -> bool {
        let Some(Client { stream, stage, pace }) = &mut self.client else { return false };
        self.outlet.send(stream, pace, now, &mut |out| match stage {
            Stage::Answering(answer) => {
                if answer.fill(subject, out) == Fill::Done {
                    *stage = Stage::Ending;
                }
                Refill::More
            }
            Stage::Ending => Refill::End,
            Stage::Following(Some(next)) => {
                *next = follow(*next, &subject.stats().events, out);
                if out.is_empty() { Refill::Nothing } else { Refill::More }
            }
            Stage::Following(first) => {
                *first = Some(subject.stats().events.next());
                // it is empty, and has room for so little
                let _ = out.push_str("{\"v\":1}\n");
                Refill::More
            }
            Stage::Asking | Stage::WantsReload | Stage::AwaitsReload(_) => Refill::Nothing,
        })
    }

    /// Its time is over.
    fn expire(&mut self) {
        let Some(client) = &mut self.client else { return };
        let why: &[u8] = match client.stage {
            Stage::Asking => b"{\"v\":1,\"error\":\"no request came within 5 s\"}\n",
            Stage::WantsReload | Stage::AwaitsReload(_) => {
                b"{\"v\":1,\"error\":\"the reload takes very long; the log will say what came of it\"}\n"
            }
            Stage::Answering(_) | Stage::Ending | Stage::Following(_) => b"",
        };
        // nothing was sent to it before, so it has room; whether it still listens is its own affair
        let _ = client.stream.write(why);
        self.client = None;
    }
}

impl Client {
    fn take(&mut self, request: Request, subject: &mut dyn Subject, now: Tick) {
        let answer = match request {
            Request::Ping => Answer::object(|json| json.text_member("version", env!("CARGO_PKG_VERSION"))),
            Request::Status => Answer::status(subject),
            Request::Sessions(selection) => match &selection.outbound {
                Some(name) if !subject.has_outbound(name) => Answer::error(&format!("there is no outbound '{name}'")),
                _ => Answer::sessions(selection),
            },
            Request::Metrics => Answer::metrics(subject),
            Request::Clients => Answer::clients(subject),
            Request::Explain(asked) => explain::answer(&subject.explain(&asked)),
            Request::Kick(which) => kick(which, subject),
            Request::Events => {
                self.stage = Stage::Following(None);
                self.pace.progress(now);
                return;
            }
            Request::Reload => {
                self.stage = Stage::WantsReload;
                self.pace.deadline = now.after(RELOAD_MAX);
                self.pace.latest = self.pace.deadline;
                return;
            }
        };
        self.answer(answer, now);
    }

    fn answer(&mut self, answer: Answer, now: Tick) {
        self.stage = Stage::Answering(answer);
        self.pace.latest = now.after(ANSWER_MAX);
        self.pace.progress(now);
    }
}

/// Writes events from number `next` on, as many as fit; returns the number of the next.
fn follow(next: u64, events: &Events, out: &mut Output) -> u64 {
    if next < events.oldest() {
        let missed = format_args!("{} events", events.oldest() - next);
        // one line fits into an empty buffer
        let _ = event_line(out, unix_time(), "missed", "", &missed);
        return events.oldest();
    }
    let mut next = next;
    while let Some(Event { at, kind, name, detail }) = events.get(next) {
        let written = out.len();
        if event_line(out, *at, kind.name(), name.as_str(), detail).is_err() {
            out.truncate(written);
            break;
        }
        next += 1;
    }
    next
}

fn event_line(out: &mut Output, time: u64, kind: &str, name: &str, detail: &dyn fmt::Display) -> fmt::Result {
    let mut json = Writer::new(out);
    json.begin_object()?;
    json.number_member("time", time)?;
    json.text_member("event", kind)?;
    json.text_member("name", name)?;
    json.text_member("detail", detail)?;
    json.end_object()?;
    fmt::Write::write_char(out, '\n')
}

fn kick(which: Kick, subject: &mut dyn Subject) -> Answer {
    match (subject.kick(which), which) {
        (0, Kick::Id(id)) => Answer::error(&format!("there is no session {id}")),
        (0, Kick::Client(client)) => Answer::error(&format!("there is no session of {client}")),
        (ended, _) => Answer::object(|json| json.number_member("ended", ended as u64)),
    }
}

enum Line {
    /// It has not come whole.
    Incomplete,
    Complete,
    TooLong,
    /// The client has gone without asking.
    Gone,
}

/// Reads up to the first line break, or the client's end of sending.
fn read_line(stream: &mut UnixStream, input: &mut heapless::Vec<u8, REQUEST_MAX>) -> Line {
    loop {
        // room for a whole request and its line break
        let mut buffer = [0; REQUEST_MAX + 1];
        let room = input.capacity() - input.len() + 1;
        match stream.read(buffer.get_mut(..room).unwrap_or_default()) {
            Ok(0) if input.is_empty() => return Line::Gone,
            Ok(0) => return Line::Complete,
            Ok(n) => {
                let came = buffer.get(..n).unwrap_or_default();
                let end = came.iter().position(|c| *c == b'\n');
                let line = came.get(..end.unwrap_or(n)).unwrap_or_default();
                match (input.extend_from_slice(line), end) {
                    (Err(_), _) => return Line::TooLong,
                    (Ok(()), Some(_)) => return Line::Complete,
                    (Ok(()), None) => {}
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Line::Incomplete,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Line::Gone,
        }
    }
}
