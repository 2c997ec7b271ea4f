//! TCP keeps its meaning on its way through: ends, resets, refusals, time-outs, urgent data, backpressure.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::Family;
use crate::ns::send_urgent;
use crate::over_every_way;
use crate::over_the_daemons_ways;
use crate::passage::{Passage, Way};
use crate::sock::{exchange, expect_reset, read_all, read_n, refusal, reset};

const MEGABYTE: usize = 1 << 20;

/// Octets that repeat with a period that divides no buffer size.
fn pattern(len: usize) -> Vec<u8> {
    (0..=250u8).cycle().take(len).collect()
}

/// Writes it all from another thread, as the reader is busy on this one.
fn write_while<T>(writer: &mut TcpStream, bytes: &[u8], read: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(bytes).expect("send");
            writer.shutdown(Shutdown::Write).expect("half-close");
        });
        read()
    })
}

over_every_way!(a_client_that_half_closes_still_receives_a_megabyte, |way, family| {
    let passage = Passage::open(way, family);
    let (mut client, mut server) = passage.pair();
    client.write_all(b"that was all").expect("send");
    client.shutdown(Shutdown::Write).expect("half-close");
    assert_eq!(read_all(&mut server), b"that was all");
    let answer = pattern(MEGABYTE);
    assert!(write_while(&mut server, &answer, || read_all(&mut client)) == answer, "the answer is not whole");
});

over_every_way!(a_server_that_half_closes_still_receives_a_megabyte, |way, family| {
    let passage = Passage::open(way, family);
    let (mut client, mut server) = passage.pair();
    exchange(&mut client, &mut server, b"hello", b"go on");
    server.shutdown(Shutdown::Write).expect("half-close");
    assert_eq!(read_all(&mut client), b"");
    let upload = pattern(MEGABYTE);
    assert!(write_while(&mut client, &upload, || read_all(&mut server)) == upload, "the upload is not whole");
});

over_every_way!(a_reset_by_the_client_reaches_the_server, |way, family| {
    let passage = Passage::open(way, family);
    let (mut client, mut server) = passage.pair();
    exchange(&mut client, &mut server, b"ask", b"answer");
    reset(client);
    expect_reset(&mut server);
});

over_every_way!(a_reset_by_the_server_reaches_the_client, |way, family| {
    let passage = Passage::open(way, family);
    let (mut client, mut server) = passage.pair();
    exchange(&mut client, &mut server, b"ask", b"answer");
    reset(server);
    expect_reset(&mut client);
});

over_every_way!(a_refused_port_resets_the_client_within_a_second, |way, family| {
    let passage = Passage::open(way, family);
    let begin = Instant::now();
    let kind = refusal(&passage.lab.client, SocketAddr::new(family.destination(9), 9));
    assert!(matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset), "{kind:?}");
    assert!(begin.elapsed() < Duration::from_secs(1), "it took {:?}", begin.elapsed());
});

// Not "at once": over veth the ICMP answer can come while connect(2) still holds the socket, and the kernel then waits for
// the answer to the next SYN, one second later.
over_every_way!(an_unreachable_destination_ends_the_client_long_before_connect_timeout, |way, family| {
    let passage = Passage::open(way, family);
    let begin = Instant::now();
    let kind = refusal(&passage.lab.client, SocketAddr::new(family.unreachable(), 80));
    let expected = match way {
        Way::Plain => matches!(kind, ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable),
        _ => kind == ErrorKind::ConnectionReset,
    };
    assert!(expected, "{kind:?}");
    assert!(begin.elapsed() < Duration::from_secs(4), "it took {:?}", begin.elapsed());
});

over_the_daemons_ways!(a_connect_without_answer_ends_at_connect_timeout, |way, family| {
    let passage = Passage::open_with(way, family, |uci| uci.outbound(&[("connect_timeout", "2s")]));
    let begin = Instant::now();
    let kind = refusal(&passage.lab.client, SocketAddr::new(family.silent(), 80));
    assert_eq!(kind, ErrorKind::ConnectionReset);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(1_800) && took < Duration::from_millis(4_000), "it took {took:?}");
});

over_every_way!(a_server_that_speaks_first_is_heard, |way, family| {
    let passage = Passage::open(way, family);
    let (mut client, mut server) = passage.pair();
    exchange(&mut server, &mut client, b"220 welcome\r\n", b"HELO\r\n");
});

over_every_way!(urgent_data_does_no_harm, |way, family| {
    let passage = Passage::open(way, family);
    let (mut client, mut server) = passage.pair();
    exchange(&mut client, &mut server, b"before", b"yes");
    send_urgent(&client, b'!');
    let upload = pattern(MEGABYTE);
    let arrived = write_while(&mut client, &upload, || read_all(&mut server));
    // Where the relay stands at the mark it may pass the octet on in line or leave it out; the rest must be whole.
    let rest = arrived.strip_prefix(b"!").unwrap_or(&arrived);
    assert!(rest == upload, "{} bytes arrived, or not the right ones", arrived.len());
    server.write_all(b"after").expect("send");
    assert_eq!(read_n(&mut client, 5), b"after");
});

over_every_way!(a_sender_waits_when_the_receiver_does_not_read, |way, family| {
    let passage = Passage::open(way, family);
    let (mut client, mut server) = passage.pair();
    exchange(&mut client, &mut server, b"ask", b"answer");
    client.set_write_timeout(Some(Duration::from_secs(1))).expect("SO_SNDTIMEO");
    let (chunk, mut sent) = (pattern(251 * 1_024), 0);
    let stopped = loop {
        match client.write(&chunk[sent % chunk.len()..]) {
            Ok(n) => sent += n,
            Err(e) => break e.kind(),
        }
        assert!(sent < 200 * MEGABYTE, "200 MB went to a server that reads nothing");
    };
    assert_eq!(stopped, ErrorKind::WouldBlock);
    client.shutdown(Shutdown::Write).expect("half-close");
    let arrived = read_all(&mut server);
    assert_eq!(arrived.len(), sent);
    assert!(arrived.chunks(chunk.len()).all(|part| part == &chunk[..part.len()]), "not the bytes that were sent");
});

over_every_way!(the_client_sees_whom_it_called_and_the_server_sees_the_outbound, |way, family| {
    let passage = Passage::open(way, family);
    let (client, server) = passage.pair(); // which compares the client's peer with the destination
    let seen = server.peer_addr().expect("connected").ip();
    match way {
        Way::Plain => assert_eq!(seen, family.client()),
        Way::Direct | Way::Redirect => assert_eq!(seen, family.router_wan()),
        _ => assert!(seen != family.client() && seen != family.router_wan(), "{seen}"),
    }
    drop(client);
});

#[test]
fn a_flow_of_one_family_goes_through_a_proxy_of_the_other() {
    for (flow, proxy) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let passage = Passage::open(Way::Socks, proxy);
        let (listener, at) = passage.listen_at(flow.destination(80));
        let (mut client, mut server) = passage.join(&listener, at);
        exchange(&mut client, &mut server, b"ask", b"answer");
    }
}
