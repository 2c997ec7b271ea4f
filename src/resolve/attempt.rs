//! One question to one server: its socket, its id, and what came of it. By UDP, or by TCP after a truncated answer.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::proto::dns::{self, Answer, AnswerError, QType, QueryError};
use crate::store::timers::Tick;
use crate::sys::socket::{self, Family, Transport};
use crate::sys::{random, sockopt};

use super::TRY_TIMEOUT;

/// What is asked.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) name: &'a str,
    pub(super) qtype: QType,
}

/// What sockets need, whatever is asked.
#[derive(Clone, Copy)]
pub(super) struct Door<'a> {
    pub(super) registry: &'a Registry,
    pub(super) token: Token,
    /// `SO_MARK`; 0 leaves it unset.
    pub(super) mark: u32,
    pub(super) now: Tick,
}

/// A question on its way.
///
/// The id is fresh for each attempt, and so is the socket, and with it the source port: the kernel draws it at random from
/// `ip_local_port_range` (28,232 ports unless set otherwise). A forger has to hit one of 2^30 pairs (RFC 5452 section 9.2).
pub(super) struct Attempt {
    socket: OwnedFd,
    pub(super) server: SocketAddr,
    id: u16,
    stage: Stage,
    /// Datagrams that answered another question.
    strays: u8,
    pub(super) deadline: Tick,
}

enum Stage {
    Udp,
    TcpConnecting,
    TcpAsked,
}

/// What came of an attempt.
pub(super) enum Progress {
    Wait,
    Answered(Answer),
    /// Ask the same server by TCP.
    Truncated,
    Failed(Failure),
}

/// Why a name has no fresh address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The list of servers cannot be read.
    NoServers {
        /// errno.
        errno: i32,
    },
    /// The name cannot be asked for.
    Name(QueryError),
    /// The server cannot be reached, or the kernel refuses what asking it takes.
    Socket {
        /// Who was to be asked.
        server: SocketAddr,
        /// errno.
        errno: i32,
    },
    /// The server has not answered in time; nor have the others, if there are any.
    NoAnswer {
        /// Who was asked last.
        server: SocketAddr,
    },
    /// The server has closed the connection instead of answering by TCP.
    Closed {
        /// Who was asked.
        server: SocketAddr,
    },
    /// The server has answered without an address.
    Answer {
        /// Who was asked.
        server: SocketAddr,
        /// What it said.
        error: AnswerError,
    },
}

impl Failure {
    pub(super) fn no_servers(error: &io::Error) -> Failure {
        Failure::NoServers { errno: errno(error) }
    }

    /// True if other servers would say the same: it is the name that has nothing.
    pub fn is_about_the_name(&self) -> bool {
        matches!(
            self,
            Failure::Name(_) | Failure::Answer { error: AnswerError::NoSuchName | AnswerError::NoAddress, .. }
        )
    }
}

impl Attempt {
    pub(super) fn by_udp(server: SocketAddr, question: Question<'_>, door: Door<'_>) -> Result<Attempt, Failure> {
        let attempt = Self::open(Transport::Udp, server, door).map_err(|e| on_socket(server, &e))?;
        attempt.ask(question)?;
        Ok(attempt)
    }

    pub(super) fn by_tcp(server: SocketAddr, door: Door<'_>) -> Result<Attempt, Failure> {
        Self::open(Transport::Tcp, server, door).map_err(|e| on_socket(server, &e))
    }

    fn open(transport: Transport, server: SocketAddr, door: Door<'_>) -> io::Result<Attempt> {
        let socket = socket::open(Family::of(server), transport)?;
        // An unmarked question could be intercepted by our own rules, so none is asked if the mark cannot be set.
        if door.mark != 0 {
            sockopt::set_mark(socket.as_fd(), door.mark)?;
        }
        // A connected UDP socket gets datagrams from no other address and port, and ICMP errors as errors.
        socket::connect(socket.as_fd(), server)?;
        let (stage, interest) = match transport {
            Transport::Udp => (Stage::Udp, Interest::READABLE),
            Transport::Tcp => (Stage::TcpConnecting, Interest::READABLE | Interest::WRITABLE),
        };
        door.registry.register(&mut SourceFd(&socket.as_raw_fd()), door.token, interest)?;
        let deadline = door.now.after(TRY_TIMEOUT);
        Ok(Attempt { socket, server, id: random::u16(), stage, strays: 0, deadline })
    }

    fn ask(&self, question: Question<'_>) -> Result<(), Failure> {
        let mut framed = [0; FRAME + dns::QUERY_MAX];
        let (frame, query) = framed.split_at_mut(FRAME);
        let length = dns::encode_query(self.id, question.name, question.qtype, query).map_err(Failure::Name)?;
        // At most QUERY_MAX, so nothing is cut. RFC 1035 section 4.2.2: two octets of length go in front by TCP.
        frame.copy_from_slice(&(length as u16).to_be_bytes());
        let from = if matches!(self.stage, Stage::Udp) { FRAME } else { 0 };
        let bytes = framed.get(from..FRAME + length).unwrap_or_default();
        match socket::send(self.socket.as_fd(), bytes) {
            Ok(n) if n == bytes.len() => Ok(()),
            // A new connection has room for a question, so this server's end is not what it should be.
            Ok(_) => Err(Failure::Closed { server: self.server }),
            Err(e) => Err(on_socket(self.server, &e)),
        }
    }

    /// Goes on as far as the socket allows. May be called at any time: without news it waits.
    pub(super) fn advance(&mut self, question: Question<'_>) -> Progress {
        let result = match self.stage {
            Stage::Udp => return self.read_datagrams(question),
            Stage::TcpConnecting => self.finish_connect(question),
            Stage::TcpAsked => Ok(true),
        };
        match result {
            Ok(true) => self.read_stream(question),
            Ok(false) => Progress::Wait,
            Err(failure) => Progress::Failed(failure),
        }
    }

    /// Asks once the connection stands. True if it does.
    fn finish_connect(&mut self, question: Question<'_>) -> Result<bool, Failure> {
        sockopt::take_error(self.socket.as_fd()).map_err(|e| on_socket(self.server, &e))?;
        match self.ask(question) {
            Ok(()) => {
                self.stage = Stage::TcpAsked;
                Ok(true)
            }
            Err(Failure::Socket { errno, .. }) if is_would_block(errno) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    fn read_datagrams(&mut self, question: Question<'_>) -> Progress {
        let mut buffer = [0; MESSAGE_MAX];
        while self.strays < STRAYS_MAX {
            let message = match socket::receive(self.socket.as_fd(), &mut buffer) {
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Wait,
                Err(e) => return Progress::Failed(on_socket(self.server, &e)),
            };
            match dns::parse_answer(message, self.id, question.name, question.qtype) {
                Ok(answer) => return self.usable(answer),
                Err(AnswerError::Truncated) => return Progress::Truncated,
                Err(AnswerError::Unrelated) => self.strays += 1,
                Err(error) => return Progress::Failed(Failure::Answer { server: self.server, error }),
            }
        }
        // Somebody is guessing: go on with another port and id.
        Progress::Failed(Failure::Answer { server: self.server, error: AnswerError::Unrelated })
    }

    /// Looks whether the whole answer is there. Until then its parts stay in the socket, so that no buffer is kept for them;
    /// each new part raises a new event.
    fn read_stream(&self, question: Question<'_>) -> Progress {
        let mut buffer = [0; FRAME + MESSAGE_MAX];
        let arrived = match socket::peek(self.socket.as_fd(), &mut buffer) {
            Ok(0) => return Progress::Failed(Failure::Closed { server: self.server }),
            Ok(length) => buffer.get(..length).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Wait,
            Err(e) => return Progress::Failed(on_socket(self.server, &e)),
        };
        let Some((frame, rest)) = arrived.split_first_chunk::<FRAME>() else { return Progress::Wait };
        let length = usize::from(u16::from_be_bytes(*frame));
        let parsed = match rest.get(..length) {
            Some(message) => dns::parse_answer(message, self.id, question.name, question.qtype),
            None if length <= MESSAGE_MAX => return Progress::Wait,
            None => Err(AnswerError::Malformed),
        };
        match parsed {
            Ok(answer) => self.usable(answer),
            Err(error) => Progress::Failed(Failure::Answer { server: self.server, error }),
        }
    }

    /// Leaves out what is no server's address. Filters against advertising answer 0.0.0.0, by which a proxy would be sought
    /// on the router itself.
    fn usable(&self, mut answer: Answer) -> Progress {
        answer.addresses.retain(|address| match address {
            IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
            IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast() || v6.to_ipv4_mapped().is_some()),
        });
        if answer.addresses.is_empty() {
            return Progress::Failed(Failure::Answer { server: self.server, error: AnswerError::NoAddress });
        }
        Progress::Answered(answer)
    }

    /// Closes the socket, so that no event of it is raised any more.
    pub(super) fn end(self, registry: &Registry) {
        // Closing takes it out of epoll as well; that it was in there is all that could fail.
        let _ = registry.deregister(&mut SourceFd(&self.socket.as_raw_fd()));
    }
}

fn on_socket(server: SocketAddr, error: &io::Error) -> Failure {
    Failure::Socket { server, errno: errno(error) }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or_default()
}

fn is_would_block(errno: i32) -> bool {
    io::Error::from_raw_os_error(errno).kind() == io::ErrorKind::WouldBlock
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = io::Error::from_raw_os_error;
        match *self {
            Failure::NoServers { errno } => write!(f, "the list of DNS servers cannot be read: {}", words(errno)),
            Failure::Name(error) => error.fmt(f),
            Failure::Socket { server, errno } => write!(f, "DNS server {server} cannot be asked: {}", words(errno)),
            Failure::NoAnswer { server } => write!(f, "DNS server {server} does not answer"),
            Failure::Closed { server } => write!(f, "DNS server {server} closed the connection without an answer"),
            Failure::Answer { server, error } => write!(f, "DNS server {server}: {error}"),
        }
    }
}

impl std::error::Error for Failure {}

/// Octets of the length in front of a message by TCP (RFC 1035 section 4.2.2).
const FRAME: usize = 2;
/// Longest answer that is read: eight addresses and a chain of the longest aliases fit.
const MESSAGE_MAX: usize = 4096;
/// Datagrams to one port that answer another question before the port is given up.
const STRAYS_MAX: u8 = 16;
