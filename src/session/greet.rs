//! Clients that are told: what they ask for before a rule decides, and the answer they wait for.
//!
//! As in `classify`, bytes are looked at where they lie: what belongs to the greeting is thrown away in the socket once it is
//! whole, and the relay begins with what comes after.

use super::outbound::ADDRESSES_MAX;
use super::tcp::{Session, Stage, Tcp};
use super::{CloseReason, Cx};
use crate::config::Mode;
use crate::proto::http_server;
use crate::proto::proxy_header::{self, Header, Transport};
use crate::proto::socks5_server::{self as socks5, Heard, REPLY_MAX, Target};
use crate::stats::Drop;
use crate::store::names::{NameText, Names};
use crate::store::shares::Share;
use crate::store::slab::Key;
use crate::sys::socket;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// What is to come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Greeting {
    /// A PROXY header.
    ProxyHeader,
    /// Methods of authentication.
    Socks5Methods,
    /// What a SOCKS5 client wants.
    Socks5Request,
    /// Nothing: the connection keeps a relay for datagrams.
    Socks5Associated,
    /// The head of an HTTP request.
    Http,
}

/// Who is told how the dial went, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// An intercepted client: it is connected already, and reset if the dial fails.
    Intercepted,
    /// A client of mode plain: the same.
    Nothing,
    /// SOCKS5.
    Socks5,
    /// CONNECT.
    HttpConnect,
    /// Any other request of HTTP: the server's own answer serves.
    Http,
}

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// The destination of a client that named none by address: its name stands in the session.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl Tcp {
    /// Takes a connection of `client` to a listener of `mode`, which is none that intercepts, at `local`.
    pub fn greet(
        &mut self,
        fd: OwnedFd,
        (client, local): (SocketAddr, SocketAddr),
        (mode, accept_proxy): (Mode, bool),
        cx: &mut Cx<'_>,
    ) {
        let inserted = if accept_proxy {
            // whose it is, the header will tell
            self.insert_as(Share::NONE, fd, (client, local), 0, None, cx)
        } else {
            self.insert(fd, (client, local), 0, None, cx)
        };
        let Some(key) = inserted else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (greeting, answer) = match mode {
            Mode::Http => (Some(Greeting::Http), Answer::Http),
            Mode::Socks5 => (Some(Greeting::Socks5Methods), Answer::Socks5),
            _ => (accept_proxy.then_some(Greeting::ProxyHeader), Answer::Nothing),
        };
        session.answer = answer;
        match greeting {
            Some(greeting) => {
                session.stage = Stage::Greeting(greeting);
                self.timers.set(key.slot, cx.now.after(PATIENCE));
                self.hear(key, cx);
            }
            None => self.classify(key, None, cx),
        }
    }

    /// Bytes may have come that say what the client wants.
    pub(super) fn hear(&mut self, key: Key, cx: &mut Cx<'_>) {
        loop {
            let Some(session) = self.sessions.get(key) else { return };
            let (Stage::Greeting(greeting), Some(fd)) = (session.stage, session.near.borrow()) else { return };
            let mut bytes = [0; http_server::HEAD_MAX];
            let bytes = match socket::peek(fd, &mut bytes) {
                Ok(0) if greeting == Greeting::Socks5Associated => return self.close(key, CloseReason::Done, cx),
                Ok(0) => return self.refuse_greeting(key, cx),
                Ok(n) => &bytes[..n],
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
                Err(e) => return self.close(key, CloseReason::ClientFailed(e), cx),
            };
            let before = session.stage;
            match greeting {
                Greeting::ProxyHeader => match proxy_header::read(bytes, Transport::Stream) {
                    Header::Whole { flow, used } => self.proxied(key, flow, used, cx),
                    Header::More => return self.wait_for_more(key, cx),
                    Header::Bad => return self.refuse_greeting(key, cx),
                },
                Greeting::Socks5Methods => match socks5::greeting(bytes) {
                    Heard::Whole(true, used) => {
                        self.take(key, used);
                        self.say(key, &socks5::METHODS[0], cx);
                        if let Some(session) = self.sessions.get_mut(key) {
                            session.stage = Stage::Greeting(Greeting::Socks5Request);
                        }
                    }
                    Heard::Whole(false, used) => {
                        self.take(key, used);
                        self.say(key, &socks5::METHODS[1], cx);
                        return self.refuse_greeting(key, cx);
                    }
                    Heard::More => return self.wait_for_more(key, cx),
                    Heard::Bad => return self.refuse_greeting(key, cx),
                },
                Greeting::Socks5Request => match socks5::request(bytes) {
                    Heard::Whole(request, used) => {
                        self.take(key, used);
                        self.requested_by_socks5(key, &request, cx);
                    }
                    Heard::More => return self.wait_for_more(key, cx),
                    Heard::Bad => return self.refuse_greeting(key, cx),
                },
                Greeting::Socks5Associated => self.take(key, bytes.len()),
                Greeting::Http => match http_server::request(bytes) {
                    Heard::Whole(request, used) => self.requested_by_http(key, &request, &bytes[..used], cx),
                    Heard::More => return self.wait_for_more(key, cx),
                    Heard::Bad => {
                        // what is left unread would make the close a reset, which may overtake the answer
                        self.take(key, bytes.len());
                        self.say(key, http_server::BAD_REQUEST, cx);
                        return self.refuse_greeting(key, cx);
                    }
                },
            }
            let goes_on = self.sessions.get(key).is_some_and(|session| {
                matches!(session.stage, Stage::Greeting(_))
                    && (session.stage != before || greeting == Greeting::Socks5Associated)
            });
            if !goes_on {
                return;
            }
        }
    }

    /// An end of what the client sends in the midst of its greeting is the end of it.
    fn wait_for_more(&mut self, key: Key, cx: &mut Cx<'_>) {
        if self.sessions.get(key).is_some_and(|session| session.near.is_read_closed()) {
            self.refuse_greeting(key, cx);
        }
    }

    fn proxied(&mut self, key: Key, flow: Option<(SocketAddr, SocketAddr)>, used: usize, cx: &mut Cx<'_>) {
        self.take(key, used);
        let Some(session) = self.sessions.get_mut(key) else { return };
        if let Some((client, orig_dst)) = flow {
            (session.client, session.orig_dst) = (client.into(), orig_dst.into());
        }
        match cx.take_share(session.client.address()) {
            Some(share) => session.share = share,
            None => {
                cx.stats.tcp.refused += 1;
                session.near.reset();
                return self.close(key, CloseReason::Rejected, cx);
            }
        }
        self.classify(key, None, cx);
    }

    fn requested_by_socks5(&mut self, key: Key, request: &socks5::Request, cx: &mut Cx<'_>) {
        match request {
            socks5::Request::Connect(target) => self.go_to(key, target, cx),
            socks5::Request::Associate => {
                let local = self.sessions.get(key).map(|session| session.orig_dst.address());
                self.reply_by_socks5(key, socks5::SUCCEEDED, local, cx);
                if let Some(session) = self.sessions.get_mut(key) {
                    session.stage = Stage::Greeting(Greeting::Socks5Associated);
                    cx.associated.begin(session.client.ip(), session.listener);
                    self.timers.clear(key.slot);
                }
            }
            socks5::Request::Other | socks5::Request::BadAddress => {
                let code = if *request == socks5::Request::Other {
                    socks5::COMMAND_NOT_SUPPORTED
                } else {
                    socks5::ADDRESS_NOT_SUPPORTED
                };
                self.reply_by_socks5(key, code, None, cx);
                self.refuse_greeting(key, cx);
            }
        }
    }

    fn requested_by_http(&mut self, key: Key, request: &http_server::Request, head: &[u8], cx: &mut Cx<'_>) {
        self.take(key, head.len());
        let Some(session) = self.sessions.get_mut(key) else { return };
        match request {
            http_server::Request::Connect(target) => {
                session.answer = Answer::HttpConnect;
                self.go_to(key, target, cx);
            }
            http_server::Request::Forward(target) => {
                let mut out = [0; http_server::HEAD_MAX + 64];
                let len = http_server::origin_form(head, &mut out).unwrap_or(0);
                if len == 0 || !session.far.hold(&out[..len], cx.pool) {
                    cx.stats.pool_empty += 1;
                    self.say(key, http_server::BAD_GATEWAY, cx);
                    return self.close(key, CloseReason::Rejected, cx);
                }
                self.go_to(key, target, cx);
            }
        }
    }

    fn go_to(&mut self, key: Key, target: &Target, cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        match target {
            Target::Address(address) => {
                session.orig_dst = (*address).into();
                self.classify(key, None, cx);
            }
            Target::Name(name, port) => {
                session.orig_dst = SocketAddr::new(UNKNOWN, *port).into();
                self.classify(key, Some(name.as_str()), cx);
            }
        }
    }

    /// What came first makes no sense, or did not come.
    pub(super) fn refuse_greeting(&mut self, key: Key, cx: &mut Cx<'_>) {
        cx.stats.drop(Drop::NoGreeting);
        cx.stats.tcp.refused += 1;
        self.close(key, CloseReason::Rejected, cx);
    }

    /// Tells a client that is told that its connection stands. False: it is gone.
    pub(super) fn announce(&mut self, key: Key, cx: &mut Cx<'_>) -> bool {
        match self.sessions.get(key).map(|session| session.answer) {
            Some(Answer::Socks5) => self.reply_by_socks5(key, socks5::SUCCEEDED, None, cx),
            Some(Answer::HttpConnect) => self.say(key, http_server::ESTABLISHED, cx),
            _ => {}
        }
        self.sessions.get(key).is_some()
    }

    /// Tells a client that it can't be done: by a rule, or since the dial failed. Whom nothing is told is reset.
    pub(super) fn tell_failure(&mut self, key: Key, by_rule: bool, cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        match session.answer {
            Answer::Intercepted | Answer::Nothing => session.near.reset(),
            Answer::Socks5 => {
                let code = if by_rule { socks5::NOT_ALLOWED } else { socks5::UNREACHABLE };
                self.reply_by_socks5(key, code, None, cx);
            }
            Answer::HttpConnect | Answer::Http => {
                let text = if by_rule { http_server::FORBIDDEN } else { http_server::BAD_GATEWAY };
                self.say(key, text, cx);
            }
        }
    }

    fn reply_by_socks5(&mut self, key: Key, code: u8, bound: Option<SocketAddr>, cx: &mut Cx<'_>) {
        let mut out = [0; REPLY_MAX];
        let len = socks5::reply(code, bound.unwrap_or(SocketAddr::new(UNKNOWN, 0)), &mut out);
        self.say(key, &out[..len], cx);
    }

    /// Sends a few octets to the client, whose socket's buffer is as good as empty.
    fn say(&mut self, key: Key, text: &[u8], cx: &mut Cx<'_>) {
        let sent = self.sessions.get(key).and_then(|session| session.near.borrow()).map(|fd| socket::send(fd, text));
        match sent {
            Some(Ok(n)) if n == text.len() => {}
            Some(Ok(_)) => self.close(key, CloseReason::ClientFailed(ErrorKind::WouldBlock.into()), cx),
            Some(Err(e)) => self.close(key, CloseReason::ClientFailed(e), cx),
            None => {}
        }
    }

    /// Takes what belonged to the greeting.
    fn take(&mut self, key: Key, len: usize) {
        if let Some(fd) = self.sessions.get(key).and_then(|session| session.near.borrow()) {
            // it was there a moment ago; an error shows at the next read
            let _ = socket::discard(fd, len);
        }
    }
}

impl Session {
    /// The destination is known by name alone.
    pub(super) fn is_by_name(&self) -> bool {
        self.orig_dst.ip() == UNKNOWN
    }

    /// Whether a client that is told may be led where it wants, by a way that goes there itself: not to this machine's own
    /// services, which trust whoever comes by loopback, and not back to the listener.
    pub(super) fn may_go_itself(&self) -> bool {
        if self.answer == Answer::Intercepted || self.is_by_name() {
            return true;
        }
        let (ip, port) = (self.orig_dst.ip(), self.orig_dst.port());
        let own_port = self.near.borrow().and_then(|fd| socket::local_address(fd).ok()).map_or(0, |local| local.port());
        !(ip.is_loopback() || ip.is_unspecified() || port == own_port && socket::is_local_address(ip))
    }
}

impl Session {
    /// The `attempt`th address to try. A destination that is known by name alone is looked up where nobody else does that.
    pub(super) fn address(&self, attempt: u8, cx: &mut Cx<'_>) -> Option<SocketAddr> {
        let outbound = cx.outbounds.get(self.via);
        if outbound.server().is_some() || !self.is_by_name() {
            return outbound.address(attempt, self.orig_dst.address(), cx.resolver);
        }
        let name = cx.names.text(self.name.as_ref()?);
        let outbounds = &*cx.outbounds;
        let id = match cx.resolver.intern(&name) {
            Some(id) => id,
            None => {
                // full of names that clients have asked for: those under way are asked for once more
                cx.resolver.retain(cx.registry, &mut |known| outbounds.uses_name(known));
                cx.resolver.intern(&name)?
            }
        };
        cx.resolver.request(id, cx.now);
        // a name must not lead to this machine's own services
        let usable = cx.resolver.addresses(id).iter().filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
        let ip = usable.take(ADDRESSES_MAX).nth(attempt.into())?;
        Some(SocketAddr::new(*ip, self.orig_dst.port()))
    }

    /// What a proxy is told instead of an address: where nobody knows that, and where it is to look names up.
    pub(super) fn name_to_say(&self, send_domain: bool, names: &Names) -> Option<NameText> {
        let name = self.name.as_ref().filter(|_| send_domain || self.is_by_name())?;
        Some(names.text(name))
    }
}
