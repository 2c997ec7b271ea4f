//! The clients, which measure.

use crate::measure::Meter;
use crate::socks::{put_address, read_address};
use crate::wire::{BUFFER, MESSAGE, PACE, Stop, Stream, Wish, begin, watch};
use mio::{Events, Poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Longest silence of the other end before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);

type Outcome = Result<String, String>;

/// The server that clients ask in place of a transparent proxy.
fn upstream() -> Option<SocketAddr> {
    std::env::var("LOAD_SOCKS").ok()?.parse().ok()
}

fn request(command: u8, to: SocketAddr) -> Vec<u8> {
    let mut octets = vec![5, command, 0];
    put_address(&mut octets, to);
    octets
}

/// Connects, waiting; through `proxy` if there is one. Returns the address that the proxy named, too.
fn connect(proxy: Option<SocketAddr>, command: u8, to: SocketAddr) -> io::Result<(TcpStream, SocketAddr)> {
    let mut stream = TcpStream::connect_timeout(&proxy.unwrap_or(to), PATIENCE)?;
    stream.set_nodelay(true)?;
    let mut named = to;
    if proxy.is_some() {
        stream.write_all(&[5, 1, 0])?;
        stream.read_exact(&mut [0; 2])?;
        stream.write_all(&request(command, to))?;
        let mut answer = [0; 22];
        let mut have = 0;
        loop {
            have += stream.read(&mut answer[have..])?;
            if let Some((address, _)) = read_address(&answer[3.min(have)..have]) {
                named = address;
                break;
            }
        }
    }
    Ok((stream, named))
}

/// One connection of [`bulk`].
struct Transfer {
    stream: TcpStream,
    out: Option<Stream>,
    left: u64,
}

/// Moves bytes through several connections at once.
pub(crate) fn bulk(to: SocketAddr, up: bool, mib: usize, streams: usize, mbit: usize) -> Outcome {
    let io = |e: io::Error| e.to_string();
    let each = ((mib as u64) << 20) / streams as u64;
    let rate = mbit as u64 * 125_000 / streams as u64;
    let mut poll = Poll::new().map_err(io)?;
    let mut events = Events::with_capacity(64);
    let mut buffer = vec![0; BUFFER];
    let meter = Meter::start();
    let mut transfers = Vec::new();
    for place in 0..streams {
        let (mut stream, _) = connect(upstream(), 1, to).map_err(|e| format!("cannot connect: {e}"))?;
        let wish = if up { Wish::Upload(each) } else { Wish::Download(each, rate) };
        stream.write_all(&wish.message()).map_err(io)?;
        stream.set_nonblocking(true).map_err(io)?;
        watch(&poll, &stream, place).map_err(io)?;
        let (out, left) = if up { (Some(Stream::new(each, rate)), MESSAGE as u64) } else { (None, each) };
        transfers.push(Transfer { stream, out, left });
    }
    let mut open = streams;
    let mut due: Vec<usize> = (0..streams).collect();
    let mut paced: Vec<usize> = Vec::new();
    let mut heard = Instant::now();
    while open > 0 {
        for place in due.drain(..) {
            let transfer = &mut transfers[place];
            if transfer.left == 0 {
                continue;
            }
            if let Some(out) = &mut transfer.out {
                match out.push(&mut transfer.stream, &buffer).map_err(io)? {
                    Stop::Done => transfer.out = None,
                    Stop::TooFast => paced.push(place),
                    Stop::Full => {}
                }
                heard = Instant::now();
            }
            loop {
                match transfer.stream.read(&mut buffer) {
                    Ok(0) => return Err(format!("ended with {} bytes to come", transfer.left)),
                    Ok(n) => {
                        heard = Instant::now();
                        transfer.left = transfer.left.saturating_sub(n as u64);
                        if transfer.left == 0 {
                            open -= 1;
                            break;
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => return Err(io(e)),
                }
            }
        }
        if open == 0 {
            break;
        }
        if heard.elapsed() > PATIENCE {
            return Err("nothing moves any more".to_owned());
        }
        poll.poll(&mut events, Some(if paced.is_empty() { Duration::from_secs(1) } else { PACE })).map_err(io)?;
        due.append(&mut paced);
        for event in &events {
            let place = event.token().0;
            if !due.contains(&place) {
                due.push(place);
            }
        }
    }
    drop(transfers);
    Ok(meter.finish(mib, 0, Vec::new()))
}

/// One connection of [`short`].
struct Short {
    stream: TcpStream,
    began: Instant,
    stage: Stage,
    have: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Connecting,
    Greeted,
    Requested,
    Asked,
}

impl Short {
    /// Goes on as far as the socket allows; true: it is over.
    fn advance(&mut self, to: SocketAddr, proxied: bool) -> io::Result<bool> {
        let mut buffer = [0; MESSAGE];
        loop {
            let want = match self.stage {
                Stage::Connecting => {
                    let first: &[u8] = if proxied { &[5, 1, 0] } else { &Wish::Answer.message() };
                    self.stage = match self.stream.write(first) {
                        Ok(_) if proxied => Stage::Greeted,
                        Ok(_) => Stage::Asked,
                        Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                        Err(e) => return Err(e),
                    };
                    continue;
                }
                Stage::Greeted => 2,
                Stage::Requested => {
                    if to.is_ipv4() {
                        10
                    } else {
                        22
                    }
                }
                Stage::Asked => MESSAGE,
            };
            match self.stream.read(&mut buffer[..want - self.have]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.have += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
            if self.have == want {
                self.have = 0;
                match self.stage {
                    Stage::Greeted => {
                        self.stream.write_all(&request(1, to))?;
                        self.stage = Stage::Requested;
                    }
                    Stage::Requested => {
                        self.stream.write_all(&Wish::Answer.message())?;
                        self.stage = Stage::Asked;
                    }
                    Stage::Connecting | Stage::Asked => return Ok(true),
                }
            }
        }
    }
}

/// Opens and ends connections.
pub(crate) fn short(to: SocketAddr, count: usize, concurrent: usize) -> Outcome {
    let io = |e: io::Error| e.to_string();
    let mut poll = Poll::new().map_err(io)?;
    let mut events = Events::with_capacity(256);
    let proxy = upstream();
    let mut open: Vec<Option<Short>> = (0..concurrent).map(|_| None).collect();
    let (mut started, mut ended, mut failed) = (0, 0, 0);
    let mut waits = Vec::with_capacity(count);
    let meter = Meter::start();
    while ended < count {
        for (place, slot) in open.iter_mut().enumerate() {
            if slot.is_none() && started < count {
                let stream = begin(proxy.unwrap_or(to)).map_err(|e| format!("cannot connect: {e}"))?;
                watch(&poll, &stream, place).map_err(io)?;
                *slot = Some(Short { stream, began: Instant::now(), stage: Stage::Connecting, have: 0 });
                started += 1;
            }
        }
        poll.poll(&mut events, Some(PATIENCE)).map_err(io)?;
        if events.is_empty() {
            failed += count - ended;
            break;
        }
        for event in &events {
            let slot = &mut open[event.token().0];
            let Some(connection) = slot else { continue };
            match connection.advance(to, proxy.is_some()) {
                Ok(false) => continue,
                Ok(true) => waits.push(connection.began.elapsed()),
                Err(_) => failed += 1,
            }
            ended += 1;
            *slot = None;
        }
    }
    Ok(meter.finish(count, failed, waits))
}

/// Sends datagrams and waits for their echo.
pub(crate) fn datagrams(to: SocketAddr, count: usize, size: usize, window: usize, flows: usize) -> Outcome {
    let io = |e: io::Error| e.to_string();
    let mut poll = Poll::new().map_err(io)?;
    let mut events = Events::with_capacity(256);
    let proxy = upstream();
    let mut payload = Vec::new();
    if proxy.is_some() {
        payload.extend([0, 0, 0]);
        put_address(&mut payload, to);
    }
    let wanted = payload.len() + size;
    payload.resize(wanted, 7);
    let any = if to.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let mut buffer = vec![0; BUFFER];
    let meter = Meter::start();
    let (mut sockets, mut controls) = (Vec::new(), Vec::new());
    for place in 0..flows {
        let mut peer = to;
        if proxy.is_some() {
            let (control, named) = connect(proxy, 3, any).map_err(|e| format!("cannot associate: {e}"))?;
            controls.push(control);
            peer = named;
        }
        let socket = UdpSocket::bind(any).map_err(io)?;
        socket.connect(peer).map_err(io)?;
        socket.set_nonblocking(true).map_err(io)?;
        watch(&poll, &socket, place).map_err(io)?;
        sockets.push(socket);
    }
    let (mut sent, mut got, mut lost) = (0, 0, 0);
    while got + lost < count {
        while sent < count && sent - got - lost < window {
            // one that does not go out is missed below
            let _ = sockets[sent % flows].send(&payload);
            sent += 1;
        }
        poll.poll(&mut events, Some(Duration::from_secs(1))).map_err(io)?;
        if events.is_empty() {
            lost = sent - got;
        }
        for event in &events {
            let socket = &sockets[event.token().0];
            while let Ok(n) = socket.recv(&mut buffer) {
                got += usize::from(n == wanted);
            }
        }
    }
    Ok(meter.finish(count, lost, Vec::new()))
}
