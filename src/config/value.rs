//! The kinds of values that options have: text → typed value. What an option means is not known here.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::address::{self, decimal};
use super::model::{Families, Host, IpRange, Mac, Mark, PortRange, Protos, Resolver, Server, SniffPort};
use super::report::nearest;
use super::uci::shown;
use expects::one_of;

mod expects;

/// What an option's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 1/0, on/off, true/false, yes/no, enabled/disabled.
    Flag,
    /// One of these words.
    Word(&'static [Word]),
    /// A whole number in this range.
    Number(u64, u64),
    /// `auto` or a whole number in this range.
    AutoNumber(u64, u64),
    /// Bytes in this range: bare, or with K, M, G (1024 each).
    Size(u64, u64),
    /// `auto` or a size in this range.
    AutoSize(u64, u64),
    /// Bits per second: bare, or with K, M, G (1000 each).
    Rate,
    /// A time in this range: bare seconds, or with ms, s, m, h, d.
    Time(Duration, Duration),
    /// 1 to 65535.
    Port,
    /// A port or a range of ports; `!` excludes.
    Ports,
    /// `tcp:PORT` or `udp:PORT`.
    SniffPort,
    /// An address, prefix, range or `@set`; `!` excludes.
    Addresses,
    /// A MAC address; `!` excludes.
    Mac,
    /// tcp, udp, tcpudp, any.
    Protos,
    /// any, ipv4, ipv6.
    Families,
    /// `value/mask` or `value`, decimal or 0x.
    Mark,
    /// The name of an interface; a trailing `*` stands for any rest.
    Device,
    /// The name of an OpenWrt network.
    Network,
    /// A device or network as a rule has it: `!` excludes.
    DeviceOrNot,
    /// One address.
    Address,
    /// An address or a host name.
    Host,
    /// `host:port`.
    HostPort,
    /// `address:port`.
    Endpoint,
    /// A file in the form of resolv.conf(5), or an address with or without a port.
    Resolver,
    /// An absolute path.
    Path,
    /// Text for people, UTF-8.
    Text,
    /// Text that no message shows, 1 to 255 octets (RFC 1929 section 2).
    Secret,
    /// The name of an outbound.
    Outbound,
    /// A line of a set, read when the set's type is known.
    Entry,
    /// A domain or `@set`; `=` before a domain means only itself, `!` excludes.
    Domain,
    /// HH:MM or HH:MM:SS.
    Clock,
    /// A day of the week in English, three letters at least; `!` excludes.
    Weekday,
    /// An http:// or https:// address.
    Url,
}

/// A word that an option takes, and whether this build does what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// As it is written.
    pub text: &'static str,
    /// False: it is known, and refused by name.
    pub built: bool,
}

/// A value after parsing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Flag(bool),
    Number(u64),
    Auto,
    Time(Duration),
    Text(String),
    Word(Word),
    Protos(Protos),
    Families(Families),
    Mark(Mark),
    Address(IpAddr),
    Host(Host),
    Server(Server),
    Resolver(Resolver),
    Addresses { not: bool, what: Addresses },
    Ports { not: bool, range: PortRange },
    Mac { not: bool, mac: Mac },
    SniffPort(SniffPort),
    Domain { not: bool, what: Domains },
}

/// Domains before the names of sets are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Domains {
    Name { name: String, only_itself: bool },
    Set(String),
}

/// Addresses before the names of sets are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Addresses {
    Range {
        range: IpRange,
        /// The user's prefix had bits beyond its length.
        stray_bits: bool,
    },
    Set(String),
}

impl Kind {
    /// Reads one value. The error is a sentence about it: what it is not, and what was expected.
    pub(super) fn parse(&self, text: &str) -> Result<Value, String> {
        let (not, bare) = match text.strip_prefix('!') {
            Some(rest) if self.can_exclude() => (true, rest.trim_start()),
            _ => (false, text),
        };
        Ok(match *self {
            Kind::Flag => Value::Flag(flag(text)?),
            Kind::Word(words) => Value::Word(word(text, words)?),
            Kind::AutoNumber(..) | Kind::AutoSize(..) if text == "auto" => Value::Auto,
            Kind::Number(least, most) | Kind::AutoNumber(least, most) => {
                Value::Number(in_range(self, text, decimal(text), least, most)?)
            }
            Kind::Size(least, most) | Kind::AutoSize(least, most) => {
                Value::Number(in_range(self, text, with_unit(text, 1024), least, most)?)
            }
            Kind::Rate => Value::Number(in_range(self, text, with_unit(text, 1000), 1, u64::MAX)?),
            Kind::Time(least, most) => Value::Time(time(self, text, least, most)?),
            Kind::Port => Value::Number(address::port(text)?.into()),
            Kind::Ports => Value::Ports { not, range: address::port_range(bare)? },
            Kind::SniffPort => {
                let (proto, port) = text.split_once(':').ok_or_else(|| self.wrong(text))?;
                let tcp = match proto {
                    "tcp" => true,
                    "udp" => false,
                    _ => return Err(self.wrong(text)),
                };
                Value::SniffPort(SniffPort { tcp, port: address::port(port)? })
            }
            Kind::Addresses => Value::Addresses { not, what: addresses(bare)? },
            Kind::Mac => Value::Mac { not, mac: address::mac(bare)? },
            Kind::Protos => Value::Protos(protos(text)?),
            Kind::Families => Value::Families(families(text)?),
            Kind::Mark => Value::Mark(mark(text).ok_or_else(|| self.wrong(text))?),
            Kind::Device | Kind::DeviceOrNot => Value::Text(format!("{}{}", if not { "!" } else { "" }, device(bare)?)),
            Kind::Network => self.text_if(text, |text| !text.is_empty() && text.bytes().all(is_name_byte))?,
            Kind::Address => Value::Address(address::ip(text)?),
            Kind::Host => Value::Host(address::host(text)?),
            Kind::HostPort => {
                let (host, port) = text.rsplit_once(':').ok_or_else(|| self.wrong(text))?;
                let host =
                    address::host(host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host))?;
                Value::Server(Server { host, port: address::port(port)? })
            }
            Kind::Endpoint => Value::Text(address::endpoint(text, None)?.to_string()),
            Kind::Resolver if text.starts_with('/') => Value::Resolver(Resolver::File(PathBuf::from(text))),
            Kind::Resolver => match address::endpoint(text, Some(53)) {
                Ok(server) => Value::Resolver(Resolver::Server(server)),
                Err(_) => return Err(self.wrong(text)),
            },
            Kind::Path => self.text_if(text, |text| text.starts_with('/') && text.len() > 1)?,
            Kind::Text => self.text_if(text, |text| text.len() <= 256 && !text.chars().any(char::is_control))?,
            Kind::Secret => match text.len() {
                1..=255 => Value::Text(text.to_owned()),
                long => return Err(format!("its {long} octets are not {}", self.expects())),
            },
            Kind::Outbound | Kind::Entry => Value::Text(text.to_owned()),
            Kind::Domain => {
                let what = domain(bare).ok_or_else(|| self.wrong(text))?;
                Value::Domain { not, what }
            }
            Kind::Clock => self.text_if(text, is_clock)?,
            Kind::Weekday => self.text_if(text, |_| is_weekday(bare))?,
            Kind::Url => self.text_if(text, |text| text.starts_with("http://") || text.starts_with("https://"))?,
        })
    }

    /// True if `!` before a value excludes it.
    fn can_exclude(&self) -> bool {
        matches!(self, Kind::Ports | Kind::Addresses | Kind::Mac | Kind::DeviceOrNot | Kind::Domain | Kind::Weekday)
    }

    /// True if blanks inside and around the value belong to it.
    pub(super) fn keeps_blanks(&self) -> bool {
        matches!(self, Kind::Text | Kind::Secret)
    }

    fn wrong(&self, text: &str) -> String {
        format!("'{}' is not {}", shown(text), self.expects())
    }

    fn text_if(&self, text: &str, good: impl FnOnce(&str) -> bool) -> Result<Value, String> {
        if good(text) { Ok(Value::Text(text.to_owned())) } else { Err(self.wrong(text)) }
    }
}

/// `'tpc' is not tcp, udp, tcpudp or any; nearest is 'tcp'`.
fn not_one_of<'n>(text: &str, names: impl IntoIterator<Item = &'n str> + Clone) -> String {
    let hint = nearest(text, names.clone()).map(|name| format!("; nearest is '{name}'")).unwrap_or_default();
    format!("'{}' is not {}{hint}", shown(text), one_of(names))
}

fn flag(text: &str) -> Result<bool, String> {
    match text {
        "1" | "on" | "true" | "yes" | "enabled" => Ok(true),
        "0" | "off" | "false" | "no" | "disabled" => Ok(false),
        _ => Err(Kind::Flag.wrong(text)),
    }
}

fn word(text: &str, words: &'static [Word]) -> Result<Word, String> {
    let found = words.iter().copied().find(|word| word.text == text);
    found.ok_or_else(|| not_one_of(text, words.iter().map(|word| word.text)))
}

fn protos(text: &str) -> Result<Protos, String> {
    let found = PROTOS.into_iter().find(|(name, _)| *name == text);
    found.map(|(_, protos)| protos).ok_or_else(|| not_one_of(text, PROTOS.map(|(name, _)| name)))
}

fn families(text: &str) -> Result<Families, String> {
    let found = FAMILIES.into_iter().find(|(name, _)| *name == text);
    let hint = |text: &str| match text {
        "inet" | "4" | "v4" | "ip" | "ip4" => "; nearest is 'ipv4'",
        "inet6" | "6" | "v6" | "ip6" => "; nearest is 'ipv6'",
        "both" | "all" | "*" => "; nearest is 'any'",
        _ => "",
    };
    found.map(|(_, families)| families).ok_or_else(|| match hint(text) {
        "" => not_one_of(text, FAMILIES.map(|(name, _)| name)),
        hint => format!("'{}' is not {}{hint}", shown(text), Kind::Families.expects()),
    })
}

fn addresses(text: &str) -> Result<Addresses, String> {
    if let Some(name) = text.strip_prefix('@') {
        return Ok(Addresses::Set(name.to_owned()));
    }
    address::ip_range(text).map(|(range, stray_bits)| Addresses::Range { range, stray_bits })
}

fn domain(text: &str) -> Option<Domains> {
    if let Some(name) = text.strip_prefix('@') {
        return Some(Domains::Set(name.to_owned()));
    }
    let (name, only_itself) = text.strip_prefix('=').map_or((text, false), |name| (name, true));
    match address::host(name) {
        Ok(Host::Name(name)) => Some(Domains::Name { name, only_itself }),
        _ => None,
    }
}

/// A bare value has all bits as its mask, as in nft and iptables.
fn mark(text: &str) -> Option<Mark> {
    let number = |text: &str| match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if hex.bytes().all(|c| c.is_ascii_hexdigit()) => u32::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None => decimal(text).and_then(|number| u32::try_from(number).ok()),
    };
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    let mark = Mark { value: number(value)?, mask: number(mask)? };
    (mark.value & !mark.mask == 0).then_some(mark)
}

/// An interface name that the kernel would take (dev_valid_name), less the characters that mean something to nft.
fn device(text: &str) -> Result<&str, String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    let good = |c: u8| c.is_ascii_alphanumeric() || b"_.-@+~".contains(&c);
    if name.is_empty() && text == "*" {
        return Err("'*' would be every device, the one to the internet too; name them".to_owned());
    }
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || !name.bytes().all(good) {
        return Err(Kind::Device.wrong(text));
    }
    Ok(text)
}

fn is_name_byte(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_' || c == b'-' || c == b'.'
}

fn is_clock(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let below = |text: &&str, most: u64| text.len() <= 2 && decimal(text).is_some_and(|number| number < most);
    match parts.as_slice() {
        [hours, rest @ ..] => {
            matches!(rest.len(), 1 | 2) && below(hours, 24) && rest.iter().all(|part| below(part, 60))
        }
        [] => false,
    }
}

fn is_weekday(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let days = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
    text.len() >= 3 && days.iter().any(|day| day.starts_with(&text))
}

fn in_range(kind: &Kind, text: &str, number: Option<u64>, least: u64, most: u64) -> Result<u64, String> {
    number.filter(|number| (least..=most).contains(number)).ok_or_else(|| kind.wrong(text))
}

fn with_unit(text: &str, step: u64) -> Option<u64> {
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], step),
        b'm' | b'M' => (&text[..text.len() - 1], step * step),
        b'g' | b'G' => (&text[..text.len() - 1], step * step * step),
        _ => (text, 1),
    };
    decimal(digits)?.checked_mul(factor)
}

fn time(kind: &Kind, text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let found = units.into_iter().find_map(|(unit, millis)| text.strip_suffix(unit).map(|digits| (digits, millis)));
    let (digits, millis) = found.unwrap_or((text, 1000));
    decimal(digits)
        .and_then(|count| count.checked_mul(millis))
        .map(Duration::from_millis)
        .filter(|time| (least..=most).contains(time))
        .ok_or_else(|| kind.wrong(text))
}

const PROTOS: [(&str, Protos); 4] = [
    ("tcp", Protos { tcp: true, udp: false }),
    ("udp", Protos { tcp: false, udp: true }),
    ("tcpudp", Protos { tcp: true, udp: true }),
    ("any", Protos { tcp: true, udp: true }),
];

const FAMILIES: [(&str, Families); 3] = [
    ("any", Families { v4: true, v6: true }),
    ("ipv4", Families { v4: true, v6: false }),
    ("ipv6", Families { v4: false, v6: true }),
];

#[cfg(test)]
mod tests;
