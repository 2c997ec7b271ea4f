#![no_main]
#[path = "../../tests/corpus/bodies.rs"]
#[allow(dead_code)]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::socks5_server(bytes));
