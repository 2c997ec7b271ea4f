//! What is left of what was installed.

use super::message::{Message, attributes};
use super::{Installation, TABLE, iptables};
use crate::config::Backend;
use crate::error::Error;
use crate::sys::netlink::{Family, Netlink};

/// Says in words what is missing of `rules` rules of ours and of the policy routes; `None`: nothing.
///
/// # Errors
/// The kernel's refusal to list rules or routes.
pub fn damage(rules: usize, Installation { routes, backend }: &Installation) -> Result<Option<String>, Error> {
    let there = match backend {
        Backend::Iptables => iptables::count(routes.families)?,
        _ => count_rules()?,
    };
    if there < rules {
        return Ok(Some(format!("{} of {rules} rules had been taken away", rules - there)));
    }
    Ok(routes.missing()?.map(|what| format!("{what} had been taken away")))
}

/// Whether some rule of nftables (or of iptables-nft) masquerades: then a client's own address does not get past it.
///
/// # Errors
/// The kernel's refusal to list rules.
pub fn masquerades() -> Result<bool, Error> {
    let failed = |error| Error::new("list the rules that are in place", error);
    let mut socket = Netlink::open(Family::Netfilter).map_err(failed)?;
    let mut found = false;
    Message::new(GETRULE, 0, &[0; 4])
        .dump(&mut socket, |_, body| {
            // names of an expression, and of a target of iptables
            found |=
                [&b"masq\0"[..], b"MASQUERADE\0"].iter().any(|name| body.windows(name.len()).any(|part| part == *name));
        })
        .map_err(failed)?;
    Ok(found)
}

/// Rules in all chains of our table; 0 if there is none.
fn count_rules() -> Result<usize, Error> {
    let failed = |error| Error::new("list the rules that are in place", error);
    let mut socket = Netlink::open(Family::Netfilter).map_err(failed)?;
    let mut count = 0;
    let name = format!("{TABLE}\0");
    let listed = Message::new(GETRULE, 0, &[NFPROTO_INET, 0, 0, 0]).with(NFTA_RULE_TABLE, name.as_bytes()).dump(
        &mut socket,
        |_, body| {
            // kernels before 5.0 list the rules of all tables
            let table = attributes(body.get(4..).unwrap_or_default()).find(|(kind, _)| *kind == NFTA_RULE_TABLE);
            count += usize::from(table.is_some_and(|(_, table)| table == name.as_bytes()));
        },
    );
    match listed {
        Ok(()) => Ok(count),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(failed(error)),
    }
}

/// NFNL_SUBSYS_NFTABLES and NFT_MSG_GETRULE.
const GETRULE: u16 = 0x0a07;
const NFPROTO_INET: u8 = 1;
const NFTA_RULE_TABLE: u16 = 1;
