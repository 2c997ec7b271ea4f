//! `check --probe`: a real connection, sent through the rules as if a client had sent it, and at which step it stopped.
//!
//! It begins on this machine, with the mark that intercepted packets get: the policy route brings it back in by the loopback
//! device, where two rules of the probe's own lead it into the chains that clients' packets go through, with all their
//! exclusions. What it does not show is that packets of the clients come in by the listener's device; `status` does, by its
//! packets.

use super::Failure;
use super::ask::{Answer, PATIENCE, document};
use super::tree::Tree;
use crate::check::Finding;
use crate::config::{Backend, Config, Listener, Mode, Resolver};
use crate::control::{Address, Request, Selection};
use crate::netfilter::{TABLE, backend, load, program};
use crate::sys::socket::{self, Family, Transport};
use crate::sys::{passing, sockopt};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Sends one to `to`, or to where this machine asks for names.
pub(super) fn run(cfg: &Config, config: &Path, to: Option<SocketAddr>) -> Vec<Finding> {
    let mut steps = Vec::new();
    // an error is the step at which it stopped
    if let Err(stopped) = go(cfg, config, to, &mut steps) {
        steps.push(stopped);
    }
    steps
}

fn go(cfg: &Config, config: &Path, to: Option<SocketAddr>, steps: &mut Vec<Finding>) -> Result<(), Finding> {
    if backend::in_force(cfg.globals.backend) == Backend::Iptables {
        let text = "probe: the way of a connection is followed through rules of nft only";
        return Err(Finding::warn("probe_rules", text, "connect from a client, and look for it: tproxyd sessions"));
    }
    let before = status(config)?;
    let takes = |listener: &&Listener| listener.mode == Mode::Tproxy && listener.protos.tcp;
    let listener = cfg.listeners.iter().find(takes).ok_or_else(|| {
        Finding::fail("probe_listener", "no listener takes TCP by TPROXY: there is nothing to probe", "add one")
    })?;
    let to = to.or_else(|| destination(cfg)).ok_or_else(|| {
        let text = "no destination: no name server beside this machine is known";
        Finding::fail("probe_destination", text, "name one: tproxyd check --probe --to 192.0.2.1:443")
    })?;
    steps.push(Finding::ok("probe_daemon", format!("probe: the daemon answers; a connection goes to {to}")));

    let rules = ProbeRules::insert(cfg, listener)?;
    let sent = connect(cfg, to);
    let counted = rules.remove();
    let after = status(config)?;
    let seen = |status: &Tree, member: &str| -> u64 {
        let own = |one: &&Tree| one.text("name") == listener.name;
        status.list("listeners").iter().find(own).map_or(0, |one| one.number(member))
    };
    let (back, past) = counted;
    if back == 0 {
        let why = sent.err().map_or_else(String::new, |e| format!(": {e}"));
        let text = format!("probe: it stopped at the policy route: the marked packet did not come back{why}");
        return Err(Finding::fail("probe_route", text, "tproxyd reload; ip rule and ip route show table all say more"));
    }
    steps.push(Finding::ok("probe_route", "probe: the policy route brings marked packets to the rules"));
    if past == 0 {
        let text = format!(
            "probe: it stopped at the exclusions: {to} is this machine's own, connected directly, or an outbound's server"
        );
        return Err(Finding::fail("probe_rules", text, "nothing to mend if that is so; else probe another: --to"));
    }
    if seen(&after, "packets") <= seen(&before, "packets") {
        let text = format!("probe: it stopped at listener '{}': narrowed, or its socket is not there", listener.name);
        return Err(Finding::fail("probe_listener", text, "tproxyd rules shows what it takes; tproxyd reload"));
    }
    steps.push(Finding::ok("probe_rules", format!("probe: the rules give it to listener '{}'", listener.name)));
    if seen(&after, "accepted") <= seen(&before, "accepted") {
        let text = "probe: it stopped before the process: it was delivered, and not accepted";
        return Err(Finding::fail("probe_process", text, "tproxyd status: is the table full? see Drops and Problems"));
    }
    if let Err(e) = &sent
        && matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused)
    {
        // the outbound's refusal was here before this end had seen its connection made
        steps.push(Finding::ok("probe_process", "probe: the process took it"));
        return Err(outbound_failed(config, to, e));
    }
    let stream = sent.map_err(|e| {
        let text = format!("probe: it stopped on the way back: the process took it, and this end heard nothing ({e})");
        Finding::fail("probe_process", text, "see the log; does a firewall drop what comes in by lo?")
    })?;
    steps.push(decided(config, &stream));
    far_end(config, stream, to, steps)
}

/// By which rule and outbound it goes, while it lives.
fn decided(config: &Path, stream: &TcpStream) -> Finding {
    let own = stream.local_addr().ok().and_then(|at| Address::parse(&at.to_string()).ok());
    let mut text = "probe: the process took it".to_owned();
    if let Some(session) = own.and_then(|client| session(config, client)) {
        let by = match session.get("rule") {
            Tree::Number(number) => format!("rule {number}"),
            _ => "option default".to_owned(),
        };
        text = format!("{text}, and sends it out by '{}' ({by})", session.text("outbound"));
    }
    Finding::ok("probe_process", text)
}

fn session(config: &Path, client: Address) -> Option<Tree> {
    let selection = Selection { client: Some(client), ..Selection::default() };
    let mut answer = Answer::to(&Request::Sessions(selection), config, PATIENCE).ok()?;
    answer.list_begins("sessions").ok()?;
    let element = answer.element().ok()??;
    Tree::parse(element.trim_end_matches([',', '\n'])).ok()
}

/// Whether the other side answers: a question to a name server, over TCP (RFC 1035 section 4.2.2), which any other server
/// takes for nonsense and ends.
fn far_end(config: &Path, mut stream: TcpStream, to: SocketAddr, steps: &mut Vec<Finding>) -> Result<(), Finding> {
    // the name servers of the root
    const QUESTION: &[u8] = &[0, 17, 0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let mut answer = [0; 64];
    let said = stream.write_all(QUESTION).and_then(|()| stream.read(&mut answer));
    match said {
        Ok(0) => steps.push(Finding::ok("probe_answer", format!("probe: {to} was reached, and ended the connection"))),
        Ok(_) => steps.push(Finding::ok("probe_answer", format!("probe: {to} answers"))),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            let text =
                format!("probe: {to} was dialled, and says nothing (it may be one that waits for another question)");
            steps.push(Finding::warn("probe_answer", text, "probe one that answers: --to ADDRESS:PORT"));
        }
        Err(e) => return Err(outbound_failed(config, to, &e)),
    }
    Ok(())
}

/// The process took it and then reset it.
fn outbound_failed(config: &Path, to: SocketAddr, e: &io::Error) -> Finding {
    let errors = status(config).ok();
    let mut last = errors.iter().flat_map(|status| status.list("outbounds")).filter_map(|outbound| {
        let text = outbound.get("last_error").text("text");
        text.contains(&to.to_string()).then(|| format!("'{}': {text}", outbound.text("name")))
    });
    let why = last.next_back().unwrap_or_else(|| e.to_string());
    let text = format!("probe: it stopped at the outbound: {why}");
    Finding::fail("probe_outbound", text, "tproxyd check says whether the proxy can be reached")
}

fn status(config: &Path) -> Result<Tree, Finding> {
    let asked = Answer::to(&Request::Status, config, PATIENCE).and_then(|mut answer| document(&answer.line()?));
    asked.map_err(|failure| {
        let why = match failure {
            Failure::Usage(why) | Failure::Failed(why) => why,
            Failure::NobodyReads => "nobody reads".into(),
        };
        Finding::fail("probe_daemon", format!("probe: {why}"), "/etc/init.d/tproxyd start; tproxyd run says why not")
    })
}

/// A name server that is not this machine, to which the rules would take a client's packets.
fn destination(cfg: &Config) -> Option<SocketAddr> {
    let local = |ip: std::net::IpAddr| ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok();
    let usable = |ip: &std::net::IpAddr| !local(*ip);
    if let Resolver::Server(server) = &cfg.globals.resolver {
        return Some(*server).filter(|server| usable(&server.ip()));
    }
    let Resolver::File(named) = &cfg.globals.resolver else { return None };
    // OpenWrt's resolv.conf names dnsmasq; the provider's servers are here
    let files = [named.as_path(), Path::new("/tmp/resolv.conf.d/resolv.conf.auto")];
    let texts = files.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect::<Vec<_>>();
    let servers = texts.iter().flat_map(|text| text.lines()).filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    });
    servers.filter(usable).map(|ip| SocketAddr::new(ip, 53)).next()
}

/// As an intercepted packet would be: with the mark, and from an address of its own, which the route of marked packets
/// would not choose.
fn connect(cfg: &Config, to: SocketAddr) -> io::Result<TcpStream> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let chooser = UdpSocket::bind(any)?;
    chooser.connect(to)?;
    let from = SocketAddr::new(chooser.local_addr()?.ip(), 0);
    let fd = socket::open(Family::of(to), Transport::Tcp)?;
    sockopt::set_mark(fd.as_fd(), cfg.globals.mark.value)?;
    socket::bind(fd.as_fd(), from)?;
    if !socket::connect(fd.as_fd(), to)? {
        if !passing::wait_writable(fd.as_fd(), CONNECT)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sockopt::take_error(fd.as_fd())?;
    }
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// The rules that lead the probe into the chains of clients' packets; gone when this is.
struct ProbeRules {
    removed: bool,
}

impl ProbeRules {
    fn insert(cfg: &Config, listener: &Listener) -> Result<ProbeRules, Finding> {
        let (value, mask) = (cfg.globals.mark.value, cfg.globals.mark.mask);
        let mark = format!("meta mark & {mask:#010x} == {value:#010x}");
        let text = format!(
            "insert rule inet {TABLE} prerouting iifname \"lo\" {mark} meta l4proto tcp counter goto caught comment \"{PROBE}\"\n\
             add rule inet {TABLE} caught iifname \"lo\" counter jump listener_{} comment \"{PROBE}\"\n",
            listener.name
        );
        // made first, so that half of it is removed as well
        let rules = ProbeRules { removed: false };
        load::transaction(&text).map(|()| rules).map_err(|e| {
            let text = format!("probe: it stopped at the rules: they are not there ({e})");
            Finding::fail("probe_rules", text, "tproxyd reload puts them back")
        })
    }

    /// How many packets came by the policy route, and how many got past the exclusions.
    fn remove(mut self) -> (u64, u64) {
        self.removed = true;
        (take_away("prerouting"), take_away("caught"))
    }
}

impl Drop for ProbeRules {
    fn drop(&mut self) {
        if !self.removed {
            take_away("prerouting");
            take_away("caught");
        }
    }
}

/// Deletes the probe's rules of `chain`; returns what they have counted.
fn take_away(chain: &str) -> u64 {
    let mut list = Command::new("nft");
    list.args(["-a", "list", "chain", "inet", TABLE, chain]);
    let text = program::output(list, 1 << 20).unwrap_or_default();
    let mut counted = 0;
    for line in text.lines().filter(|line| line.contains(&format!("comment \"{PROBE}\""))) {
        let word = |name: &str| line.split(name).nth(1)?.split_whitespace().next()?.parse::<u64>().ok();
        counted += word("counter packets ").unwrap_or(0);
        if let Some(handle) = word("# handle ") {
            // what is not there any more was taken away by a reload
            let _ = load::transaction(&format!("delete rule inet {TABLE} {chain} handle {handle}\n"));
        }
    }
    counted
}

const PROBE: &str = "probe";
/// Until the connection is there: it comes from this machine.
const CONNECT: Duration = Duration::from_secs(3);
/// Until the far end has answered, the outbound's dial included.
const ANSWER: Duration = Duration::from_secs(10);
