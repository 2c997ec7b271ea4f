//! Addresses that this machine loses: what is bound to one (a PPPoE line that dials again) never hears from its peer again.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use super::links::address;
use super::message::{attributes, messages};
use crate::error::Error;
use crate::sys;
use crate::sys::netlink::AddressNews;

/// Addresses that have gone, as many as are told at once.
pub type Gone = heapless::Vec<IpAddr, GONE_MAX>;

/// A line has a few addresses. Where more go at once, they are told in several parts.
const GONE_MAX: usize = 16;

/// Tells when addresses of this machine go.
#[derive(Debug)]
pub struct Addresses {
    news: AddressNews,
}

impl Addresses {
    /// Listens from now on.
    ///
    /// # Errors
    /// No socket could be had.
    pub fn watch() -> Result<Addresses, Error> {
        let news = AddressNews::open().map_err(|e| Error::new("hear of addresses that go (rtnetlink)", &e))?;
        Ok(Addresses { news })
    }

    /// What becomes readable when there is something to take.
    pub fn fd(&self) -> RawFd {
        self.news.as_raw_fd()
    }

    /// The addresses that went since the last call, without those that came back meanwhile. A full list may not be the
    /// last: call again until it is empty.
    pub fn take_gone(&mut self) -> Gone {
        let mut gone = Gone::new();
        while !gone.is_full() {
            match self.news.receive() {
                Ok(datagram) => read(datagram, &mut gone),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => {
                    log::warn!(
                        "cannot hear which addresses go: {e}; sessions bound to one of them end by their timeouts"
                    );
                    // ENOBUFS: hundreds changed at once, some went unheard, the rest still waits
                    if !sys::out_of_resources(&e) {
                        break;
                    }
                }
            }
        }
        gone
    }
}

pub(super) fn read(datagram: &[u8], gone: &mut Gone) {
    for (kind, body) in messages(datagram) {
        let own = own_address(body.get(FIXED..).unwrap_or_default());
        match (kind, own) {
            (RTM_DELADDR, Some(address)) if !gone.contains(&address) => {
                // a datagram holds one message, and there was room for one
                let _ = gone.push(address);
            }
            (RTM_NEWADDR, Some(address)) => gone.retain(|other| *other != address),
            _ => {}
        }
    }
}

/// On a point-to-point device `IFA_ADDRESS` is the peer's; v6 has no `IFA_LOCAL` where there is no peer.
fn own_address(bytes: &[u8]) -> Option<IpAddr> {
    let of = |wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| address(value));
    of(IFA_LOCAL).or_else(|| of(IFA_ADDRESS))
}

/// Length of `struct ifaddrmsg`.
const FIXED: usize = 8;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct nlmsghdr`, `struct ifaddrmsg`, and attributes of four octets.
    fn message(kind: u16, addresses: &[(u16, [u8; 4])]) -> Vec<u8> {
        let mut bytes = (16 + 8 + 8 * addresses.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(16 + 8, 0);
        for (kind, address) in addresses {
            bytes.extend(8u16.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(address);
        }
        bytes
    }

    #[test]
    fn of_a_point_to_point_line_the_own_address_counts_and_not_the_peers() {
        let mut gone = Gone::new();
        read(&message(RTM_DELADDR, &[(IFA_ADDRESS, [10, 0, 0, 1]), (IFA_LOCAL, [100, 64, 0, 7])]), &mut gone);
        assert_eq!(gone.as_slice(), ["100.64.0.7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn an_address_that_is_back_already_has_not_gone() {
        let mut gone = Gone::new();
        for kind in [RTM_DELADDR, RTM_DELADDR, RTM_NEWADDR] {
            read(&message(kind, &[(IFA_ADDRESS, [192, 0, 2, 1])]), &mut gone);
        }
        assert!(gone.is_empty());
    }

    #[test]
    fn every_cut_of_a_message_is_survived() {
        let whole = message(RTM_DELADDR, &[(IFA_LOCAL, [192, 0, 2, 1])]);
        for cut in 0..whole.len() {
            let mut gone = Gone::new();
            read(&whole[..cut], &mut gone);
            assert!(gone.is_empty(), "cut at {cut}");
        }
    }
}
