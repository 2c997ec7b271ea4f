//! Whom to ask: one server, or those of a file in the form of resolv.conf(5).

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;

use crate::sys::interface;

/// Where the addresses of DNS servers come from: `option resolver`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServersSource {
    /// A file in the form of resolv.conf(5), read again at every look-up: a router's changes with its uplink.
    File(PathBuf),
    /// One server.
    Server(SocketAddr),
}

/// At most as many as resolv.conf(5) allows (`MAXNS`).
pub(super) type Servers = heapless::Vec<SocketAddr, 3>;

/// The servers as they stand now.
pub(super) fn read(source: &ServersSource) -> io::Result<Servers> {
    match source {
        ServersSource::Server(server) => Ok(Servers::from_iter([*server])),
        ServersSource::File(path) => {
            let mut text = [0; FILE_MAX];
            let length = read_up_to(&mut File::open(path)?, &mut text)?;
            Ok(parse(text.get(..length).unwrap_or_default()))
        }
    }
}

/// The `nameserver` lines of resolv.conf(5); without any, "the name server on the local machine".
///
/// Other keywords are passed over: names are asked for as they are, and timeouts are our own.
fn parse(text: &[u8]) -> Servers {
    let lines = text.split(|octet| *octet == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    let servers: Servers = lines.filter_map(server).take(Servers::new().capacity()).collect();
    if servers.is_empty() { Servers::from_iter([SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))]) } else { servers }
}

/// The server of one line.
fn server(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_ascii_whitespace();
    // The keyword stands at the beginning of its line; a blank before it makes it something else.
    if !line.starts_with("nameserver") || words.next() != Some("nameserver") {
        return None;
    }
    let word = words.next()?;
    // `[address]:port` is OpenBSD's form, for servers that leave port 53 to another.
    let (host, port) = match word.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").and_then(|(host, port)| Some((host, port.parse().ok()?)))?,
        None => (word, PORT),
    };
    match host.split_once('%') {
        None => Some(SocketAddr::new(host.parse::<IpAddr>().ok()?, port)),
        Some((host, scope)) => {
            let scope = scope.parse().ok().or_else(|| interface::index(scope).ok())?;
            Some(SocketAddrV6::new(host.parse().ok()?, port, 0, scope).into())
        }
    }
}

/// Fills `buffer` as far as the file goes; what does not fit is left out, with the line that it cuts.
fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => return Ok(length),
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(buffer.iter().rposition(|octet| *octet == b'\n').unwrap_or(0))
}

const PORT: u16 = 53;
/// Three server lines, a search list and comments fit well.
const FILE_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Vec<String> {
        parse(text.as_bytes()).iter().map(SocketAddr::to_string).collect()
    }

    #[test]
    fn servers_of_both_families_are_taken_in_order() {
        let text = "search lan\nnameserver 192.0.2.1\nnameserver\t2001:db8::1  # uplink\noptions timeout:1\n";
        assert_eq!(servers(text), ["192.0.2.1:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn a_link_local_server_keeps_its_scope() {
        assert_eq!(servers("nameserver fe80::1%lo"), ["[fe80::1%1]:53"]);
        assert_eq!(servers("nameserver fe80::1%7"), ["[fe80::1%7]:53"]);
    }

    #[test]
    fn a_server_on_another_port_is_in_brackets() {
        let text = "nameserver [192.0.2.1]:5353\nnameserver [fe80::1%lo]:54\n";
        assert_eq!(servers(text), ["192.0.2.1:5353", "[fe80::1%1]:54"]);
    }

    #[test]
    fn at_most_three_servers_are_taken() {
        let text = "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n";
        assert_eq!(servers(text).len(), 3);
    }

    #[test]
    fn what_is_no_server_is_passed_over() {
        let text = "# nameserver 192.0.2.1\n;nameserver 192.0.2.1\n nameserver 192.0.2.1\nnameservers 192.0.2.1\n\
                    nameserver\nnameserver dns.example\nnameserver fe80::1%no-such-if\nnameserver [192.0.2.1]\n\
                    nameserver [192.0.2.1]:x\nnameserver 192.0.2.1%lo\nnameserver 192.0.2.9\r\n";
        assert_eq!(servers(text), ["192.0.2.9:53"]);
    }

    #[test]
    fn without_servers_the_local_machine_is_asked() {
        assert_eq!(servers(""), ["127.0.0.1:53"]);
        assert_eq!(parse(b"\xff\xfe\nsearch lan"), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let source = ServersSource::File(PathBuf::from("/no/such/resolv.conf"));
        assert_eq!(read(&source).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_line_that_does_not_fit_is_left_out() {
        let path = std::env::temp_dir().join(format!("tproxyd-resolv-{}", std::process::id()));
        let comments = format!("nameserver 192.0.2.1\n#{}\n", "x".repeat(FILE_MAX - 30));
        std::fs::write(&path, format!("{comments}nameserver 192.0.2.222\n")).unwrap();
        let servers = read(&ServersSource::File(path.clone()));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(servers.unwrap(), ["192.0.2.1:53".parse().unwrap()]);
    }
}
