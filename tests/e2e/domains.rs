//! Rules that ask for a name: it is found in what the client sends, however that is cut, and what was read is passed on.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Uci};
use crate::json::Json;
use crate::lab::{Family, Lab};
use crate::sock::{accept, connect, exchange, listen, read_n};
use crate::socks::{Asked, Manners, Socks};

/// What begins with `video.example`, or is below it, goes by the proxy; it listens at the ports of HTTP and HTTPS.
struct Named {
    lab: Lab,
    daemon: Daemon,
    proxy: Socks,
    listener: TcpListener,
    at: SocketAddr,
}

impl Named {
    fn start(family: Family, port: u16, sniff_timeout: &str) -> Named {
        let lab = Lab::new();
        let proxy = Socks::start(&lab.server, family.proxy(), 1080, Manners::default());
        let server = family.proxy();
        let uci = Uci::new("direct").globals(&[("sniff_timeout", sniff_timeout)]).section(&format!(
            "config outbound 'proxy'\n\toption type 'socks5'\n\toption server '{server}'\n\toption port '1080'
config rule\n\tlist domain 'video.example'\n\toption outbound 'proxy'\n"
        ));
        let daemon = Daemon::start(&lab, &uci);
        let listener = listen(&lab.server, family.destination(80), port);
        let at = listener.local_addr().expect("bound");
        Named { lab, daemon, proxy, listener, at }
    }

    /// Sends `bytes` in two parts; returns the connection's two ends when the server has all of them.
    fn send(&self, bytes: &[u8], cut: usize) -> (TcpStream, TcpStream) {
        let mut client = connect(&self.lab.client, self.at);
        client.set_nodelay(true).expect("TCP_NODELAY");
        client.write_all(&bytes[..cut]).expect("send");
        // both parts must be seen apart at least now and then; that they are is not what the test is about
        std::thread::yield_now();
        client.write_all(&bytes[cut..]).expect("send");
        let mut server = accept(&self.listener);
        assert_eq!(read_n(&mut server, bytes.len()), bytes, "cut at {cut}");
        (client, server)
    }

    fn was_proxied(&self) -> bool {
        self.proxy.asked().contains(&Asked::Connect(self.at))
    }
}

/// A ClientHello that asks for `name`, in records of at most `record` octets.
fn client_hello(name: &str, record: usize) -> Vec<u8> {
    let len = name.len() as u16;
    let sni = [&(len + 3).to_be_bytes()[..], &[0], &len.to_be_bytes(), name.as_bytes()].concat();
    let extensions = [&[0, 43, 0, 3, 2, 3, 4, 0, 0][..], &(sni.len() as u16).to_be_bytes(), &sni].concat();
    let mut body = vec![3, 3];
    body.extend([5; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let message = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    message.chunks(record).flat_map(|part| [&[22, 3, 1, 0, part.len() as u8][..], part].concat()).collect()
}

#[test]
fn a_tls_name_chooses_the_outbound_wherever_the_hello_is_cut() {
    let named = Named::start(Family::V4, 443, "10s");
    let hello = client_hello("www.video.example", 50);
    for cut in 0..hello.len() {
        let (mut client, mut server) = named.send(&hello, cut);
        assert!(named.was_proxied(), "cut at {cut}");
        exchange(&mut client, &mut server, b"and on", b"and back");
    }
    named.send(&client_hello("myvideo.example", 50), 7);
    assert!(!named.was_proxied());
}

#[test]
fn an_http_name_chooses_the_outbound() {
    let named = Named::start(Family::V6, 80, "10s");
    let request = b"GET / HTTP/1.1\r\nHost: VIDEO.example\r\n\r\n";
    for cut in [0, 1, 16, 30, 35, 37, 39] {
        named.send(request, cut);
        assert!(named.was_proxied(), "cut at {cut}");
    }
    named.send(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", 20);
    assert!(!named.was_proxied());
}

#[test]
fn sessions_show_the_name() {
    let named = Named::start(Family::V4, 443, "10s");
    let _ends = named.send(&client_hello("a.video.example", 255), 0);
    let sessions = Json::parse(&named.daemon.command("sessions", &["--json"]));
    assert_eq!((sessions.text("0.domain"), sessions.number("0.rule")), ("a.video.example", 0));
}

#[test]
fn a_server_that_speaks_first_waits_no_longer_than_sniff_timeout() {
    let named = Named::start(Family::V4, 443, "300ms");
    let begin = Instant::now();
    let mut client = connect(&named.lab.client, named.at);
    let mut server = accept(&named.listener);
    assert!(begin.elapsed() >= Duration::from_millis(250), "{:?}: it was not looked for", begin.elapsed());
    exchange(&mut server, &mut client, b"220 welcome", b"HELO");
    assert!(!named.was_proxied());
    let status = named.daemon.status();
    assert_eq!(status.number("nameless"), 1);
}

#[test]
fn other_ports_are_never_delayed() {
    let named = Named::start(Family::V4, 25, "10s");
    let begin = Instant::now();
    let mut client = connect(&named.lab.client, named.at);
    exchange(&mut accept(&named.listener), &mut client, b"220 welcome", b"HELO");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn a_set_of_domains_from_a_file_chooses_the_outbound() {
    let lab = Lab::new();
    let files = crate::process::TempDir::new();
    let list =
        files.write("names", "# a list\nserver=/video.example/192.0.2.1\n0.0.0.0 only.example\n||films.example^\n");
    let proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
    let uci = Uci::new("direct").globals(&[("sniff_timeout", "10s")]).section(&format!(
        "config outbound 'proxy'\n\toption type 'socks5'\n\toption server '198.51.100.2'\n\toption port '1080'
config set 'names'\n\toption type 'domain'\n\tlist loadfile '{}'
config rule\n\tlist domain '@names'\n\tlist domain '!free.video.example'\n\toption outbound 'proxy'\n",
        list.display()
    ));
    let daemon = Daemon::start(&lab, &uci);
    let listener = listen(&lab.server, Family::V4.destination(80), 443);
    let at = listener.local_addr().expect("bound");
    let named = Named { lab, daemon, proxy, listener, at };
    for (name, proxied) in [
        ("a.video.example", true),
        ("x.free.video.example", false),
        ("only.example", true),
        ("not.only.example", false),
        ("films.example", true),
        ("other.example", false),
    ] {
        named.send(&client_hello(name, 255), 9);
        assert_eq!(named.was_proxied(), proxied, "{name}");
    }
}
