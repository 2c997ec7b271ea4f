//! `config outbound` → [`Outbound`].

use super::super::check::Checked;
use super::super::model::*;
use super::super::report::Report;
use super::super::uci::shown;
use super::{Names, required};

/// Builds one; what is wrong is reported. [`super::groups`] completes what depends on the others.
pub(super) fn build(section: &Checked<'_>, names: &Names, globals: &Globals, report: &mut Report<'_>) -> Outbound {
    required(section, "type", "", report);
    let kind = match section.word("type") {
        Some("forward") => forward(section, report),
        Some("http") => {
            let (server, credentials) = proxy(section, "http", report);
            basic_can_say(section, credentials.as_ref(), report);
            OutboundKind::Http { server, credentials }
        }
        Some("socks5") => {
            let (server, credentials) = proxy(section, "socks5", report);
            OutboundKind::Socks5 { server, credentials }
        }
        Some("shadowsocks") => shadowsocks(section, report),
        Some("group") => OutboundKind::Group(group(section, names, report)),
        Some("reject") => OutboundKind::Reject,
        Some("drop") => OutboundKind::Drop,
        // Types that this build doesn't have were refused by the schema.
        _ => OutboundKind::Direct,
    };
    if matches!(kind, OutboundKind::Shadowsocks { .. }) && globals.relay_memory < LEAST_SEALED {
        let message = format!("{}: needs globals relay_memory of {} K at least", section.title, LEAST_SEALED >> 10);
        report.error(section.line, message);
    }
    let udp = carries_udp(section, &kind, report);
    let time = |option| section.time(option).unwrap_or_default();
    Outbound {
        name: section.name().to_owned(),
        label: section.text("label"),
        line: section.line,
        kind,
        udp,
        full_cone: matches!(section.word("type"), Some("direct")) && section.flag("full_cone"),
        udp_outbound: names.target(section, "udp_outbound", Target::Reject, report),
        connect_timeout: time("connect_timeout"),
        idle_timeout: time("idle_timeout"),
        udp_timeout: time("udp_timeout"),
        device: device(section, report),
        fwmark: fwmark(section, globals, report),
        send_domain: section.flag("send_domain"),
        keep_source: section.flag("keep_source"),
        spare: spare(section, report),
        check: CHECKS.iter().any(|option| section.has(option)).then(|| check(section)),
    }
}

/// Two buffers for each direction, so that one encrypted session at least goes on.
const LEAST_SEALED: u64 = 256 << 10;

/// Options by which checks are asked for.
const CHECKS: [&str; 2] = ["check_interval", "check_target"];

/// How the health of an outbound is checked that is a member of a group, or whose checks were asked for.
pub(super) fn check(section: &Checked<'_>) -> Check {
    let time = |option| section.time(option).unwrap_or_default();
    let count = |option| section.number(option).and_then(|count| u8::try_from(count).ok()).unwrap_or(1);
    Check {
        interval: time("check_interval"),
        timeout: time("check_timeout"),
        target: section.server("check_target"),
        rise: count("rise"),
        fall: count("fall"),
    }
}

fn group(section: &Checked<'_>, names: &Names, report: &mut Report<'_>) -> Group {
    required(section, "member", ": the names of other outbounds", report);
    let mut members = Vec::new();
    for (line, name) in section.texts("member") {
        match names.named(section, "member", (line, &name), report) {
            Some(Target::Reject | Target::Drop) => {
                let message = format!("{}: member '{name}' leads nowhere; see option on_all_down", section.title);
                report.error(line, message);
            }
            Some(member) if members.contains(&member) => {
                report.error(line, format!("{}: member '{name}' a second time", section.title));
            }
            Some(member) => members.push(member),
            None => {}
        }
    }
    if members.len() > MOST_MEMBERS {
        report.error(section.line_of("member"), format!("{}: more than {MOST_MEMBERS} members", section.title));
    }
    Group {
        members,
        policy: match section.word("policy") {
            Some("fastest") => GroupPolicy::Fastest,
            Some("balance") => GroupPolicy::Balance,
            _ => GroupPolicy::Failover,
        },
        direct_when_down: section.word("on_all_down") == Some("direct"),
    }
}

/// All of them are looked at for each new flow.
const MOST_MEMBERS: usize = 32;

fn server(section: &Checked<'_>, report: &mut Report<'_>) -> Server {
    required(section, "server", "", report);
    required(section, "port", "", report);
    Server {
        host: section.host("server").unwrap_or_else(|| Host::Name(String::new())),
        port: section.number("port").and_then(|port| u16::try_from(port).ok()).unwrap_or(0),
    }
}

fn forward(section: &Checked<'_>, report: &mut Report<'_>) -> OutboundKind {
    let send_proxy = match section.word("send_proxy") {
        Some("v1") => Some(SendProxy::V1),
        Some("v2") => Some(SendProxy::V2),
        _ => None,
    };
    OutboundKind::Forward { server: server(section, report), send_proxy }
}

fn shadowsocks(section: &Checked<'_>, report: &mut Report<'_>) -> OutboundKind {
    let server = server(section, report);
    required(section, "method", ": 2022-blake3-aes-128-gcm, chacha20-ietf-poly1305 and others", report);
    required(section, "password", "", report);
    let method = section.word("method").unwrap_or_default();
    let password = section.text("password").unwrap_or_default();
    if method.starts_with("2022") && section.has("password") {
        let octets = if method.contains("128") { 16 } else { 32 };
        if !is_base64_of(octets, &password) {
            let title = &section.title;
            let message = format!(
                "{title}: password is not base64 of {octets} octets, as {method} wants; `openssl rand -base64 {octets}` \
                 makes one"
            );
            report.error(section.line_of("password"), message);
        }
    }
    OutboundKind::Shadowsocks { server, secret: Secret { method, password } }
}

fn is_base64_of(octets: usize, text: &str) -> bool {
    let padding = (3 - octets % 3) % 3;
    let letters = text.strip_suffix(&"=="[..padding]).unwrap_or("");
    letters.len() + padding == octets.div_ceil(3) * 4
        && letters.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'+' || c == b'/')
}

/// Server and credentials, of which both or none are given.
fn proxy(section: &Checked<'_>, kind: &str, report: &mut Report<'_>) -> (Server, Option<Credentials>) {
    let server = server(section, report);
    for (given, other) in [("username", "password"), ("password", "username")] {
        if section.has(given) && !section.has(other) {
            let message = format!("{}: {given} without {other}; {kind} has both or none", section.title);
            report.error(section.line_of(given), message);
        }
    }
    let credentials = section.text("username").zip(section.text("password"));
    (server, credentials.map(|(username, password)| Credentials { username, password }))
}

/// A colon ends the username (RFC 7617 section 2), and control characters have no place in either.
fn basic_can_say(section: &Checked<'_>, credentials: Option<&Credentials>, report: &mut Report<'_>) {
    let Some(credentials) = credentials else { return };
    if credentials.username.contains(':') {
        let message = format!("{}: username has a colon, which HTTP can't say; expected one without", section.title);
        report.error(section.line_of("username"), message);
    }
    for (option, text) in [("username", &credentials.username), ("password", &credentials.password)] {
        if text.chars().any(char::is_control) {
            let message = format!("{}: {option} has a control character, which HTTP can't say", section.title);
            report.error(section.line_of(option), message);
        }
    }
}

/// `option udp`, where the type can carry it. One that was asked for and can't be is said.
fn carries_udp(section: &Checked<'_>, kind: &OutboundKind, report: &mut Report<'_>) -> bool {
    let udp = section.flag("udp");
    if udp && section.has("udp") && !kind.can_carry_udp() {
        let why = match kind {
            OutboundKind::Http { .. } => "HTTP CONNECT carries TCP only",
            _ => "a PROXY header v1 can't stand before datagrams (v2 can)",
        };
        let message = format!("{}: {why}: UDP goes to udp_outbound", section.title);
        report.warn(section.line_of("udp"), message);
    }
    udp && kind.can_carry_udp()
}

/// `option spare`. A connection in a client's name can't be opened before that is known.
fn spare(section: &Checked<'_>, report: &mut Report<'_>) -> u8 {
    let spare = section.number("spare").and_then(|count| u8::try_from(count).ok()).unwrap_or(0);
    if spare > 0 && section.flag("keep_source") {
        let message = format!(
            "{}: spare with keep_source: a connection in the client's name can't be opened before the client is known",
            section.title
        );
        report.error(section.line_of("spare"), message);
    }
    spare
}

fn device(section: &Checked<'_>, report: &mut Report<'_>) -> Option<String> {
    let (line, name) = section.texts("device").into_iter().next()?;
    if name.ends_with('*') {
        let message = format!("{}: device '{}' must be one interface, without *", section.title, shown(&name));
        report.error(line, message);
    }
    Some(name)
}

/// Its bits stand beside those of `self_mark`, by which the rules know our packets.
fn fwmark(section: &Checked<'_>, globals: &Globals, report: &mut Report<'_>) -> u32 {
    let Some(fwmark) = section.mark("fwmark") else { return 0 };
    for (option, ours) in [("mark", globals.mark), ("self_mark", globals.self_mark)] {
        if fwmark.value & ours.mask != 0 {
            let message = format!(
                "{}: fwmark {:#x} has bits of {option}'s mask {:#x}; choose others, or another {option}",
                section.title, fwmark.value, ours.mask
            );
            report.error(section.line_of("fwmark"), message);
        }
    }
    fwmark.value
}
