//! Tells when devices, addresses, policy rules or our own table may have changed under us.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};

use super::TABLE;
use super::message::{attributes, messages};
use crate::error::Error;
use crate::sys::netlink::{Asker, CHANGED_LINKS, CHANGED_TABLES, Family};

/// Two netlink sockets that are told of changes.
#[derive(Debug)]
pub struct News {
    links: Asker,
    tables: Asker,
}

impl News {
    /// Listens from now on, in this process's network namespace.
    ///
    /// # Errors
    /// No socket could be had, or `CAP_NET_ADMIN` is missing.
    pub fn watch() -> Result<News, Error> {
        let open = |family, groups, what: &str| {
            Asker::open(family, groups).map_err(|error| Error::new(format!("hear of changes of {what}"), error))
        };
        Ok(News {
            links: open(Family::Route, CHANGED_LINKS, "devices and addresses")?,
            tables: open(Family::Netfilter, CHANGED_TABLES, "nftables")?,
        })
    }

    /// What becomes readable when there is something to take.
    pub fn fds(&self) -> [RawFd; 2] {
        [self.links.as_raw_fd(), self.tables.as_raw_fd()]
    }

    /// Takes what was told since the last call. True: devices, addresses or policy rules changed, or something of our table
    /// was deleted, by us or by others.
    pub fn take(&mut self) -> bool {
        let links = drain(&self.links, |_| true);
        drain(&self.tables, is_about_us) || links
    }
}

fn drain(socket: &Asker, mut concerns: impl FnMut(&[u8]) -> bool) -> bool {
    let mut buffer = [0; BUFFER];
    let mut any = false;
    loop {
        match socket.receive(&mut buffer) {
            Ok(datagram) => any = any || concerns(datagram),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return any,
            // what was lost may have been about us
            Err(_) => any = true,
        }
    }
}

/// A firewall that reloads tells of hundreds of rules of its own.
fn is_about_us(datagram: &[u8]) -> bool {
    messages(datagram).any(|(kind, body)| {
        let table = || attributes(body.get(4..).unwrap_or_default()).find(|(number, _)| *number == NFTA_TABLE);
        [DELTABLE, DELCHAIN, DELRULE].contains(&kind)
            && table().is_some_and(|(_, name)| name.strip_suffix(b"\0").unwrap_or(name) == TABLE.as_bytes())
    })
}

/// A datagram is a page, or two.
const BUFFER: usize = 8192;
/// The name of the table, in messages about tables, chains and rules alike.
const NFTA_TABLE: u16 = 1;
/// NFNL_SUBSYS_NFTABLES with NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN and NFT_MSG_DELRULE.
const DELTABLE: u16 = 0x0a02;
const DELCHAIN: u16 = 0x0a05;
const DELRULE: u16 = 0x0a08;
