//! Reaching the destination: a non-blocking connect, then the outbound's handshake, driven by what the socket says.

use super::outbound::{Outbound, Tried, Upstream, Way};
use super::{Cx, Readiness, Seconds, Words};
use crate::proto::http;
use crate::proto::proxy_header::{self, Version};
use crate::proto::socks5::{self, Bound, Command, Fault, INPUT_MAX, OUTPUT_MAX, Refusal, Step};
use crate::sys::socket::{Family, Transport};
use crate::sys::{socket, sockopt};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// The state of one handshake, kept only while it lasts.
#[derive(Debug)]
pub struct Dial {
    /// Which of the server's addresses is being tried.
    pub attempt: u8,
    /// At which address.
    pub address: SocketAddr,
    /// Members of the group that were tried before.
    pub tried: Tried,
    /// Connected; the handshake is under way.
    connected: bool,
    /// Its connection was opened in advance.
    spare: bool,
    talk: Talk,
    input: [u8; INPUT_MAX],
    have: u16,
}

/// What is said to the server before bytes of the client flow.
#[derive(Debug, Clone, Copy)]
enum Talk {
    /// Nothing.
    Silence,
    /// A header that nothing answers.
    Header(Version),
    /// SOCKS5.
    Socks5(socks5::Handshake),
    /// The request is not sent yet.
    HttpRequest,
    /// The answer is awaited.
    HttpAnswer(http::Scanner),
}

impl Talk {
    /// All that is to be said.
    fn with(outbound: &Outbound, ask: &Ask<'_>) -> Talk {
        match &outbound.way {
            Way::Direct | Way::Group { .. } | Way::Forward { send_proxy: None, .. } => Talk::Silence,
            #[cfg(feature = "shadowsocks")]
            Way::Shadowsocks { .. } => Talk::Silence,
            Way::Forward { send_proxy: Some(version), .. } => Talk::Header(*version),
            Way::Http { .. } => Talk::HttpRequest,
            Way::Socks5 { credentials, .. } => {
                Talk::Socks5(socks5::Handshake::new(ask.command, ask.target, credentials.is_some()))
            }
        }
    }
}

/// What is asked of an outbound.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// What the proxy is asked to do, if there is one.
    pub command: Command,
    /// For whom.
    pub client: SocketAddr,
    /// Where to.
    pub target: SocketAddr,
    /// The name to say instead of the target's address.
    pub name: Option<&'a str>,
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
    /// The SOCKS5 proxy's answer.
    Refused(Refusal),
    /// The HTTP proxy's answer.
    RefusedByHttp(http::Refusal),
    /// What the Shadowsocks server sent is of no use.
    #[cfg(feature = "shadowsocks")]
    NotAuthentic(crate::proto::shadowsocks::Refusal),
    /// The server ended the connection instead of answering this.
    ClosedEarly(&'static str),
    /// The connection was lost instead of an answer to this.
    Lost(&'static str, io::Error),
    /// This was not answered within `connect_timeout`.
    TimedOut(Duration, &'static str),
    /// The server's name has no address.
    NoAddress,
    /// The proxy named no port to which datagrams could go.
    NoRelay,
}

impl Failure {
    /// True if trying another address of the same server may help.
    pub fn is_of_address(&self) -> bool {
        matches!(self, Failure::Call("connect", _) | Failure::TimedOut(..))
    }

    /// True if the proxy itself is not at fault: it told that the destination can't be reached.
    pub fn is_of_destination(&self) -> bool {
        match self {
            Failure::Refused(refusal) => refusal.fault() == Fault::Destination,
            Failure::RefusedByHttp(refusal) => refusal.fault() == Fault::Destination,
            _ => false,
        }
    }

    /// True if nobody can tell whose fault it is: a proxy that took us in and then waits for the destination in vain, or
    /// says no more than that it failed.
    pub fn is_unclear(&self) -> bool {
        match self {
            Failure::Refused(Refusal::Reply { rep: 0x07 }) => true,
            Failure::TimedOut(_, step) | Failure::ClosedEarly(step) | Failure::Lost(step, _) => *step == "request",
            Failure::Refused(refusal) => refusal.fault() == Fault::Unclear,
            Failure::RefusedByHttp(refusal) => refusal.fault() == Fault::Unclear,
            _ => false,
        }
    }

    /// True if the proxy says that it carries no datagrams.
    pub fn says_no_udp(&self) -> bool {
        matches!(self, Failure::Refused(Refusal::Reply { rep: 0x07 }))
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
            Failure::RefusedByHttp(refusal) => refusal.fmt(f),
            #[cfg(feature = "shadowsocks")]
            Failure::NotAuthentic(refusal) => write!(f, "what it answers is {refusal}"),
            Failure::ClosedEarly(step) => write!(f, "server closed the connection instead of answering the {step}"),
            Failure::Lost(step, error) => write!(f, "{} instead of an answer to the {step}", Words(error)),
            Failure::TimedOut(after, "connect") => write!(f, "no answer within {} s", Seconds(*after)),
            Failure::TimedOut(after, step) => write!(f, "no answer within {} s to the {step}", Seconds(*after)),
            Failure::NoAddress => f.write_str("its name has no address yet"),
            Failure::NoRelay => f.write_str("it names no UDP relay"),
        }
    }
}

/// Opens a socket that leaves by the way that `outbound` has, for `client`, and starts to connect it.
///
/// # Errors
/// The call that failed.
pub fn connect(outbound: &Outbound, client: SocketAddr, to: SocketAddr, self_mark: u32) -> Result<OwnedFd, Failure> {
    let fd = socket::open(Family::of(to), Transport::Tcp).map_err(|e| Failure::Call("socket", e))?;
    let mark = self_mark | outbound.fwmark;
    sockopt::set_mark(fd.as_fd(), mark).map_err(|e| Failure::Call("setsockopt SO_MARK", e))?;
    if let Some(device) = &outbound.device {
        sockopt::bind_to_device(fd.as_fd(), device).map_err(|e| Failure::Call("bind to its device", e))?;
    }
    if outbound.keeps_source_of(client, to) {
        sockopt::set_bind_address_no_port(fd.as_fd())
            .and_then(|()| bind_in_name_of(fd.as_fd(), client))
            .map_err(|e| Failure::Call("bind to the client's address", e))?;
    }
    socket::connect(fd.as_fd(), to).map_err(|e| Failure::Call("connect", e))?;
    Ok(fd)
}

/// Binds to the client's own address, and a port that the kernel chooses: with the client's port, too, both halves of the
/// flow would be one to connection tracking.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` or `CAP_NET_RAW`.
pub fn bind_in_name_of(fd: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()> {
    match Family::of(client) {
        Family::V4 => sockopt::set_ipv4_transparent(fd)?,
        Family::V6 => sockopt::set_ipv6_transparent(fd)?,
    }
    socket::bind(fd, SocketAddr::new(client.ip(), 0))
}

/// Finds a peer that vanished after 5 minutes of silence and four unanswered probes.
pub fn set_keepalive_or_warn(fd: BorrowedFd<'_>) {
    if let Err(e) = sockopt::set_keepalive(fd, Duration::from_secs(300), Duration::from_secs(30), 4) {
        log::warn!("cannot set keep-alive: {e}; a peer that vanishes is only noticed by idle_timeout");
    }
}

impl Dial {
    /// A dial whose connect is under way to `address`, the `attempt`th of the outbound.
    pub fn new(outbound: &Outbound, attempt: u8, address: SocketAddr, ask: &Ask<'_>) -> Dial {
        let talk = Talk::with(outbound, ask);
        Dial { attempt, talk, ..Dial::silent(address) }
    }

    fn silent(address: SocketAddr) -> Dial {
        let (talk, input) = (Talk::Silence, [0; INPUT_MAX]);
        Dial { attempt: 0, address, tried: Tried::new(), connected: false, spare: false, talk, input, have: 0 }
    }

    /// One that only remembers which members were tried.
    pub fn none(tried: Tried) -> Dial {
        Dial { tried, ..Dial::silent(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)) }
    }

    /// One that goes as far as it can before anybody says where to, at `address`.
    pub fn in_advance(outbound: &Outbound, address: SocketAddr) -> Dial {
        let talk = match &outbound.way {
            Way::Socks5 { credentials, .. } => {
                Talk::Socks5(socks5::Handshake::new(Command::Greet, address, credentials.is_some()))
            }
            _ => Talk::Silence,
        };
        Dial { talk, ..Dial::silent(address) }
    }

    /// The rest of what [`Self::in_advance`] has begun.
    #[must_use]
    pub fn resumed(self, outbound: &Outbound, ask: &Ask<'_>) -> Dial {
        let talk = match Talk::with(outbound, ask) {
            Talk::Socks5(handshake) => Talk::Socks5(handshake.welcomed()),
            other => other,
        };
        Dial { talk, spare: true, have: 0, ..self }
    }

    /// Whether its connection was opened in advance. If that fails, a fresh one may not.
    pub fn is_spare(&self) -> bool {
        self.spare
    }

    /// The same, after these members were tried.
    #[must_use]
    pub fn after(mut self, tried: Tried) -> Dial {
        self.tried = tried;
        self
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

    /// Goes on as far as the socket allows. `ask` is what the dial was made with.
    ///
    /// # Errors
    /// Why it failed; the dial is over then.
    pub fn advance(
        &mut self,
        fd: BorrowedFd<'_>,
        ready: Readiness,
        outbound: &Outbound,
        ask: &Ask<'_>,
    ) -> Result<Progress, Failure> {
        if !self.connected {
            if ready.error {
                sockopt::take_error(fd).map_err(|e| Failure::Call("connect", e))?;
            }
            if !ready.writable {
                return Ok(Progress::Waiting);
            }
            self.connected = true;
        }
        match self.talk {
            Talk::Silence => Ok(Progress::Done { bound: None, surplus: 0 }),
            Talk::Header(version) => {
                let mut out = [0; proxy_header::ENCODED_MAX];
                let transport = proxy_header::Transport::Stream;
                let len = proxy_header::encode(version, transport, ask.client, ask.target, &mut out).unwrap_or(0);
                send_whole(fd, &out[..len])?;
                Ok(Progress::Done { bound: None, surplus: 0 })
            }
            Talk::Socks5(mut handshake) => {
                let progress = self.converse(&mut handshake, fd, outbound.credentials(), ask.name);
                self.talk = Talk::Socks5(handshake);
                progress
            }
            Talk::HttpRequest => {
                send_request(fd, outbound.credentials(), ask)?;
                self.talk = Talk::HttpAnswer(http::Scanner::new());
                self.read_answer(fd, outbound, ask)
            }
            Talk::HttpAnswer(_) => self.read_answer(fd, outbound, ask),
        }
    }

    /// What the server has to answer next, for people.
    pub fn awaits(&self) -> &'static str {
        match &self.talk {
            _ if !self.connected => "connect",
            Talk::Socks5(handshake) => handshake.awaits(),
            Talk::Silence | Talk::Header(_) => "connect",
            Talk::HttpRequest | Talk::HttpAnswer(_) => "request",
        }
    }

    /// Looks at what has come and takes only what belongs to the answer, so that the tunnel's first bytes stay in the
    /// socket.
    fn read_answer(&mut self, fd: BorrowedFd<'_>, outbound: &Outbound, ask: &Ask<'_>) -> Result<Progress, Failure> {
        loop {
            let Talk::HttpAnswer(scanner) = &mut self.talk else { return Ok(Progress::Waiting) };
            let n = match socket::peek(fd, &mut self.input) {
                Ok(0) => return Err(Failure::ClosedEarly("request")),
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Progress::Waiting),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(Failure::Lost("request", e)),
            };
            let progress = scanner.scan(&self.input[..n]).map_err(Failure::RefusedByHttp)?;
            let used = if let http::Progress::Done { used, .. } = progress { used } else { n };
            socket::discard(fd, used).map_err(|e| Failure::Call("read", e))?;
            if let http::Progress::Done { status, .. } = progress {
                let with_auth = outbound.credentials().is_some();
                // whatever a proxy says to OPTIONS, it lives; only our credentials may be wrong
                if ask.command != Command::Greet || matches!(status, 401 | 407) {
                    http::accept(status, with_auth).map_err(Failure::RefusedByHttp)?;
                }
                return Ok(Progress::Done { bound: None, surplus: 0 });
            }
        }
    }

    fn converse(
        &mut self,
        handshake: &mut socks5::Handshake,
        fd: BorrowedFd<'_>,
        credentials: Option<(&[u8], &[u8])>,
        name: Option<&str>,
    ) -> Result<Progress, Failure> {
        let mut out = [0; OUTPUT_MAX];
        loop {
            let have = usize::from(self.have);
            let step = handshake.step_to(name, credentials, &self.input[..have], &mut out).map_err(Failure::Refused)?;
            match step {
                Step::Send { used, n } => {
                    self.drop_used(used);
                    send_whole(fd, &out[..n])?;
                }
                Step::Done { used, bound } => {
                    return Ok(Progress::Done { bound: Some(bound), surplus: have - used.min(have) });
                }
                Step::NeedMore => {
                    let wanted = handshake.wanted(&self.input[..have]).min(INPUT_MAX - have);
                    match socket::receive(fd, &mut self.input[have..have + wanted]) {
                        Ok(0) => return Err(Failure::ClosedEarly(handshake.awaits())),
                        Ok(n) => self.have += n as u16,
                        Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Progress::Waiting),
                        Err(e) if e.kind() == ErrorKind::Interrupted => {}
                        Err(e) => return Err(Failure::Lost(handshake.awaits(), e)),
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

/// Sends a message of a handshake: the socket's buffer is empty there, and messages have 1.3 kilobytes at most.
fn send_whole(fd: BorrowedFd<'_>, message: &[u8]) -> Result<(), Failure> {
    match socket::send(fd, message) {
        Ok(sent) if sent == message.len() => Ok(()),
        Ok(_) => Err(Failure::Call("send", ErrorKind::WouldBlock.into())),
        Err(e) => Err(Failure::Call("send", e)),
    }
}

fn send_request(fd: BorrowedFd<'_>, credentials: Option<(&[u8], &[u8])>, ask: &Ask<'_>) -> Result<(), Failure> {
    let mut out = [0; http::OUTPUT_MAX];
    let request = match (ask.command, ask.name) {
        (Command::Greet, _) => http::Request::Options,
        (_, Some(name)) => http::Request::Name(name, ask.target.port()),
        (_, None) => http::Request::Address(ask.target),
    };
    let len = http::encode(request, credentials, &mut out);
    let len = len.ok_or(Failure::RefusedByHttp(http::Refusal::OutputTooSmall))?;
    send_whole(fd, &out[..len])
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
        if why.is_of_destination() {
            outbound.good();
        } else if !why.is_unclear() {
            outbound.bad(now);
        }
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

/// Counts a flow for which no member of the group `index` was up, and logs it unless there were others just now.
pub fn report_nobody(cx: &mut Cx<'_>, index: u16, client: SocketAddr, target: SocketAddr) {
    let outbound = cx.outbounds.get_mut(index);
    outbound.note_error(format_args!("{target}: no member is up"));
    if let Some(held_back) = outbound.failed(cx.now) {
        log::warn!("connect {target} via '{}' for {client}: no member is up{held_back}", outbound.name);
    }
}

/// Logs, unless there were others just now, that what a server sent in the middle of a session is of no use.
pub fn report_broken(cx: &mut Cx<'_>, index: u16, client: SocketAddr, target: SocketAddr, why: &io::Error) {
    let outbound = cx.outbounds.get_mut(index);
    outbound.note_error(format_args!("{target}: {why}"));
    if why.kind() == ErrorKind::InvalidData {
        outbound.bad(cx.now);
    }
    if let Some(held_back) = outbound.failed(cx.now) {
        let server = outbound.server().map(Upstream::display).unwrap_or_default();
        let name = &outbound.name;
        log::warn!("what '{name}' (server {server}) sent from {target} for {client}: {why}{held_back}");
    }
}
