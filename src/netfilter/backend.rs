//! Which packet filter carries the rules.

use std::sync::OnceLock;

use super::{TABLE, iptables, load, program, remove_table};
use crate::config::Backend;
use crate::error::Error;

/// What `option backend 'auto'` means on this machine: nft where it works, else iptables, where that is there. Looked at once
/// in the life of a process.
pub fn automatic() -> Backend {
    static FOUND: OnceLock<Backend> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let nft_works = match load::check(&format!("add table inet {TABLE}\n")) {
            Ok(()) => true,
            // who may not ask does not know
            Err(error) => program::is_there("nft") && error.to_string().contains("not permitted"),
        };
        if !nft_works && program::is_there("iptables-restore") { Backend::Iptables } else { Backend::Nft }
    })
}

/// What `backend` comes to: nft or iptables.
pub fn in_force(backend: Backend) -> Backend {
    if backend == Backend::Auto { automatic() } else { backend }
}

/// Takes the rules away; by `Auto` those of both.
///
/// # Errors
/// What a tool says.
pub fn remove_rules(backend: Backend) -> Result<(), Error> {
    match backend {
        Backend::Nft => remove_table(),
        Backend::Iptables => iptables::remove(),
        Backend::Auto => {
            let has_iptables = program::is_there("iptables-save");
            let by_nft = if has_iptables && !program::is_there("nft") { Ok(()) } else { remove_table() };
            let by_iptables = if has_iptables { iptables::remove() } else { Ok(()) };
            by_nft.and(by_iptables)
        }
    }
}
