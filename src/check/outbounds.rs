//! Are the outbounds' servers found, reached, and do they speak what they should? Asks each once, as the daemon would.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use super::{Finding, Findings};
use crate::config::{Config, Credentials, Host, Outbound, OutboundKind, Resolver, Server};
use crate::proto::dns::{QType, encode_query, parse_answer};
use crate::sys::socket::{self, Family, Transport};
use crate::sys::{passing, sockopt};

pub(super) fn check(findings: &mut Findings, cfg: &Config) {
    for outbound in &cfg.outbounds {
        let Some((server, speech)) = server_of(&outbound.kind) else { continue };
        let addresses = match addresses(server, &cfg.globals.resolver) {
            Ok(addresses) => addresses,
            Err(why) => {
                let text = format!("outbound '{}': its server can't be found: {why}", outbound.name);
                let mend = "correct `option server`, or `option resolver`; nslookup shows what DNS says";
                findings.push(Finding::fail("outbound_name", text, mend));
                continue;
            }
        };
        reach(findings, outbound, &speech, &addresses, cfg.globals.self_mark.value);
    }
}

/// How a server is spoken to.
enum Speech<'c> {
    /// RFC 1928.
    Socks5(Option<&'c Credentials>),
    /// RFC 9110.
    Http,
    /// In a way in which nothing can be asked.
    Silent,
}

fn server_of(kind: &OutboundKind) -> Option<(&Server, Speech<'_>)> {
    match kind {
        OutboundKind::Socks5 { server, credentials } => Some((server, Speech::Socks5(credentials.as_ref()))),
        OutboundKind::Http { server, .. } => Some((server, Speech::Http)),
        OutboundKind::Forward { server, .. } => Some((server, Speech::Silent)),
        _ => None,
    }
}

fn reach(findings: &mut Findings, outbound: &Outbound, speech: &Speech<'_>, addresses: &[SocketAddr], mark: u32) {
    let name = &outbound.name;
    let mut last = None;
    for address in addresses {
        match connect(*address, mark, outbound.connect_timeout) {
            Ok(stream) => {
                match greet(stream, speech) {
                    Ok(()) => findings.push(Finding::ok("outbound", format!("outbound '{name}': {address} answers"))),
                    Err(Spoken::Io(why)) => {
                        let text = format!(
                            "outbound '{name}': {address} takes the connection, and does not speak as it should: {why}"
                        );
                        let mend = "correct `option port`, or `option type`";
                        findings.push(Finding::fail("outbound_handshake", text, mend));
                    }
                    Err(Spoken::Refused(why)) => {
                        let text = format!("outbound '{name}': {address} {why}");
                        let mend = "correct `option username` and `option password`";
                        findings.push(Finding::fail("outbound_login", text, mend));
                    }
                }
                return;
            }
            Err(e) => last = Some((*address, e)),
        }
    }
    if let Some((address, e)) = last {
        let text = format!("outbound '{name}': {address} can't be reached: {e}");
        let mend = "start the proxy, or correct `option server` and `option port`";
        findings.push(Finding::fail("outbound_reach", text, mend));
    }
}

/// With our own mark, so that it is not intercepted.
fn connect(to: SocketAddr, mark: u32, patience: Duration) -> io::Result<TcpStream> {
    let fd = socket::open(Family::of(to), Transport::Tcp)?;
    sockopt::set_mark(fd.as_fd(), mark)?;
    if !socket::connect(fd.as_fd(), to)? {
        if !passing::wait_writable(fd.as_fd(), patience)? {
            return Err(ErrorKind::TimedOut.into());
        }
        sockopt::take_error(fd.as_fd())?;
    }
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

enum Spoken {
    Io(String),
    Refused(&'static str),
}

fn greet(stream: TcpStream, speech: &Speech<'_>) -> Result<(), Spoken> {
    match speech {
        Speech::Silent => Ok(()),
        Speech::Http => greet_http(stream),
        Speech::Socks5(credentials) => greet_socks5(stream, *credentials),
    }
}

/// Any status will do: what is asked makes no sense to many proxies.
fn greet_http(mut stream: TcpStream) -> Result<(), Spoken> {
    let mut answer = [0; 5];
    let request = b"OPTIONS * HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n";
    let spoken = stream.write_all(request).and_then(|()| stream.read_exact(&mut answer));
    spoken.map_err(|e| Spoken::Io(e.to_string()))?;
    if answer == *b"HTTP/" { Ok(()) } else { Err(Spoken::Io("its answer is not HTTP".into())) }
}

/// RFC 1928 section 3 and RFC 1929: greeting and login; nothing is asked for after that.
fn greet_socks5(mut stream: TcpStream, credentials: Option<&Credentials>) -> Result<(), Spoken> {
    let failed = |e: io::Error| Spoken::Io(e.to_string());
    let greeting: &[u8] = if credentials.is_some() { &[5, 2, 0, 2] } else { &[5, 1, 0] };
    let mut answer = [0; 2];
    stream.write_all(greeting).and_then(|()| stream.read_exact(&mut answer)).map_err(failed)?;
    match (answer, credentials) {
        ([5, 0], _) => Ok(()),
        ([5, 2], Some(Credentials { username, password })) => {
            let mut login = vec![1, username.len() as u8];
            login.extend_from_slice(username.as_bytes());
            login.push(password.len() as u8);
            login.extend_from_slice(password.as_bytes());
            stream.write_all(&login).and_then(|()| stream.read_exact(&mut answer)).map_err(failed)?;
            if answer[1] == 0 { Ok(()) } else { Err(Spoken::Refused("refuses this user name or password")) }
        }
        ([5, _], _) => Err(Spoken::Refused("wants another way to log in than it is offered")),
        ([first, _], _) => Err(Spoken::Io(format!("its answer begins with {first:#04x}"))),
    }
}

fn addresses(server: &Server, resolver: &Resolver) -> Result<Vec<SocketAddr>, String> {
    match (&server.host, resolver) {
        (Host::Address(ip), _) => Ok(vec![SocketAddr::new(*ip, server.port)]),
        (Host::Name(name), Resolver::File(path)) => {
            // as `run` asks; the C library's resolver would cost 17 KB, and read /etc/hosts, which `run` does not
            let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            let servers = text.lines().filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok());
            let mut servers: Vec<IpAddr> = servers.take(3).collect();
            if servers.is_empty() {
                servers.push(Ipv4Addr::LOCALHOST.into());
            }
            let mut found = Err(String::new());
            for dns in servers {
                found = ask(name, SocketAddr::new(dns, 53), server.port);
                if found.is_ok() {
                    break;
                }
            }
            found
        }
        (Host::Name(name), Resolver::Server(dns)) => ask(name, *dns, server.port),
    }
}

/// Asks one name server, once for each family.
fn ask(name: &str, dns: SocketAddr, port: u16) -> Result<Vec<SocketAddr>, String> {
    let any: SocketAddr = if dns.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let words = |e: io::Error| format!("name server {dns}: {e}");
    let socket = UdpSocket::bind(any).map_err(words)?;
    socket.set_read_timeout(Some(Duration::from_secs(3))).map_err(words)?;
    socket.connect(dns).map_err(words)?;
    let mut found = Vec::new();
    let mut why = format!("'{name}' has no address");
    for qtype in [QType::A, QType::Aaaa] {
        let id =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.subsec_nanos() as u16);
        let mut query = [0; crate::proto::dns::QUERY_MAX];
        let len = encode_query(id, name, qtype, &mut query).map_err(|_| format!("'{name}' is no name"))?;
        let mut answer = [0; 512];
        let received = socket.send(&query[..len]).and_then(|_| socket.recv(&mut answer)).map_err(words)?;
        match parse_answer(&answer[..received], id, name, qtype) {
            Ok(answer) => found.extend(answer.addresses.iter().map(|ip| SocketAddr::new(*ip, port))),
            Err(e) => why = format!("name server {dns} says of '{name}': {e:?}"),
        }
    }
    if found.is_empty() { Err(why) } else { Ok(found) }
}
