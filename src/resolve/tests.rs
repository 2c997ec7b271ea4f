//! The stub against real servers on loopback, in simulated time. A question is sent when its turn calls it, so what a server
//! got is known when its answer is there.

use super::*;
use lab::{Lab, ResolvConf, Server, Trick, Zone};

mod lab;

const NAME: &str = "proxy.example";

fn resolved(changed: bool) -> Outcome {
    Outcome::Resolved { changed }
}

#[test]
fn both_families_are_asked_at_once_and_kept() {
    let server = Server::start(Zone::new(&["192.0.2.1", "192.0.2.2"], &["2001:db8::1"]));
    let mut lab = Lab::new(server.source());
    let id = lab.resolver.intern(NAME).unwrap();
    lab.expect(id, &[], Freshness::Never);
    assert_eq!(lab.round(id), [resolved(true), resolved(true)]);
    lab.expect(id, &["2001:db8::1", "192.0.2.1", "192.0.2.2"], Freshness::Fresh);
    assert_eq!(server.questions(), 2);
}

#[test]
fn a_family_without_use_is_not_asked_for() {
    for (families, expected) in
        [((true, false), "192.0.2.1"), ((false, true), "2001:db8::1"), ((false, false), "192.0.2.1")]
    {
        let server = Server::start(Zone::new(&["192.0.2.1"], &["2001:db8::1"]));
        let mut lab = Lab::with(server.source(), families);
        let id = lab.resolver.intern(NAME).unwrap();
        assert_eq!(lab.round(id), [resolved(true)]);
        assert_eq!(lab.addresses(id), [expected]);
        assert_eq!(server.questions(), 1);
    }
}

#[test]
fn a_server_is_asked_over_ipv6() {
    let server = Server::start_on("[::1]:0", Zone::new(&["192.0.2.1"], &[]));
    let mut lab = Lab::new(server.source());
    let id = lab.resolver.intern(NAME).unwrap();
    lab.round(id);
    assert_eq!(lab.addresses(id), ["192.0.2.1"]);
}

#[test]
fn a_truncated_answer_is_asked_for_by_tcp() {
    let server = Server::start(Zone { trick: Trick::Truncate, ..Zone::new(&["192.0.2.1"], &["2001:db8::1"]) });
    let mut lab = Lab::new(server.source());
    let id = lab.resolver.intern(NAME).unwrap();
    assert_eq!(lab.round(id), [resolved(true), resolved(true)]);
    assert_eq!(lab.addresses(id), ["2001:db8::1", "192.0.2.1"]);
    assert_eq!(server.questions(), 4, "two by UDP, two by TCP");
}

#[test]
fn an_answer_by_tcp_may_come_in_pieces() {
    let server = Server::start(Zone { trick: Trick::TruncateThenTrickle, ..Zone::new(&["192.0.2.1"], &[]) });
    let mut lab = Lab::new(server.source());
    let id = lab.resolver.intern(NAME).unwrap();
    assert_eq!(lab.round(id), [resolved(true)]);
}

#[test]
fn a_tcp_server_that_hangs_up_is_left_for_the_next() {
    let hanging = Server::start(Zone { trick: Trick::TruncateThenHangUp, ..Zone::new(&["192.0.2.1"], &[]) });
    let good = Server::start(Zone::new(&["192.0.2.2"], &[]));
    let file = ResolvConf::new("hangs_up", &[&hanging, &good]);
    let mut lab = Lab::with(file.source(), (true, false));
    let id = lab.resolver.intern(NAME).unwrap();
    assert_eq!(lab.round(id), [resolved(true)]);
    assert_eq!(lab.addresses(id), ["192.0.2.2"]);
}

#[test]
fn answers_that_are_not_to_the_question_are_passed_over() {
    for trick in [Trick::WrongIdFirst, Trick::WrongQuestionFirst, Trick::WrongSourceFirst, Trick::GarbageFirst] {
        let server = Server::start(Zone { trick, ..Zone::new(&["192.0.2.1"], &[]) });
        let mut lab = Lab::new(server.source());
        let id = lab.resolver.intern(NAME).unwrap();
        lab.round(id);
        lab.expect(id, &["192.0.2.1"], Freshness::Fresh);
        assert_eq!(server.questions(), 2, "{trick:?}");
    }
}

#[test]
fn a_port_on_which_somebody_guesses_is_given_up() {
    let server = Server::start(Zone { trick: Trick::OnlyWrongIds, ..Zone::new(&["192.0.2.1"], &[]) });
    let mut lab = Lab::with(server.source(), (true, false));
    let id = lab.resolver.intern(NAME).unwrap();
    assert!(matches!(lab.round(id)[..], [Outcome::Failed(Failure::Answer { .. })]));
    assert_eq!(server.questions(), 3);
    assert_eq!(server.ports().len(), 3, "each from another port");
}

#[test]
fn ports_and_ids_are_not_to_be_guessed() {
    let server = Server::start(Zone::new(&["192.0.2.1"], &[]));
    let mut lab = Lab::with(server.source(), (true, false));
    let ids: Vec<NameId> = (0..32).map(|n| lab.resolver.intern(&format!("{n}.example")).unwrap()).collect();
    lab.rounds(&ids);
    assert!(server.ports().len() > 24 && server.ids().len() > 24, "{:?} {:?}", server.ports(), server.ids());
}

#[test]
fn a_silent_server_is_left_for_the_next_which_is_then_asked_first() {
    let silent = Server::start(Zone { trick: Trick::Silence, ..Zone::new(&[], &[]) });
    let good = Server::start(Zone::new(&["192.0.2.1"], &["2001:db8::1"]));
    let file = ResolvConf::new("silent", &[&silent, &good]);
    let mut lab = Lab::new(file.source());
    let id = lab.resolver.intern(NAME).unwrap();
    lab.begin(id);
    let began = lab.now;
    lab.skip_to_deadline();
    assert_eq!(lab.now.since(began), TRY_TIMEOUT);
    assert_eq!(lab.finish(), [resolved(true), resolved(true)]);
    lab.skip(Duration::from_secs(3600));
    lab.round(id);
    assert_eq!((silent.questions_within(2), good.questions()), (2, 4));
}

#[test]
fn a_server_that_refuses_or_fails_is_left_for_the_next_at_once() {
    let closed = Server::start(Zone::new(&[], &[])).close();
    let failing = Server::start(Zone { trick: Trick::Rcode(2), ..Zone::new(&[], &[]) });
    let good = Server::start(Zone::new(&["192.0.2.1"], &[]));
    let file = ResolvConf::new("refuses", &[&closed, &failing, &good]);
    let mut lab = Lab::with(file.source(), (true, false));
    let id = lab.resolver.intern(NAME).unwrap();
    let began = lab.now;
    assert_eq!(lab.round(id), [resolved(true)]);
    assert_eq!(lab.now, began);
}

#[test]
fn while_dns_is_down_the_last_good_addresses_stay_until_it_comes_back() {
    let server = Server::start(Zone::new(&["192.0.2.1"], &[]));
    let mut lab = Lab::with(server.source(), (true, false));
    let id = lab.resolver.intern(NAME).unwrap();
    lab.round(id);
    lab.skip(Duration::from_secs(3600));

    let address = server.address;
    server.change(Zone { trick: Trick::Silence, ..Zone::new(&[], &[]) });
    lab.begin(id);
    for _ in 0..3 {
        assert_eq!(lab.outcomes, []);
        lab.skip_to_deadline();
    }
    assert_eq!(lab.finish(), [Outcome::Failed(Failure::NoAnswer { server: address })]);
    lab.expect(id, &["192.0.2.1"], Freshness::Stale);

    // The pause: nobody is asked before it ends, and then only because someone wants it.
    lab.resolver.request(id, lab.now);
    let asked = server.questions_within(4);
    lab.expire();
    assert!(!lab.resolver.status(id).unwrap().asking);
    assert_eq!(server.questions_within(4), asked);

    server.change(Zone::new(&["192.0.2.9"], &[]));
    let failed = lab.now;
    lab.skip_to_deadline();
    assert!(lab.now.since(failed) <= BACK_OFF.0);
    assert_eq!(lab.finish(), [resolved(true)]);
    lab.expect(id, &["192.0.2.9"], Freshness::Fresh);
    assert_eq!(lab.resolver.status(id).unwrap().failure, None);
}

#[test]
fn nobody_is_asked_when_nobody_wants_the_name() {
    let closed = Server::start(Zone::new(&[], &[])).close();
    let mut lab = Lab::new(closed.source());
    let id = lab.resolver.intern(NAME).unwrap();
    assert_eq!(lab.resolver.deadline(), None);
    assert!(matches!(lab.round(id)[..], [Outcome::Failed(Failure::Socket { .. })]));
    lab.skip_to_deadline();
    assert!(!lab.resolver.status(id).unwrap().asking);
    assert_eq!(lab.resolver.deadline(), None);
}

#[test]
fn within_the_ttl_nobody_is_asked_and_after_it_again() {
    let server = Server::start(Zone { ttl: 60, ..Zone::new(&["192.0.2.1"], &[]) });
    let mut lab = Lab::with(server.source(), (true, false));
    let id = lab.resolver.intern(NAME).unwrap();
    lab.round(id);
    lab.skip(Duration::from_secs(59));
    lab.resolver.request(id, lab.now);
    lab.expire();
    assert!(!lab.resolver.status(id).unwrap().asking);
    lab.skip(Duration::from_secs(1));
    assert_eq!(lab.resolver.status(id).unwrap().freshness, Freshness::Stale);
    server.change(Zone::new(&["192.0.2.2"], &[]));
    assert_eq!(lab.round(id), [resolved(true)]);
    assert_eq!(lab.addresses(id), ["192.0.2.2"]);
    assert_eq!(server.questions(), 2);
}

#[test]
fn an_address_that_stopped_working_is_replaced_before_its_ttl() {
    let server = Server::start(Zone { ttl: 3600, ..Zone::new(&["192.0.2.1"], &[]) });
    let mut lab = Lab::with(server.source(), (true, false));
    let id = lab.resolver.intern(NAME).unwrap();
    lab.round(id);
    server.change(Zone::new(&["192.0.2.2"], &[]));
    assert!(!lab.resolver.refresh(id, lab.now));
    lab.skip(REFRESH_INTERVAL);
    assert!(lab.resolver.refresh(id, lab.now));
    lab.expire();
    assert_eq!(lab.finish(), [resolved(true)]);
    lab.expect(id, &["192.0.2.2"], Freshness::Fresh);
}

#[test]
fn a_name_that_is_gone_keeps_its_last_good_address_and_says_so() {
    let server = Server::start(Zone::new(&["192.0.2.1"], &[]));
    let mut lab = Lab::new(server.source());
    let id = lab.resolver.intern(NAME).unwrap();
    lab.round(id);
    lab.skip(Duration::from_secs(3600));
    server.change(Zone { trick: Trick::Rcode(3), ..Zone::new(&[], &[]) });
    let [Outcome::Failed(failure)] = lab.round(id)[..] else { panic!("not one failure") };
    let expected = format!("DNS server {}: the name does not exist (NXDOMAIN)", server.address);
    assert_eq!(failure.to_string(), expected);
    lab.expect(id, &["192.0.2.1"], Freshness::Stale);
    assert_eq!(server.questions(), 4, "no other try: the answer is certain");
}

#[test]
fn an_address_that_is_no_servers_is_not_taken() {
    let server =
        Server::start(Zone::new(&["0.0.0.0", "255.255.255.255", "224.0.0.1"], &["::", "::ffff:192.0.2.1", "ff02::1"]));
    let mut lab = Lab::new(server.source());
    let id = lab.resolver.intern(NAME).unwrap();
    assert!(matches!(lab.round(id)[..], [Outcome::Failed(_)]));
    lab.expect(id, &[], Freshness::Never);
}

#[test]
fn a_changed_resolv_conf_counts_for_the_next_round() {
    let old = Server::start(Zone::new(&["192.0.2.1"], &[]));
    let new = Server::start(Zone::new(&["192.0.2.2"], &[]));
    let file = ResolvConf::new("changed", &[&old]);
    let mut lab = Lab::with(file.source(), (true, false));
    let id = lab.resolver.intern(NAME).unwrap();
    lab.round(id);
    file.write(&[&new]);
    lab.skip(Duration::from_secs(3600));
    lab.round(id);
    assert_eq!(lab.addresses(id), ["192.0.2.2"]);
    assert_eq!((old.questions(), new.questions()), (1, 1));
}

#[test]
fn a_missing_resolv_conf_is_a_failure_until_it_is_there() {
    let server = Server::start(Zone::new(&["192.0.2.1"], &[]));
    let file = ResolvConf::new("missing", &[&server]);
    file.remove();
    let mut lab = Lab::new(file.source());
    let id = lab.resolver.intern(NAME).unwrap();
    let [Outcome::Failed(failure)] = lab.round(id)[..] else { panic!("not one failure") };
    let expected = "the list of DNS servers cannot be read: No such file or directory (os error 2)";
    assert_eq!(failure.to_string(), expected);
    file.write(&[&server]);
    lab.skip_to_deadline();
    assert_eq!(lab.round(id), [resolved(true)]);
}

#[test]
fn more_questions_than_places_all_get_their_turn() {
    let server = Server::start(Zone::new(&["192.0.2.1"], &["2001:db8::1"]));
    let mut lab = Lab::new(server.source());
    let ids: Vec<NameId> = (0..NAMES_MAX).map(|n| lab.resolver.intern(&format!("{n}.example")).unwrap()).collect();
    assert_eq!(lab.resolver.intern("one.more.example"), None);
    assert_eq!(lab.resolver.intern("0.EXAMPLE"), Some(ids[0]));
    lab.rounds(&ids);
    for id in &ids {
        lab.expect(*id, &["2001:db8::1", "192.0.2.1"], Freshness::Fresh);
    }
    assert_eq!(server.questions(), 2 * ids.len());
}

#[test]
fn a_name_that_was_dropped_takes_its_questions_along() {
    let silent = Server::start(Zone { trick: Trick::Silence, ..Zone::new(&[], &[]) });
    let mut lab = Lab::new(silent.source());
    let (gone, kept) = (lab.resolver.intern(NAME).unwrap(), lab.resolver.intern("kept.example").unwrap());
    lab.begin(gone);
    lab.resolver.retain(lab.poll.registry(), &mut |name| name == "kept.example");
    assert_eq!((lab.resolver.status(gone), lab.resolver.deadline()), (None, None));
    lab.resolver.request(gone, lab.now);
    assert_eq!(lab.resolver.deadline(), None);
    assert_eq!(lab.resolver.intern("kept.example"), Some(kept));
    assert_ne!(lab.resolver.intern("new.example"), Some(gone));
    assert!(lab.resolver.addresses(gone).is_empty());
}

#[test]
fn places_that_dropped_names_leave_are_taken() {
    let silent = Server::start(Zone { trick: Trick::Silence, ..Zone::new(&[], &[]) });
    let mut lab = Lab::new(silent.source());
    let ids: Vec<NameId> = (0..9).map(|n| lab.resolver.intern(&format!("{n}.example")).unwrap()).collect();
    ids.iter().for_each(|id| lab.resolver.request(*id, lab.now));
    lab.expire();
    assert_eq!(silent.questions_within(QUERIES_MAX), QUERIES_MAX);
    silent.change(Zone::new(&["192.0.2.1"], &[]));
    lab.resolver.retain(lab.poll.registry(), &mut |name| name == "8.example");
    assert_eq!(lab.resolver.deadline(), Some(lab.now));
    lab.expire();
    lab.finish();
    lab.expect(ids[8], &["192.0.2.1"], Freshness::Fresh);
}

#[test]
fn events_of_nobody_do_no_harm() {
    let server = Server::start(Zone { trick: Trick::Truncate, ..Zone::new(&["192.0.2.1"], &["2001:db8::1"]) });
    let mut lab = Lab::new(server.source());
    lab.spurious = true;
    let id = lab.resolver.intern(NAME).unwrap();
    assert_eq!(lab.round(id), [resolved(true), resolved(true)]);
    assert_eq!(server.questions(), 4);
}

#[test]
fn a_mark_that_may_not_be_set_means_no_question() {
    let server = Server::start(Zone::new(&["192.0.2.1"], &[]));
    let mut lab = Lab::with(server.source(), (true, false));
    lab.resolver.reconfigure(server.source(), 0x0200_0000, (true, false), lab.now);
    let id = lab.resolver.intern(NAME).unwrap();
    match lab.round(id)[..] {
        // With CAP_NET_ADMIN.
        [Outcome::Resolved { changed: true }] => assert_eq!(server.questions(), 1),
        [Outcome::Failed(Failure::Socket { errno, .. })] => {
            assert_eq!(std::io::Error::from_raw_os_error(errno).kind(), std::io::ErrorKind::PermissionDenied);
            assert_eq!(server.questions(), 0);
        }
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_reload_ends_the_pause() {
    let closed = Server::start(Zone::new(&[], &[])).close();
    let server = Server::start(Zone::new(&["192.0.2.1"], &[]));
    let mut lab = Lab::with(closed.source(), (true, false));
    let id = lab.resolver.intern(NAME).unwrap();
    lab.round(id);
    lab.resolver.request(id, lab.now);
    lab.resolver.reconfigure(server.source(), 0, (true, false), lab.now);
    lab.expire();
    assert_eq!(lab.finish(), [resolved(true)]);
}

const _: () = assert!(Resolver::MEMORY_MAX <= 56 * 1024);
