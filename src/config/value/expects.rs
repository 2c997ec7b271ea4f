//! What each kind of value looks like, in words and figures as the user writes them.

use std::fmt;
use std::time::Duration;

use super::{FAMILIES, Kind, PROTOS};

impl Kind {
    /// What the value is: "a port: 1 to 65535".
    pub fn expects(&self) -> String {
        match *self {
            Kind::Flag => "1 or 0 (or on/off, true/false, yes/no, enabled/disabled)".to_owned(),
            Kind::Word(words) => one_of(words.iter().map(|word| word.text)),
            Kind::Number(least, most) => format!("a number from {least} to {most}"),
            Kind::AutoNumber(least, most) => format!("auto or a number from {least} to {most}"),
            Kind::Size(least, most) => format!("a size from {} to {}", Bytes(least), Bytes(most)),
            Kind::AutoSize(least, most) => format!("auto or a size from {} to {}", Bytes(least), Bytes(most)),
            Kind::Rate => "bits per second: bare, or with K, M or G".to_owned(),
            Kind::Time(least, most) => {
                format!("a time from {} to {}: bare seconds, or with ms, s, m, h or d", Span(least), Span(most))
            }
            Kind::Port => "a port: 1 to 65535".to_owned(),
            Kind::Ports => "a port or a range of ports: 443, 8000-8100".to_owned(),
            Kind::SniffPort => "tcp:PORT or udp:PORT".to_owned(),
            Kind::Addresses => "an address, prefix, range or @set".to_owned(),
            Kind::Mac => "a MAC address: 02:00:5e:10:00:01".to_owned(),
            Kind::Protos => one_of(PROTOS.map(|(name, _)| name)),
            Kind::Families => one_of(FAMILIES.map(|(name, _)| name)),
            Kind::Mark => "value/mask, decimal or 0x, with no bit of the value outside the mask".to_owned(),
            Kind::Device | Kind::DeviceOrNot => "the name of an interface: br-lan, wlan*".to_owned(),
            Kind::Network => "the name of a network: lan".to_owned(),
            Kind::Address => "an address: 192.0.2.1, 2001:db8::1".to_owned(),
            Kind::Host => "an address or a host name".to_owned(),
            Kind::HostPort => "host:port".to_owned(),
            Kind::Endpoint => "address:port: 127.0.0.1:9100, [::1]:9100".to_owned(),
            Kind::Resolver => "the path of a resolv.conf, or an address with or without :port".to_owned(),
            Kind::Path => "an absolute path".to_owned(),
            Kind::Text => "text of at most 256 bytes without control characters".to_owned(),
            Kind::Secret => "1 to 255".to_owned(),
            Kind::Outbound => "the name of an outbound, or direct, reject, drop".to_owned(),
            Kind::Entry => "an address, prefix, range or domain".to_owned(),
            Kind::Domain => "a domain: example.com, =example.com".to_owned(),
            Kind::Clock => "a time of day: 21:30, 21:30:00".to_owned(),
            Kind::Weekday => "a day of the week: Mon".to_owned(),
            Kind::Url => "an http:// or https:// address".to_owned(),
        }
    }
}

/// "a, b or c".
pub(super) fn one_of<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// A number of bytes as the user may write it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
        match units.into_iter().find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A time as the user may write it.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
        match units.into_iter().find(|(unit, _)| millis >= *unit && millis.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", millis / unit),
            None => write!(f, "{millis}ms"),
        }
    }
}
