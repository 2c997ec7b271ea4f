//! The kernel's neighbour table: which MAC address is behind an address of the LAN.

use std::io;
use std::net::IpAddr;

use super::message::{Message, attributes};
use crate::sys::netlink::{Family, Netlink};

/// All neighbours whose MAC address is known, of both families. One question, answered at once.
///
/// # Errors
/// Those of the netlink socket.
pub fn all() -> io::Result<Vec<(IpAddr, [u8; 6])>> {
    let mut socket = Netlink::open(Family::Route)?;
    let mut found = Vec::new();
    match Message::new(GET_NEIGHBOURS, 0, &[0; ND_MESSAGE]).dump(&mut socket, |_, body| found.extend(read(body))) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(found),
    }
}

/// Reads a `struct ndmsg` and its attributes.
pub(super) fn read(body: &[u8]) -> Option<(IpAddr, [u8; 6])> {
    let (mut ip, mut mac) = (None, None);
    for (attribute, value) in attributes(body.get(ND_MESSAGE..)?) {
        match attribute {
            NDA_DST => {
                let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
                ip = v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok();
            }
            NDA_LLADDR => mac = value.try_into().ok(),
            _ => {}
        }
    }
    // the loopback device has neighbours as well
    Some((ip?, mac.filter(|mac| *mac != [0; 6])?))
}

/// RTM_GETNEIGH.
const GET_NEIGHBOURS: u16 = 30;
/// Octets of `struct ndmsg`.
const ND_MESSAGE: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
