//! What the user typed: UCI text → sections → typed, validated [`Config`]. Never reads the clock or the network.
//!
//! ```text
//! bytes ─ uci ─► sections ─ check (schema, value, address) ─► typed sections ─ build (sets, cross, auto) ─► Config
//!                                   report: everything that is wrong, by line
//! ```
#![forbid(unsafe_code)]

use std::io::{self, BufRead};
use std::path::Path;

mod address;
mod auto;
mod build;
mod check;
mod cross;
pub mod domains;
pub mod lists;
pub mod load;
pub mod model;
pub mod nets;
mod report;
pub mod schedule;
pub mod schema;
mod set_line;
mod sets;
mod uci;
mod value;
pub mod zone;

#[cfg(test)]
mod tests;

pub use domains::DomainSet;
pub use load::load;
pub use model::*;
pub use nets::NetSet;
pub use report::{Errors, MOST_KEPT, Problem};
pub use schedule::{Moment, Schedule};
pub use sets::{Open, each_name};
pub use zone::Zone;

/// What the configuration depends on besides its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Env {
    /// Memory of the machine in bytes, as the kernel shows it; 0 if unknown. Decides what `auto` is.
    pub total_memory: u64,
    /// Descriptors that this process may have; `u64::MAX` if that does not matter. Keeps `auto` tables within them.
    pub descriptors: u64,
}

/// Reads a configuration. `file` is its name in messages; `open` opens the list files of sets.
///
/// Warnings are in [`Config::warnings`].
///
/// # Errors
/// Everything that is wrong, by line, not just the first.
pub fn parse(
    file: &str,
    bytes: &[u8],
    env: &Env,
    open: &mut dyn FnMut(&Path) -> io::Result<Box<dyn BufRead>>,
) -> Result<Config, Errors> {
    if bytes.len() > LARGEST_FILE {
        let message = format!("larger than {} KiB; put long lists into loadfile", LARGEST_FILE / 1024);
        return Err(Errors::whole_file(file, message));
    }
    let mut report = report::Report::new(file);
    let sections = uci::parse(bytes, "tproxyd", &mut report);
    let checked = check::check(&sections, &mut report);
    let config = build::build(&checked, env, open, &mut report);
    let warnings = report.finish()?;
    Ok(Config { warnings, ..config })
}

/// Bytes of a configuration file.
pub const LARGEST_FILE: usize = 1 << 20;
