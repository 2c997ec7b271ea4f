//! Much data, both ways at once, in chunks of any size: every octet arrives, in order.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::chance::Chance;
use crate::over_ways;
use crate::passage::Passage;

const EACH_WAY: usize = 100_000_000;

/// How long either direction may stand still. microsocks serves its server only while its client has nothing to say, so on
/// a busy machine one direction waits until the other is through.
const STANDSTILL: Duration = Duration::from_secs(240);

/// Sends random octets in chunks of random sizes; returns their SHA-256.
fn send(mut stream: &TcpStream, mut chance: Chance) -> String {
    let block = chance.octets(1 << 20);
    let (mut hash, mut left) = (Sha256::new(), EACH_WAY);
    while left > 0 {
        let largest = [100, 1_500, 66_000, 300_000][chance.below(4)];
        let len = (1 + chance.below(largest)).min(left);
        let from = chance.below(block.len() - len);
        let chunk = &block[from..from + len];
        hash.update(chunk);
        stream.write_all(chunk).unwrap_or_else(|e| panic!("send, with {left} left: {e}"));
        left -= len;
    }
    format!("{:x}", hash.finalize())
}

/// Reads in pieces of random sizes; returns the SHA-256 of all.
fn receive(mut stream: &TcpStream, mut chance: Chance) -> String {
    let mut buffer = vec![0; 256 * 1_024];
    let (mut hash, mut left) = (Sha256::new(), EACH_WAY);
    while left > 0 {
        let room = (1 + chance.below(buffer.len())).min(left);
        let n = stream.read(&mut buffer[..room]).unwrap_or_else(|e| panic!("read, with {left} left: {e}"));
        assert!(n > 0, "the end came with {left} left");
        hash.update(&buffer[..n]);
        left -= n;
    }
    format!("{:x}", hash.finalize())
}

over_ways!(hundred_megabytes_each_way_at_once_arrive_intact, |way, family| {
    let mut chance = Chance::new();
    let passage = Passage::open(way, family);
    let (client, server) = passage.pair();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(STANDSTILL)).expect("SO_RCVTIMEO");
        stream.set_write_timeout(Some(STANDSTILL)).expect("SO_SNDTIMEO");
    }
    thread::scope(|scope| {
        let mut run = |work: fn(&TcpStream, Chance) -> String, stream| {
            let chance = chance.fork();
            scope.spawn(move || work(stream, chance))
        };
        let (up, down) = (run(send, &client), run(send, &server));
        let (up_arrived, down_arrived) = (run(receive, &server), run(receive, &client));
        assert_eq!(up.join().expect("sent"), up_arrived.join().expect("received"), "from the client");
        assert_eq!(down.join().expect("sent"), down_arrived.join().expect("received"), "from the server");
    });
},
    plain_v4 Plain V4, direct_v4 Direct V4, direct_v6 Direct V6, microsocks_v4 Microsocks V4,
    microsocks_v6 Microsocks V6, dante_v4 Dante V4);
