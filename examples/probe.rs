//! Both ends of the traffic in an emulated router: an echo server, and clients that check what comes back.
//!
//! A static program without dependencies but mio, because such a router has neither Python nor curl (`ci/emulate`).
//! Each command ends with status 0 and one line of figures, or with 1 and what went wrong.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

const USAGE: &str = "\
probe serve ADDR:PORT            echoes TCP and UDP there; TCP is greeted by a line with the peer's address
probe socks ADDR:PORT            a SOCKS5 server without passwords: CONNECT and UDP ASSOCIATE
probe tcp ADDR:PORT BYTES        sends BYTES, half-closes, and expects them back
probe udp ADDR:PORT              sends datagrams from 0 to 60000 bytes, and expects each back from that address
probe flows ADDR:PORT COUNT      one datagram each way from COUNT sockets that stay open
probe hold ADDR:PORT COUNT CMD…  opens COUNT connections, checks each, and runs CMD while all are open";

/// Longest wait for anything: an emulated router is slow, but not that slow.
const PATIENCE: Duration = Duration::from_secs(30);
/// Datagram that asks the server whom it sees.
const WHO: &[u8] = b"who am I?";
/// Sizes on both sides of what an Ethernet frame carries, and of what needs many fragments.
const DATAGRAMS: [usize; 7] = [1, 0, 512, 1472, 1473, 9000, 60_000];

type Outcome = Result<String, String>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["serve", here] => address(here).and_then(|here| serve(here).map_err(|e| format!("cannot serve: {e}"))),
        ["socks", here] => address(here).and_then(|here| socks(here).map_err(|e| format!("cannot serve: {e}"))),
        ["tcp", to, bytes] => address(to).and_then(|to| tcp(to, number(bytes)?)),
        ["udp", to] => address(to).and_then(udp),
        ["flows", to, count] => address(to).and_then(|to| flows(to, number(count)?)),
        ["hold", to, count, command @ ..] => address(to).and_then(|to| hold(to, number(count)?, command)),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("probe {}: {reason}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_| format!("'{word}' is no number"))
}

fn address(word: &str) -> Result<SocketAddr, String> {
    word.parse().map_err(|_| format!("'{word}' is no address with a port"))
}

/// Octet `i` of what is sent: neighbours differ, and so do blocks, so that loss and disorder both show.
fn pattern(i: usize) -> u8 {
    (i ^ (i >> 8) ^ (i >> 16)) as u8
}

fn bytes(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(pattern).collect()
}

fn connect(to: SocketAddr) -> Result<(TcpStream, SocketAddr), String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(|e| format!("cannot connect: {e}"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    let mut greeting = Vec::new();
    let mut octet = [0];
    while octet != [b'\n'] {
        stream.read_exact(&mut octet).map_err(|e| format!("no greeting: {e}"))?;
        greeting.push(octet[0]);
    }
    let seen = String::from_utf8_lossy(&greeting);
    let seen = seen.trim().parse().map_err(|_| format!("greeted by '{seen}'"))?;
    Ok((stream, seen))
}

fn tcp(to: SocketAddr, len: usize) -> Outcome {
    let (mut stream, seen) = connect(to)?;
    let mut out = stream.try_clone().map_err(|e| e.to_string())?;
    let sender = thread::spawn(move || -> io::Result<()> {
        for from in (0..len).step_by(8192) {
            out.write_all(&bytes(from, 8192.min(len - from)))?;
        }
        out.shutdown(Shutdown::Write)
    });
    let mut got = 0;
    let mut buffer = [0; 8192];
    loop {
        let n = stream.read(&mut buffer).map_err(|e| format!("after {got} bytes: {e}"))?;
        if n == 0 {
            break;
        }
        if let Some(i) = (0..n).find(|&i| buffer[i] != pattern(got + i)) {
            return Err(format!("octet {} came back changed", got + i));
        }
        got += n;
    }
    sender.join().map_err(|_| "the sender panicked")?.map_err(|e| format!("cannot send: {e}"))?;
    if got != len {
        return Err(format!("{got} of {len} bytes came back"));
    }
    Ok(format!("tcp {to}: {got} bytes there and back, seen as {seen}"))
}

fn datagram_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// Sends one datagram and waits for the answer, which must come from where it went.
fn exchange(socket: &UdpSocket, to: SocketAddr, payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut buffer = vec![0; 65_535];
    socket.send_to(payload, to).map_err(|e| format!("cannot send {} bytes: {e}", payload.len()))?;
    let (n, from) = socket.recv_from(&mut buffer).map_err(|e| format!("no answer to {} bytes: {e}", payload.len()))?;
    if from != to {
        return Err(format!("the answer came from {from}"));
    }
    buffer.truncate(n);
    Ok(buffer)
}

fn udp(to: SocketAddr) -> Outcome {
    let socket = datagram_socket(to).map_err(|e| e.to_string())?;
    for len in DATAGRAMS {
        let payload = bytes(len, len);
        if exchange(&socket, to, &payload)? != payload {
            return Err(format!("a datagram of {len} bytes came back changed"));
        }
    }
    let seen = String::from_utf8_lossy(&exchange(&socket, to, WHO)?).into_owned();
    Ok(format!("udp {to}: {} datagrams there and back, seen as {seen}", DATAGRAMS.len()))
}

fn flows(to: SocketAddr, count: usize) -> Outcome {
    let mut open = Vec::new();
    for i in 0..count {
        let socket = datagram_socket(to).map_err(|e| format!("socket {i}: {e}"))?;
        exchange(&socket, to, &bytes(i, 64)).map_err(|e| format!("flow {i}: {e}"))?;
        open.push(socket);
    }
    Ok(format!("flows {to}: {count} answered"))
}

fn hold(to: SocketAddr, count: usize, command: &[&str]) -> Outcome {
    let mut open = Vec::new();
    for i in 0..count {
        open.push(connect(to).map_err(|e| format!("connection {i}: {e}"))?.0);
    }
    for (i, stream) in open.iter_mut().enumerate() {
        let sent = bytes(i, 64);
        let mut got = [0; 64];
        stream
            .write_all(&sent)
            .and_then(|()| stream.read_exact(&mut got))
            .map_err(|e| format!("connection {i}: {e}"))?;
        if got[..] != sent {
            return Err(format!("connection {i} gave back something else"));
        }
    }
    if let [program, args @ ..] = command {
        let status = Command::new(program).args(args).status().map_err(|e| format!("cannot run {program}: {e}"))?;
        if !status.success() {
            return Err(format!("{program} ended with {status}"));
        }
    }
    Ok(format!("hold {to}: {count} connections at once"))
}

/// One client of the echo server, and what it has not taken yet.
struct Echo {
    stream: TcpStream,
    pending: Vec<u8>,
    ended: bool,
}

impl Echo {
    /// Moves what can be moved; false once both sides have ended.
    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            while !self.pending.is_empty() {
                match self.stream.write(&self.pending) {
                    Ok(n) => drop(self.pending.drain(..n)),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                    Err(e) => return Err(e),
                }
            }
            if self.ended {
                return Ok(false);
            }
            match self.stream.read(buffer) {
                Ok(0) => self.ended = true,
                Ok(n) => self.pending.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            }
        }
    }
}

fn serve(here: SocketAddr) -> io::Result<String> {
    const TCP: Token = Token(0);
    const UDP: Token = Token(1);
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(64);
    let listener = TcpListener::bind(here)?;
    let datagrams = UdpSocket::bind(here)?;
    listener.set_nonblocking(true)?;
    datagrams.set_nonblocking(true)?;
    poll.registry().register(&mut SourceFd(&listener.as_raw_fd()), TCP, Interest::READABLE)?;
    poll.registry().register(&mut SourceFd(&datagrams.as_raw_fd()), UDP, Interest::READABLE)?;
    let mut clients: Vec<Option<Echo>> = Vec::new();
    let mut buffer = vec![0; 65_535];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                TCP => {
                    while let Ok((stream, peer)) = listener.accept() {
                        stream.set_nonblocking(true)?;
                        let slot = clients.iter().position(Option::is_none).unwrap_or_else(|| {
                            clients.push(None);
                            clients.len() - 1
                        });
                        let source = &mut SourceFd(&stream.as_raw_fd());
                        poll.registry().register(source, Token(slot + 2), Interest::READABLE | Interest::WRITABLE)?;
                        let pending = format!("{}\n", peer).into_bytes();
                        clients[slot] = Some(Echo { stream, pending, ended: false });
                    }
                }
                UDP => {
                    while let Ok((n, peer)) = datagrams.recv_from(&mut buffer) {
                        let seen = peer.to_string();
                        let answer = if buffer[..n] == *WHO { seen.as_bytes() } else { &buffer[..n] };
                        // What does not go out is missed by the client, which says so.
                        let _ = datagrams.send_to(answer, peer);
                    }
                }
                Token(slot) => {
                    if let Some(client) = &mut clients[slot - 2]
                        && !client.advance(&mut buffer).unwrap_or(false)
                    {
                        clients[slot - 2] = None;
                    }
                }
            }
        }
    }
}

/// Version 5 (RFC 1928); the rest of the octets have their names where they are used.
const SOCKS: u8 = 5;

fn socks(here: SocketAddr) -> io::Result<String> {
    let listener = TcpListener::bind(here)?;
    loop {
        let (client, _) = listener.accept()?;
        // What goes wrong with one client is seen by that client: its connection ends.
        thread::spawn(move || socks_client(client));
    }
}

fn socks_client(mut client: TcpStream) -> io::Result<()> {
    const CONNECT: u8 = 1;
    const UDP_ASSOCIATE: u8 = 3;
    const NO_AUTHENTICATION: u8 = 0;
    let [_, methods] = take(&mut client)?;
    io::copy(&mut (&client).take(methods.into()), &mut io::sink())?;
    client.write_all(&[SOCKS, NO_AUTHENTICATION])?;
    let [_, command, _] = take(&mut client)?;
    let to = read_address(&mut client)?;
    match command {
        CONNECT => {
            let server = TcpStream::connect(to)?;
            client.write_all(&reply(server.local_addr()?))?;
            let (from_server, to_client) = (server.try_clone()?, client.try_clone()?);
            let down = thread::spawn(move || pass(from_server, to_client));
            pass(client, server)?;
            down.join().unwrap_or(Ok(()))
        }
        UDP_ASSOCIATE => {
            let relay = UdpSocket::bind(SocketAddr::new(client.local_addr()?.ip(), 0))?;
            client.write_all(&reply(relay.local_addr()?))?;
            let outside = UdpSocket::bind("[::]:0")?;
            let (up, down) = (relay.try_clone()?, outside.try_clone()?);
            let first = relay.peek_from(&mut [0])?.1;
            thread::spawn(move || associate_up(&up, &down));
            thread::spawn(move || associate_down(&outside, &relay, first));
            // The association lives as long as its connection; the threads end with the process.
            io::copy(&mut client, &mut io::sink()).map(drop)
        }
        _ => Ok(()),
    }
}

fn take<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut octets = [0; N];
    from.read_exact(&mut octets)?;
    Ok(octets)
}

fn pass(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}

fn associate_up(relay: &UdpSocket, outside: &UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; 65_535];
    loop {
        let n = relay.recv(&mut buffer)?;
        let mut rest = &buffer[3..n];
        let to = match read_address(&mut rest)? {
            SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            v6 => v6,
        };
        outside.send_to(rest, to)?;
    }
}

fn associate_down(outside: &UdpSocket, relay: &UdpSocket, client: SocketAddr) -> io::Result<()> {
    let mut buffer = vec![0; 65_535];
    loop {
        let (n, from) = outside.recv_from(&mut buffer)?;
        let mut datagram = vec![0, 0, 0];
        put_address(&mut datagram, SocketAddr::new(from.ip().to_canonical(), from.port()));
        datagram.extend_from_slice(&buffer[..n]);
        relay.send_to(&datagram, client)?;
    }
}

/// ATYP, address and port, as RFC 1928 section 5 has them; names are for others to test.
fn read_address(from: &mut impl Read) -> io::Result<SocketAddr> {
    let ip: IpAddr = match take(from)? {
        [1] => Ipv4Addr::from(take::<4>(from)?).into(),
        [4] => Ipv6Addr::from(take::<16>(from)?).into(),
        [other] => return Err(io::Error::other(format!("address type {other}"))),
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(take(from)?)))
}

fn put_address(to: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => to.extend([1].iter().chain(&ip.octets())),
        IpAddr::V6(ip) => to.extend([4].iter().chain(&ip.octets())),
    }
    to.extend(address.port().to_be_bytes());
}

fn reply(bound: SocketAddr) -> Vec<u8> {
    let mut octets = vec![SOCKS, 0, 0];
    put_address(&mut octets, bound);
    octets
}
