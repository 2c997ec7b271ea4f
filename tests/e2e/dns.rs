//! A DNS server (RFC 1035) for one name, with troubles on command.

use std::io::{self, PipeReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::ns::{Namespace, first_readable};
use crate::process::Service;
use crate::sock::{PATIENCE, listen, udp};

/// The name that the server knows; every other one does not exist.
pub const NAME: &str = "proxy.example";

/// What it answers.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    /// Addresses of [`NAME`].
    pub addresses: Vec<IpAddr>,
    /// How long an answer may be kept, in seconds.
    pub ttl: u32,
    /// UDP answers carry nothing but the TC bit.
    pub truncates: bool,
    /// It answers nothing at all.
    pub down: bool,
}

/// One question, as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    pub id: u16,
    pub from: SocketAddr,
    pub kind: u16,
    pub over_tcp: bool,
}

/// The server; gone when dropped.
pub struct Dns {
    zone: Arc<Mutex<Zone>>,
    questions: Receiver<Question>,
    _service: Service,
}

impl Dns {
    /// Listens in `ns` on port 53, UDP and TCP.
    pub fn start(ns: &Namespace, ip: IpAddr, zone: Zone) -> Dns {
        let (socket, listener) = (udp(ns, ip, 53), listen(ns, ip, 53));
        let zone = Arc::new(Mutex::new(zone));
        let (tell, questions) = channel();
        let shared = Arc::clone(&zone);
        let service = Service::start(move |stop| Server { zone: shared, tell, stop }.serve(&socket, &listener));
        Dns { zone, questions, _service: service }
    }

    /// Changes what it answers from now on.
    pub fn change(&self, change: impl FnOnce(&mut Zone)) {
        change(&mut self.zone.lock().expect("no poison"));
    }

    /// All questions not yet looked at.
    pub fn asked(&self) -> Vec<Question> {
        self.questions.try_iter().collect()
    }
}

struct Server {
    zone: Arc<Mutex<Zone>>,
    tell: Sender<Question>,
    stop: PipeReader,
}

impl Server {
    fn serve(&self, socket: &UdpSocket, listener: &TcpListener) {
        let mut buffer = [0; 1_500];
        loop {
            let fds = [self.stop.as_fd(), socket.as_fd(), listener.as_fd()];
            match first_readable(&fds, Duration::from_secs(3600)) {
                Some(1) => {
                    let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
                    if let Some(answer) = self.answer(&buffer[..n], from, false) {
                        let _ = socket.send_to(&answer, from);
                    }
                }
                // An error is a client that left.
                Some(2) => drop(self.over_tcp(listener)),
                _ => return,
            }
        }
    }

    /// RFC 1035 section 4.2.2: two octets of length before each message.
    fn over_tcp(&self, listener: &TcpListener) -> io::Result<()> {
        let (mut stream, from) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut len = [0; 2];
        stream.read_exact(&mut len)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut query)?;
        let Some(answer) = self.answer(&query, from, true) else { return Ok(()) };
        let len = u16::try_from(answer.len()).expect("a small answer");
        stream.write_all(&[&len.to_be_bytes(), &answer[..]].concat())
    }

    fn answer(&self, query: &[u8], from: SocketAddr, over_tcp: bool) -> Option<Vec<u8>> {
        let (head, mut rest) = query.split_at_checked(12)?;
        let mut name = Vec::new();
        let question = rest;
        loop {
            let (&len, tail) = rest.split_first()?;
            if len == 0 {
                rest = tail;
                break;
            }
            let (label, tail) = tail.split_at_checked(usize::from(len))?;
            name.push(String::from_utf8_lossy(label).into_owned());
            rest = tail;
        }
        let kind = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
        let question = &question[..question.len() - rest.len() + 4];
        let _ = self.tell.send(Question { id: u16::from_be_bytes([head[0], head[1]]), from, kind, over_tcp });

        let zone = self.zone.lock().expect("no poison").clone();
        if zone.down {
            return None;
        }
        let known = name.join(".").eq_ignore_ascii_case(NAME);
        let truncated = zone.truncates && !over_tcp;
        let wanted = |ip: &&IpAddr| known && !truncated && kind == if ip.is_ipv4() { 1 } else { 28 };
        let addresses: Vec<&IpAddr> = zone.addresses.iter().filter(wanted).collect();
        // Response, recursion desired and available (section 4.1.1); TC; NXDOMAIN.
        let flags = 0x8180 | if truncated { 0x0200 } else { 0 } | if known { 0 } else { 3 };
        let mut answer = [&head[..2], &u16::to_be_bytes(flags), &[0, 1, 0], &[addresses.len() as u8], &[0; 4]].concat();
        answer.extend(question);
        for ip in addresses {
            answer.extend([0xc0, 12]); // a pointer to the question's name
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1]); // class IN
            answer.extend(zone.ttl.to_be_bytes());
            match ip {
                IpAddr::V4(ip) => answer.extend([&[0, 4][..], &ip.octets()].concat()),
                IpAddr::V6(ip) => answer.extend([&[0, 16][..], &ip.octets()].concat()),
            }
        }
        Some(answer)
    }
}
