//! SOCKS5 client: greeting, username and password, CONNECT, UDP ASSOCIATE (RFC 1928, RFC 1929). No timeouts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use refusal::{Fault, Refusal};

use super::{Reader, Writer};

mod refusal;

/// Bytes that an output buffer needs so that every step fits: username and password of 255 octets (RFC 1929 section 2).
pub const OUTPUT_MAX: usize = 3 + 255 + 255;

/// Bytes that may have to wait unused: a reply whose BND.ADDR is a name of 255 octets (RFC 1928 section 6).
pub const INPUT_MAX: usize = 4 + 1 + 255 + 2;

/// What is asked of the server: CMD of RFC 1928 section 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Nothing: the handshake is over when the server has taken us in, which is what a health check wants to know.
    Greet = 0x00,
    /// A TCP connection to the target.
    Connect = 0x01,
    /// A UDP relay; the target is where our datagrams will come from, all zeros if not known (RFC 1928 section 7).
    UdpAssociate = 0x03,
}

/// The client's side of one handshake: what is asked for, and how far it has come.
///
/// Kept per session while it dials; received bytes and credentials stay with the caller. A refusal leaves it as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    target: SocketAddr,
    command: Command,
    with_auth: bool,
    stage: Stage,
}

/// What the next step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greet,
    Request,
    AwaitMethod,
    AwaitAuth,
    AwaitReply,
    Over,
}

/// What the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Drop `used` bytes of the input, send `out[..n]`, and step again with what is left of the input.
    Send {
        /// Bytes of the input that are done with.
        used: usize,
        /// Bytes of the output to send.
        n: usize,
    },
    /// Step again when more bytes have come, with all that were passed now in front.
    NeedMore,
    /// The server has done as asked; `input[used..]` is already payload.
    Done {
        /// Bytes of the input that belong to the handshake.
        used: usize,
        /// BND.ADDR and BND.PORT.
        bound: Bound,
    },
}

/// BND.ADDR and BND.PORT of a reply (RFC 1928 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// An address, v4 where it was v4-mapped.
    Address(SocketAddr),
    /// A name, which is not kept: no client needs it for CONNECT, and resolving it for UDP would need a DNS look-up
    /// where in practice the server's own address is meant.
    Name {
        /// BND.PORT.
        port: u16,
    },
}

impl Bound {
    /// Where the datagrams of a UDP ASSOCIATE go, given the address at which the server was reached.
    ///
    /// An unspecified address or a name means the server's own address: servers behind NAT or bound to a wildcard
    /// answer `0.0.0.0`. `None` if the port is 0, to which nothing can be sent.
    pub fn relay(&self, server: SocketAddr) -> Option<SocketAddr> {
        let (mut relay, port) = match *self {
            Bound::Address(bound) if bound.ip().is_unspecified() => (server, bound.port()),
            Bound::Address(bound) => (bound, bound.port()),
            Bound::Name { port } => (server, port),
        };
        relay.set_port(port);
        // A link-local address on the wire lacks its scope; it can only be on the link that led to the server.
        if let (SocketAddr::V6(relay), SocketAddr::V6(server)) = (&mut relay, server)
            && relay.ip().is_unicast_link_local()
        {
            relay.set_scope_id(server.scope_id());
        }
        (port != 0).then_some(relay)
    }
}

impl Handshake {
    /// A handshake that has not begun. `with_auth`: offer username and password beside no authentication; then
    /// credentials must be lent to every step.
    pub fn new(command: Command, target: SocketAddr, with_auth: bool) -> Self {
        Handshake { target, command, with_auth, stage: Stage::Greet }
    }

    /// One that goes on where the server has taken us in already, by a handshake for [`Command::Greet`].
    #[must_use]
    pub fn welcomed(self) -> Self {
        Handshake { stage: Stage::Request, ..self }
    }

    /// Goes on as far as `input` allows. The first step needs no input and yields the greeting.
    ///
    /// `credentials` are username and password, 1 to 255 octets each. `input` is everything that has come and was not
    /// reported as used.
    ///
    /// # Errors
    ///
    /// The refusal as soon as it is certain, even if the server's message is not complete: some close right after the
    /// code.
    pub fn step(&mut self, credentials: Option<(&[u8], &[u8])>, input: &[u8], out: &mut [u8]) -> Result<Step, Refusal> {
        self.step_to(None, credentials, input, out)
    }

    /// [`Self::step`], asking for `name` (at most 255 octets) at the target's port instead of its address. It must be lent
    /// to every step.
    ///
    /// # Errors
    ///
    /// Those of [`Self::step`].
    pub fn step_to(
        &mut self,
        name: Option<&str>,
        credentials: Option<(&[u8], &[u8])>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Step, Refusal> {
        let mut input = Reader::new(input);
        let mut out = Writer::new(out);
        match self.stage {
            Stage::Greet => {
                put_greeting(&mut out, self.with_auth).ok_or(Refusal::OutputTooSmall)?;
                Ok(self.send(&input, &out, Stage::AwaitMethod))
            }
            Stage::Request => self.request(name, &input, &mut out),
            Stage::AwaitMethod => match read_method(&mut input, self.with_auth)? {
                None => Ok(Step::NeedMore),
                Some(NO_AUTH) => self.request(name, &input, &mut out),
                Some(_) => {
                    let (username, password) = credentials.ok_or(Refusal::BadCredentials)?;
                    put_credentials(&mut out, username, password)?;
                    Ok(self.send(&input, &out, Stage::AwaitAuth))
                }
            },
            Stage::AwaitAuth => match read_auth_status(&mut input)? {
                None => Ok(Step::NeedMore),
                Some(()) => self.request(name, &input, &mut out),
            },
            Stage::AwaitReply => match read_reply(&mut input)? {
                None => Ok(Step::NeedMore),
                Some(bound) => {
                    self.stage = Stage::Over;
                    Ok(Step::Done { used: input.used(), bound })
                }
            },
            Stage::Over => Err(Refusal::Over),
        }
    }

    /// How many more bytes may be read without taking any that belong to the tunnel, given the unused `input` so far.
    ///
    /// So the caller never has to keep payload. (But for a reply with a name of two octets or fewer in BND.ADDR, which is
    /// shorter than any with an address: then up to three octets of payload may come along.)
    pub fn wanted(&self, input: &[u8]) -> usize {
        let whole = match self.stage {
            Stage::Greet | Stage::Request | Stage::Over => 0,
            Stage::AwaitMethod | Stage::AwaitAuth => 2,
            Stage::AwaitReply => match (input.get(3), input.get(4)) {
                (Some(&ATYP_V6), _) => 22,
                (Some(&ATYP_NAME), Some(&length)) => 7 + usize::from(length),
                _ => 10,
            },
        };
        whole.saturating_sub(input.len())
    }

    /// What the server has to answer next, for people.
    pub fn awaits(&self) -> &'static str {
        match self.stage {
            Stage::Greet | Stage::AwaitMethod => "greeting",
            Stage::AwaitAuth => "username and password",
            Stage::Request | Stage::AwaitReply | Stage::Over => "request",
        }
    }

    fn request(&mut self, name: Option<&str>, input: &Reader<'_>, out: &mut Writer<'_>) -> Result<Step, Refusal> {
        if self.command == Command::Greet {
            self.stage = Stage::Over;
            return Ok(Step::Done { used: input.used(), bound: Bound::Name { port: 0 } });
        }
        put_request(out, self.command, self.target, name).ok_or(Refusal::OutputTooSmall)?;
        Ok(self.send(input, out, Stage::AwaitReply))
    }

    fn send(&mut self, input: &Reader<'_>, out: &Writer<'_>, next: Stage) -> Step {
        self.stage = next;
        Step::Send { used: input.used(), n: out.written() }
    }
}

/// VER, NMETHODS, METHODS (RFC 1928 section 3).
fn put_greeting(out: &mut Writer<'_>, with_auth: bool) -> Option<()> {
    if with_auth { out.put(&[VERSION, 2, NO_AUTH, PASSWORD]) } else { out.put(&[VERSION, 1, NO_AUTH]) }
}

/// VER, METHOD (RFC 1928 section 3): the method if it was offered.
fn read_method(input: &mut Reader<'_>, with_auth: bool) -> Result<Option<u8>, Refusal> {
    if read_version(input)?.is_none() {
        return Ok(None);
    }
    match input.u8() {
        None => Ok(None),
        Some(NO_AUTH) => Ok(Some(NO_AUTH)),
        Some(PASSWORD) if with_auth => Ok(Some(PASSWORD)),
        Some(NO_METHOD) => Err(Refusal::NoMethod { with_auth }),
        Some(got) => Err(Refusal::UnexpectedMethod { got }),
    }
}

/// VER, ULEN, UNAME, PLEN, PASSWD (RFC 1929 section 2).
fn put_credentials(out: &mut Writer<'_>, username: &[u8], password: &[u8]) -> Result<(), Refusal> {
    let length = |field: &[u8]| match u8::try_from(field.len()) {
        Ok(length @ 1..) => Ok(length),
        _ => Err(Refusal::BadCredentials),
    };
    let (username_length, password_length) = (length(username)?, length(password)?);
    for field in [&[AUTH_VERSION, username_length][..], username, &[password_length], password] {
        out.put(field).ok_or(Refusal::OutputTooSmall)?;
    }
    Ok(())
}

/// VER, STATUS (RFC 1929 section 2).
fn read_auth_status(input: &mut Reader<'_>) -> Result<Option<()>, Refusal> {
    match input.u8() {
        None => return Ok(None),
        Some(AUTH_VERSION) => {}
        Some(got) => return Err(Refusal::AuthVersion { got }),
    }
    match input.u8() {
        None => Ok(None),
        Some(0x00) => Ok(Some(())),
        Some(status) => Err(Refusal::AuthFailed { status }),
    }
}

/// VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT (RFC 1928 section 4).
fn put_request(out: &mut Writer<'_>, command: Command, target: SocketAddr, name: Option<&str>) -> Option<()> {
    out.put(&[VERSION, command as u8, 0x00])?;
    match name {
        None => put_address(out, target),
        Some(name) => put_name(out, name, target.port()),
    }
}

/// Writes ATYP, length, name, port (RFC 1928 section 5); nothing fits if the name is longer than 255 octets.
pub(super) fn put_name(out: &mut Writer<'_>, name: &str, port: u16) -> Option<()> {
    let length = u8::try_from(name.len()).ok()?;
    out.put(&[ATYP_NAME, length])?;
    out.put(name.as_bytes())?;
    out.put(&port.to_be_bytes())
}

/// VER, REP, RSV, ATYP, BND.ADDR, BND.PORT (RFC 1928 section 6).
fn read_reply(input: &mut Reader<'_>) -> Result<Option<Bound>, Refusal> {
    if read_version(input)?.is_none() {
        return Ok(None);
    }
    match input.u8() {
        None => return Ok(None),
        Some(0x00) => {}
        Some(rep) => return Err(Refusal::Reply { rep }),
    }
    // RSV is 0 by the RFC; no meaning hangs on it, so a server that leaves rubbish there is not refused.
    if input.u8().is_none() {
        return Ok(None);
    }
    match read_address(input) {
        Ok(Some(Endpoint::Address(address))) => Ok(Some(Bound::Address(address))),
        Ok(Some(Endpoint::Name { port, .. })) => Ok(Some(Bound::Name { port })),
        Ok(None) => Ok(None),
        Err(got) => Err(Refusal::BadAddressType { got }),
    }
}

fn read_version(input: &mut Reader<'_>) -> Result<Option<()>, Refusal> {
    match input.u8() {
        None => Ok(None),
        Some(VERSION) => Ok(Some(())),
        Some(got) => Err(Refusal::NotSocks5 { got }),
    }
}

/// ATYP, address and port as they stand in replies and in the UDP header.
pub(super) enum Endpoint<'a> {
    Address(SocketAddr),
    Name { name: &'a [u8], port: u16 },
}

/// Writes ATYP, address, port (RFC 1928 section 5). A v4-mapped address goes out as v4, since a server that has only
/// IPv4 could not reach it otherwise.
pub(super) fn put_address(out: &mut Writer<'_>, address: SocketAddr) -> Option<()> {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.put(&[ATYP_V4])?;
            out.put(&ip.octets())?;
        }
        IpAddr::V6(ip) => {
            out.put(&[ATYP_V6])?;
            out.put(&ip.octets())?;
        }
    }
    out.put(&address.port().to_be_bytes())
}

/// Reads ATYP, address, port (RFC 1928 section 5): `None` if there are too few bytes, the unknown ATYP as error.
pub(super) fn read_address<'a>(input: &mut Reader<'a>) -> Result<Option<Endpoint<'a>>, u8> {
    let Some(kind) = input.u8() else { return Ok(None) };
    let endpoint = match kind {
        ATYP_V4 => read_ip::<4>(input, |octets| Ipv4Addr::from(octets).into()),
        ATYP_V6 => read_ip::<16>(input, |octets| Ipv6Addr::from(octets).to_canonical()),
        ATYP_NAME => read_name(input),
        unknown => return Err(unknown),
    };
    Ok(endpoint)
}

fn read_ip<'a, const N: usize>(input: &mut Reader<'a>, ip: fn([u8; N]) -> IpAddr) -> Option<Endpoint<'a>> {
    let ip = ip(input.array()?);
    Some(Endpoint::Address(SocketAddr::new(ip, input.u16()?)))
}

fn read_name<'a>(input: &mut Reader<'a>) -> Option<Endpoint<'a>> {
    let length = input.u8()?;
    let name = input.take(usize::from(length))?;
    Some(Endpoint::Name { name, port: input.u16()? })
}

const VERSION: u8 = 0x05;
/// X'00' NO AUTHENTICATION REQUIRED (RFC 1928 section 3).
const NO_AUTH: u8 = 0x00;
/// X'02' USERNAME/PASSWORD (RFC 1928 section 3).
const PASSWORD: u8 = 0x02;
/// X'FF' NO ACCEPTABLE METHODS (RFC 1928 section 3).
const NO_METHOD: u8 = 0xff;
/// VER of the username/password subnegotiation (RFC 1929 section 2).
const AUTH_VERSION: u8 = 0x01;
const ATYP_V4: u8 = 0x01;
const ATYP_NAME: u8 = 0x03;
const ATYP_V6: u8 = 0x04;

#[cfg(test)]
mod tests;
