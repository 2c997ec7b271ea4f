//! The relay between real sockets of this machine, and its pool and pipes under want.

use super::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

const READY: Readiness = Readiness { readable: true, writable: true, read_closed: false, urgent: false, error: false };

/// A peer under the test's control, and the end that the relay holds of it.
fn end_pair() -> (TcpStream, End) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (inside, _) = listener.accept().unwrap();
    inside.set_nonblocking(true).unwrap();
    let mut end = End::accepted(inside.into());
    end.note(READY);
    (peer, end)
}

struct Lab {
    client: TcpStream,
    near: End,
    server: TcpStream,
    far: End,
    scratch: Vec<u8>,
    pool: Pool,
    pipes: Pipes,
    stats: Stats,
}

fn lab(pool_bytes: u64) -> Lab {
    let ((client, near), (server, far)) = (end_pair(), end_pair());
    let (scratch, pool) = (vec![0; CHUNK], Pool::new(pool_bytes));
    Lab { client, near, server, far, scratch, pool, pipes: Pipes::new(2), stats: Stats::default() }
}

impl Lab {
    fn up(&mut self) -> Pause {
        let Lab { near, far, scratch, pool, pipes, stats, .. } = self;
        pump(near, far, TURN, &mut Tools { scratch, pool, pipes, stats })
    }

    fn down(&mut self) -> Pause {
        let Lab { near, far, scratch, pool, pipes, stats, .. } = self;
        pump(far, near, TURN, &mut Tools { scratch, pool, pipes, stats })
    }

    /// Pumps up until the far end takes no more, and returns how much the client had sent by then.
    fn fill(&mut self) -> Vec<u8> {
        self.client.set_nonblocking(true).unwrap();
        let mut sent = Vec::new();
        while self.far.writable {
            let piece: Vec<u8> = (0..50_000).map(|i: usize| ((sent.len() + i) / 7) as u8).collect();
            match self.client.write(&piece) {
                Ok(n) => sent.extend_from_slice(&piece[..n]),
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
            self.near.note(READY);
            let _ = self.up();
        }
        sent
    }

    /// Reads at the server all that `sent` says, pumping along.
    fn expect(&mut self, sent: &[u8]) {
        self.server.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        let mut buffer = vec![0; 100_000];
        while got.len() < sent.len() {
            match self.server.read(&mut buffer) {
                Ok(0) => panic!("the end came early"),
                Ok(n) => got.extend_from_slice(&buffer[..n]),
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
            self.near.note(READY);
            self.far.note(READY);
            assert!(!matches!(self.up(), Pause::SourceFailed(_) | Pause::SinkFailed(_)));
        }
        assert!(got == sent, "contents differ");
    }
}

#[test]
fn what_a_full_sink_did_not_take_waits_in_one_buffer_and_arrives_in_order() {
    let mut lab = lab(2 * CHUNK as u64);
    let sent = lab.fill();
    assert!(lab.pool.lent() <= 1);
    lab.expect(&sent);
    assert_eq!(lab.pool.lent(), 0);
}

#[test]
fn with_the_pool_empty_nothing_is_lost_and_nothing_borrowed() {
    let mut lab = lab(0);
    let other = lab.pool.take(b"lent to another session").unwrap();
    let sent = lab.fill();
    lab.expect(&sent);
    assert!(lab.stats.pool_empty > 0);
    assert_eq!(lab.pool.lent(), 1);
    lab.pool.give_back(other);
}

#[test]
fn the_end_is_passed_on_after_the_last_byte_and_the_other_direction_lives_on() {
    let mut lab = lab(0);
    lab.client.write_all(b"last words").unwrap();
    lab.client.shutdown(std::net::Shutdown::Write).unwrap();
    lab.near.note(Readiness { read_closed: true, ..READY });
    assert!(matches!(lab.up(), Pause::Ended));
    let mut text = String::new();
    lab.server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    lab.server.write_all(b"answer").unwrap();
    lab.far.note(READY);
    let _ = lab.down();
    let mut answer = [0; 6];
    lab.client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    assert!(!lab.near.is_over() && !lab.far.is_over());
}

#[test]
fn a_reset_of_the_source_is_told_from_its_end() {
    let mut lab = lab(0);
    sockopt::set_reset_on_close(lab.client.as_fd()).unwrap();
    drop(std::mem::replace(&mut lab.client, end_pair().0));
    assert!(matches!(lab.up(), Pause::SourceFailed(e) if e.kind() == ErrorKind::ConnectionReset));
}

#[test]
fn what_waits_unsent_is_limited_but_for_bulk_that_flows() {
    let mut lab = lab(2 * CHUNK as u64);
    // as one that was connected, which has no limit yet
    lab.far.unsent = Unsent::Free;
    let limit = |lab: &Lab| sockopt::unsent_limit(lab.far.borrow().unwrap()).unwrap();
    let pass = |lab: &mut Lab| {
        let mut sent = 0;
        lab.client.set_nonblocking(true).unwrap();
        for _ in 0..8 {
            sent += lab.client.write(&[7; 40_000]).unwrap_or(0);
            lab.near.note(READY);
            let _ = lab.up();
        }
        lab.expect(&vec![7; sent]);
    };
    while limit(&lab) == 0 {
        pass(&mut lab);
        assert!(lab.far.sent < FLOWING / 8);
    }
    while lab.far.sent < FLOWING {
        assert_eq!(limit(&lab), UNSENT_MAX);
        pass(&mut lab);
    }
    pass(&mut lab);
    assert_eq!(limit(&lab), 0);
}

#[test]
fn a_stream_that_never_pauses_is_stopped_after_its_share() {
    let mut lab = lab(CHUNK as u64);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (mut from, mut to) = (lab.client.try_clone().unwrap(), lab.server.try_clone().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let piece = [7; 100_000];
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                if from.write_all(&piece).is_err() {
                    break;
                }
            }
        });
        scope.spawn(move || {
            let mut sink = vec![0; 1 << 20];
            while to.read(&mut sink).is_ok_and(|n| n > 0) {}
        });
        let mut spent = false;
        while !spent {
            lab.near.note(READY);
            lab.far.note(READY);
            spent = matches!(lab.up(), Pause::Spent);
        }
        drop(stop);
        lab.near.reset();
        lab.far.reset();
        (lab.near, lab.far) = (End::default(), End::default());
    });
}
