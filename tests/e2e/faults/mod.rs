//! What a house full of devices and a hostile network do to it, one fault a test. Those of proxies in their handshakes are in
//! `failures.rs`, those of the daemon's own life in `lifecycle.rs`.

mod greedy;
