//! What waits to be sent to one client, and how much time the client has: bounded memory, a share of each turn, deadlines.

use super::answer::Output;
use crate::store::timers::Tick;
use std::io::{ErrorKind, Write};
use std::time::Duration;

/// How long a client may take for its request, and for each part of the answer.
pub(super) const STALL: Duration = Duration::from_secs(5);

/// How long a client may take for its answer in all: one that reads a byte now and then must not keep its place for ever.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Bytes that are written to one client in one turn at most.
const TURN: usize = 64 * 1024;

/// What waits for one client.
pub(super) struct Outlet {
    text: Output,
    /// Bytes of `text` that the client has.
    sent: usize,
}

/// The time of one client.
pub(super) struct Pace {
    pub(super) deadline: Tick,
    /// It ends then in any case.
    pub(super) latest: Tick,
    /// Its share of a turn was used up.
    pub(super) queued: bool,
}

/// What is behind the text that was sent.
pub(super) enum Refill {
    /// There is more text, or it was looked for so long that the next turn goes on.
    More,
    /// There may be more later.
    Nothing,
    /// That was all.
    End,
}

impl Outlet {
    pub(super) fn new() -> Outlet {
        Outlet { text: Output::new(), sent: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.sent = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The text, to begin an answer.
    pub(super) fn text(&mut self) -> &mut Output {
        &mut self.text
    }

    /// Sends what the socket takes, and what `refill` writes after it; true if there is no more to send, or nobody to send
    /// it to.
    pub(super) fn send(
        &mut self,
        stream: &mut dyn Write,
        pace: &mut Pace,
        now: Tick,
        refill: &mut dyn FnMut(&mut Output) -> Refill,
    ) -> bool {
        let mut left = TURN;
        loop {
            if self.sent == self.text.len() {
                self.clear();
                match refill(&mut self.text) {
                    Refill::More => {}
                    Refill::Nothing => return false,
                    Refill::End => return true,
                }
            }
            let rest = self.text.as_bytes().get(self.sent..).unwrap_or_default();
            let part = rest.get(..left).unwrap_or(rest);
            if part.is_empty() {
                // its share is used up; or much was passed over, and nothing found to write yet
                pace.queued = true;
                return false;
            }
            match stream.write(part) {
                Ok(n) => {
                    self.sent += n;
                    left -= n.min(left);
                    pace.progress(now);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }
}

impl Pace {
    /// Of a client that has just come.
    pub(super) fn new(now: Tick) -> Pace {
        Pace { deadline: now.after(STALL), latest: now.after(ANSWER_MAX), queued: false }
    }

    /// It has taken something: its time begins anew.
    pub(super) fn progress(&mut self, now: Tick) {
        let deadline = now.after(STALL);
        self.deadline = if deadline.reached(self.latest) { self.latest } else { deadline };
    }
}
