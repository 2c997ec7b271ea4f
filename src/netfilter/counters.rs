//! Reads the counters of our table: how many packets the rules gave to each listener.

use std::io;

use super::TABLE;
use super::message::{Message, attributes};
use crate::sys::netlink::{Family, Netlink};

/// Counters of our table by name, with their packets. Empty if the table isn't there.
///
/// # Errors
/// No `CAP_NET_ADMIN`, or a kernel without nftables.
pub fn packets() -> io::Result<Vec<(String, u64)>> {
    let mut socket = Netlink::open(Family::Netfilter)?;
    let mut found = Vec::new();
    let mut table = TABLE.as_bytes().to_vec();
    table.push(0);
    let request = Message::new(GET_OBJECTS, 0, &[NFPROTO_INET, 0, 0, 0])
        .with(OBJ_TABLE, &table)
        .with(OBJ_TYPE, &OBJECT_COUNTER.to_be_bytes());
    match request.dump(&mut socket, |_, body| found.extend(read(body))) {
        // changed meanwhile, or no table: what was seen is right
        Err(error) if error.kind() == io::ErrorKind::Interrupted || error.kind() == io::ErrorKind::NotFound => {
            Ok(found)
        }
        result => result.map(|()| found),
    }
}

/// Reads a `struct nfgenmsg` and its attributes: the name of a counter and its packets.
fn read(body: &[u8]) -> Option<(String, u64)> {
    let (mut name, mut table, mut kind, mut count) = (None, false, 0, None);
    for (attribute, value) in attributes(body.get(4..)?) {
        match attribute {
            OBJ_TABLE => table = value.strip_suffix(&[0]) == Some(TABLE.as_bytes()),
            OBJ_NAME => name = std::str::from_utf8(value.strip_suffix(&[0])?).ok(),
            OBJ_TYPE => kind = u32::from_be_bytes(value.try_into().ok()?),
            OBJ_DATA => {
                let packets = attributes(value).find(|(attribute, _)| *attribute == COUNTER_PACKETS);
                count = packets.and_then(|(_, value)| Some(u64::from_be_bytes(value.try_into().ok()?)));
            }
            _ => {}
        }
    }
    // before Linux 4.15 the kernel does not filter by what was asked for
    (table && kind == OBJECT_COUNTER).then_some((name?.to_owned(), count?))
}

/// NFNL_SUBSYS_NFTABLES and NFT_MSG_GETOBJ.
const GET_OBJECTS: u16 = 0x0a13;
const NFPROTO_INET: u8 = 1;
const OBJ_TABLE: u16 = 1;
const OBJ_NAME: u16 = 2;
const OBJ_TYPE: u16 = 3;
const OBJ_DATA: u16 = 4;
const OBJECT_COUNTER: u32 = 1;
const COUNTER_PACKETS: u16 = 2;
