//! Deletes the connection tracking entries that carry our mark.
//!
//! Delivery to the process gave such an entry a null NAT binding: once the rules are gone, a UDP client with a fixed port
//! would go on without masquerade for as long as it sends. So they are deleted when interception ends, after the rules.
//!
//! One by one, from a listing: `IPCTNL_MSG_CT_DELETE` by mark exists since Linux 4.1 only, and a kernel that does not know
//! (or was built without `CONFIG_NF_CONNTRACK_MARK`) takes such a request as "delete everything".

use std::io;
use std::net::IpAddr;

use super::message::{Message, attributes};
use crate::config::Mark;
use crate::error::Error;
use crate::sys::netlink::{Family, Netlink};

/// Deletes every entry whose mark has `mark.value` in the bits of `mark.mask`, of both families; returns how many.
///
/// # Errors
/// No conntrack netlink in this kernel, no `CAP_NET_ADMIN`, or entries that come faster than they go.
pub fn delete_marked(mark: Mark) -> Result<usize, Error> {
    delete(mark, &|_| true)
}

/// The same for entries of UDP alone.
///
/// # Errors
/// Those of [`delete_marked`].
pub fn delete_marked_udp(mark: Mark) -> Result<usize, Error> {
    delete(mark, &Entry::is_udp)
}

fn delete(mark: Mark, wanted: &dyn Fn(&Entry) -> bool) -> Result<usize, Error> {
    let mut socket = Netlink::open(Family::Netfilter).map_err(explain)?;
    let mut deleted = 0;
    for _ in 0..ROUNDS {
        let (batch, complete) = list_marked(&mut socket, mark, wanted).map_err(explain)?;
        for entry in &batch {
            match entry.delete(&mut socket) {
                Ok(()) => deleted += 1,
                // It ended by itself, or its tuple belongs to a new entry by now; or it is offloaded, before Linux 5.19.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy) => {}
                Err(error) => return Err(explain(error)),
            }
        }
        if complete {
            return Ok(deleted);
        }
    }
    Err(explain(io::Error::other("entries come faster than they are deleted")))
}

/// Tells whether entries can be listed, and so deleted; changes nothing.
///
/// # Errors
/// Those of [`delete_marked`].
pub fn probe(mark: Mark) -> Result<(), Error> {
    let mut socket = Netlink::open(Family::Netfilter).map_err(explain)?;
    list_marked(&mut socket, mark, &|_| true).map(|_| ()).map_err(explain)
}

/// Who the intercepted flows are of, each once, `most` of them.
///
/// # Errors
/// Those of [`delete_marked`].
pub fn clients(mark: Mark, most: usize) -> Result<Vec<IpAddr>, Error> {
    let mut socket = Netlink::open(Family::Netfilter).map_err(explain)?;
    let (entries, _) = list_marked(&mut socket, mark, &|_| true).map_err(explain)?;
    let mut clients: Vec<IpAddr> = entries.iter().filter_map(Entry::client).collect();
    clients.sort_unstable();
    clients.dedup();
    clients.truncate(most);
    Ok(clients)
}

fn explain(error: io::Error) -> Error {
    Error::new("delete the connection tracking entries of intercepted flows", error)
        .hint("install kmod-nf-conntrack-netlink (CONFIG_NF_CT_NETLINK); CAP_NET_ADMIN is needed")
}

/// What names an entry: the attributes as the kernel gave them.
#[derive(Debug)]
pub(super) struct Entry {
    family: u8,
    original: Vec<u8>,
    id: Option<[u8; 4]>,
    zone: Option<[u8; 2]>,
}

impl Entry {
    fn is_udp(&self) -> bool {
        let proto = attributes(&self.original).find(|(kind, _)| *kind == CTA_TUPLE_PROTO);
        let number = proto.and_then(|(_, value)| attributes(value).find(|(kind, _)| *kind == CTA_PROTO_NUM));
        number.is_some_and(|(_, value)| value == [IPPROTO_UDP])
    }

    fn client(&self) -> Option<IpAddr> {
        let (_, addresses) = attributes(&self.original).find(|(kind, _)| *kind == CTA_TUPLE_IP)?;
        attributes(addresses).find_map(|(kind, value)| match kind {
            CTA_IP_V4_SRC => Some(<[u8; 4]>::try_from(value).ok()?.into()),
            CTA_IP_V6_SRC => Some(<[u8; 16]>::try_from(value).ok()?.into()),
            _ => None,
        })
    }

    fn delete(&self, socket: &mut Netlink) -> io::Result<()> {
        let mut message =
            Message::new(CT_DELETE, 0, &[self.family, 0, 0, 0]).with(CTA_TUPLE_ORIG | NLA_F_NESTED, &self.original);
        if let Some(id) = &self.id {
            message = message.with(CTA_ID, id);
        }
        if let Some(zone) = &self.zone {
            message = message.with(CTA_ZONE, zone);
        }
        message.ask(socket)
    }
}

/// At most [`BATCH`] marked entries, and whether these were all.
fn list_marked(socket: &mut Netlink, mark: Mark, wanted: &dyn Fn(&Entry) -> bool) -> io::Result<(Vec<Entry>, bool)> {
    let mut batch = Vec::new();
    let mut complete = true;
    // The kernel filters where it can (since 3.9); the comparison below holds in any case.
    let result = Message::new(CT_GET, 0, &[0; 4])
        .with(CTA_MARK, &mark.value.to_be_bytes())
        .with(CTA_MARK_MASK, &mark.mask.to_be_bytes())
        .dump(socket, |_, body| {
            let Some((entry, found)) = read(body) else { return };
            if found & mark.mask != mark.value || !wanted(&entry) {
                return;
            }
            if batch.len() < BATCH {
                batch.push(entry);
            } else {
                complete = false;
            }
        });
    match result {
        // The table changed while it was listed: what was seen is right, another round finds the rest.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok((batch, false)),
        Err(error) => Err(error),
        Ok(()) => Ok((batch, complete)),
    }
}

/// Reads a `struct nfgenmsg` and its attributes: the entry and its mark.
pub(super) fn read(body: &[u8]) -> Option<(Entry, u32)> {
    let mut entry = Entry { family: *body.first()?, original: Vec::new(), id: None, zone: None };
    let mut mark = 0;
    for (kind, value) in attributes(body.get(4..)?) {
        match kind {
            CTA_TUPLE_ORIG => entry.original = value.to_vec(),
            CTA_ID => entry.id = value.try_into().ok(),
            CTA_ZONE => entry.zone = value.try_into().ok(),
            CTA_MARK => mark = u32::from_be_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    // Without a tuple the request would mean "all of them".
    (!entry.original.is_empty()).then_some((entry, mark))
}

/// Entries deleted between two listings, which bounds the helper's memory (about 150 octets each).
const BATCH: usize = 1024;
/// Listings before it is given up: 64 k entries.
const ROUNDS: usize = 64;

const NLA_F_NESTED: u16 = 0x8000;
/// NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_GET.
const CT_GET: u16 = 0x0101;
/// NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_DELETE.
const CT_DELETE: u16 = 0x0102;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const IPPROTO_UDP: u8 = 17;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
