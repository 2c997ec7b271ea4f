//! What holds for any octets that netlink or ubus might send, for tests and fuzzers. Nothing else uses it, so that the program
//! does not have it.

use super::message::{attributes, messages, take_answers};
use super::{addresses, conntrack, links, neighbours, networks, routes};

/// Reads a datagram from the kernel as everything that one may be.
///
/// # Panics
/// If something is read that was not there.
pub fn check_any_datagram(bytes: &[u8]) {
    let (mut changed, mut shown) = (false, 0);
    // the number of the request that was answered stands in octets 8 to 11
    let sequence = bytes.get(8..12).and_then(|octets| octets.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let _ = take_answers(bytes, sequence, &mut changed, &mut |_, body| {
        shown += body.len();
        check_body(body);
    });
    assert!(shown <= bytes.len());
    let listed: usize = messages(bytes).map(|(_, body)| body.len()).sum();
    assert!(listed <= bytes.len());
    let mut gone = addresses::Gone::new();
    addresses::read(bytes, &mut gone);
    check_body(bytes);
}

fn check_body(body: &[u8]) {
    let _ = conntrack::read(body);
    let _ = neighbours::read(body);
    let route = routes::Route::read(body);
    let _ = route.hops.map(links::hop_devices);
    let values: usize = attributes(body).map(|(_, value)| value.len()).sum();
    assert!(values <= body.len());
}

/// Reads text that ubus or a user may have written about networks.
pub fn check_any_networks(text: &str) {
    if let Some(found) = networks::from_dump(text) {
        assert!(found.iter().map(|(name, device)| name.len() + device.len()).sum::<usize>() <= text.len());
    }
    let _ = networks::from_netifd_config(text);
    let _ = networks::from_file(text);
}
