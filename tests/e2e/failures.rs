//! A SOCKS5 server that fails, in every way it can: the client gets a reset (TCP) or nothing (UDP), the log one clear
//! line that names server and cause, and nothing is left behind.

use std::io::ErrorKind;

use crate::daemon::Daemon;
use crate::lab::{Family, Lab};
use crate::passage::{Passage, Way, microsocks, socks_uci};
use crate::sock::{accept, connect, exchange, listen, read_n, receive, refusal, udp};
use crate::socks::{Asked, Bound, Manners, Stage};

/// Lets one TCP connection and one UDP datagram fail; every one of `words` must be in the log line.
fn fails(manners: Manners, outbound: &[(&str, &str)], words: &[&str]) {
    for family in Family::BOTH {
        let passage = Passage::open_with(Way::Socks, family, |uci| uci.outbound(outbound));
        let (daemon, socks) = (passage.daemon(), passage.socks.as_ref().expect("the tests' own SOCKS5 server"));
        let descriptors = daemon.descriptors();
        let server = if family == Family::V4 { "198.51.100.2:1080" } else { "[2001:db8:1::2]:1080" };
        let clear = |line: &&str| line.contains(server) && words.iter().all(|word| line.contains(word));
        socks.become_like(manners.clone());

        let (_listener, at) = passage.listen();
        let begin = daemon.process().line_count();
        assert_eq!(refusal(&passage.lab.client, at), ErrorKind::ConnectionReset);
        daemon.process().wait_for_line_after(begin, &[&[server], words].concat());
        daemon.wait_idle();
        let said = daemon.process().said();
        let lines = said.lines().skip(begin).filter(clear).count();
        assert_eq!(lines, 1, "lines that name server and cause, in:\n{said}");
        daemon.wait_descriptors(descriptors);

        let client = udp(&passage.lab.client, family.client(), 0);
        let destination = udp(&passage.lab.server, family.destination(1), 4_000);
        socks.asked();
        client.send_to(b"hello", destination.local_addr().expect("bound")).expect("send");
        socks.find(|asked| matches!(asked, Asked::Came(_)).then_some(()));
        daemon.wait_idle();
        daemon.wait_descriptors(descriptors);
        for socket in [&client, &destination] {
            socket.set_nonblocking(true).expect("O_NONBLOCK");
            assert_eq!(socket.recv(&mut [0; 1]).expect_err("nothing may come").kind(), ErrorKind::WouldBlock);
        }

        socks.become_like(Manners { login: manners.login, ..Manners::default() });
        if manners.login.is_none() {
            let (mut client, mut server) = passage.pair();
            exchange(&mut client, &mut server, b"works", b"again");
        }
    }
}

#[test]
fn a_proxy_that_dies_after_the_greeting() {
    fails(Manners { dies_at: Some(Stage::Greeting), ..Manners::default() }, &[], &["closed"]);
}

#[test]
fn a_proxy_that_dies_during_the_login() {
    let login = [("username", "me"), ("password", "secret")];
    let manners = Manners { login: Some(("me", "secret")), dies_at: Some(Stage::Login), ..Manners::default() };
    fails(manners, &login, &["closed"]);
}

#[test]
fn a_proxy_that_dies_after_the_request() {
    fails(Manners { dies_at: Some(Stage::Request), ..Manners::default() }, &[], &["closed"]);
}

#[test]
fn a_proxy_that_answers_garbage_octet_by_octet() {
    fails(Manners { garbage: true, ..Manners::default() }, &[], &["not a SOCKS5 server"]);
}

#[test]
fn a_proxy_that_refuses_by_its_rules() {
    fails(Manners { refuses: Some(2), ..Manners::default() }, &[], &["not allowed"]);
}

#[test]
fn a_proxy_that_refuses_with_an_unknown_code() {
    fails(Manners { refuses: Some(0x77), ..Manners::default() }, &[], &["119"]);
}

#[test]
fn a_proxy_that_takes_another_password() {
    let login = [("username", "me"), ("password", "wrong")];
    fails(Manners { login: Some(("me", "secret")), ..Manners::default() }, &login, &["password"]);
}

#[test]
fn a_proxy_that_demands_a_password_when_none_is_set() {
    fails(Manners { login: Some(("me", "secret")), ..Manners::default() }, &[], &["authentication"]);
}

#[test]
fn a_proxy_that_never_answers() {
    fails(Manners { mute: true, ..Manners::default() }, &[("connect_timeout", "1s")], &["no answer within 1 s"]);
}

#[test]
fn a_proxy_that_is_not_there() {
    for family in Family::BOTH {
        let mut passage = Passage::open(Way::Socks, family);
        // Dropping it closes the listening socket a moment later, so another port is where nobody ever was.
        passage.socks = None;
        let uci = socks_uci(family).outbound(&[("port", "1079")]);
        passage.daemon().write_config(&uci);
        passage.daemon().reload(&["reload"]);
        let (_listener, at) = passage.listen();
        assert_eq!(refusal(&passage.lab.client, at), ErrorKind::ConnectionReset);
        passage.daemon().process().wait_for_line(&[":1079", "refused"]);
        passage.daemon().wait_idle();
    }
}

#[test]
fn a_proxy_that_answers_octet_by_octet_is_understood() {
    for family in Family::BOTH {
        let login = [("username", "me"), ("password", "secret")];
        let passage = Passage::open_with(Way::Socks, family, |uci| uci.outbound(&login));
        let socks = passage.socks.as_ref().expect("the tests' own SOCKS5 server");
        socks.become_like(Manners { login: Some(("me", "secret")), dribbles: true, ..Manners::default() });
        let (mut client, mut server) = passage.pair();
        exchange(&mut client, &mut server, b"ask", b"answer");
        let known = socks.find(|asked| if let Asked::Login(name, pass) = asked { Some((name, pass)) } else { None });
        assert_eq!(known, ("me".to_owned(), "secret".to_owned()));
        let client = udp(&passage.lab.client, family.client(), 0);
        let destination = udp(&passage.lab.server, family.destination(1), 4_000);
        client.send_to(b"hello", destination.local_addr().expect("bound")).expect("send");
        assert_eq!(receive(&destination).0, b"hello");
    }
}

#[test]
fn a_burst_that_comes_before_the_association_stands_is_kept() {
    let passage = Passage::open(Way::Socks, Family::V4);
    let socks = passage.socks.as_ref().expect("the tests' own SOCKS5 server");
    socks.become_like(Manners { dribbles: true, ..Manners::default() });
    let client = udp(&passage.lab.client, Family::V4.client(), 0);
    let destination = udp(&passage.lab.server, Family::V4.destination(1), 4_000);
    for n in 0..64 {
        client.send_to(&[n; 900], destination.local_addr().expect("bound")).expect("send");
    }
    for n in 0..64 {
        assert_eq!(receive(&destination).0, [n; 900]);
    }
}

#[test]
fn a_banner_glued_to_the_reply_reaches_the_client() {
    for (family, bound) in [(Family::V4, Bound::True), (Family::V6, Bound::Domain), (Family::V6, Bound::Unspecified)] {
        let passage = Passage::open(Way::Socks, family);
        let socks = passage.socks.as_ref().expect("the tests' own SOCKS5 server");
        socks.become_like(Manners { glue: b"220 welcome\r\n", bound, ..Manners::default() });
        let (mut client, mut server) = passage.pair();
        assert_eq!(read_n(&mut client, 13), b"220 welcome\r\n");
        exchange(&mut client, &mut server, b"ask", b"answer");
    }
}

#[test]
fn microsocks_with_a_password_lets_the_right_one_in_alone() {
    let lab = Lab::new();
    let _proxy = microsocks(&lab, Family::V4, &["-u", "me", "-P", "secret"]);
    let uci = |password| socks_uci(Family::V4).outbound(&[("username", "me"), ("password", password)]);
    let daemon = Daemon::start(&lab, &uci("secret"));
    let listener = listen(&lab.server, Family::V4.destination(80), 80);
    let at = listener.local_addr().expect("bound");
    let (mut client, mut server) = (connect(&lab.client, at), accept(&listener));
    exchange(&mut client, &mut server, b"ask", b"answer");
    daemon.write_config(&uci("wrong"));
    daemon.reload(&["reload"]);
    assert_eq!(refusal(&lab.client, at), ErrorKind::ConnectionReset);
    daemon.process().wait_for_line(&["198.51.100.2:1080", "password"]);
}
