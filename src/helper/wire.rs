//! The messages between daemon and helper: a verb, a number, and fields, each with its length. Rules and files travel as
//! open files beside the message.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{Answer, Request};
use crate::config::{Backend, Families, IpRange, Mark, OnFailure};
use crate::error::Error;
use crate::netfilter::{Installation, PolicyRoutes, Surroundings};
use crate::sys::passing::text_file;

/// The number under which the helper says that it is ready.
pub(super) const HELLO: u32 = 0;

/// Octets of the longest message, either way; below what a socketpair takes by default (`net.core.wmem_default`).
pub(super) const LONGEST: usize = 64 * 1024;

/// A request as the helper gets it.
#[derive(Debug)]
pub(super) enum Order {
    ReadConfig,
    ReadFile(PathBuf),
    Install { rules: File, installation: Installation, on_failure: OnFailure },
    Update { rules: File },
    Remove,
    Look { networks: Vec<String>, devices: Vec<String> },
    Forget,
    Goodbye,
    RunScript { path: PathBuf, environment: Vec<(String, String)> },
    Inspect,
    Note { lines: File },
    Revise(Mark),
    Reclaim,
    Spare { devices: Vec<String> },
}

/// The message for `request`, and the file that goes with it.
pub(super) fn write_request(number: u32, request: &Request) -> io::Result<(Vec<u8>, Option<File>)> {
    let verb = match request {
        Request::ReadConfig => READ_CONFIG,
        Request::ReadFile(_) => READ_FILE,
        Request::Install { .. } => INSTALL,
        Request::Update { .. } => UPDATE,
        Request::Remove => REMOVE,
        Request::Look { .. } => LOOK,
        Request::Forget => FORGET,
        Request::Goodbye => GOODBYE,
        Request::RunScript { .. } => RUN_SCRIPT,
        Request::Inspect => INSPECT,
        Request::Note { .. } => NOTE,
        Request::Revise(_) => REVISE,
        Request::Reclaim => RECLAIM,
        Request::Spare { .. } => SPARE,
    };
    let mut out = Writer(vec![verb]);
    out.number(number);
    let mut file = None;
    match request {
        Request::ReadFile(path) => out.bytes(path.as_os_str().as_bytes()),
        Request::Install { rules, installation, on_failure } => {
            let PolicyRoutes { mark, table, priority, families } = installation.routes;
            for value in [mark.value, mark.mask, table, priority] {
                out.number(value);
            }
            let by_iptables = installation.backend == Backend::Iptables;
            for flag in [families.v4, families.v6, *on_failure == OnFailure::Block, by_iptables] {
                out.0.push(flag.into());
            }
            file = Some(text_file(rules)?);
        }
        Request::Update { rules: text } | Request::Note { lines: text } => file = Some(text_file(text)?),
        Request::Look { networks, devices } => {
            for list in [networks, devices] {
                out.number(list.len() as u32);
                list.iter().for_each(|name| out.bytes(name.as_bytes()));
            }
        }
        Request::RunScript { path, environment } => {
            out.bytes(path.as_os_str().as_bytes());
            out.number(environment.len() as u32);
            for (name, value) in environment {
                out.bytes(name.as_bytes());
                out.bytes(value.as_bytes());
            }
        }
        Request::Revise(mark) => {
            out.number(mark.value);
            out.number(mark.mask);
        }
        Request::ReadConfig
        | Request::Remove
        | Request::Forget
        | Request::Goodbye
        | Request::Inspect
        | Request::Reclaim => {}
        Request::Spare { devices } => {
            out.number(devices.len() as u32);
            devices.iter().for_each(|name| out.bytes(name.as_bytes()));
        }
    }
    Ok((out.0, file))
}

/// The number of a request and what it orders; `None` if it makes no sense.
pub(super) fn read_request(message: &[u8], file: Option<OwnedFd>) -> Option<(u32, Order)> {
    let mut input = Reader(message);
    let verb = input.byte()?;
    let number = input.number()?;
    let file = file.map(File::from);
    let order = match verb {
        READ_CONFIG => Order::ReadConfig,
        READ_FILE => Order::ReadFile(PathBuf::from(std::ffi::OsStr::from_bytes(input.bytes()?))),
        INSTALL => {
            let mark = Mark { value: input.number()?, mask: input.number()? };
            let (table, priority) = (input.number()?, input.number()?);
            let families = Families { v4: input.byte()? == 1, v6: input.byte()? == 1 };
            let on_failure = if input.byte()? == 1 { OnFailure::Block } else { OnFailure::Direct };
            let backend = if input.byte()? == 1 { Backend::Iptables } else { Backend::Nft };
            let installation = Installation { routes: PolicyRoutes { mark, table, priority, families }, backend };
            Order::Install { rules: file?, installation, on_failure }
        }
        UPDATE => Order::Update { rules: file? },
        REMOVE => Order::Remove,
        LOOK => Order::Look { networks: input.strings()?, devices: input.strings()? },
        FORGET => Order::Forget,
        GOODBYE => Order::Goodbye,
        RUN_SCRIPT => {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(input.bytes()?));
            let mut environment = Vec::new();
            for _ in 0..input.number()? {
                environment.push((input.string()?, input.string()?));
            }
            Order::RunScript { path, environment }
        }
        INSPECT => Order::Inspect,
        NOTE => Order::Note { lines: file? },
        REVISE => Order::Revise(Mark { value: input.number()?, mask: input.number()? }),
        RECLAIM => Order::Reclaim,
        SPARE => Order::Spare { devices: input.strings()? },
        _ => return None,
    };
    Some((number, order))
}

/// The message for an answer, and the file that goes with it.
pub(super) fn write_answer(number: u32, result: Result<Answer, Error>) -> (Vec<u8>, Option<File>) {
    let mut out = Writer(Vec::new());
    out.number(number);
    match result {
        Err(error) => {
            out.0.push(FAILED);
            let (what, why, hint) = error.parts();
            for part in [Some(what), Some(why), hint] {
                out.0.push(part.is_some().into());
                let part = part.unwrap_or("").as_bytes();
                out.bytes(part.get(..LONGEST_WORDS).unwrap_or(part));
            }
        }
        Ok(Answer::Done) => out.0.push(DONE),
        Ok(Answer::Busy) => out.0.push(BUSY),
        Ok(Answer::Damaged(what)) => {
            out.0.push(DAMAGED);
            out.bytes(what.as_bytes());
        }
        Ok(Answer::File(file)) => {
            out.0.push(FILE);
            return (out.0, Some(file));
        }
        Ok(Answer::Surroundings(found)) => {
            out.0.push(SURROUNDINGS);
            out.number(found.networks.len() as u32);
            for device in &found.networks {
                out.bytes(device.as_deref().unwrap_or("").as_bytes());
            }
            // A router has a few dozen; the rest of thousands would not fit.
            let fit = &found.on_link.get(..MOST_PREFIXES).unwrap_or(&found.on_link);
            out.0.push((found.backend == Backend::Iptables).into());
            out.number(fit.len() as u32);
            for range in *fit {
                out.bytes(range.first.to_string().as_bytes());
                out.bytes(range.last.to_string().as_bytes());
            }
        }
    }
    (out.0, None)
}

/// An answer's number and what it says.
pub(super) fn read_answer(message: &[u8], file: Option<OwnedFd>) -> (u32, Result<Answer, Error>) {
    let mut input = Reader(message);
    let number = input.number();
    let answer = number.and_then(|_| read_result(&mut input, file.map(File::from)));
    let garbled = || Err(Error::new("understand the privileged helper", "its answer is garbled"));
    (number.unwrap_or(HELLO), answer.unwrap_or_else(garbled))
}

fn read_result(input: &mut Reader<'_>, file: Option<File>) -> Option<Result<Answer, Error>> {
    Some(match input.byte()? {
        DONE => Ok(Answer::Done),
        BUSY => Ok(Answer::Busy),
        DAMAGED => Ok(Answer::Damaged(input.string()?)),
        FILE => Ok(Answer::File(file?)),
        SURROUNDINGS => {
            let networks = input.strings()?.into_iter().map(|device| (!device.is_empty()).then_some(device)).collect();
            let backend = if input.byte()? == 1 { Backend::Iptables } else { Backend::Nft };
            let mut on_link = Vec::new();
            for _ in 0..input.number()? {
                on_link.push(IpRange { first: input.address()?, last: input.address()? });
            }
            Ok(Answer::Surroundings(Surroundings { networks, on_link, backend }))
        }
        FAILED => {
            let (what, why, hint) = (input.maybe_string()?, input.maybe_string()?, input.maybe_string()?);
            let error = Error::new(what?, why?);
            Err(match hint {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
        _ => return None,
    })
}

/// Reads a message as the helper and as the daemon would, for tests and fuzzers. Neither has a file beside it, so nothing
/// that needs one is made of it.
///
/// # Panics
/// If more is made of it than is there.
pub fn check_any_message(message: &[u8]) {
    if let Some((_, order)) = read_request(message, None) {
        let words = match order {
            Order::ReadFile(path) => path.as_os_str().len(),
            Order::Look { networks, devices } => networks.len() + devices.len(),
            Order::RunScript { environment, .. } => environment.len(),
            Order::Spare { devices } => devices.len(),
            // rules travel as a file, and there is none
            Order::Install { .. } | Order::Update { .. } => usize::MAX,
            _ => 0,
        };
        assert!(words <= message.len());
    }
    let (_, answer) = read_answer(message, None);
    assert!(!matches!(answer, Ok(Answer::File(_))), "a file that nobody sent");
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*first))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.number()? as usize;
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(first)
    }

    fn string(&mut self) -> Option<String> {
        Some(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    fn maybe_string(&mut self) -> Option<Option<String>> {
        let present = self.byte()? == 1;
        let text = self.string()?;
        Some(present.then_some(text))
    }

    fn strings(&mut self) -> Option<Vec<String>> {
        let mut all = Vec::new();
        for _ in 0..self.number()? {
            all.push(self.string()?);
        }
        Some(all)
    }

    fn address(&mut self) -> Option<IpAddr> {
        std::str::from_utf8(self.bytes()?).ok()?.parse().ok()
    }
}

const READ_CONFIG: u8 = 1;
const READ_FILE: u8 = 2;
const INSTALL: u8 = 3;
const UPDATE: u8 = 4;
const REMOVE: u8 = 5;
const LOOK: u8 = 6;
const FORGET: u8 = 7;
const GOODBYE: u8 = 8;
const RUN_SCRIPT: u8 = 9;
const INSPECT: u8 = 10;
const NOTE: u8 = 11;
const REVISE: u8 = 12;
const RECLAIM: u8 = 13;
const SPARE: u8 = 14;

const DONE: u8 = 0;
const FAILED: u8 = 1;
const FILE: u8 = 2;
const SURROUNDINGS: u8 = 3;
const BUSY: u8 = 4;
const DAMAGED: u8 = 5;

/// Octets of each part of an error.
const LONGEST_WORDS: usize = 4096;
/// Connected prefixes in one answer, 86 octets each at most.
const MOST_PREFIXES: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_arrives_as_it_was_sent_and_no_prefix_of_it_panics() {
        let routes = PolicyRoutes {
            mark: Mark { value: 0x0100_0000, mask: 0x0300_0000 },
            table: 233,
            priority: 533,
            families: Families { v4: true, v6: false },
        };
        let requests = [
            Request::ReadConfig,
            Request::ReadFile("/etc/a list".into()),
            Request::Install {
                rules: "x".into(),
                installation: Installation { routes, backend: Backend::Iptables },
                on_failure: OnFailure::Block,
            },
            Request::Update { rules: "y".into() },
            Request::Remove,
            Request::Look { networks: vec!["lan".into(), "guest".into()], devices: vec!["eth*".into()] },
            Request::Forget,
            Request::Goodbye,
            Request::Inspect,
            Request::Note { lines: "z".into() },
            Request::Revise(routes.mark),
            Request::Reclaim,
            Request::Spare { devices: vec!["br-lan".into()] },
            Request::RunScript {
                path: "/etc/an event".into(),
                environment: vec![("EVENT".into(), "outbound_down".into()), ("NAME".into(), String::new())],
            },
        ];
        for (number, request) in (7..).zip(&requests) {
            let (message, file) = write_request(number, request).unwrap();
            for cut in 0..message.len() {
                assert!(read_request(&message[..cut], None).is_none(), "{request:?} cut at {cut}");
            }
            let (read, order) = read_request(&message, file.map(Into::into)).unwrap();
            assert_eq!(read, number);
            match (request, order) {
                (Request::Install { installation, .. }, Order::Install { installation: read, on_failure, .. }) => {
                    assert_eq!((*installation, OnFailure::Block), (read, on_failure));
                }
                (Request::Look { networks, devices }, Order::Look { networks: n, devices: d }) => {
                    assert_eq!((networks, devices), (&n, &d));
                }
                (Request::Spare { devices }, Order::Spare { devices: read }) => assert_eq!(*devices, read),
                (Request::ReadFile(path), Order::ReadFile(read)) => assert_eq!(*path, read),
                (Request::RunScript { path, environment }, Order::RunScript { path: p, environment: e }) => {
                    assert_eq!((path, environment), (&p, &e));
                }
                _ => {}
            }
        }
    }

    #[test]
    fn answers_carry_errors_word_for_word() {
        let error = Error::new("load the rules", "Error: syntax\nline two").hint("try again");
        let (message, _) = write_answer(5, Err(error.clone()));
        let (number, read) = read_answer(&message, None);
        assert_eq!((number, read.unwrap_err()), (5, error));
        for cut in 0..message.len() {
            assert!(read_answer(&message[..cut], None).1.is_err());
        }
    }

    #[test]
    fn answers_carry_devices_and_prefixes_of_both_families() {
        let range = |a: &str, b: &str| IpRange { first: a.parse().unwrap(), last: b.parse().unwrap() };
        let found = Surroundings {
            networks: vec![Some("br-lan".into()), None],
            on_link: vec![range("10.0.0.0", "10.0.0.255"), range("fd00::", "fd00::ffff")],
            backend: Backend::Iptables,
        };
        let (message, _) = write_answer(6, Ok(Answer::Surroundings(found.clone())));
        let (_, read) = read_answer(&message, None);
        assert!(matches!(read.unwrap(), Answer::Surroundings(read) if read == found));
    }
}
