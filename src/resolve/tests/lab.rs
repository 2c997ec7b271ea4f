//! Real DNS servers as threads on loopback, and a loop that drives a resolver with a simulated clock.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::super::*;

/// What a server says, and how.
pub(super) struct Zone {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ttl: u32,
    pub(super) trick: Trick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trick {
    None,
    Silence,
    Rcode(u8),
    Truncate,
    /// The answer by TCP comes octet by octet.
    TruncateThenTrickle,
    TruncateThenHangUp,
    /// The right answer follows.
    WrongIdFirst,
    WrongQuestionFirst,
    WrongSourceFirst,
    GarbageFirst,
    OnlyWrongIds,
}

impl Zone {
    pub(super) fn new(v4: &[&str], v6: &[&str]) -> Zone {
        let addresses = v4.iter().chain(v6).map(|address| address.parse().unwrap()).collect();
        Zone { addresses, ttl: 300, trick: Trick::None }
    }
}

/// A DNS server until it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
    threads: Vec<JoinHandle<()>>,
}

struct State {
    zone: Zone,
    stop: bool,
    /// Source port and id of each question.
    asked: Vec<(u16, u16)>,
}

impl Server {
    pub(super) fn start(zone: Zone) -> Server {
        Self::start_on("127.0.0.1:0", zone)
    }

    pub(super) fn start_on(address: &str, zone: Zone) -> Server {
        // The same port by UDP and TCP; another test may take it in between.
        let (udp, tcp) = (0..100)
            .find_map(|_| {
                let udp = UdpSocket::bind(address).unwrap();
                let tcp = TcpListener::bind(udp.local_addr().unwrap()).ok()?;
                Some((udp, tcp))
            })
            .unwrap();
        let address = udp.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { zone, stop: false, asked: Vec::new() }));
        let threads = vec![
            std::thread::spawn({
                let state = state.clone();
                move || serve_udp(&udp, &state)
            }),
            std::thread::spawn({
                let state = state.clone();
                move || serve_tcp(&tcp, &state)
            }),
        ];
        Server { address, state, threads }
    }

    pub(super) fn source(&self) -> ServersSource {
        ServersSource::Server(self.address)
    }

    pub(super) fn change(&self, zone: Zone) {
        self.state.lock().unwrap().zone = zone;
    }

    pub(super) fn questions(&self) -> usize {
        self.state.lock().unwrap().asked.len()
    }

    /// For a server that does not answer: how many questions it has got once there are `at_least` so many.
    pub(super) fn questions_within(&self, at_least: usize) -> usize {
        loop {
            let questions = self.questions();
            if questions >= at_least {
                return questions;
            }
            std::thread::yield_now();
        }
    }

    pub(super) fn ports(&self) -> BTreeSet<u16> {
        self.state.lock().unwrap().asked.iter().map(|(port, _)| *port).collect()
    }

    pub(super) fn ids(&self) -> BTreeSet<u16> {
        self.state.lock().unwrap().asked.iter().map(|(_, id)| *id).collect()
    }

    /// Closes the port and keeps the address.
    pub(super) fn close(mut self) -> Server {
        self.stop();
        self
    }

    fn stop(&mut self) {
        self.state.lock().unwrap().stop = true;
        if !self.threads.is_empty() {
            // Wakes both threads.
            UdpSocket::bind((self.address.ip(), 0)).unwrap().send_to(b"", self.address).unwrap();
            TcpStream::connect(self.address).unwrap();
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve_udp(socket: &UdpSocket, state: &Mutex<State>) {
    let mut buffer = [0; 512];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).unwrap();
        let mut state = state.lock().unwrap();
        if state.stop {
            return;
        }
        let question = &buffer[..length];
        state.asked.push((client.port(), u16::from_be_bytes([question[0], question[1]])));
        let send = |message: &[u8]| assert_eq!(socket.send_to(message, client).unwrap(), message.len());
        let answer = answer(question, &state.zone);
        let forged = forged(question);
        match state.zone.trick {
            Trick::Silence => {}
            Trick::Truncate | Trick::TruncateThenTrickle | Trick::TruncateThenHangUp => {
                let mut truncated = answer;
                truncated[2] |= 0x02;
                send(&truncated[..length]);
            }
            Trick::WrongIdFirst => {
                send(&with(&forged, 0, forged[0] ^ 1));
                send(&answer);
            }
            Trick::WrongQuestionFirst => {
                send(&with(&forged, 13, b'x'));
                send(&answer);
            }
            Trick::WrongSourceFirst => {
                let other = UdpSocket::bind((socket.local_addr().unwrap().ip(), 0)).unwrap();
                other.send_to(&forged, client).unwrap();
                send(&answer);
            }
            Trick::GarbageFirst => {
                send(b"");
                send(&[0xff; 40]);
                send(question);
                send(&answer);
            }
            Trick::OnlyWrongIds => (1..=20).for_each(|n| send(&with(&forged, 1, forged[1] ^ n))),
            Trick::None | Trick::Rcode(_) => send(&answer),
        }
    }
}

fn serve_tcp(listener: &TcpListener, state: &Mutex<State>) {
    loop {
        let (mut stream, client) = listener.accept().unwrap();
        if state.lock().unwrap().stop {
            return;
        }
        let mut frame = [0; 2];
        stream.read_exact(&mut frame).unwrap();
        let mut question = vec![0; u16::from_be_bytes(frame).into()];
        stream.read_exact(&mut question).unwrap();
        let mut state = state.lock().unwrap();
        state.asked.push((client.port(), u16::from_be_bytes([question[0], question[1]])));
        let answer = answer(&question, &state.zone);
        let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
        match state.zone.trick {
            Trick::TruncateThenHangUp => {}
            Trick::TruncateThenTrickle => {
                stream.set_nodelay(true).unwrap();
                framed.chunks(1).for_each(|octet| stream.write_all(octet).unwrap());
            }
            _ => stream.write_all(&framed).unwrap(),
        }
    }
}

/// The zone's answer: the question echoed, then a record for each address of the family asked for.
fn answer(question: &[u8], zone: &Zone) -> Vec<u8> {
    let mut message = question.to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    if let Trick::Rcode(rcode) = zone.trick {
        message[3] |= rcode;
    }
    let kind = [question[question.len() - 4], question[question.len() - 3]];
    for address in &zone.addresses {
        let (of, octets) = match address {
            IpAddr::V4(v4) => (1, v4.octets().to_vec()),
            IpAddr::V6(v6) => (28, v6.octets().to_vec()),
        };
        if kind == [0, of] {
            message[7] += 1;
            message.extend([0xc0, 12, 0, of, 0, 1]);
            message.extend(zone.ttl.to_be_bytes());
            message.extend([0, octets.len() as u8]);
            message.extend(octets);
        }
    }
    message
}

/// What a forger would like us to believe.
fn forged(question: &[u8]) -> Vec<u8> {
    answer(question, &Zone::new(&["203.0.113.66"], &["2001:db8::bad"]))
}

fn with(message: &[u8], at: usize, octet: u8) -> Vec<u8> {
    let mut message = message.to_vec();
    message[at] = octet;
    message
}

/// A file in the form of resolv.conf(5) until it is dropped.
pub(super) struct ResolvConf(PathBuf);

impl ResolvConf {
    pub(super) fn new(test: &str, servers: &[&Server]) -> ResolvConf {
        let file = ResolvConf(std::env::temp_dir().join(format!("tproxyd-resolve-{}-{test}", std::process::id())));
        file.write(servers);
        file
    }

    pub(super) fn write(&self, servers: &[&Server]) {
        let lines =
            servers.iter().map(|server| format!("nameserver [{}]:{}\n", server.address.ip(), server.address.port()));
        std::fs::write(&self.0, lines.collect::<String>()).unwrap();
    }

    pub(super) fn remove(&self) {
        std::fs::remove_file(&self.0).unwrap();
    }

    pub(super) fn source(&self) -> ServersSource {
        ServersSource::File(self.0.clone())
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A resolver on a real poll, and the time.
pub(super) struct Lab {
    pub(super) poll: Poll,
    pub(super) resolver: Resolver,
    pub(super) now: Tick,
    pub(super) outcomes: Vec<Outcome>,
    /// Every token gets an event in every turn.
    pub(super) spurious: bool,
}

const TOKEN_BASE: usize = 1000;

impl Lab {
    pub(super) fn new(source: ServersSource) -> Lab {
        Self::with(source, (true, true))
    }

    pub(super) fn with(source: ServersSource, families: (bool, bool)) -> Lab {
        let resolver = Resolver::new(source, 0, families, Token(TOKEN_BASE));
        // A second before the clock wraps, so that every test crosses that.
        let now = Tick(u32::MAX - 100);
        Lab { poll: Poll::new().unwrap(), resolver, now, outcomes: Vec::new(), spurious: false }
    }

    pub(super) fn addresses(&self, id: NameId) -> Vec<String> {
        self.resolver.addresses(id).iter().map(IpAddr::to_string).collect()
    }

    #[track_caller]
    pub(super) fn expect(&self, id: NameId, addresses: &[&str], freshness: Freshness) {
        assert_eq!(self.addresses(id), addresses);
        assert_eq!(self.resolver.status(id).unwrap().freshness, freshness);
    }

    /// Requests a name and sends its questions.
    pub(super) fn begin(&mut self, id: NameId) {
        self.resolver.request(id, self.now);
        assert_eq!(self.resolver.deadline(), Some(self.now));
        self.expire();
    }

    /// Requests a name and stays until its round is over.
    pub(super) fn round(&mut self, id: NameId) -> Vec<Outcome> {
        self.begin(id);
        self.finish()
    }

    pub(super) fn rounds(&mut self, ids: &[NameId]) {
        ids.iter().for_each(|id| self.resolver.request(*id, self.now));
        self.expire();
        self.finish();
    }

    /// Takes events until no round is under way; the clock stands.
    pub(super) fn finish(&mut self) -> Vec<Outcome> {
        let mut events = Events::with_capacity(64);
        while self.resolver.statuses().any(|status| status.asking) {
            // An event of nobody may take what a true one would have announced, so then the poll must not wait for that.
            let patience = if self.spurious { Duration::ZERO } else { Duration::from_secs(10) };
            if self.spurious {
                (0..QUERIES_MAX).for_each(|slot| self.ready(Token(TOKEN_BASE + slot)));
            }
            self.poll.poll(&mut events, Some(patience)).unwrap();
            assert!(!events.is_empty() || self.spurious, "nothing happened for ten seconds");
            let tokens: Vec<Token> = events.iter().map(mio::event::Event::token).collect();
            tokens.into_iter().for_each(|token| self.ready(token));
        }
        std::mem::take(&mut self.outcomes)
    }

    fn ready(&mut self, token: Token) {
        assert!(self.resolver.owns(token));
        let outcomes = &mut self.outcomes;
        self.resolver.ready(token, self.now, self.poll.registry(), &mut |_, outcome| outcomes.push(outcome));
    }

    pub(super) fn expire(&mut self) {
        let outcomes = &mut self.outcomes;
        self.resolver.expire(self.now, self.poll.registry(), &mut |_, outcome| outcomes.push(outcome));
    }

    pub(super) fn skip(&mut self, span: Duration) {
        self.now = self.now.after(span);
        self.expire();
    }

    pub(super) fn skip_to_deadline(&mut self) {
        self.now = self.resolver.deadline().unwrap();
        self.expire();
    }
}
