//! A SOCKS5 server (RFC 1928) without passwords or names, light enough not to be what is measured.

use crate::wire::{BUFFER, Table, begin, watch};
use mio::{Events, Poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};

const LISTENER: usize = 0;
const FIRST: usize = 1;

enum Thing {
    /// A connection, and what waits to be written to it.
    Connection { stream: TcpStream, pending: Vec<u8>, stage: Stage },
    /// Where a client's datagrams arrive, the socket that they leave by, and who the client is.
    Inside { socket: UdpSocket, outside: usize, client: Option<SocketAddr> },
    /// Where datagrams leave and answers arrive.
    Outside { socket: UdpSocket, inside: usize },
}

#[derive(Clone, Copy)]
enum Stage {
    Greeting,
    Asking,
    /// The connection to the destination, which is not there yet; the client is `peer`.
    Connecting {
        peer: usize,
    },
    Passing {
        peer: usize,
        ended: bool,
    },
    Associated {
        inside: usize,
        outside: usize,
    },
}

struct Server {
    poll: Poll,
    things: Table<Thing>,
    buffer: Vec<u8>,
}

/// Serves for ever.
pub(crate) fn serve(here: SocketAddr) -> io::Result<String> {
    let listener = TcpListener::bind(here)?;
    listener.set_nonblocking(true)?;
    let mut server = Server { poll: Poll::new()?, things: Table::new(), buffer: vec![0; BUFFER] };
    watch(&server.poll, &listener, LISTENER)?;
    let mut events = Events::with_capacity(256);
    loop {
        match server.poll.poll(&mut events, None) {
            Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
            _ => {}
        }
        for event in &events {
            match event.token().0 {
                LISTENER => {
                    while let Ok((stream, _)) = listener.accept() {
                        stream.set_nonblocking(true)?;
                        stream.set_nodelay(true)?;
                        server.add(stream, Stage::Greeting)?;
                    }
                }
                token => server.advance(token - FIRST),
            }
        }
    }
}

impl Server {
    fn add(&mut self, stream: TcpStream, stage: Stage) -> io::Result<usize> {
        let fd = stream.try_clone()?;
        let place = self.things.insert(Thing::Connection { stream, pending: Vec::new(), stage });
        watch(&self.poll, &fd, place + FIRST).map(|()| place)
    }

    /// Goes on with a thing that became ready; what fails takes what belongs to it along.
    fn advance(&mut self, place: usize) {
        let result = match self.things.get(place) {
            None => return,
            Some(Thing::Inside { .. }) => self.datagram_of_client(place),
            Some(Thing::Outside { .. }) => self.answer_to_client(place),
            Some(Thing::Connection { stage, .. }) => match *stage {
                Stage::Greeting | Stage::Asking => self.handshake(place),
                Stage::Connecting { peer } => self.connected(place, peer),
                Stage::Passing { peer, .. } => self.pass(place, peer).and_then(|()| self.pass(peer, place)),
                Stage::Associated { .. } => self.control(place),
            },
        };
        if result.is_err() {
            self.end(place);
        }
    }

    fn end(&mut self, place: usize) {
        match self.things.remove(place) {
            Some(Thing::Connection { stage: Stage::Passing { peer, .. } | Stage::Connecting { peer }, .. }) => {
                self.things.remove(peer);
            }
            Some(Thing::Connection { stage: Stage::Associated { inside, outside }, .. }) => {
                self.things.remove(inside);
                self.things.remove(outside);
            }
            _ => {}
        }
    }

    fn handshake(&mut self, place: usize) -> io::Result<()> {
        let Server { things, buffer, .. } = self;
        let Some(Thing::Connection { stream, pending, stage }) = things.get(place) else { return Ok(()) };
        let n = match stream.read(&mut buffer[..512]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        };
        pending.extend_from_slice(&buffer[..n]);
        if matches!(stage, Stage::Greeting)
            && let [5, methods, ..] = pending[..]
            && pending.len() >= 2 + usize::from(methods)
        {
            pending.drain(..2 + usize::from(methods));
            stream.write_all(&[5, 0])?;
            *stage = Stage::Asking;
        }
        if !matches!(stage, Stage::Asking) {
            return Ok(());
        }
        let Some((to, used)) = pending.get(3..).and_then(read_address) else { return Ok(()) };
        let command = pending[1];
        let rest = pending.split_off(3 + used);
        pending.clear();
        let local = stream.local_addr()?;
        match command {
            1 => {
                let peer = self.add(begin(to)?, Stage::Connecting { peer: place })?;
                // what came before our answer goes out first
                if let Some(Thing::Connection { pending, .. }) = self.things.get(peer) {
                    *pending = rest;
                }
                self.set_stage(place, Stage::Passing { peer, ended: false });
                Ok(())
            }
            3 => self.associate(place, local.ip()),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }

    fn set_stage(&mut self, place: usize, to: Stage) {
        if let Some(Thing::Connection { stage, .. }) = self.things.get(place) {
            *stage = to;
        }
    }

    fn connected(&mut self, place: usize, peer: usize) -> io::Result<()> {
        let Some(Thing::Connection { stream, .. }) = self.things.get(place) else { return Ok(()) };
        if let Some(e) = stream.take_error()? {
            return Err(e);
        }
        let mut answer = vec![5, 0, 0];
        put_address(&mut answer, stream.local_addr()?);
        self.set_stage(place, Stage::Passing { peer, ended: false });
        if let Some(Thing::Connection { stream, .. }) = self.things.get(peer) {
            stream.write_all(&answer)?;
        }
        self.pass(peer, place)?;
        self.pass(place, peer)
    }

    /// Moves what can be moved from one connection to the other.
    fn pass(&mut self, from: usize, to: usize) -> io::Result<()> {
        loop {
            let Some(Thing::Connection { stream, pending, stage }) = self.things.get(to) else { return Ok(()) };
            if matches!(stage, Stage::Connecting { .. }) {
                return Ok(());
            }
            while !pending.is_empty() {
                match stream.write(pending) {
                    Ok(n) => drop(pending.drain(..n)),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                    Err(e) => return Err(e),
                }
            }
            let Server { things, buffer, .. } = self;
            let Some(Thing::Connection { stream, stage: Stage::Passing { ended, .. }, .. }) = things.get(from) else {
                return Ok(());
            };
            if *ended {
                return Ok(());
            }
            let n = match stream.read(buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            };
            if n == 0 {
                *ended = true;
                return self.pass_end(to);
            }
            let Some(Thing::Connection { stream, pending, .. }) = things.get(to) else { return Ok(()) };
            let written = match stream.write(&buffer[..n]) {
                Ok(written) => written,
                Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
                Err(e) => return Err(e),
            };
            pending.extend_from_slice(&buffer[written..n]);
        }
    }

    /// `to` gets nothing more. When both have ended, both go.
    fn pass_end(&mut self, to: usize) -> io::Result<()> {
        let Some(Thing::Connection { stream, stage, .. }) = self.things.get(to) else { return Ok(()) };
        match stage {
            Stage::Passing { ended: true, .. } => Err(ErrorKind::UnexpectedEof.into()),
            _ => stream.shutdown(Shutdown::Write),
        }
    }

    fn associate(&mut self, place: usize, ip: IpAddr) -> io::Result<()> {
        let here = UdpSocket::bind(SocketAddr::new(ip, 0))?;
        let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let out = UdpSocket::bind(SocketAddr::new(any, 0))?;
        here.set_nonblocking(true)?;
        out.set_nonblocking(true)?;
        let mut answer = vec![5, 0, 0];
        put_address(&mut answer, here.local_addr()?);
        let (here_fd, out_fd) = (here.try_clone()?, out.try_clone()?);
        let inside = self.things.insert(Thing::Inside { socket: here, outside: 0, client: None });
        let outside = self.things.insert(Thing::Outside { socket: out, inside });
        if let Some(Thing::Inside { outside: of, .. }) = self.things.get(inside) {
            *of = outside;
        }
        watch(&self.poll, &here_fd, inside + FIRST)?;
        watch(&self.poll, &out_fd, outside + FIRST)?;
        self.set_stage(place, Stage::Associated { inside, outside });
        if let Some(Thing::Connection { stream, .. }) = self.things.get(place) {
            stream.write_all(&answer)?;
        }
        Ok(())
    }

    fn control(&mut self, place: usize) -> io::Result<()> {
        let Some(Thing::Connection { stream, .. }) = self.things.get(place) else { return Ok(()) };
        match stream.read(&mut [0; 16]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
            _ => Ok(()),
        }
    }

    fn datagram_of_client(&mut self, place: usize) -> io::Result<()> {
        let Server { things, buffer, .. } = self;
        loop {
            let Some(Thing::Inside { socket, outside, client }) = things.get(place) else { return Ok(()) };
            let Ok((n, from)) = socket.recv_from(buffer) else { return Ok(()) };
            *client = Some(from);
            let outside = *outside;
            let Some(Thing::Outside { socket, .. }) = things.get(outside) else { return Ok(()) };
            if let Some((to, used)) = buffer[..n].get(3..).and_then(read_address) {
                // what does not go out is missed by the client, which says so
                let _ = socket.send_to(&buffer[3 + used..n], to);
            }
        }
    }

    fn answer_to_client(&mut self, place: usize) -> io::Result<()> {
        // RSV, FRAG and the longest address stand before the payload
        const ROOM: usize = 22;
        let Server { things, buffer, .. } = self;
        loop {
            let Some(Thing::Outside { socket, inside }) = things.get(place) else { return Ok(()) };
            let Ok((n, from)) = socket.recv_from(&mut buffer[ROOM..]) else { return Ok(()) };
            let inside = *inside;
            let mut header = vec![0, 0, 0];
            put_address(&mut header, from);
            let start = ROOM - header.len();
            buffer[start..ROOM].copy_from_slice(&header);
            if let Some(Thing::Inside { socket, client: Some(client), .. }) = things.get(inside) {
                let _ = socket.send_to(&buffer[start..ROOM + n], *client);
            }
        }
    }
}

/// ATYP, address and port, and how many octets they take.
pub(crate) fn read_address(octets: &[u8]) -> Option<(SocketAddr, usize)> {
    let (ip, used): (IpAddr, usize) = match octets.first()? {
        1 => (Ipv4Addr::from(<[u8; 4]>::try_from(octets.get(1..5)?).ok()?).into(), 5),
        4 => (Ipv6Addr::from(<[u8; 16]>::try_from(octets.get(1..17)?).ok()?).into(), 17),
        _ => return None,
    };
    let port = octets.get(used..used + 2)?.try_into().ok().map(u16::from_be_bytes)?;
    Some((SocketAddr::new(ip, port), used + 2))
}

/// The same, written.
pub(crate) fn put_address(to: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => to.extend([1].iter().chain(&ip.octets())),
        IpAddr::V6(ip) => to.extend([4].iter().chain(&ip.octets())),
    }
    to.extend(address.port().to_be_bytes());
}
