//! Proxies whose answers end too soon, are too long, come octet by octet for ever, or are of another version: each has an error
//! of its own, which names the server and the step, and none holds a client beyond `connect_timeout`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::sock::{connect, listen};

const PORT: u16 = 1_080;

/// What a server does with its one client.
enum Act {
    /// Waits for so many octets.
    Hear(usize),
    /// Says this in one segment.
    Say(&'static [u8]),
    /// Says this again and again, one octet each 60 ms, until the client is gone. (A second would only take longer.)
    Drip(&'static [u8]),
    /// Says that this was all.
    End,
    /// Goes away with all that it has not heard, which is a reset.
    Abort,
}

use Act::{Abort, Drip, End, Hear, Say};

fn serve(listener: &TcpListener, acts: &[Act]) {
    let (mut client, _) = listener.accept().expect("nobody came");
    client.set_nodelay(true).expect("TCP_NODELAY");
    for act in acts {
        match act {
            Hear(n) => client.read_exact(&mut vec![0; *n]).expect("it speaks"),
            Say(octets) => client.write_all(octets).expect("it listens"),
            Drip(octets) => drip(&mut client, octets),
            End => client.shutdown(Shutdown::Write).expect("connected"),
            Abort => return,
        }
    }
    // what comes now is of no interest, but that it ends is
    let _ = client.read_to_end(&mut Vec::new());
}

fn drip(client: &mut TcpStream, octets: &[u8]) {
    for octet in octets.iter().cycle() {
        if client.write_all(&[*octet]).is_err() {
            return;
        }
        thread::sleep(Duration::from_millis(60));
    }
}

/// The client is reset, and the log names `server` and all of `words`.
fn fails(kind: &str, more: &[(&str, &str)], acts: &[Act], words: &[&str]) {
    let lab = Lab::new();
    let listener = listen(&lab.server, Family::V4.proxy(), PORT);
    let (server, port) = (Family::V4.proxy().to_string(), PORT.to_string());
    let options = [("server", &*server), ("port", &port), ("connect_timeout", "2s")];
    let daemon = Daemon::start(&lab, &Uci::new(kind).outbound(&options).outbound(more));
    let begin = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| serve(&listener, acts));
        let ended = match crate::sock::try_connect(&lab.client, SocketAddr::new(Family::V4.destination(1), 80)) {
            Ok(mut client) => {
                client.write_all(b"hello").and_then(|()| client.read_exact(&mut [0; 1])).expect_err("an end").kind()
            }
            Err(e) => e.kind(),
        };
        assert!(matches!(ended, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{words:?}: {ended:?}");
        assert!(begin.elapsed() < Duration::from_secs(12), "{words:?}: {:?}", begin.elapsed());
    });
    daemon.process().wait_for_line(&[&["198.51.100.2:1080"], words].concat());
    daemon.wait_idle();
    daemon.stop();
}

#[test]
fn socks5_servers_have_an_error_for_each_step_and_kind() {
    let login: &[(&str, &str)] = &[("username", "me"), ("password", "secret")];
    fails("socks5", &[], &[Hear(1), Abort], &["connection reset by peer instead of an answer to the greeting"]);
    // greeting: 3 octets, with a password 4; login: 1 + 1 + 2 + 1 + 6; request to an IPv4 address: 10
    fails("socks5", &[], &[Hear(3), Say(&[5]), End], &["closed the connection instead of answering the greeting"]);
    fails("socks5", &[], &[Hear(3), Say(&[4, 0])], &["not a SOCKS5 server", "0x04"]);
    fails("socks5", &[], &[Hear(3), Say(&[5, 7])], &["0x07"]);
    fails("socks5", &[], &[Hear(3), Drip(&[5])], &["0x05"]);
    let words = ["closed the connection instead of answering the username and password"];
    fails("socks5", login, &[Hear(4), Say(&[5, 2]), Hear(11), Say(&[1]), End], &words);
    fails("socks5", login, &[Hear(4), Say(&[5, 2]), Hear(11), Say(&[5, 0])], &["0x05, not 0x01"]);
    let reply: &'static [u8] = &[5, 0, 0, 1, 203, 0];
    let words = ["closed the connection instead of answering the request"];
    fails("socks5", &[], &[Hear(3), Say(&[5, 0]), Hear(10), Say(reply), End], &words);
    fails("socks5", &[], &[Hear(3), Say(&[5, 0]), Hear(10), Say(&[4, 90])], &["not a SOCKS5 server", "0x04"]);
    fails("socks5", &[], &[Hear(3), Say(&[5, 0]), Hear(10), Say(&[5, 0, 0, 9, 9])], &["address type 0x09"]);
    let long: &'static [u8] = &[5, 0, 0, 3, 255, b'x', b'y'];
    let words = ["no answer within 2 s to the request"];
    fails("socks5", &[], &[Hear(3), Say(&[5, 0]), Hear(10), Say(long), Drip(b"x")], &words);
}

#[test]
fn http_proxies_have_an_error_for_each_kind() {
    let ask = 20; // more comes, and is heard in the end
    fails("http", &[], &[Hear(ask), Abort], &["connection reset by peer instead of an answer to the request"]);
    fails(
        "http",
        &[],
        &[Hear(ask), Say(b"HTTP/1.1 2"), End],
        &["closed the connection instead of answering the request"],
    );
    fails("http", &[], &[Hear(ask), Say(b"HTTP/3.0 200 OK\r\n\r\n")], &["HTTP/3"]);
    fails("http", &[], &[Hear(ask), Say(b"HTTP/1.1 200 OK\r\nX: "), Say(&[b'x'; 20_000])], &["more than 16384 bytes"]);
    fails(
        "http",
        &[],
        &[Hear(ask), Say(b"HTTP/1.1 200 OK\r\nX: "), Drip(b"x")],
        &["no answer within 2 s to the request"],
    );
}

/// A stream has no step at which to be slow: who sends an octet a second is a slow server, and no more.
#[test]
#[cfg(feature = "shadowsocks")]
fn shadowsocks_servers_have_an_error_for_each_kind() {
    let old: &[(&str, &str)] = &[("method", "aes-128-gcm"), ("password", "secret")];
    let new: &[(&str, &str)] = &[("method", "2022-blake3-aes-128-gcm"), ("password", "AAECAwQFBgcICQoLDA0ODw==")];
    for method in [old, new] {
        fails("shadowsocks", method, &[Hear(32), Say(&[7; 10]), End], &["'out'", "it ends in the middle of a chunk"]);
        fails(
            "shadowsocks",
            method,
            &[Hear(32), Say(&[7; 100])],
            &["'out'", "not encrypted with our password and method"],
        );
        fails("shadowsocks", method, &[Hear(32), Drip(&[7])], &["'out'", "not encrypted with our password and method"]);
    }
}

#[test]
fn a_server_that_drips_holds_up_nobody_else() {
    let lab = Lab::new();
    let listener = listen(&lab.server, Family::V4.proxy(), PORT);
    let (server, port) = (Family::V4.proxy().to_string(), PORT.to_string());
    let slow = Uci::new("socks5").outbound(&[("server", &server), ("port", &port)]).section(
        "config outbound 'straight'\n\toption type 'direct'\n\
         config rule\n\tlist dest_port '4000'\n\toption outbound 'straight'\n",
    );
    let daemon = Daemon::start(&lab, &slow);
    let held = connect(&lab.client, SocketAddr::new(Family::V4.destination(1), 80));
    let (mut dripping, _) = listener.accept().expect("the daemon comes");
    dripping.write_all(&[5]).expect("send");
    let other = listen(&lab.server, Family::V4.destination(2), 4_000);
    for _ in 0..10 {
        let mut client = connect(&lab.client, other.local_addr().expect("bound"));
        crate::sock::exchange(&mut client, &mut crate::sock::accept(&other), b"ask", b"answer");
    }
    drop((held, dripping));
    daemon.wait_idle();
}
