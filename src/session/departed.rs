//! This machine has lost an address: what is bound to it can never hear from its peer again, and ends at once instead of by a
//! timeout of minutes. (An unconnected UDP socket is bound to none: its next datagram leaves from the new address.)

use super::tcp::Tcp;
use super::udp::Udp;
use super::{CloseReason, Cx};
use crate::sys::socket;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

impl Tcp {
    /// Ends the sessions whose far end is bound to one of `gone`; the clients are reset, and may dial again. Returns how
    /// many.
    pub fn end_bound_to(&mut self, gone: &[IpAddr], cx: &mut Cx<'_>) -> usize {
        let mut count = 0;
        for slot in 0..self.sessions.touched() {
            let Some(key) = self.sessions.key_at(slot) else { continue };
            let Some(session) = self.sessions.get(key) else { continue };
            if session.far.borrow().is_some_and(|far| is_bound_to(far, gone)) {
                session.near.reset();
                session.far.reset();
                self.close(key, CloseReason::AddressGone, cx);
                count += 1;
            }
        }
        count
    }
}

impl Udp {
    /// Ends the mappings whose connection to a proxy is bound to one of `gone`; the client's next datagram makes a new one.
    /// Returns how many.
    pub fn end_bound_to(&mut self, gone: &[IpAddr], cx: &mut Cx<'_>) -> usize {
        let mut count = 0;
        for slot in 0..self.mappings.touched() {
            let Some(key) = self.mappings.key_at(slot) else { continue };
            let control = self.mappings.get(key).and_then(|mapping| mapping.control.as_ref());
            if control.is_some_and(|control| is_bound_to(control.as_fd(), gone)) {
                self.close(key, CloseReason::AddressGone, cx);
                count += 1;
            }
        }
        count
    }
}

pub(super) fn is_bound_to(fd: BorrowedFd<'_>, addresses: &[IpAddr]) -> bool {
    socket::local_address(fd).is_ok_and(|local| addresses.contains(&local.ip()))
}
