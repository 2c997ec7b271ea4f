//! Reaching the destination: a non-blocking connect, then the outbound's handshake, driven by what the socket says.

use super::outbound::{Outbound, State, Way};
use super::{Cx, Readiness, Seconds, Words};
use crate::proto::socks5::{Bound, Command, Fault, Handshake, INPUT_MAX, OUTPUT_MAX, Refusal, Step};
use crate::sys::socket::{Family, Transport};
use crate::sys::{socket, sockopt};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// The state of one handshake, kept only while it lasts.
#[derive(Debug)]
pub struct Dial {
    /// Which of the server's addresses is being tried.
    pub attempt: u8,
    /// At which address.
    pub address: SocketAddr,
    /// Connected; the handshake is under way.
    connected: bool,
    handshake: Option<Handshake>,
    input: [u8; INPUT_MAX],
    have: u16,
}

/// How far a dial came.
#[derive(Debug)]
pub enum Progress {
    /// More must come from the server first.
    Waiting,
    /// The destination has been reached.
    Done {
        /// BND.ADDR of a handshake.
        bound: Option<Bound>,
        /// How many octets of payload [`Dial::surplus`] holds.
        surplus: usize,
    },
}

/// Why a dial failed.
#[derive(Debug)]
pub enum Failure {
    /// A system call.
    Call(&'static str, io::Error),
    /// The proxy's answer.
    Refused(Refusal),
    /// The server ended the connection in the middle of the handshake.
    ClosedEarly,
    /// Nothing was decided within `connect_timeout`.
    TimedOut(Duration),
    /// The server's name has no address.
    NoAddress,
    /// The proxy named no port to which datagrams could go.
    NoRelay,
}

impl Failure {
    /// True if trying another address of the same server may help.
    pub fn is_of_address(&self) -> bool {
        matches!(self, Failure::Call("connect", _) | Failure::TimedOut(_))
    }

    /// True if the proxy itself is not at fault: it told that the destination can't be reached.
    pub fn is_of_destination(&self) -> bool {
        matches!(self, Failure::Refused(refusal) if refusal.fault() == Fault::Destination)
    }

    /// True if it never came to asking anybody: this machine has run out of something.
    pub fn is_ours(&self) -> bool {
        matches!(self, Failure::Call(_, error) if crate::sys::out_of_resources(error))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Call("connect", error) => write!(f, "{}", Words(error)),
            Failure::Call(call, error) => write!(f, "{call}: {}", Words(error)),
            Failure::Refused(refusal) => refusal.fmt(f),
            Failure::ClosedEarly => f.write_str("server closed the connection during the handshake"),
            Failure::TimedOut(after) => write!(f, "no answer within {} s", Seconds(*after)),
            Failure::NoAddress => f.write_str("its name has no address yet"),
            Failure::NoRelay => f.write_str("it names no UDP relay"),
        }
    }
}

/// Opens a socket that carries `mark` and starts to connect it.
///
/// # Errors
/// The call that failed.
pub fn connect(to: SocketAddr, mark: u32) -> Result<OwnedFd, Failure> {
    let fd = socket::open(Family::of(to), Transport::Tcp).map_err(|e| Failure::Call("socket", e))?;
    sockopt::set_mark(fd.as_fd(), mark).map_err(|e| Failure::Call("setsockopt SO_MARK", e))?;
    socket::connect(fd.as_fd(), to).map_err(|e| Failure::Call("connect", e))?;
    Ok(fd)
}

/// Finds a peer that vanished after 5 minutes of silence and four unanswered probes.
pub fn set_keepalive_or_warn(fd: BorrowedFd<'_>) {
    if let Err(e) = sockopt::set_keepalive(fd, Duration::from_secs(300), Duration::from_secs(30), 4) {
        log::warn!("cannot set keep-alive: {e}; a peer that vanishes is only noticed by idle_timeout");
    }
}

impl Dial {
    /// A dial whose connect is under way to `address`, the `attempt`th of the outbound. `command` and `target`: what the
    /// proxy will be asked, if there is one.
    pub fn new(outbound: &Outbound, attempt: u8, address: SocketAddr, command: Command, target: SocketAddr) -> Dial {
        let handshake = match &outbound.way {
            Way::Direct => None,
            Way::Socks5 { credentials, .. } => Some(Handshake::new(command, target, credentials.is_some())),
        };
        Dial { attempt, address, connected: false, handshake, input: [0; INPUT_MAX], have: 0 }
    }

    /// Whether the TCP connection stands.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Payload that came glued to the end of the handshake.
    pub fn surplus(&self, len: usize) -> &[u8] {
        let have = usize::from(self.have);
        &self.input[have.saturating_sub(len)..have]
    }

    /// Goes on as far as the socket allows.
    ///
    /// # Errors
    /// Why it failed; the dial is over then.
    pub fn advance(&mut self, fd: BorrowedFd<'_>, ready: Readiness, outbound: &Outbound) -> Result<Progress, Failure> {
        if !self.connected {
            if ready.error {
                sockopt::take_error(fd).map_err(|e| Failure::Call("connect", e))?;
            }
            if !ready.writable {
                return Ok(Progress::Waiting);
            }
            self.connected = true;
        }
        let Some(mut handshake) = self.handshake else {
            return Ok(Progress::Done { bound: None, surplus: 0 });
        };
        let progress = self.converse(&mut handshake, fd, outbound.credentials());
        self.handshake = Some(handshake);
        progress
    }

    fn converse(
        &mut self,
        handshake: &mut Handshake,
        fd: BorrowedFd<'_>,
        credentials: Option<(&[u8], &[u8])>,
    ) -> Result<Progress, Failure> {
        let mut out = [0; OUTPUT_MAX];
        loop {
            let have = usize::from(self.have);
            let step = handshake.step(credentials, &self.input[..have], &mut out).map_err(Failure::Refused)?;
            match step {
                Step::Send { used, n } => {
                    self.drop_used(used);
                    // the socket's buffer is empty here, and a message has at most 513 octets
                    match socket::send(fd, &out[..n]) {
                        Ok(sent) if sent == n => {}
                        Ok(_) => return Err(Failure::Call("send", ErrorKind::WouldBlock.into())),
                        Err(e) => return Err(Failure::Call("send", e)),
                    }
                }
                Step::Done { used, bound } => {
                    return Ok(Progress::Done { bound: Some(bound), surplus: have - used.min(have) });
                }
                Step::NeedMore => {
                    let wanted = handshake.wanted(&self.input[..have]).min(INPUT_MAX - have);
                    match socket::receive(fd, &mut self.input[have..have + wanted]) {
                        Ok(0) => return Err(Failure::ClosedEarly),
                        Ok(n) => self.have += n as u16,
                        Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Progress::Waiting),
                        Err(e) if e.kind() == ErrorKind::Interrupted => {}
                        Err(e) => return Err(Failure::Call("read", e)),
                    }
                }
            }
        }
    }

    fn drop_used(&mut self, used: usize) {
        let have = usize::from(self.have);
        let used = used.min(have);
        self.input.copy_within(used..have, 0);
        self.have -= used as u16;
    }
}

/// Counts a failed dial, and logs it unless there were others just now:
/// `connect 203.0.113.9:443 via 'hk' (server 192.0.2.1:1080) for 192.168.1.2:40000: connection refused`.
pub fn report(
    cx: &mut Cx<'_>,
    index: u16,
    client: SocketAddr,
    target: SocketAddr,
    at: Option<SocketAddr>,
    why: &Failure,
) {
    let now = cx.now;
    let outbound = cx.outbounds.get_mut(index);
    // without a proxy between, whoever failed was the destination
    if outbound.server().is_some() && !why.is_ours() {
        outbound.state = if why.is_of_destination() { State::Up } else { State::Down };
    }
    outbound.note_error(format_args!("{target}: {why}"));
    let Some(held_back) = outbound.failed(now) else { return };
    let outbound = cx.outbounds.get(index);
    let Some(server) = outbound.server() else {
        // without a proxy between, a destination that refuses is the destination's affair and happens all day
        log::debug!("connect {target} for {client}: {why}{held_back}");
        return;
    };
    let level = if why.is_of_destination() { log::Level::Info } else { log::Level::Warn };
    let name = &outbound.name;
    match at {
        Some(at) => log::log!(level, "connect {target} via '{name}' (server {at}) for {client}: {why}{held_back}"),
        None => {
            let server = server.display();
            log::log!(level, "connect {target} via '{name}' (server {server}) for {client}: {why}{held_back}");
        }
    }
}
