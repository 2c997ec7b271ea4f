//! Memory, slots and deadlines of fixed size. No sockets, no clock.
#![forbid(unsafe_code)]

pub mod bucket;
pub mod endpoint;
pub mod index;
pub mod lru;
pub mod meters;
pub mod names;
pub mod pool;
pub mod quotas;
pub mod shares;
pub mod slab;
pub mod timers;
