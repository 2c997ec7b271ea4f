//! What a client asks: one flat object on one line, and nothing else.

use super::subject::{Address, Asked, Kick};
use crate::config::Mac;
use crate::policy::Proto;
use crate::proto::json::{Text, Token, Tokens, Writer};
use std::fmt;
use std::net::SocketAddr;

/// The version of requests and answers.
pub const VERSION: u64 = 1;

/// Most bytes of a request, without its line break.
pub const REQUEST_MAX: usize = 1024;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Whether somebody is there.
    Ping,
    /// The state of everything.
    Status,
    /// Live sessions and flows.
    Sessions(Selection),
    /// Counters for Prometheus.
    Metrics,
    /// To end sessions.
    Kick(Kick),
    /// To read the configuration again.
    Reload,
    /// What each client has moved.
    Clients,
    /// What the rules say to a flow.
    Explain(Asked),
    /// To be told of what happens, from now on.
    Events,
}

/// Which sessions, and which part of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Of this client.
    pub client: Option<Address>,
    /// Through this outbound.
    pub outbound: Option<String>,
    /// To this destination.
    pub dst: Option<Address>,
    /// How many of them to pass over.
    pub offset: u32,
    /// How many to show at most.
    pub limit: Option<u32>,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// What is wrong with it, for its author.
    pub fn parse(line: &[u8]) -> Result<Request, String> {
        let mut members = Members::default();
        let mut tokens = Tokens::new(line);
        let mut next = || tokens.next().map_err(|fault| format!("the request is not JSON: {fault}"));
        if next()? != Some(Token::BeginObject) {
            return Err("the request is not a JSON object".into());
        }
        while let Some(token) = next()? {
            let Token::Key(key) = token else { continue };
            match next()? {
                Some(value) => members.take(key, value)?,
                None => break,
            }
        }
        members.request()
    }

    /// Writes the request as a client sends it, without line break.
    ///
    /// # Errors
    /// `out` is full.
    pub fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let mut json = Writer::new(out);
        json.begin_object()?;
        json.number_member("v", VERSION)?;
        json.text_member("cmd", self.command())?;
        match self {
            Request::Sessions(selection) => {
                let Selection { client, outbound, dst, offset, limit } = selection;
                client.iter().try_for_each(|client| json.text_member("client", client))?;
                outbound.iter().try_for_each(|outbound| json.text_member("outbound", outbound))?;
                dst.iter().try_for_each(|dst| json.text_member("dst", dst))?;
                if *offset > 0 {
                    json.number_member("offset", (*offset).into())?;
                }
                limit.iter().try_for_each(|limit| json.number_member("limit", (*limit).into()))?;
            }
            Request::Explain(Asked { proto, client, orig_dst, domain, device, mac }) => {
                json.text_member("proto", proto.name())?;
                json.text_member("client", client)?;
                json.text_member("dst", orig_dst)?;
                domain.iter().try_for_each(|domain| json.text_member("domain", domain))?;
                device.iter().try_for_each(|device| json.text_member("device", device))?;
                mac.iter().try_for_each(|mac| json.text_member("mac", mac_text(*mac)))?;
            }
            Request::Kick(Kick::Id(id)) => json.number_member("id", (*id).into())?,
            Request::Kick(Kick::Client(client)) => json.text_member("client", client)?,
            Request::Ping
            | Request::Status
            | Request::Metrics
            | Request::Reload
            | Request::Events
            | Request::Clients => {}
        }
        json.end_object()
    }

    fn command(&self) -> &'static str {
        match self {
            Request::Ping => "ping",
            Request::Status => "status",
            Request::Sessions(_) => "sessions",
            Request::Metrics => "metrics",
            Request::Kick(_) => "kick",
            Request::Reload => "reload",
            Request::Events => "events",
            Request::Clients => "clients",
            Request::Explain(_) => "explain",
        }
    }
}

/// What the object held.
#[derive(Default)]
struct Members {
    version: Option<u64>,
    command: Option<String>,
    id: Option<u64>,
    client: Option<String>,
    outbound: Option<String>,
    dst: Option<String>,
    proto: Option<String>,
    domain: Option<String>,
    device: Option<String>,
    mac: Option<String>,
    offset: Option<u64>,
    limit: Option<u64>,
}

impl Members {
    fn take(&mut self, key: Text<'_>, value: Token<'_>) -> Result<(), String> {
        let name = key.to_string();
        match name.as_str() {
            "v" => number(&name, value, &mut self.version),
            "cmd" => text(&name, value, &mut self.command),
            "id" => number(&name, value, &mut self.id),
            "client" => text(&name, value, &mut self.client),
            "outbound" => text(&name, value, &mut self.outbound),
            "dst" => text(&name, value, &mut self.dst),
            "proto" => text(&name, value, &mut self.proto),
            "domain" => text(&name, value, &mut self.domain),
            "device" => text(&name, value, &mut self.device),
            "mac" => text(&name, value, &mut self.mac),
            "offset" => number(&name, value, &mut self.offset),
            "limit" => number(&name, value, &mut self.limit),
            _ => Err(format!("the request has an unknown member '{name}'")),
        }
    }

    fn request(mut self) -> Result<Request, String> {
        match self.version.take() {
            Some(VERSION) => {}
            Some(other) => return Err(format!("version {other} of requests is not known: this is version {VERSION}")),
            None => return Err(format!("the request does not say its version: expected \"v\":{VERSION}")),
        }
        let Some(command) = self.command.take() else {
            return Err("the request has no \"cmd\"".into());
        };
        let request = match command.as_str() {
            "ping" => Request::Ping,
            "status" => Request::Status,
            "sessions" => Request::Sessions(Selection {
                client: address(self.client.take())?,
                outbound: self.outbound.take(),
                dst: address(self.dst.take())?,
                offset: bounded(self.offset.take()).unwrap_or(0),
                limit: bounded(self.limit.take()),
            }),
            "metrics" => Request::Metrics,
            "kick" => Request::Kick(match (self.id.take(), address(self.client.take())?) {
                // an id beyond 32 bits is that of no session
                (Some(id), None) => Kick::Id(u32::try_from(id).unwrap_or(u32::MAX)),
                (None, Some(client)) => Kick::Client(client),
                _ => return Err("kick wants either \"id\" or \"client\"".into()),
            }),
            "reload" => Request::Reload,
            "events" => Request::Events,
            "clients" => Request::Clients,
            "explain" => Request::Explain(self.asked()?),
            other => return Err(format!("there is no command '{other}'")),
        };
        match self.left() {
            Some(name) => Err(format!("{command} takes no '{name}'")),
            None => Ok(request),
        }
    }

    fn asked(&mut self) -> Result<Asked, String> {
        let socket = |what: &str, text: Option<String>| {
            let text = text.ok_or_else(|| format!("explain wants \"{what}\""))?;
            let wrong = |_| format!("'{text}' is not an address with a port: expected 192.168.1.2:40000");
            text.parse::<SocketAddr>().map_err(wrong)
        };
        Ok(Asked {
            proto: match self.proto.take().as_deref() {
                Some("tcp") => Proto::Tcp,
                Some("udp") => Proto::Udp,
                _ => return Err("explain wants \"proto\": tcp or udp".into()),
            },
            client: socket("client", self.client.take())?,
            orig_dst: socket("dst", self.dst.take())?,
            domain: self.domain.take(),
            device: self.device.take(),
            mac: self.mac.take().map(|text| mac(&text)).transpose()?,
        })
    }

    /// A member that the command did not take.
    fn left(&self) -> Option<&'static str> {
        let Members { version: _, command: _, id, client, outbound, dst, proto, domain, device, mac, offset, limit } =
            self;
        let all = [
            ("id", id.is_some()),
            ("client", client.is_some()),
            ("outbound", outbound.is_some()),
            ("dst", dst.is_some()),
            ("proto", proto.is_some()),
            ("domain", domain.is_some()),
            ("device", device.is_some()),
            ("mac", mac.is_some()),
            ("offset", offset.is_some()),
            ("limit", limit.is_some()),
        ];
        all.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }
}

fn number(name: &str, value: Token<'_>, into: &mut Option<u64>) -> Result<(), String> {
    let Token::Number(digits) = value else { return Err(format!("'{name}' is not a number")) };
    let number = digits.parse().map_err(|_| format!("'{name}' is not a whole number from 0 up"))?;
    set(name, number, into)
}

fn text(name: &str, value: Token<'_>, into: &mut Option<String>) -> Result<(), String> {
    let Token::Text(text) = value else { return Err(format!("'{name}' is not a string")) };
    set(name, text.to_string(), into)
}

fn set<T>(name: &str, value: T, into: &mut Option<T>) -> Result<(), String> {
    match into.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("'{name}' is given twice")),
    }
}

fn address(text: Option<String>) -> Result<Option<Address>, String> {
    text.map(|text| Address::parse(&text)).transpose()
}

fn mac(text: &str) -> Result<Mac, String> {
    let bytes: Vec<u8> = text.split(':').filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
    <[u8; 6]>::try_from(bytes).map(Mac).map_err(|_| format!("'{text}' is no MAC address"))
}

fn mac_text(Mac([a, b, c, d, e, f]): Mac) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

fn bounded(number: Option<u64>) -> Option<u32> {
    number.map(|number| u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn requests() -> Vec<Request> {
        let client = Some(Address::parse("[2001:db8::1]:443").unwrap());
        let all = Selection {
            client,
            outbound: Some("hk".into()),
            dst: Some(Address::parse("192.0.2.1").unwrap()),
            offset: 5,
            limit: Some(7),
        };
        vec![
            Request::Ping,
            Request::Status,
            Request::Sessions(Selection::default()),
            Request::Sessions(all),
            Request::Metrics,
            Request::Kick(Kick::Id(u32::MAX)),
            Request::Kick(Kick::Client(Address::parse("192.168.1.2").unwrap())),
            Request::Reload,
            Request::Events,
            Request::Clients,
            Request::Explain(Asked {
                proto: Proto::Udp,
                client: "[2001:db8::1]:1".parse().unwrap(),
                orig_dst: "[2001:db8::2]:443".parse().unwrap(),
                domain: Some("a.example".into()),
                device: Some("br-lan".into()),
                mac: Some(Mac([2, 0, 0x5e, 0x10, 0, 1])),
            }),
        ]
    }

    fn written(request: &Request) -> String {
        let mut line = String::new();
        request.write(&mut line).unwrap();
        line
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        for request in requests() {
            let line = written(&request);
            assert_eq!(Request::parse(line.as_bytes()), Ok(request), "{line}");
        }
    }

    #[test]
    fn every_prefix_of_a_request_is_refused() {
        for line in requests().iter().map(written) {
            for cut in 0..line.len() {
                assert!(Request::parse(&line.as_bytes()[..cut]).is_err(), "{line} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_request_is_said() {
        for (line, said) in [
            (r#"{"cmd":"ping"}"#, "version"),
            (r#"{"v":2,"cmd":"ping"}"#, "version 2"),
            (r#"{"v":1}"#, "no \"cmd\""),
            (r#"{"v":1,"cmd":"dance"}"#, "'dance'"),
            (r#"{"v":1,"cmd":"ping","x":1}"#, "'x'"),
            (r#"{"v":1,"cmd":"ping","id":1}"#, "takes no 'id'"),
            (r#"{"v":1,"v":1,"cmd":"ping"}"#, "'v' is given twice"),
            (r#"{"v":1,"cmd":["ping"]}"#, "'cmd' is not a string"),
            (r#"{"v":1,"cmd":"kick"}"#, "either"),
            (r#"{"v":1,"cmd":"kick","id":1,"client":"::1"}"#, "either"),
            (r#"{"v":1,"cmd":"kick","id":-1}"#, "'id'"),
            (r#"{"v":1,"cmd":"kick","id":"1"}"#, "'id' is not a number"),
            (r#"{"v":1,"cmd":"sessions","client":"lan"}"#, "'lan' is not an address"),
            (r#"[1]"#, "not a JSON object"),
            ("status", "not JSON"),
            (r#"{"v":1,"cmd":"ping"} {}"#, "not JSON"),
        ] {
            let error = Request::parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in proptest::collection::vec(any::<u8>(), 0..REQUEST_MAX)) {
            let _ = Request::parse(&line);
        }

        #[test]
        fn any_change_of_a_request_is_read_or_refused(pick in 0usize..11, at in 0usize..90, by in any::<u8>()) {
            let mut line = written(&requests()[pick]).into_bytes();
            if let Some(byte) = line.get_mut(at) { *byte = by; }
            let _ = Request::parse(&line);
        }
    }
}
