//! The control socket: one line of JSON in, one document out, then the connection ends.
//!
//! It must not hold up the loop or grow: [`CLIENTS_MAX`] connections at once, the others wait in the kernel; a fixed buffer
//! for each; every read and write non-blocking, and no more of them in one turn than a session may have; deadlines for
//! whoever stalls. What is asked about is behind [`Subject`]. No clock: the loop says what time it is.

mod answer;
mod clients;
mod explain;
mod metrics;
mod outlet;
mod request;
mod scrape;
mod seat;
mod sessions;
mod socket;
mod status;
mod subject;

pub use request::{REQUEST_MAX, Request, Selection, VERSION};
pub use scrape::{SCRAPES_MAX, Scrapes};
pub use subject::*;

use crate::error::Error;
use crate::proto::json::Writer;
use crate::store::timers::Tick;
use crate::sys;
use answer::Answer;
use seat::{FOLLOWERS_MAX, Seat};
use socket::Socket;
use std::fmt::{self, Display};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// Most clients at once.
pub const CLIENTS_MAX: usize = 4;

/// Bytes that all clients together take.
pub const MEMORY_MAX: usize = CLIENTS_MAX * size_of::<Seat>() + scrape::MEMORY_MAX;

/// How long nothing is accepted when descriptors or kernel memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What came of a reload.
#[derive(Debug)]
pub struct Outcome {
    /// Which reload it was.
    pub ticket: u32,
    /// What changed, or everything that is wrong, one a line.
    pub result: Result<Taken, String>,
}

/// A configuration that was put in force.
#[derive(Debug, Default)]
pub struct Taken {
    /// What is different now, in a person's words.
    pub changed: Vec<String>,
    /// What is odd in it.
    pub warnings: Vec<String>,
}

/// The socket and those who have connected.
pub struct Control {
    socket: Socket,
    seats: Vec<Seat>,
    /// The edge said that connections wait, and no accept since has found none.
    waiting: bool,
    accept_again: Option<Tick>,
    /// The moment of the last call.
    now: Tick,
}

impl Control {
    /// Listens at `path`, in a directory that is made if it is missing. Both belong to `owner` (uid, gid) then. A socket on
    /// which nobody listens is replaced. The file goes when this goes.
    ///
    /// # Errors
    /// What could not be made; another process answers there.
    pub fn open(path: &Path, owner: Option<(u32, u32)>) -> Result<Control, Error> {
        let mut seats = Vec::with_capacity(CLIENTS_MAX);
        seats.resize_with(CLIENTS_MAX, Seat::new);
        Ok(Control { socket: Socket::open(path, owner)?, seats, waiting: false, accept_again: None, now: Tick(0) })
    }

    /// The listening socket, to be watched for reading.
    pub fn fd(&self) -> RawFd {
        self.socket.listener.as_raw_fd()
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Listens at `path` from now on, if it does not already; true if [`Self::fd`] is another one now. Clients stay.
    ///
    /// # Errors
    /// As [`Self::open`]; it goes on at the old place then.
    pub fn move_to(&mut self, path: &Path, owner: Option<(u32, u32)>) -> Result<bool, Error> {
        if self.socket.path() == path {
            return Ok(false);
        }
        self.socket = Socket::open(path, owner)?;
        Ok(true)
    }

    /// Connections wait at the listening socket.
    pub fn note_connections(&mut self) {
        self.waiting = true;
    }

    /// The connection of client `n` has become ready.
    pub fn ready(&mut self, n: usize, subject: &mut dyn Subject, now: Tick) {
        self.now = now;
        let may_follow = self.may_follow();
        if let Some(seat) = self.seats.get_mut(n) {
            seat.serve(may_follow, subject, now);
        }
    }

    /// When [`Self::run`] has something to do again; `None`: at the next event.
    pub fn deadline(&self) -> Option<Tick> {
        if !self.waiting && self.seats.iter().all(Seat::is_free) {
            return None;
        }
        let free = self.seats.iter().any(Seat::is_free);
        let accept = (self.waiting && free).then(|| self.accept_again.unwrap_or(self.now));
        let clients = self.seats.iter().filter_map(|seat| seat.deadline(self.now));
        clients.chain(accept).reduce(Tick::earlier)
    }

    /// Takes new connections, goes on with answers that are longer than a turn, and ends what has passed its deadline. To
    /// be called once a turn.
    pub fn run(&mut self, subject: &mut dyn Subject, now: Tick) {
        self.now = now;
        for n in 0..self.seats.len() {
            let may_follow = self.may_follow();
            if let Some(seat) = self.seats.get_mut(n) {
                seat.run(may_follow, subject, now);
            }
        }
        self.accept(subject);
    }

    /// Something has happened: those who follow are told. To be called whenever there are new events.
    pub fn tell(&mut self, subject: &mut dyn Subject, now: Tick) {
        self.now = now;
        for seat in self.seats.iter_mut().filter(|seat| seat.follows()) {
            seat.tell(subject, now);
        }
    }

    fn may_follow(&self) -> bool {
        self.seats.iter().filter(|seat| seat.follows()).count() < FOLLOWERS_MAX
    }

    /// True if a client wants a reload that has not begun: begin one, and say its number to [`Self::reload_begun`].
    pub fn wants_reload(&self) -> bool {
        self.seats.iter().any(Seat::wants_reload)
    }

    /// The reload that clients have asked for is number `ticket`.
    pub fn reload_begun(&mut self, ticket: u32) {
        for seat in &mut self.seats {
            seat.reload_begun(ticket);
        }
    }

    /// A reload has come to its end: who asked for it is told.
    pub fn reloaded(&mut self, outcome: &Outcome, subject: &mut dyn Subject) {
        for seat in self.seats.iter_mut().filter(|seat| seat.awaits_reload(outcome.ticket)) {
            seat.answer(report(outcome), self.now);
            seat.serve(false, subject, self.now);
        }
    }

    fn accept(&mut self, subject: &dyn Subject) {
        if self.accept_again.is_some_and(|again| !self.now.reached(again)) {
            return;
        }
        self.accept_again = None;
        while self.waiting {
            let Some(n) = self.seats.iter().position(Seat::is_free) else { return };
            match self.socket.listener.accept() {
                Ok((stream, _)) => {
                    let watched = stream
                        .set_nonblocking(true)
                        .map_err(|e| Error::new("set a control connection non-blocking", &e))
                        .and_then(|()| subject.watch_client(stream.as_raw_fd(), n));
                    match watched.map(|()| self.seats.get_mut(n)) {
                        Ok(Some(seat)) => seat.take(stream, self.now),
                        Ok(None) => {}
                        Err(e) => log::debug!("{e}"),
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.waiting = false,
                Err(e) if e.kind() == ErrorKind::Interrupted || sys::accept_may_go_on(&e) => {}
                Err(e) => {
                    log::debug!("accept at the control socket: {e}");
                    self.accept_again = Some(self.now.after(ACCEPT_PAUSE));
                    return;
                }
            }
        }
    }
}

fn report(outcome: &Outcome) -> Answer {
    Answer::object(|json| match &outcome.result {
        Ok(taken) => {
            list(json, "changed", taken.changed.iter())?;
            list(json, "warnings", taken.warnings.iter())
        }
        Err(why) => {
            json.text_member("error", "configuration not taken, the running one goes on")?;
            list(json, "errors", why.lines())
        }
    })
}

fn list(json: &mut Writer<'_>, name: &str, mut items: impl Iterator<Item = impl Display>) -> fmt::Result {
    json.key(name)?;
    json.begin_array()?;
    items.try_for_each(|item| json.text(item))?;
    json.end_array()
}

#[cfg(test)]
mod tests;
