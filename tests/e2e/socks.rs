//! A SOCKS5 server (RFC 1928, 1929) that behaves or misbehaves on command, and tells what it was asked.

use std::io::{self, PipeReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::ns::{Namespace, first_readable, reset_on_close};
use crate::process::Service;
use crate::sock::{PATIENCE, listen};

/// How the server treats its clients; the default is: as the RFC says.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// Demands this user name and password.
    pub login: Option<(&'static str, &'static str)>,
    /// Closes the connection instead of answering this message.
    pub dies_at: Option<Stage>,
    /// Answers the greeting by octets that are not SOCKS, each in a segment of its own.
    pub garbage: bool,
    /// Answers every request with this reply code.
    pub refuses: Option<u8>,
    /// Reads everything, answers nothing.
    pub mute: bool,
    /// Thinks for so long before it answers the greeting.
    pub waits: Duration,
    /// Sends every handshake octet in a segment of its own.
    pub dribbles: bool,
    /// Sent in one segment with the reply to CONNECT, before what the destination says.
    pub glue: &'static [u8],
    /// What the reply says of the bound address.
    pub bound: Bound,
}

/// A message of the client's during the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Greeting,
    Login,
    Request,
}

/// The address in a reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bound {
    /// The true one.
    #[default]
    True,
    /// All zeros with the true port: "the address that you know me by".
    Unspecified,
    /// A domain name (CONNECT alone, where nobody needs it).
    Domain,
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A TCP connection came in, from there.
    Came(SocketAddr),
    /// It logged in.
    Login(String, String),
    /// CONNECT.
    Connect(SocketAddr),
    /// UDP ASSOCIATE; later, the first datagram to each destination.
    Associate(SocketAddr),
    /// The client closed a connection that it had used for UDP ASSOCIATE, or whose handshake was not done.
    Gone,
}

/// The server; it stops listening when dropped, and its associations end.
pub struct Socks {
    manners: Arc<Mutex<Manners>>,
    asked: Receiver<Asked>,
    _service: Service,
}

impl Socks {
    /// Listens in `ns`.
    pub fn start(ns: &Namespace, ip: IpAddr, port: u16, manners: Manners) -> Socks {
        let listener = listen(ns, ip, port);
        let manners = Arc::new(Mutex::new(manners));
        let (tell, asked) = channel();
        let (ns, shared) = (ns.clone(), Arc::clone(&manners));
        let service = Service::start(move |stop| {
            Server { ns, manners: shared, tell, stop: Arc::new(stop) }.serve(&listener);
        });
        Socks { manners, asked, _service: service }
    }

    /// Changes the manners for connections to come.
    pub fn become_like(&self, manners: Manners) {
        *self.manners.lock().expect("no poison") = manners;
    }

    /// The next thing that a client asked, waiting for it.
    pub fn next(&self) -> Asked {
        self.asked.recv_timeout(PATIENCE).expect("nobody asked the SOCKS5 server anything")
    }

    /// Passes over what else was asked until `found` picks something.
    pub fn find<T>(&self, mut found: impl FnMut(Asked) -> Option<T>) -> T {
        loop {
            if let Some(it) = found(self.next()) {
                return it;
            }
        }
    }

    /// Everything that was asked and not yet looked at.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.try_iter().collect()
    }
}

#[derive(Clone)]
struct Server {
    ns: Namespace,
    manners: Arc<Mutex<Manners>>,
    tell: Sender<Asked>,
    stop: Arc<PipeReader>,
}

impl Server {
    fn serve(&self, listener: &TcpListener) {
        let forever = Duration::from_secs(3600);
        while first_readable(&[self.stop.as_fd(), listener.as_fd()], forever) == Some(1) {
            let Ok((stream, from)) = listener.accept() else { continue };
            self.tell(Asked::Came(from));
            let server = self.clone();
            thread::spawn(move || {
                // An error here is a client or destination that went away, which is what tests make them do.
                let _ = server.attend(stream);
            });
        }
    }

    fn tell(&self, asked: Asked) {
        let _ = self.tell.send(asked); // the test may have ended
    }

    fn attend(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(PATIENCE))?;
        client.set_nodelay(true)?;
        let manners = self.manners.lock().expect("no poison").clone();
        let asked = self.handshake(&mut client, &manners).inspect_err(|_| self.tell(Asked::Gone))?;
        let Some((command, to)) = asked else { return Ok(()) };
        let limit = Some(Duration::from_secs(3600));
        client.set_read_timeout(limit)?;
        match command {
            1 => self.connect(client, to, &manners),
            3 => self.associate(client, to, &manners),
            other => panic!("the daemon sent command {other}"),
        }
    }

    /// Up to the request; `None`: the manners end it before.
    fn handshake(&self, client: &mut TcpStream, manners: &Manners) -> io::Result<Option<(u8, SocketAddr)>> {
        let [version, methods] = read(client)?;
        assert_eq!(version, 5, "RFC 1928 section 3: the version is 5");
        let mut offered = vec![0; usize::from(methods)];
        client.read_exact(&mut offered)?;
        thread::sleep(manners.waits);
        if manners.mute {
            client.read_exact(&mut [0])?;
        }
        if manners.dies_at == Some(Stage::Greeting) {
            return Ok(None);
        }
        if manners.garbage {
            send(client, b"HTTP/1.1 400 Bad Request\r\n\r\n", true)?;
            client.read_exact(&mut [0])?; // the daemon is expected to hang up
        }
        let method = if manners.login.is_some() { 2 } else { 0 };
        if !offered.contains(&method) {
            send(client, &[5, 0xff], manners.dribbles)?;
            client.read_exact(&mut [0])?;
        }
        send(client, &[5, method], manners.dribbles)?;
        if let Some((username, password)) = manners.login {
            let [version] = read(client)?;
            assert_eq!(version, 1, "RFC 1929 section 2: the version is 1");
            let given = (text(client)?, text(client)?);
            let welcome = given == (username.to_owned(), password.to_owned());
            self.tell(Asked::Login(given.0, given.1));
            if manners.dies_at == Some(Stage::Login) {
                return Ok(None);
            }
            send(client, &[1, u8::from(!welcome)], manners.dribbles)?;
            if !welcome {
                return Ok(None);
            }
        }
        let [version, command, zero, kind] = read(client)?;
        assert_eq!((version, zero), (5, 0), "RFC 1928 section 4: version 5, a reserved zero");
        let to = address(client, kind)?;
        self.tell(if command == 1 { Asked::Connect(to) } else { Asked::Associate(to) });
        if manners.dies_at == Some(Stage::Request) {
            return Ok(None);
        }
        if let Some(code) = manners.refuses {
            send(client, &reply(code, to), manners.dribbles)?;
            return Ok(None);
        }
        Ok(Some((command, to)))
    }

    fn connect(&self, mut client: TcpStream, to: SocketAddr, manners: &Manners) -> io::Result<()> {
        let server = match self.ns.within(|| TcpStream::connect_timeout(&to, PATIENCE)) {
            Ok(server) => server,
            Err(e) => {
                let code = match e.kind() {
                    io::ErrorKind::ConnectionRefused => 5,
                    io::ErrorKind::HostUnreachable => 4,
                    io::ErrorKind::NetworkUnreachable => 3,
                    _ => 1,
                };
                return send(&mut client, &reply(code, to), manners.dribbles);
            }
        };
        server.set_nodelay(true)?;
        let mut answer = match manners.bound {
            Bound::True => reply(0, server.local_addr()?),
            Bound::Unspecified => reply(0, SocketAddr::new([0; 4].into(), 0)),
            Bound::Domain => [&[5, 0, 0, 3, 13][..], b"proxy.example", &[0x1f, 0x90]].concat(),
        };
        answer.extend(manners.glue);
        send(&mut client, &answer, manners.dribbles)?;
        let (client, server) = (Arc::new(client), Arc::new(server));
        let up = (Arc::clone(&client), Arc::clone(&server));
        thread::spawn(move || pass_on(&up.0, &up.1));
        pass_on(&server, &client);
        Ok(())
    }

    fn associate(&self, mut client: TcpStream, asked: SocketAddr, manners: &Manners) -> io::Result<()> {
        let here = client.local_addr()?.ip();
        let relay = self.ns.within(|| UdpSocket::bind(SocketAddr::new(here, 0)))?;
        let outside = self.ns.within(|| UdpSocket::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0)))?;
        let mut bound = relay.local_addr()?;
        if manners.bound == Bound::Unspecified {
            bound.set_ip(if here.is_ipv4() { [0; 4].into() } else { [0; 16].into() });
        }
        send(&mut client, &reply(0, bound), manners.dribbles)?;
        let mut peer = None;
        let mut buffer = vec![0; 65_536];
        loop {
            let fds = [self.stop.as_fd(), client.as_fd(), relay.as_fd(), outside.as_fd()];
            match first_readable(&fds, Duration::from_secs(3600)) {
                Some(2) => {
                    let (n, from) = relay.recv_from(&mut buffer)?;
                    assert!(asked.port() == 0 || asked.port() == from.port(), "asked for {asked}, sends from {from}");
                    peer = Some(from);
                    let mut datagram = &buffer[..n];
                    let [zero, zero_too, fragment, kind] = read(&mut datagram)?;
                    assert_eq!((zero, zero_too, fragment), (0, 0, 0), "RFC 1928 section 7");
                    let to = address(&mut datagram, kind)?;
                    let mapped = match to.ip() {
                        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                        IpAddr::V6(v6) => v6,
                    };
                    // An unreachable port is reported at the next call; UDP shrugs.
                    let _ = outside.send_to(datagram, SocketAddr::new(mapped.into(), to.port()));
                }
                Some(3) => {
                    let Ok((n, from)) = outside.recv_from(&mut buffer) else { continue };
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    let mut datagram = reply(0, from);
                    datagram[0] = 0;
                    datagram.extend(&buffer[..n]);
                    if let Some(peer) = peer {
                        let _ = relay.send_to(&datagram, peer); // too long with its header: it is lost
                    }
                }
                _ => {
                    self.tell(Asked::Gone);
                    return Ok(());
                }
            }
        }
    }
}

/// One direction of a relayed connection: an end stays a half-close, a reset a reset.
fn pass_on(from: &TcpStream, to: &TcpStream) {
    let mut buffer = vec![0; 65_536];
    loop {
        match (&*from).read(&mut buffer) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(n) if (&*to).write_all(&buffer[..n]).is_ok() => (),
            _ => break,
        }
    }
    // The last of the two threads to let go closes both, and so resets them; this wakes the other one up without a word
    // to its peer.
    for stream in [from, to] {
        reset_on_close(stream);
        let _ = stream.shutdown(Shutdown::Read);
    }
}

fn send(to: &mut TcpStream, octets: &[u8], one_by_one: bool) -> io::Result<()> {
    if !one_by_one {
        return to.write_all(octets);
    }
    octets.chunks(1).try_for_each(|octet| to.write_all(octet))
}

fn read<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut octets = [0; N];
    from.read_exact(&mut octets)?;
    Ok(octets)
}

/// A length octet and so many octets of text.
fn text(from: &mut impl Read) -> io::Result<String> {
    let [len] = read(from)?;
    let mut octets = vec![0; usize::from(len)];
    from.read_exact(&mut octets)?;
    Ok(String::from_utf8_lossy(&octets).into_owned())
}

fn address(from: &mut impl Read, kind: u8) -> io::Result<SocketAddr> {
    let ip: IpAddr = match kind {
        1 => read::<4>(from)?.into(),
        4 => read::<16>(from)?.into(),
        other => panic!("the daemon sent address type {other}"),
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(read(from)?)))
}

/// RFC 1928 section 6; with its first octet 0 it is the header of section 7 too.
fn reply(code: u8, bound: SocketAddr) -> Vec<u8> {
    let mut octets = vec![5, code, 0];
    match bound.ip() {
        IpAddr::V4(ip) => {
            octets.push(1);
            octets.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            octets.push(4);
            octets.extend(ip.octets());
        }
    }
    octets.extend(bound.port().to_be_bytes());
    octets
}
