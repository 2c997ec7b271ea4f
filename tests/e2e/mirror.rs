//! A server that tells its clients what it sees of them: the simplest way to learn how a flow went.

use std::io::{self, PipeReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use crate::ns::{Namespace, first_readable};
use crate::process::Service;
use crate::sock::{PATIENCE, listen, try_connect, udp};

/// Answers every message, TCP or UDP, with the address from which it came; gone when dropped.
pub struct Mirror {
    /// Where it listens, both protocols.
    pub at: SocketAddr,
    _service: Service,
}

impl Mirror {
    /// Listens in `ns`.
    pub fn start(ns: &Namespace, ip: IpAddr) -> Mirror {
        Mirror::start_at(ns, ip, 0)
    }

    /// Listens in `ns` on a certain port.
    pub fn start_at(ns: &Namespace, ip: IpAddr, port: u16) -> Mirror {
        let listener = listen(ns, ip, port);
        let at = listener.local_addr().expect("bound");
        let socket = udp(ns, ip, at.port());
        Mirror { at, _service: Service::start(move |stop| serve(&stop, &listener, &socket)) }
    }
}

fn serve(stop: &PipeReader, listener: &TcpListener, socket: &UdpSocket) {
    let mut buffer = vec![0; 65_536];
    loop {
        match first_readable(&[stop.as_fd(), listener.as_fd(), socket.as_fd()], Duration::from_secs(3600)) {
            Some(1) => {
                let Ok((stream, from)) = listener.accept() else { continue };
                let stop = stop.try_clone().expect("dup");
                thread::spawn(move || serve_stream(&stop, stream, from));
            }
            Some(2) => {
                // An error is what became of an earlier answer.
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(from.to_string().as_bytes(), from);
                }
            }
            _ => return,
        }
    }
}

fn serve_stream(stop: &PipeReader, mut stream: TcpStream, from: SocketAddr) {
    let mut buffer = [0; 1_024];
    while first_readable(&[stop.as_fd(), stream.as_fd()], Duration::from_secs(3600)) == Some(1) {
        let alive = matches!(stream.read(&mut buffer), Ok(1..));
        if !alive || writeln!(stream, "{from}").is_err() {
            return;
        }
    }
}

/// Asks a mirror over a new TCP connection what it sees.
pub fn seen_by_tcp(ns: &Namespace, mirror: SocketAddr) -> io::Result<SocketAddr> {
    ask(&mut try_connect(ns, mirror)?)
}

/// Asks a mirror over a connection that stands.
pub fn ask(stream: &mut TcpStream) -> io::Result<SocketAddr> {
    stream.write_all(b"?")?;
    let (mut answer, mut octet) = (String::new(), [0]);
    loop {
        stream.read_exact(&mut octet)?;
        match octet {
            [b'\n'] => return Ok(answer.parse().expect("a mirror answers with an address")),
            [octet] => answer.push(char::from(octet)),
        }
    }
}

/// Asks a mirror by one datagram, and waits for the answer for at most `limit`.
pub fn seen_by_udp(socket: &UdpSocket, mirror: SocketAddr, limit: Duration) -> io::Result<SocketAddr> {
    socket.set_read_timeout(Some(limit)).expect("SO_RCVTIMEO");
    socket.send_to(b"?", mirror)?;
    let mut answer = [0; 64];
    let received = socket.recv_from(&mut answer);
    socket.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    let (n, from) = received?;
    assert_eq!(from, mirror, "the answer must come from whom the client asked");
    Ok(String::from_utf8_lossy(&answer[..n]).parse().expect("a mirror answers with an address"))
}
