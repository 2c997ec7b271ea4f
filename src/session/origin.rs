//! Where a flow came from beside its address, for rules that ask: the device, and the client's MAC address.

use crate::config::Mac;
use crate::policy::{Flow, Policy};
use crate::store::timers::Tick;
use crate::sys::dgram::ReceiveBatch;
use crate::sys::{ingress, interface};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Asks the kernel for all its neighbours.
pub type Look = fn() -> io::Result<Vec<Neighbour>>;

/// An address and the MAC address behind it.
pub type Neighbour = (IpAddr, [u8; 6]);

/// The kernel's neighbours by address, as last looked at.
pub struct Origins {
    asks_for_device: bool,
    asks_for_mac: bool,
    look: Look,
    neighbours: Vec<Neighbour>,
    looked: Option<Tick>,
    unknown: u64,
}

/// Where one flow came from.
#[derive(Debug, Default)]
pub struct Origin {
    device: Option<String>,
    mac: Option<Mac>,
}

/// How long the kernel's answer holds: a client may get another's address then.
const HOLDS: Duration = Duration::from_secs(30);

/// The kernel is not asked more often for clients that it does not know.
const PAUSE: Duration = Duration::from_secs(1);

/// Most neighbours that are kept: as many as the kernel keeps by default (`gc_thresh3`, arp(7)).
const NEIGHBOURS_MAX: usize = 1024;

impl Origins {
    /// Bytes that it takes at most, while the kernel is asked.
    pub const MEMORY_MAX: usize = 2 * NEIGHBOURS_MAX * size_of::<Neighbour>();

    /// Asks the kernel by `look`, if a rule asks.
    pub fn new(look: Look) -> Origins {
        let (neighbours, looked) = (Vec::new(), None);
        Origins { asks_for_device: false, asks_for_mac: false, look, neighbours, looked, unknown: 0 }
    }

    /// The rules have changed.
    pub fn serve(&mut self, policy: &Policy) {
        (self.asks_for_device, self.asks_for_mac) = (policy.asks_for_device(), policy.asks_for_mac());
    }

    /// True if listeners must tell by which device flows come in.
    pub fn asks_for_device(&self) -> bool {
        self.asks_for_device
    }

    /// Flows whose MAC address a rule asked for and nobody knew.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Of an accepted connection.
    pub fn of_connection(&mut self, fd: BorrowedFd<'_>, client: SocketAddr, now: Tick) -> Origin {
        let index = || ingress::of_connection(fd, client.is_ipv4()).ok();
        self.of(index, client.ip(), now)
    }

    /// The number of the device of the datagram in `slot`, if a rule asks for it.
    pub fn device(&self, slot: usize, batch: &ReceiveBatch) -> Option<u32> {
        if self.asks_for_device { batch.device(slot) } else { None }
    }

    /// Of a datagram that came in by this device.
    pub fn of_datagram(&mut self, device: Option<u32>, client: SocketAddr, now: Tick) -> Origin {
        self.of(|| device, client.ip(), now)
    }

    fn of(&mut self, index: impl FnOnce() -> Option<u32>, client: IpAddr, now: Tick) -> Origin {
        let device = if self.asks_for_device { index().and_then(|index| interface::name(index).ok()) } else { None };
        let mac = if self.asks_for_mac { self.mac(client, now) } else { None };
        Origin { device, mac }
    }

    /// The MAC address of a client, if the kernel knows it.
    pub fn mac_of(&mut self, client: IpAddr, now: Tick) -> Option<[u8; 6]> {
        self.look_up(client, now).map(|Mac(octets)| octets)
    }

    fn mac(&mut self, client: IpAddr, now: Tick) -> Option<Mac> {
        let found = self.look_up(client, now);
        self.unknown += u64::from(found.is_none());
        found
    }

    fn look_up(&mut self, client: IpAddr, now: Tick) -> Option<Mac> {
        let age = self.looked.map(|at| now.since(at));
        let mut found = self.known(client);
        let asks =
            if found.is_some() { age.is_none_or(|age| age >= HOLDS) } else { age.is_none_or(|age| age >= PAUSE) };
        if asks {
            self.looked = Some(now);
            if let Ok(mut neighbours) = (self.look)() {
                neighbours.truncate(NEIGHBOURS_MAX);
                neighbours.sort_unstable();
                self.neighbours = neighbours;
            }
            found = self.known(client);
        }
        found
    }

    fn known(&self, client: IpAddr) -> Option<Mac> {
        let at = self.neighbours.binary_search_by_key(&client, |(ip, _)| *ip).ok()?;
        self.neighbours.get(at).map(|(_, mac)| Mac(*mac))
    }
}

impl Origin {
    /// `flow` with what is known of where it came from.
    pub fn of<'f>(&'f self, flow: Flow<'f>) -> Flow<'f> {
        Flow { device: self.device.as_deref(), mac: self.mac, ..flow }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static ASKED: Cell<u8> = const { Cell::new(0) };
    }

    fn look() -> io::Result<Vec<Neighbour>> {
        ASKED.set(ASKED.get() + 1);
        Ok(vec![([10, 0, 0, 2].into(), [2, 0, 0, 0, 0, ASKED.get()]), ([10, 0, 0, 1].into(), [2, 0, 0, 0, 0, 9])])
    }

    #[test]
    fn the_kernel_is_asked_when_its_answer_is_old_and_for_strangers_once_a_second() {
        let mut origins = Origins::new(look);
        origins.asks_for_mac = true;
        let (known, stranger) = (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3]));
        let at = |seconds| Tick(0).after(Duration::from_secs(seconds));
        assert_eq!(origins.mac(known, at(0)), Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!(origins.mac(known, at(29)), Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!((origins.mac(stranger, at(29)), ASKED.get()), (None, 2));
        assert_eq!((origins.mac(stranger, at(29)), ASKED.get(), origins.unknown()), (None, 2, 2));
        assert_eq!(origins.mac(known, at(60)), Some(Mac([2, 0, 0, 0, 0, 3])));
    }
}
