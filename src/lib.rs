//! tproxyd: a transparent proxy daemon for routers.
//!
//! One sentence runs through the code: socket → intercept → classify → dial → relay → account.
//!
//! ```text
//!                          main ─ cli
//!                            │
//!   event_loop ── control ── helper ── netfilter   the process (runs once; event_loop alone reads the clock)
//!        │
//!     session   intercept → tcp|udp → dial → relay     one connection, stage to stage
//!        ├── resolve                                   names of the outbounds' servers
//!   ┌────┴────┬──────────┬─────────┬────────┐
//! policy    proto      store      sys     stats        leaves: know nothing of each other
//!   ▲
//! config (uci → typed options → Config)
//! ```
//!
//! Words: *client* (the device behind the router), *orig_dst* (where it wanted to go), *outbound* (a way out), *session*
//! (TCP), *mapping* and *destination entry* (UDP), *verdict* (which outbound a flow gets), *up* (from the client), *down*.

// A panic ends the whole process, so none is written down. (Those of tests are their assertions.)
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::unimplemented
    )
)]

pub mod budget;
pub mod check;
pub mod cli;
pub mod config;
#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub mod control;
pub mod daemon;
pub mod error;
pub mod event_loop;
#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub mod helper;
pub mod log_sink;
pub mod netfilter;
pub mod policy;
#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub mod proto;
pub mod reload;
pub mod resolve;
pub mod session;
pub mod stats;
pub mod store;
pub mod sys;
