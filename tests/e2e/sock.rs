//! Sockets of clients and servers, every one with a time limit, so that a test fails instead of hanging.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::ns::{Namespace, reset_on_close, set_accept_timeout};

/// How long anything may take that must happen. Generous: reached only when something is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A TCP server's socket in `ns`; port 0 lets the kernel choose.
pub fn listen(ns: &Namespace, ip: IpAddr, port: u16) -> TcpListener {
    let at = SocketAddr::new(ip, port);
    let listener = bound(|| ns.within(|| TcpListener::bind(at))).unwrap_or_else(|e| panic!("listen on {at}: {e}"));
    set_accept_timeout(&listener, PATIENCE);
    listener
}

/// What `bind` gives. A socket that this test has closed may live on for a moment in a child that another test has forked,
/// until the child begins its program; so "in use" is asked again.
fn bound<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let begin = std::time::Instant::now();
    loop {
        match bind() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && begin.elapsed() < PATIENCE => std::thread::yield_now(),
            other => return other,
        }
    }
}

/// The next client of `listener`.
pub fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap_or_else(|e| panic!("nobody came to {:?}: {e}", listener.local_addr()));
    limit(&stream);
    stream
}

/// Connects from `ns`.
pub fn connect(ns: &Namespace, to: SocketAddr) -> TcpStream {
    try_connect(ns, to).unwrap_or_else(|e| panic!("connect to {to}: {e}"))
}

/// Connects from `ns`, or says why not.
pub fn try_connect(ns: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = ns.within(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    limit(&stream);
    Ok(stream)
}

fn limit(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    stream.set_write_timeout(Some(PATIENCE)).expect("SO_SNDTIMEO");
    stream.set_nodelay(true).expect("TCP_NODELAY");
}

/// A UDP socket in `ns`; port 0 lets the kernel choose.
pub fn udp(ns: &Namespace, ip: IpAddr, port: u16) -> UdpSocket {
    let at = SocketAddr::new(ip, port);
    let socket = bound(|| ns.within(|| UdpSocket::bind(at))).unwrap_or_else(|e| panic!("bind {at}/udp: {e}"));
    socket.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    socket
}

/// Ends a connection by a reset.
pub fn reset(stream: TcpStream) {
    reset_on_close(&stream);
}

/// Reads exactly `n` bytes.
pub fn read_n(stream: &mut impl Read, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    stream.read_exact(&mut bytes).unwrap_or_else(|e| panic!("read {n} bytes: {e}"));
    bytes
}

/// Reads to the end that the other side sends.
pub fn read_all(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap_or_else(|e| panic!("read to the end, after {} bytes: {e}", bytes.len()));
    bytes
}

/// Sends `ask` one way and checks that exactly it arrives, then `answer` the other way.
pub fn exchange(a: &mut TcpStream, b: &mut TcpStream, ask: &[u8], answer: &[u8]) {
    a.write_all(ask).expect("send");
    assert_eq!(read_n(b, ask.len()), ask);
    b.write_all(answer).expect("answer");
    assert_eq!(read_n(a, answer.len()), answer);
}

/// Waits for the reset that must end `stream`; anything else that arrives is a failure.
pub fn expect_reset(stream: &mut TcpStream) {
    let mut byte = [0; 1];
    match stream.read(&mut byte) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => (),
        other => panic!("expected a reset, got {other:?}"),
    }
}

/// Connects to where no connection can come of it, and says how that ended. An interception has completed the client's
/// handshake before it can know, so "connected, then reset" is as good as "refused"; and a reset that comes while
/// connect(2) still waits is reported by that.
pub fn refusal(ns: &Namespace, to: SocketAddr) -> io::ErrorKind {
    match try_connect(ns, to) {
        Err(e) => e.kind(),
        Ok(mut client) => match client.read(&mut [0; 1]) {
            Err(e) => e.kind(),
            Ok(n) => panic!("expected a reset, got {n} bytes"),
        },
    }
}

/// One datagram and who sent it.
pub fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 65_536];
    let (n, from) = loop {
        match socket.recv_from(&mut bytes) {
            Ok(got) => break got,
            // a child of another test that ends
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => panic!("no datagram came: {e}"),
        }
    };
    bytes.truncate(n);
    (bytes, from)
}

/// Waits until somebody listens at `at`, for servers that do not say so. A refusal comes at once, so this asks on.
pub fn until_listening(ns: &Namespace, at: SocketAddr) {
    let begin = std::time::Instant::now();
    while let Err(e) = try_connect(ns, at) {
        assert!(begin.elapsed() < PATIENCE, "nobody listens at {at}: {e}");
        std::thread::yield_now();
    }
}

/// Waits until nobody listens at `at` any more: what a server that was killed leaves behind may live a little longer.
pub fn until_silent(ns: &Namespace, at: SocketAddr) {
    let begin = std::time::Instant::now();
    while try_connect(ns, at).is_ok() {
        assert!(begin.elapsed() < PATIENCE, "somebody still listens at {at}");
        std::thread::yield_now();
    }
}
