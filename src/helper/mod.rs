//! The privileged helper: a process forked at the very start, which does by fixed verbs what the network process gave up
//! the right to, or must never wait for. Here is the daemon's end: a [`Helper`] that sends requests and takes answers.
//!
//! The helper decides nothing. When its socketpair closes without a goodbye, the daemon has died, and it takes away what
//! fail-open needs taken away (see `server`).

mod server;
mod wire;

pub use wire::check_any_message;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{Mark, OnFailure};
use crate::error::Error;
use crate::netfilter::{Installation, Surroundings};
use crate::sys::passing;
use crate::sys::process::{Child, fork_child};

/// One thing to do, asked by the daemon.
#[derive(Debug)]
pub enum Request {
    /// Open the configuration file that was named at the start.
    ReadConfig,
    /// Open a file that the configuration names (`loadfile`).
    ReadFile(PathBuf),
    /// Put the policy routes in place, then load `rules`, the text of `netfilter::render`. If a step fails, what the
    /// steps before it added is taken away again.
    Install {
        /// Text for nft, every line of it about our table.
        rules: String,
        /// What is put in place beside it.
        installation: Installation,
        /// What the helper does with it when the daemon has died.
        on_failure: OnFailure,
    },
    /// Load `rules` (the text of `render_servers`, `render_on_link`) and change nothing else.
    Update {
        /// Text for nft, every line of it about our table.
        rules: String,
    },
    /// Take away everything that was installed.
    Remove,
    /// Find the devices of networks, and the connected prefixes: `netfilter::look`.
    Look {
        /// OpenWrt's names.
        networks: Vec<String>,
        /// The listeners' devices beside those.
        devices: Vec<String>,
    },
    /// Delete the connection tracking entries that carry our mark, of what is or was installed.
    Forget,
    /// The daemon ends in order: the helper ends, too, and takes nothing away.
    Goodbye,
    /// Start the script of `option on_event`, and answer [`Answer::Done`] without waiting for its end;
    /// [`Answer::Busy`] while the one before runs.
    RunScript {
        /// The script.
        path: PathBuf,
        /// Names and values, all the environment that it gets beside `PATH`.
        environment: Vec<(String, String)>,
    },
    /// Look whether everything that was installed is still in place: [`Answer::Done`] or [`Answer::Damaged`].
    Inspect,
    /// Have every dnsmasq of this network namespace note addresses as `lines` say (`netfilter::names`), after the sets
    /// that they name are in place. Empty: note nothing any more. Restarts dnsmasq if that is something new.
    Note {
        /// Lines for its configuration.
        lines: String,
    },
    /// Delete the connection tracking entries of UDP flows that the kernel decided (`netfilter::decided_mark`), so that
    /// their next datagrams are decided anew.
    Revise(Mark),
    /// Have offloaded flows come back to the rules (`netfilter::offload`). Done at once; it takes half a minute.
    Reclaim,
    /// Keep `br_netfilter` from the bridges among these devices: `netfilter::bridges`.
    Spare {
        /// Those of the listeners by TPROXY.
        devices: Vec<String>,
    },
}

/// What came of a [`Request`].
#[derive(Debug)]
pub enum Answer {
    /// It is done.
    Done,
    /// The file that was asked for, open for reading: a regular file.
    File(File),
    /// What was found.
    Surroundings(Surroundings),
    /// The script before still runs: ask again.
    Busy,
    /// What is missing, in words.
    Damaged(String),
}

/// Something that the helper reports.
#[derive(Debug)]
pub enum Event {
    /// The answer to the request of that number.
    Answered(u32, Result<Answer, Error>),
    /// The helper has ended without being asked to. Nothing will be cleaned up if the daemon dies now.
    Gone,
}

/// The daemon's end. One request is under way at a time; a few more wait.
#[derive(Debug)]
pub struct Helper {
    socket: OwnedFd,
    child: Child,
    next_number: u32,
    under_way: Option<u32>,
    waiting: VecDeque<(u32, Request)>,
    /// Answers that came while [`Helper::call`] waited for its own.
    unread: VecDeque<Event>,
    gone: bool,
    buffer: Vec<u8>,
}

impl Helper {
    /// Forks the helper. To be called first of all: before threads, listening sockets and tables exist, before
    /// privileges are given up. `config` is the one file that [`Request::ReadConfig`] opens, `record` where it writes down
    /// what [`Request::Spare`] changes.
    ///
    /// Waits until no other helper works in this network namespace: one whose daemon has just died may still be
    /// cleaning up, and must not take away what comes now.
    ///
    /// # Errors
    /// fork(2) and socketpair(2) fail, or another tproxyd runs in this network namespace.
    pub fn start(config: &Path, record: &Path) -> Result<Helper, Error> {
        let failed = |error: io::Error| Error::new("start the privileged helper", error);
        let (socket, theirs) = passing::pair().map_err(failed)?;
        let child = fork_child(theirs, |socket| server::run(socket, config, record)).map_err(failed)?;
        let mut helper = Helper {
            socket,
            child,
            next_number: 1,
            under_way: Some(wire::HELLO),
            waiting: VecDeque::with_capacity(MOST_WAITING),
            unread: VecDeque::new(),
            gone: false,
            buffer: vec![0; wire::LONGEST],
        };
        match helper.wait_for(wire::HELLO, server::LONGEST_WAIT_FOR_OTHERS + GRACE) {
            Ok(_) => {
                passing::set_nonblocking(helper.socket.as_fd()).map_err(failed)?;
                Ok(helper)
            }
            Err(error) => {
                drop(helper.socket);
                helper.child.wait();
                Err(error)
            }
        }
    }

    /// The descriptor that becomes readable when there is an [`Event`].
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Process id of the helper.
    pub fn process_id(&self) -> i32 {
        self.child.id()
    }

    /// Sends `request`, or keeps it until the one before is answered. Its number comes back with the answer.
    ///
    /// # Errors
    /// The helper is gone, or eight requests wait already.
    pub fn submit(&mut self, request: Request) -> Result<u32, Error> {
        if self.gone {
            return Err(gone());
        }
        if self.waiting.len() >= MOST_WAITING {
            return Err(Error::new("ask the privileged helper", "it still has eight requests to do"));
        }
        let number = self.next_number;
        self.next_number = self.next_number.checked_add(1).unwrap_or(1);
        self.waiting.push_back((number, request));
        self.send_next();
        Ok(number)
    }

    /// The next event; `None` when there is none for now. To be called until then whenever [`Helper::fd`] is readable.
    pub fn next_event(&mut self) -> Option<Event> {
        if let Some(event) = self.unread.pop_front() {
            return Some(event);
        }
        self.read_event()
    }

    /// Sends `request` and waits for its answer: for start and stop only, never on the loop. Events of other requests
    /// are kept for [`Helper::next_event`].
    ///
    /// # Errors
    /// What the helper answered, or no answer within `timeout` of silence.
    pub fn call(&mut self, request: Request, timeout: Duration) -> Result<Answer, Error> {
        let number = self.submit(request)?;
        self.wait_for(number, timeout)
    }

    /// Ends the helper in order: it takes nothing away. Call [`Request::Remove`] before, to leave nothing behind.
    pub fn goodbye(mut self, timeout: Duration) {
        let ended = self.call(Request::Goodbye, timeout).is_ok();
        let Helper { socket, child, .. } = self;
        drop(socket);
        if ended {
            // Once it is gone, the namespace is free for the next.
            child.wait();
        } else {
            child.reap();
        }
    }

    fn wait_for(&mut self, wanted: u32, timeout: Duration) -> Result<Answer, Error> {
        loop {
            match self.read_event() {
                Some(Event::Answered(number, result)) if number == wanted => return result,
                Some(Event::Gone) => {
                    self.unread.push_back(Event::Gone);
                    return Err(gone());
                }
                Some(event) => self.unread.push_back(event),
                None => match passing::wait_readable(self.socket.as_fd(), timeout) {
                    Ok(true) => {}
                    Ok(false) => {
                        let why = format!("no answer for {} s", timeout.as_secs());
                        return Err(Error::new("have it done by the privileged helper", why));
                    }
                    Err(error) => return Err(Error::new("wait for the privileged helper", error)),
                },
            }
        }
    }

    fn read_event(&mut self) -> Option<Event> {
        if self.gone {
            return None;
        }
        let received = passing::receive(self.socket.as_fd(), &mut self.buffer);
        let (length, file) = match received {
            Ok((0, _)) => return self.lost(),
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return None,
            Err(_) => return self.lost(),
        };
        let (number, result) = wire::read_answer(self.buffer.get(..length).unwrap_or_default(), file);
        if self.under_way == Some(number) {
            self.under_way = None;
        }
        self.send_next();
        Some(Event::Answered(number, result))
    }

    fn lost(&mut self) -> Option<Event> {
        self.gone = true;
        self.child.reap();
        Some(Event::Gone)
    }

    fn send_next(&mut self) {
        if self.under_way.is_some() {
            return;
        }
        let Some((number, request)) = self.waiting.pop_front() else { return };
        let sent = wire::write_request(number, &request)
            .and_then(|(message, file)| passing::send(self.socket.as_fd(), &message, file.as_ref().map(AsFd::as_fd)));
        match sent {
            Ok(()) => self.under_way = Some(number),
            Err(error) => {
                let error = Error::new("ask the privileged helper", error);
                self.unread.push_back(Event::Answered(number, Err(error)));
            }
        }
    }
}

impl AsFd for Helper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn gone() -> Error {
    Error::new("ask the privileged helper", "it has ended").hint("restart tproxyd; see the log for why it ended")
}

/// Requests that may wait for the one under way.
const MOST_WAITING: usize = 8;
/// Beyond what the helper itself may take.
const GRACE: Duration = Duration::from_secs(2);
