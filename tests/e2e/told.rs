//! Clients that are told: modes http, socks5 and plain, with real clients and servers of other people.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use crate::daemon::{Daemon, Uci};
use crate::dns::{Dns, NAME, Zone};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, ask};
use crate::ns::Namespace;
use crate::over_ways;
use crate::process::{Process, TempDir};
use crate::proxies::{at, haproxy, nginx_stream};
use crate::sock::{accept, connect, exchange, listen, read_all, read_n, receive, refusal, udp};

/// The router's address towards its clients.
fn gate(family: Family) -> IpAddr {
    match family {
        Family::V4 => "192.168.1.1",
        Family::V6 => "fd00:1::1",
    }
    .parse()
    .expect("an address")
}

/// A listener of this mode instead of the intercepting one; the LAN may connect.
fn told(mode: &str, outbound: &str) -> Uci {
    let allowed = [("mode", mode), ("port", "1081"), ("allow_ip", "192.168.1.0/24 fd00:1::/64")];
    Uci::new(outbound).listener(&allowed)
}

fn at_gate(family: Family) -> SocketAddr {
    SocketAddr::new(gate(family), 1_081)
}

/// Answers every request with what it got, and ends.
fn echo_server(lab: &Lab, ip: IpAddr) -> (SocketAddr, std::thread::JoinHandle<String>) {
    let listener = listen(&lab.server, ip, 0);
    let to = listener.local_addr().expect("bound");
    let heard = std::thread::spawn(move || {
        let mut stream = accept(&listener);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(read_n(&mut stream, 1));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").expect("answer");
        String::from_utf8(head).expect("text")
    });
    (to, heard)
}

fn curl(ns: &Namespace, args: &[&str]) -> String {
    ns.tool("curl", &[&["--silent", "--show-error", "--max-time", "20", "--noproxy", ""], args].concat(), "")
}

over_ways!(curl_gets_a_page_by_http_by_connect_and_by_socks5, |_way, family| {
    let lab = Lab::new();
    for (mode, scheme, args) in
        [("http", "http", &[][..]), ("http", "http", &["--proxytunnel"][..]), ("socks5", "socks5", &[][..])]
    {
        let _daemon = Daemon::start(&lab, &told(mode, "direct"));
        let (to, heard) = echo_server(&lab, family.destination(80));
        let (proxy, url) = (format!("{scheme}://{}", at_gate(family)), format!("http://{to}/page?a=b"));
        assert_eq!(curl(&lab.client, &[&["--proxy", &proxy, &url], args].concat()), "hello");
        let head = heard.join().expect("the server");
        assert!(head.starts_with("GET /page?a=b HTTP/1.1\r\n"), "{head}");
        assert!(!head.contains("Proxy-"), "what is for the proxy stays with it: {head}");
    }
}, v4 Direct V4, v6 Direct V6);

over_ways!(a_name_is_looked_up_here_or_sent_to_the_proxy, |_way, family| {
    let lab = Lab::new();
    let zone = Zone { addresses: vec![family.destination(80)], ttl: 60, ..Zone::default() };
    let _dns = Dns::start(&lab.server, Family::V4.proxy(), zone);
    let resolver = Family::V4.proxy().to_string();
    for (mode, scheme, args) in
        [("http", "http", &[][..]), ("http", "http", &["--proxytunnel"][..]), ("socks5", "socks5h", &[][..])]
    {
        let _daemon = Daemon::start(&lab, &told(mode, "direct").globals(&[("resolver", &resolver)]));
        let (to, heard) = echo_server(&lab, family.destination(80));
        let (proxy, url) = (format!("{scheme}://{}", at_gate(family)), format!("http://{NAME}:{}/", to.port()));
        assert_eq!(curl(&lab.client, &[&["--proxy", &proxy, &url], args].concat()), "hello");
        heard.join().expect("the server");
    }
    // A rule by name decides without anybody having looked it up, and the proxy is told the name.
    let proxy = listen(&lab.server, family.proxy(), 1_080);
    let config = told("socks5", "direct").section(&format!(
        "config outbound 'far'\n\toption type 'socks5'\n\toption server '{}'\n\toption port '1080'\n\
         config rule\n\tlist domain '{NAME}'\n\toption outbound 'far'\n",
        family.proxy()
    ));
    let daemon = Daemon::start(&lab, &config);
    let mut stream = connect(&lab.client, at_gate(family));
    stream.write_all(&[5, 1, 0]).expect("greet");
    assert_eq!(read_n(&mut stream, 2), [5, 0]);
    let request = [&[5, 1, 0, 3, NAME.len() as u8][..], NAME.as_bytes(), &[0, 80]].concat();
    stream.write_all(&request).expect("request");
    let mut asked = accept(&proxy);
    assert_eq!(read_n(&mut asked, 3), [5, 1, 0]);
    asked.write_all(&[5, 0]).expect("answer");
    assert_eq!(read_n(&mut asked, request.len()), request, "the name, and nobody's address");
    asked.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).expect("answer");
    assert_eq!(read_n(&mut stream, 10)[..2], [5, 0]);
    exchange(&mut stream, &mut asked, b"ask", b"answer");
    drop(daemon);
}, v4 Direct V4, v6 Direct V6);

#[test]
fn proxychains_leads_a_program_that_knows_no_proxy_through_socks5_and_http() {
    let (lab, files) = (Lab::new(), TempDir::new());
    for (mode, kind) in [("socks5", "socks5"), ("http", "http")] {
        let _daemon = Daemon::start(&lab, &told(mode, "direct"));
        let config = files.write("proxychains.conf", &format!("strict_chain\n[ProxyList]\n{kind} 192.168.1.1 1081\n"));
        let (to, heard) = echo_server(&lab, Family::V4.destination(80));
        let config = config.to_str().expect("a plain path");
        let url = format!("http://{to}/");
        let said =
            lab.client.tool("proxychains4", &["-q", "-f", config, "curl", "--silent", "--max-time", "20", &url], "");
        assert_eq!(said, "hello");
        heard.join().expect("the server");
    }
}

over_ways!(who_is_not_allowed_is_turned_away_and_counted, |_way, family| {
    let lab = Lab::new();
    for mode in ["http", "socks5", "plain"] {
        let config = told(mode, "direct").listener(&[("allow_ip", "192.168.1.77 fd00:1::77")]);
        let daemon = Daemon::start(&lab, &config);
        assert_eq!(refusal(&lab.client, at_gate(family)), ErrorKind::ConnectionReset);
        assert_eq!(daemon.status().number("drops.not_allowed"), 1, "{mode}");
    }
}, v4 Direct V4, v6 Direct V6);

#[test]
fn nobody_may_connect_unless_the_configuration_says_who() {
    let lab = Lab::new();
    let config = Uci::new("direct").listener(&[("mode", "http")]);
    let daemon = Daemon::start(&lab, &config);
    daemon.process().wait_for_line(&["nobody may connect"]);
    assert_eq!(refusal(&lab.client, SocketAddr::new(gate(Family::V4), 2_333)), ErrorKind::ConnectionReset);
}

/// What a client of SOCKS5 is answered.
fn socks5(lab: &Lab, family: Family, to: SocketAddr) -> (TcpStream, u8) {
    let mut stream = connect(&lab.client, at_gate(family));
    stream.write_all(&[5, 1, 0]).expect("greet");
    assert_eq!(read_n(&mut stream, 2), [5, 0]);
    stream.write_all(&request(1, to)).expect("request");
    let reply = read_n(&mut stream, 10);
    (stream, reply[1])
}

fn request(command: u8, to: SocketAddr) -> Vec<u8> {
    let mut request = vec![5, command, 0];
    match to.ip() {
        IpAddr::V4(ip) => {
            request.push(1);
            request.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            request.push(4);
            request.extend(ip.octets());
        }
    }
    request.extend(to.port().to_be_bytes());
    request
}

over_ways!(rules_and_failures_are_answered_in_the_clients_language, |_way, family| {
    let lab = Lab::new();
    let rule = "config rule\n\tlist dest_port '99'\n\toption outbound 'reject'\n";
    let daemon = Daemon::start(&lab, &told("socks5", "direct").section(rule));
    let mirror = Mirror::start(&lab.server, family.destination(80));
    let (mut stream, code) = socks5(&lab, family, mirror.at);
    assert_eq!((code, ask(&mut stream).expect("an answer").ip()), (0, family.router_wan()));
    assert_eq!(socks5(&lab, family, at(family.destination(80), 99)).1, 2, "not allowed");
    assert_eq!(socks5(&lab, family, at(family.destination(80), 9)).1, 4, "nobody listens there");
    // Loopback belongs to the router's own services, and its own port leads round in a circle.
    let loopback = if family == Family::V4 { "127.0.0.1" } else { "::1" }.parse().expect("an address");
    assert_eq!(socks5(&lab, family, at(loopback, 22)).1, 2);
    assert_eq!(socks5(&lab, family, at_gate(family)).1, 2);
    drop(daemon);

    let _daemon = Daemon::start(&lab, &told("http", "direct").section(rule));
    let answer = |to: SocketAddr| {
        let mut stream = connect(&lab.client, at_gate(family));
        write!(stream, "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").expect("request");
        let head = read_n(&mut stream, 12);
        (stream, String::from_utf8(head).expect("text"))
    };
    let (mut stream, head) = answer(mirror.at);
    assert_eq!(head, "HTTP/1.1 200");
    let rest = b" Connection established\r\n\r\n".len();
    read_n(&mut stream, rest);
    assert_eq!(ask(&mut stream).expect("an answer").ip(), family.router_wan());
    assert_eq!(answer(at(family.destination(80), 99)).1, "HTTP/1.1 403");
    assert_eq!(answer(at(family.destination(80), 9)).1, "HTTP/1.1 502");
    let mut stream = connect(&lab.client, at_gate(family));
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("request");
    assert!(String::from_utf8_lossy(&read_all(&mut stream)).starts_with("HTTP/1.1 400"));
}, v4 Direct V4, v6 Direct V6);

/// Bytes that come with the greeting, and greetings that come octet by octet.
#[test]
fn however_a_greeting_is_cut_nothing_of_what_follows_is_lost() {
    let lab = Lab::new();
    let _daemon = Daemon::start(&lab, &told("socks5", "direct"));
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let to = listener.local_addr().expect("bound");
    let all = [&[5, 1, 0][..], &request(1, to), b"early bytes"].concat();
    for size in [1, 2, 3, 7, all.len()] {
        let mut stream = connect(&lab.client, at_gate(Family::V4));
        for part in all.chunks(size) {
            stream.write_all(part).expect("send");
        }
        let mut server = accept(&listener);
        assert_eq!(read_n(&mut server, 11), b"early bytes");
        assert_eq!(read_n(&mut stream, 12)[..4], [5, 0, 5, 0]);
        exchange(&mut stream, &mut server, b"ask", b"answer");
    }
}

over_ways!(socks5_carries_datagrams_while_its_connection_stands, |_way, family| {
    let lab = Lab::new();
    let _daemon = Daemon::start(&lab, &told("socks5", "direct"));
    let _control = associated(&lab, family);
    let relay = at_gate(family);

    let client = udp(&lab.client, family.client(), 0);
    let mut outside = Vec::new();
    for n in 1..=3u8 {
        let server = udp(&lab.server, family.destination(n), 4_000);
        let to = server.local_addr().expect("bound");
        let header = [&[0, 0, 0][..], &request(1, to)[3..]].concat();
        client.send_to(&[&header[..], &[n; 900]].concat(), relay).expect("send");
        let (arrived, from) = receive(&server);
        assert_eq!((arrived, from.ip()), (vec![n; 900], family.router_wan()));
        outside.push(from);
        server.send_to(&[n, n], from).expect("answer");
        assert_eq!(receive(&client), ([&header[..], &[n, n]].concat(), relay));
    }
    assert!(outside.iter().all(|one| *one == outside[0]), "one outside port for all: {outside:?}");
}, v4 Direct V4, v6 Direct V6);

/// A connection that keeps a relay for datagrams.
fn associated(lab: &Lab, family: Family) -> TcpStream {
    let mut control = connect(&lab.client, at_gate(family));
    control.write_all(&[5, 1, 0]).expect("greet");
    read_n(&mut control, 2);
    control.write_all(&request(3, SocketAddr::new(family.any(), 0))).expect("request");
    let reply = read_n(&mut control, request(3, at_gate(family)).len());
    assert_eq!(reply[..3], [5, 0, 0]);
    assert_eq!(reply[3..], request(3, at_gate(family))[3..], "the relay is at the listener's own port");
    control
}

over_ways!(a_relay_for_datagrams_ends_with_the_last_connection_that_keeps_it, |_way, family| {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &told("socks5", "direct"));
    let server = udp(&lab.server, family.destination(1), 4_000);
    let client = udp(&lab.client, family.client(), 0);
    let header = [&[0, 0, 0][..], &request(1, server.local_addr().expect("bound"))[3..]].concat();
    let send = |word: &[u8]| client.send_to(&[&header[..], word].concat(), at_gate(family)).expect("send");
    send(b"before");
    daemon.status_until("it is refused", |status| status.number("drops.not_allowed") == 1);
    let (first, second) = (associated(&lab, family), associated(&lab, family));
    send(b"one");
    let (arrived, outside) = receive(&server);
    assert_eq!(arrived, b"one");
    drop(first);
    daemon.status_until("one connection is left", |status| status.number("tcp.active") == 1);
    send(b"two");
    assert_eq!(receive(&server), (b"two".to_vec(), outside), "the other one keeps it");
    assert_eq!(daemon.status().number("udp.active"), 1);
    drop(second);
    daemon.status_until("the flow has ended", |status| status.number("udp.active") == 0);
    send(b"after");
    daemon.status_until("it is refused", |status| status.number("drops.not_allowed") == 2);
    // Whoever ends the connection: here the daemon.
    let kept = associated(&lab, family);
    send(b"three");
    assert_eq!(receive(&server).0, b"three");
    daemon.command("kick", &["--client", &family.client().to_string()]);
    daemon.status_until("nothing is left", |s| s.number("udp.active") == 0 && s.number("tcp.active") == 0);
    drop(kept);
}, v4 Direct V4, v6 Direct V6);

over_ways!(plain_leads_to_the_fixed_server_and_nowhere_else, |_way, family| {
    let lab = Lab::new();
    let server = family.proxy().to_string();
    let config = told("plain", "forward").outbound(&[("server", &server), ("port", "8000")]);
    let daemon = Daemon::start(&lab, &config);
    let listener = listen(&lab.server, family.proxy(), 8_000);
    let (mut client, mut far) = (connect(&lab.client, at_gate(family)), accept(&listener));
    exchange(&mut client, &mut far, b"ask", b"answer");
    let far = udp(&lab.server, family.proxy(), 8_000);
    let near = udp(&lab.client, family.client(), 0);
    near.send_to(b"ask", at_gate(family)).expect("send");
    let (arrived, from) = receive(&far);
    assert_eq!((arrived.as_slice(), from.ip()), (&b"ask"[..], family.router_wan()));
    far.send_to(b"answer", from).expect("answer");
    assert_eq!(receive(&near), (b"answer".to_vec(), at_gate(family)));
    drop(daemon);
    // By any other way it would come back to the listener.
    let _daemon = Daemon::start(&lab, &told("plain", "direct"));
    assert_eq!(refusal(&lab.client, at_gate(family)), ErrorKind::ConnectionReset);
}, v4 Direct V4, v6 Direct V6);

/// A connection passes a pair of daemons whole, and the `far` one knows the client's own address and where it was going.
pub fn leads_to_the_true_destination(lab: &Lab, family: Family, far: &Daemon) {
    let listener = listen(&lab.server, family.destination(80), 0);
    let to = listener.local_addr().expect("bound");
    let (mut client, mut server) = (connect(&lab.client, to), accept(&listener));
    exchange(&mut client, &mut server, b"ask", b"answer");
    exchange(&mut client, &mut server, &[5; 200_000], &[6; 200_000]);
    let sessions = far.command("sessions", &["--json"]);
    let own = client.local_addr().expect("bound").to_string();
    assert!(sessions.contains(&own) && sessions.contains(&to.to_string()), "{sessions}");
}

over_ways!(an_accelerator_pair_leads_to_the_true_destination, |_way, family| {
    for version in ["v1", "v2"] {
        let lab = Lab::new();
        let far = Uci::new("direct").listener(&[
            ("mode", "plain"),
            ("port", "9000"),
            ("accept_proxy", "1"),
            ("allow_ip", "198.51.100.1 2001:db8:1::1"),
        ]);
        let far = Daemon::start_in(&lab.server, &far);
        let server = family.proxy().to_string();
        let near = Uci::new("forward").outbound(&[("server", &server), ("port", "9000"), ("send_proxy", version)]);
        let _near = Daemon::start(&lab, &near);
        leads_to_the_true_destination(&lab, family, &far);
        if version == "v2" {
            let server = udp(&lab.server, family.destination(9), 4_000);
            let to = server.local_addr().expect("bound");
            let clients: Vec<_> = (0..3).map(|_| udp(&lab.client, family.client(), 0)).collect();
            for (n, client) in clients.iter().enumerate() {
                client.send_to(&[n as u8; 500], to).expect("send");
                let (arrived, from) = receive(&server);
                assert_eq!(arrived, [n as u8; 500]);
                server.send_to(&[n as u8; 7], from).expect("answer");
                assert_eq!(receive(client), (vec![n as u8; 7], to));
            }
        }
    }
}, v4 Direct V4, v6 Direct V6);

/// Somebody else's proxy in the server's namespace, which writes a PROXY header: the program, its word for the version, and what
/// starts it on a port.
type Sender = fn(&Lab, &TempDir, Family, u16, &str) -> Process;

fn haproxy_sends(lab: &Lab, files: &TempDir, family: Family, port: u16, how: &str) -> Process {
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen pass\n bind {}\n server tproxyd {} {how}\n",
        at(family.any(), port),
        at(family.router_wan(), 1_081)
    );
    haproxy(lab, files, family, port, &text)
}

fn nginx_sends(lab: &Lab, files: &TempDir, family: Family, port: u16, _how: &str) -> Process {
    let (here, there) = (at(family.any(), port), at(family.router_wan(), 1_081));
    let server = format!("server {{ listen {here}; proxy_pass {there}; proxy_protocol on; }}");
    nginx_stream(lab, files, family, port, &server)
}

// The proxy is at every address of the server, so the client calls the destination of the same port and its header says so.
over_ways!(haproxy_and_nginx_say_whose_connection_it_is_and_who_sends_no_header_is_turned_away, |_way, family| {
    let senders: [(Sender, &str); 3] =
        [(haproxy_sends, "send-proxy"), (haproxy_sends, "send-proxy-v2"), (nginx_sends, "v1")];
    for (n, (sender, how)) in senders.into_iter().enumerate() {
        let (lab, files) = (Lab::new(), TempDir::new());
        let port = 9_100 + n as u16;
        let mirror = Mirror::start(&lab.server, family.proxy());
        let server = [("server", family.proxy().to_string()), ("port", mirror.at.port().to_string())];
        let server: Vec<_> = server.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let listener = [
            ("mode", "plain"),
            ("port", "1081"),
            ("accept_proxy", "1"),
            ("allow_ip", "198.51.100.0/24 192.168.1.0/24 2001:db8:1::/64"),
        ];
        let config = Uci::new("forward").listener(&listener).outbound(&server);
        let daemon = Daemon::start(&lab, &config);
        let _sender = sender(&lab, &files, family, port, how);
        let to = at(family.destination(80), port);
        let mut client = connect(&lab.client, to);
        ask(&mut client).expect("an answer");
        let own = client.local_addr().expect("bound").to_string();
        let sessions = daemon.command("sessions", &["--json"]);
        assert!(sessions.contains(&own) && sessions.contains(&to.to_string()), "{sessions}");
        // until_listening has called, too, and ended without a word
        let before = daemon.status().number("drops.no_greeting");
        let mut bare = connect(&lab.server, SocketAddr::new(family.router_wan(), 1_081));
        bare.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("send");
        let ended = bare.read(&mut [0; 8]);
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        daemon.status_until("the bare one is counted", |s| s.number("drops.no_greeting") > before);
    }
}, v4 Direct V4, v6 Direct V6);
