//! `explain`: which listener, rule and outbound a flow gets, and why not another. The rules are those of the running daemon,
//! with the state of its outbounds, if one answers; else those of the file. Which, is said.

use super::ask::{Answer, PATIENCE, document, print};
use super::decides::decides;
use super::tree::Tree;
use super::units::seconds;
use super::{DEFAULT_CONFIG, Failure};
use crate::config::{self, Config, IpRange, Listener, Mac, Mode, Moment, Target};
use crate::control::{Asked, Request};
use crate::netfilter::{Facts, commands, networks};
use crate::policy::explain::{Outcome, Step};
use crate::policy::{Flow, Policy, Proto};
use argh::FromArgs;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Say which listener, rule and outbound a flow gets, why the rules above do not match, and on what it depends.
#[allow(rustdoc::broken_intra_doc_links, reason = "brackets around an address are for the help")]
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "explain",
    example = "{command_name} tcp 192.168.1.20:40000 203.0.113.9:443 --domain video.example\n{command_name} udp [2001:db8::20]:50000 [2001:db8:1::9]:443 --mac 02:00:5e:10:00:01"
)]
pub(super) struct Explain {
    /// configuration file (default: /etc/config/tproxyd)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
    /// the client's MAC address
    #[argh(option, from_str_fn(mac))]
    mac: Option<Mac>,
    /// the device that the flow comes in by
    #[argh(option)]
    device: Option<String>,
    /// the name that the client asks for
    #[argh(option)]
    domain: Option<String>,
    /// tcp or udp
    #[argh(positional, from_str_fn(proto))]
    proto: Proto,
    /// the client: 192.168.1.20:40000 or [2001:db8::1]:40000
    #[argh(positional)]
    src: SocketAddr,
    /// where it wants to go: 203.0.113.9:443 or [2001:db8::9]:443
    #[argh(positional)]
    dst: SocketAddr,
}

fn proto(text: &str) -> Result<Proto, String> {
    match text {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        other => Err(format!("'{other}' is neither tcp nor udp")),
    }
}

fn mac(text: &str) -> Result<Mac, String> {
    let bytes: Vec<u8> = text.split(':').filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let six = <[u8; 6]>::try_from(bytes).map_err(|_| format!("'{text}' is no MAC address: 02:00:5e:10:00:01"))?;
    Ok(Mac(six))
}

impl Explain {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.src.is_ipv4() != self.dst.is_ipv4() {
            return Err(Failure::Usage("source and destination are of two families".into()));
        }
        let cfg = config::load(&self.config).map_err(|errors| Failure::Usage(errors.to_string()))?;
        let asked = Asked {
            proto: self.proto,
            client: self.src,
            orig_dst: self.dst,
            domain: self.domain.as_ref().map(|name| name.trim_end_matches('.').to_ascii_lowercase()),
            device: self.device.clone(),
            mac: self.mac,
        };
        // what it says while it is wrong or gone does not matter: then the file speaks
        let daemon = Answer::to(&Request::Explain(asked.clone()), &self.config, PATIENCE)
            .and_then(|mut answer| document(&answer.line()?))
            .ok();
        let mut text = match &daemon {
            Some(answer) => format!("The running daemon says, as it has read {}:\n", answer.text("config")),
            None => format!("{} says (no daemon answers):\n", self.config.display()),
        };
        let flow = asked.flow();
        caught(&cfg, &flow, &mut text);
        let steps = match &daemon {
            Some(answer) => answer.list("steps").iter().map(Line::told).collect(),
            None => of_file(&cfg, &flow),
        };
        rules(&steps, &cfg, &mut text);
        let _ = writeln!(text, "{}", decides(&cfg, &flow));
        print(&text)
    }
}

/// What is said of one rule.
struct Line {
    rule: Option<u64>,
    name: String,
    outbound: String,
    /// up, down, unknown; empty where nobody knows.
    state: String,
    outcome: String,
    kinds: Vec<String>,
}

impl Line {
    fn told(step: &Tree) -> Line {
        let rule = matches!(step.get("rule"), Tree::Number(_)).then(|| step.number("rule"));
        Line {
            rule,
            name: step.text("name").to_owned(),
            outbound: step.text("outbound").to_owned(),
            state: step.text("state").to_owned(),
            outcome: step.text("outcome").to_owned(),
            kinds: step.texts("kinds").map(str::to_owned).collect(),
        }
    }

    fn who(&self) -> String {
        match (self.rule, self.name.as_str()) {
            (None, _) => "option default".to_owned(),
            (Some(number), "") => format!("rule {number}"),
            (Some(number), name) => format!("rule {number} '{name}'"),
        }
    }

    /// What the clock says to a rule with hours, as the file has it.
    fn by_the_clock(&self, cfg: &Config, now: &Moment) -> String {
        let rule = cfg.rules.iter().find(|rule| Some(u64::from(rule.number)) == self.rule);
        let Some((rule, schedule)) = rule.and_then(|rule| Some((rule, rule.schedule?))) else { return String::new() };
        let holds = if rule.on { "holds" } else { "does not hold" };
        if !now.is_known() {
            return format!(" (the clock is not set: until then it {holds})");
        }
        match schedule.next_change(now) {
            Some(at) => format!(" (now it {holds}, for {})", seconds((at - now.utc).unsigned_abs())),
            None => format!(" (now it {holds})"),
        }
    }

    fn goes(&self) -> String {
        match self.state.as_str() {
            "" => format!("outbound '{}'", self.outbound),
            state => format!("outbound '{}' ({state})", self.outbound),
        }
    }
}

fn of_file(cfg: &Config, flow: &Flow<'_>) -> Vec<Line> {
    let targets: Vec<Target> = (0..cfg.outbounds.len()).map(|index| Target::Outbound(index as u16)).collect();
    let mut policy = Policy::new(cfg, &targets);
    policy.resolve_networks(&|name| networks::resolve(&[name.to_owned()]).ok()?.into_iter().next().flatten());
    let name = |target: Target| match target {
        Target::Direct => "direct".to_owned(),
        Target::Reject => "reject".to_owned(),
        Target::Drop => "drop".to_owned(),
        Target::Outbound(index) => cfg.outbounds.get(usize::from(index)).map_or_else(String::new, |o| o.name.clone()),
    };
    let line = |step: Step| {
        let (outcome, kinds) = match step.outcome {
            Outcome::Matches => ("matches", Vec::new()),
            Outcome::No(kind) => ("no", vec![kind.to_string()]),
            Outcome::Depends(kinds) => ("depends", kinds.iter().map(ToString::to_string).collect()),
        };
        Line {
            rule: step.rule.map(u64::from),
            name: step.name.unwrap_or_default(),
            outbound: name(step.target),
            state: String::new(),
            outcome: outcome.to_owned(),
            kinds,
        }
    };
    policy.explain(flow).into_iter().map(line).collect()
}

fn rules(steps: &[Line], cfg: &Config, text: &mut String) {
    let now = config::load::moment();
    for line in steps {
        let what = match line.outcome.as_str() {
            "no" => format!("does not match: {}", line.kinds.join(", ")),
            "depends" => {
                format!(
                    "depends on {}: if it matches, {}{}",
                    line.kinds.join(", "),
                    line.goes(),
                    line.by_the_clock(cfg, &now)
                )
            }
            _ => format!("matches: {}", line.goes()),
        };
        // text in memory takes everything
        let _ = writeln!(text, "  {}: {what}", line.who());
    }
    for rule in cfg.rules.iter().filter(|rule| !rule.active) {
        let _ = writeln!(text, "  rule {} is inactive: a set of its could not be read", rule.number);
    }
    let open: Vec<&Line> = steps.iter().filter(|line| line.outcome == "depends").collect();
    let Some(last) = steps.last() else { return };
    let _ = if open.is_empty() {
        writeln!(text, "So: {}, by {}.", last.goes(), last.who())
    } else {
        let first: Vec<String> = open.iter().map(|line| format!("{} by {}", line.goes(), line.who())).collect();
        let mut kinds: Vec<&str> = open.iter().flat_map(|line| line.kinds.iter().map(String::as_str)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let kinds = kinds.join(" and ");
        writeln!(text, "So: it depends on {kinds}: {}; else {} by {}.", first.join(", or "), last.goes(), last.who())
    };
}

/// Whether the flow comes to the process at all, as far as the file and this machine tell.
fn caught(cfg: &Config, flow: &Flow<'_>, text: &mut String) {
    let Ok(facts) = commands::facts_now(cfg) else {
        text.push_str("  which listener takes it is not known: its networks could not be resolved\n");
        return;
    };
    if let Some(why) = excluded(&facts, flow) {
        let _ = writeln!(text, "  it is not intercepted, whatever the rules below say: {why}");
        return;
    }
    let mut depends = Vec::new();
    for (listener, devices) in cfg.listeners.iter().zip(&facts.devices) {
        if !matches!(listener.mode, Mode::Tproxy | Mode::Redirect) {
            continue;
        }
        let name = &listener.name;
        match wants(cfg, listener, devices, flow) {
            Ok(missing) if missing.is_empty() => {
                let how = if listener.mode == Mode::Tproxy { "TPROXY" } else { "REDIRECT" };
                let _ = writeln!(text, "  listener '{name}' takes it by {how}, to port {}", listener.port);
                return;
            }
            Ok(missing) => {
                let missing = missing.join(" and ");
                let _ = writeln!(text, "  listener '{name}' takes it if {missing} matches, of which nothing was said");
                depends.push(name);
            }
            Err(kind) => {
                let _ = writeln!(text, "  listener '{name}' does not take it: {kind}");
            }
        }
    }
    if depends.is_empty() {
        text.push_str("  no listener takes it: it goes as if tproxyd were not there\n");
    }
}

/// What is passed by whatever the rules say.
fn excluded(facts: &Facts, flow: &Flow<'_>) -> Option<&'static str> {
    let dst = flow.orig_dst;
    let ip = dst.ip();
    let v4_local = matches!(ip, std::net::IpAddr::V4(v4) if v4.is_link_local() || v4.is_broadcast());
    let v6_local = matches!(ip, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
    let within = |range: &IpRange| range.first <= ip && ip <= range.last && range.first.is_ipv4() == ip.is_ipv4();
    let tcp = flow.proto == Proto::Tcp;
    if ip.is_loopback() || ip.is_multicast() || v4_local || v6_local {
        Some("loopback, link-local, multicast and broadcast are passed by")
    } else if !tcp && [67, 68, 546, 547].contains(&dst.port()) {
        Some("DHCP is passed by")
    } else if std::net::UdpSocket::bind((ip, 0)).is_ok() {
        Some("that is this machine's own address")
    } else if facts.servers.iter().any(|server| server.tcp == tcp && server.address == dst) {
        Some("that is the server of an outbound")
    } else if facts.on_link.iter().any(within) {
        Some("that network is connected directly, so the firewall decides")
    } else {
        None
    }
}

/// What it would have to be said to tell; an error is the kind by which the listener does not want it.
fn wants(cfg: &Config, listener: &Listener, devices: &[String], flow: &Flow<'_>) -> Result<Vec<&'static str>, String> {
    let mut missing = Vec::new();
    let proto = if flow.proto == Proto::Tcp { listener.protos.tcp } else { listener.protos.udp };
    let family = if flow.orig_dst.is_ipv4() { listener.families.v4 } else { listener.families.v6 };
    if !proto {
        return Err("proto".into());
    }
    if !family {
        return Err("family".into());
    }
    if devices.is_empty() {
        return Err("none of its networks is up".into());
    }
    match flow.device {
        Some(device) => {
            let fits = |name: &String| match name.strip_suffix('*') {
                Some(begin) => device.starts_with(begin),
                None => name == device,
            };
            if !devices.iter().any(fits) {
                return Err(format!("device (it has {})", devices.join(", ")));
            }
        }
        // one device is not much to ask for
        None if devices.len() == 1 && cfg.listeners.len() == 1 => {}
        None => missing.push("device"),
    }
    // as a rule with the same values would
    let narrowing = Policy::narrowing(cfg, listener);
    match narrowing.explain(flow).into_iter().next().map(|step| step.outcome) {
        Some(Outcome::No(kind)) => return Err(kind.to_string()),
        Some(Outcome::Depends(kinds)) => missing.extend(kinds.iter().map(|kind| kind.name())),
        _ => {}
    }
    Ok(missing)
}
