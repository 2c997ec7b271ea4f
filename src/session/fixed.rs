//! UDP to a fixed server: a socket of its own for each client port and destination, since the server's answers name neither.

use super::mapping::{Stage, open_to};
use super::udp::Udp;
use super::{Cx, Owner, Side};
use crate::store::slab::Key;
use std::io::ErrorKind;

/// Opens the socket of a mapping, or waits for the server's name.
pub(super) fn reach(udp: &mut Udp, key: Key, cx: &mut Cx<'_>) {
    let Some(mapping) = udp.mappings.get_mut(key) else { return };
    let outbound = cx.outbounds.get(mapping.via);
    if let Some(name) = outbound.server().and_then(|server| server.name) {
        // does nothing while the answer is fresh
        cx.resolver.request(name, cx.now);
    }
    if outbound.address(0, mapping.orig_dst(), cx.resolver).is_none() {
        mapping.stage = Stage::Resolving;
        udp.timers.set(key.slot, mapping.started.after(outbound.connect_timeout));
        return;
    }
    udp.reach_by(key, cx, |outbound, cx, mapping| {
        // one without a route (a v6 address where there is no v6) is seen at once: then the next one serves
        let addresses = (0..).map_while(|attempt| outbound.address(attempt, mapping.orig_dst(), cx.resolver));
        let mut opened = Err(ErrorKind::AddrNotAvailable.into());
        for server in addresses {
            opened = open_to(server, mapping.client.address(), Owner::Udp(key, Side::Near), outbound, cx);
            if opened.is_ok() {
                break;
            }
        }
        opened
    });
}
