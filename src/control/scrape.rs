//! Prometheus' questions: HTTP, `GET /metrics` and nothing else, at the address of `option metrics`.
//!
//! As careful as the control socket: [`SCRAPES_MAX`] at once, a fixed buffer for each, deadlines, a share of each turn.

use super::answer::{Fill, Output};
use super::metrics::Metrics;
use super::outlet::{Outlet, Pace, Refill};
use super::subject::Subject;
use crate::error::Error;
use crate::store::timers::Tick;
use crate::sys;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

/// Most questions at once.
pub const SCRAPES_MAX: usize = 2;

/// Bytes that all of them together take.
pub(super) const MEMORY_MAX: usize = SCRAPES_MAX * size_of::<Seat>();

/// Most bytes of a request's head.
const HEAD_MAX: usize = 2048;

/// The listener, and those who ask.
pub struct Scrapes {
    listener: TcpListener,
    address: SocketAddr,
    /// Number of the first seat for [`Subject::watch_client`].
    first: usize,
    seats: Vec<Seat>,
    waiting: bool,
}

struct Seat {
    client: Option<Client>,
    head: heapless::Vec<u8, HEAD_MAX>,
    outlet: Outlet,
}

struct Client {
    stream: TcpStream,
    stage: Stage,
    pace: Pace,
}

enum Stage {
    Asking,
    Answering(Metrics),
    Ending,
}

impl Scrapes {
    /// Listens at `address`; the connections are watched as numbers from `first` on.
    ///
    /// # Errors
    /// What could not be bound.
    pub fn open(address: SocketAddr, first: usize) -> Result<Scrapes, Error> {
        let listener = TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = listener.map_err(|e| {
            let hint = "change `option metrics`, or stop who has it (netstat -lnp)";
            Error::new(format!("listen on {address}/tcp (option metrics)"), &e).hint(hint)
        })?;
        // not in the struct itself, which moves to its place over the stack
        let seat = |_| Seat { client: None, head: heapless::Vec::new(), outlet: Outlet::new() };
        Ok(Scrapes { listener, address, first, seats: (0..SCRAPES_MAX).map(seat).collect(), waiting: false })
    }

    /// The listening socket, to be watched for reading.
    pub fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// As it was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections wait at the listening socket.
    pub fn note_connections(&mut self) {
        self.waiting = true;
    }

    /// The connection of number `n`, counted from 0, has become ready.
    pub fn ready(&mut self, n: usize, subject: &dyn Subject, now: Tick) {
        if let Some(seat) = self.seats.get_mut(n) {
            seat.serve(subject, now);
        }
    }

    /// When [`Self::run`] has something to do again; `None`: at the next event.
    pub fn deadline(&self, now: Tick) -> Option<Tick> {
        let free = self.seats.iter().any(|seat| seat.client.is_none());
        let accept = (self.waiting && free).then_some(now);
        let clients = self.seats.iter().filter_map(|seat| {
            let client = seat.client.as_ref()?;
            Some(if client.pace.queued { now } else { client.pace.deadline })
        });
        clients.chain(accept).reduce(Tick::earlier)
    }

    /// Takes new connections, goes on with answers, and ends what has passed its deadline. To be called once a turn.
    pub fn run(&mut self, subject: &dyn Subject, now: Tick) {
        for seat in &mut self.seats {
            let Some(client) = &mut seat.client else { continue };
            if now.reached(client.pace.deadline) {
                seat.client = None;
            } else if std::mem::take(&mut client.pace.queued) {
                seat.serve(subject, now);
            }
        }
        self.accept(subject, now);
    }

    fn accept(&mut self, subject: &dyn Subject, now: Tick) {
        while self.waiting {
            let Some(n) = self.seats.iter().position(|seat| seat.client.is_none()) else { return };
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let watched = stream
                        .set_nonblocking(true)
                        .map_err(|e| Error::new("set a connection for metrics non-blocking", &e))
                        .and_then(|()| subject.watch_client(stream.as_raw_fd(), self.first + n));
                    match watched.map(|()| self.seats.get_mut(n)) {
                        Ok(Some(seat)) => seat.take(stream, now),
                        Ok(None) => {}
                        Err(e) => log::debug!("{e}"),
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted || sys::accept_may_go_on(&e) => {}
                // where descriptors have run out, whoever comes next is another try
                Err(_) => self.waiting = false,
            }
        }
    }
}

impl Seat {
    fn take(&mut self, stream: TcpStream, now: Tick) {
        self.head.clear();
        self.outlet.clear();
        self.client = Some(Client { stream, stage: Stage::Asking, pace: Pace::new(now) });
    }

    fn serve(&mut self, subject: &dyn Subject, now: Tick) {
        let Some(client) = &mut self.client else { return };
        if matches!(client.stage, Stage::Asking) {
            let mut buffer = [0; 512];
            loop {
                match client.stream.read(&mut buffer) {
                    Ok(0) => return self.client = None,
                    Ok(n) => {
                        if self.head.extend_from_slice(buffer.get(..n).unwrap_or_default()).is_err() {
                            refuse(client, self.outlet.text(), "431 Request Header Fields Too Large", "");
                            break;
                        }
                        if self.head.windows(4).any(|four| four == b"\r\n\r\n") {
                            answer(client, &self.head, subject, self.outlet.text());
                            break;
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return self.client = None,
                }
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
            Stage::Answering(metrics) => {
                if metrics.fill(subject, out) == Fill::Done {
                    *stage = Stage::Ending;
                }
                Refill::More
            }
            Stage::Ending => Refill::End,
            Stage::Asking => Refill::Nothing,
        })
    }
}

/// Reads `GET /metrics HTTP/1.1` (RFC 9112 section 3); what else is in the head does not matter.
fn answer(client: &mut Client, head: &[u8], subject: &dyn Subject, out: &mut Output) {
    let line = head.split(|c| *c == b'\r').next().unwrap_or_default();
    let mut words = line.split(|c| *c == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|c| *c == b'?').next().unwrap_or_default();
    if method != b"GET" {
        return refuse(client, out, "405 Method Not Allowed", "Allow: GET\r\n");
    }
    if path != b"/metrics" {
        return refuse(client, out, "404 Not Found", "");
    }
    // the buffer is empty, and has room for it
    let _ = out.push_str(concat!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n",
        "Connection: close\r\n\r\n"
    ));
    client.stage = Stage::Answering(Metrics::new(subject));
}

fn refuse(client: &mut Client, out: &mut Output, status: &str, header: &str) {
    out.clear();
    for part in ["HTTP/1.1 ", status, "\r\n", header, "Content-Length: 0\r\nConnection: close\r\n\r\n"] {
        // as above
        let _ = out.push_str(part);
    }
    client.stage = Stage::Ending;
}
