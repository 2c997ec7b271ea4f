//! The words of every error, as the user reads them.

use super::*;

#[test]
fn ten_mistakes_are_named_all_ten_with_their_lines() {
    let text = "\
config globals
	option log_level 'loud'
	option mark '0x4/0x3'

config listner 'lan'
	option port '2333'

config listener 'guest'
	option prot '2333'
	option port '99999'

config outbound 'hk'
	option type 'shadowsox'
	option server 'a b'

config rule
	option outbound 'kh'
	list dest_ip '@chian'
	list dest_port '443'
	option name 'no end

config set 'china'
	list entry '192.0.2.0/33'
";
    let expected = "\
f:2: globals: log_level 'loud' is not error, warn, info, debug or trace
f:3: globals: mark '0x4/0x3' is not value/mask, decimal or 0x, with no bit of the value outside the mask
f:5: unknown section 'listner': expected one of globals, listener, outbound, set, rule; nearest is 'listener'
f:8: listener 'guest' needs list device or list network: it never catches everything
f:9: listener 'guest': unknown option 'prot'; nearest is 'port'
f:10: listener 'guest': port '99999' is not a port: expected 1 to 65535
f:13: outbound 'hk': type 'shadowsox' is not direct, forward, socks5, http, shadowsocks, group, reject or drop; nearest is 'shadowsocks'
f:14: outbound 'hk': server 'a b' is neither an address nor a host name
f:17: rule 0: outbound 'kh' is no outbound; nearest is 'hk'
f:18: rule 0: dest_ip '@chian' is no set; nearest is 'china'
f:20: the quote ' is not closed on this line
f:23: set 'china': entry '192.0.2.0/33' has no prefix length of 0 to 32";
    assert_eq!(read(text).unwrap_err().to_string(), expected);
}

#[test]
fn connections_in_advance_have_room_and_a_sender() {
    let outbound = |name: &str, more: &str| {
        format!("config outbound {name}; option type forward; option server a.example; option port 80; {more}\n")
    };
    assert_eq!(fine(&outbound("a", "option spare 64")).outbounds[0].spare, 64);
    assert_eq!(
        errors(&(outbound("a", "option spare 40") + &outbound("b", "option spare 25"))),
        ["f:2: outbound 'b': spare: with those before it that makes 65 connections; expected 64 at most"]
    );
    assert_eq!(
        errors(&outbound("a", "option spare 1; option keep_source 1")),
        ["f:1: outbound 'a': spare with keep_source: a connection in the client's name can't be opened before the \
             client is known"]
    );
}

#[test]
fn every_outbound_type_of_the_contract_is_known() {
    assert_eq!(
        errors("config outbound o\n option type sock5"),
        ["f:2: outbound 'o': type 'sock5' is not direct, forward, socks5, http, shadowsocks, group, reject or drop; \
          nearest is 'socks5'"]
    );
}

#[test]
fn what_can_carry_no_datagrams_sends_them_to_udp_outbound() {
    let outbound = |options: &str| {
        let text = format!("config outbound o; option server a.example; option port 80; {options}");
        fine(&text).outbounds.remove(0)
    };
    assert!(outbound("option type forward").udp);
    assert!(outbound("option type forward; option send_proxy v2").udp);
    assert!(!outbound("option type forward; option send_proxy v1").udp);
    assert!(!outbound("option type http").udp);
}

#[test]
#[cfg(feature = "shadowsocks")]
fn a_shadowsocks_server_has_a_method_and_a_password_that_suits_it() {
    let outbound = |options: &str| {
        format!("config outbound o; option type shadowsocks; option server a.example; option port 8388; {options}")
    };
    let config = fine(&outbound("option method aes-256-gcm; option password secret"));
    let OutboundKind::Shadowsocks { secret, .. } = &config.outbounds[0].kind else { panic!("{config:?}") };
    assert_eq!(secret.method, "aes-256-gcm");
    assert!(!format!("{config:?}").contains("secret\""), "a password is never printed");
    fine(&outbound("option method 2022-blake3-aes-128-gcm; option password AAECAwQFBgcICQoLDA0ODw=="));
    fine(&outbound(
        "option method 2022-blake3-aes-256-gcm; option password AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    ));
    for (method, octets) in [("2022-blake3-aes-128-gcm", 16), ("2022-blake3-chacha20-poly1305", 32)] {
        let text = outbound(&format!("option method {method}; option password secret"));
        let expected = format!(
            "f:1: outbound 'o': password is not base64 of {octets} octets, as {method} wants; \
             `openssl rand -base64 {octets}` makes one"
        );
        assert_eq!(errors(&text), [expected]);
    }
    assert_eq!(
        errors(&outbound("")),
        [
            "f:1: outbound 'o' needs option method: 2022-blake3-aes-128-gcm, chacha20-ietf-poly1305 and others",
            "f:1: outbound 'o' needs option password"
        ]
    );
    let small = outbound("option method aes-128-gcm; option password x") + "\nconfig globals; option relay_memory 64K";
    assert_eq!(errors(&small), ["f:1: outbound 'o': needs globals relay_memory of 256 K at least"]);
}

const GROUPS: &str = "
config outbound a; option type socks5; option server a.example; option port 1080
config outbound b; option type http; option server b.example; option port 3128; option check_interval 5s
config outbound inner; option type group; list member b
config outbound g; option type group; option member 'a inner direct'; option policy fastest; option on_all_down direct
";

#[test]
fn a_group_has_its_members_in_order_and_has_them_checked() {
    let config = fine(GROUPS);
    let OutboundKind::Group(group) = &config.outbounds[3].kind else { panic!("{config:?}") };
    assert_eq!(group.members, [Target::Outbound(0), Target::Outbound(2), Target::Direct]);
    assert_eq!((group.policy, group.direct_when_down), (GroupPolicy::Fastest, true));
    let interval = |place: usize| config.outbounds[place].check.as_ref().map(|check| check.interval.as_secs());
    assert_eq!((interval(0), interval(1), interval(2)), (Some(30), Some(5), None));
    let udp: Vec<bool> = config.outbounds.iter().map(|outbound| outbound.udp).collect();
    assert_eq!(udp, [true, false, false, true], "a group carries UDP if a member does");
}

#[test]
fn groups_that_can_not_be_are_refused() {
    let group = |name: &str, members: &str| {
        let members: String = members.split(' ').map(|member| format!("; list member {member}")).collect();
        format!("config outbound {name}; option type group{members}\n")
    };
    assert_eq!(errors(&group("g", "g")), ["f:1: outbound 'g': member leads back to it"]);
    let circle = group("a", "b direct") + &group("b", "c") + &group("c", "a");
    assert_eq!(
        errors(&circle),
        [
            "f:1: outbound 'a': member leads back to it",
            "f:2: outbound 'b': member leads back to it",
            "f:3: outbound 'c': member leads back to it"
        ]
    );
    assert_eq!(
        errors(&group("g", "reject")),
        ["f:1: outbound 'g': member 'reject' leads nowhere; see option on_all_down"]
    );
    assert_eq!(errors(&group("g", "direct direct")), ["f:1: outbound 'g': member 'direct' a second time"]);
    let nowhere = group("g", "no") + "config outbound no; option type drop\n";
    assert_eq!(errors(&nowhere), ["f:1: outbound 'g': member 'no' leads nowhere; see option on_all_down"]);
    assert_eq!(
        errors("config outbound g; option type group\n"),
        ["f:1: outbound 'g' needs option member: the names of other outbounds"]
    );
}

#[test]
fn a_mark_or_device_that_can_not_be_is_refused() {
    assert_eq!(
        errors_in("direct", "option fwmark 0x2000001"),
        [
            "f:1: outbound 'o': fwmark 0x2000001 has bits of mark's mask 0x3000000; choose others, or another mark",
            "f:1: outbound 'o': fwmark 0x2000001 has bits of self_mark's mask 0x3000000; choose others, or another \
             self_mark"
        ]
    );
    assert_eq!(
        errors_in("direct", "option device wan*"),
        ["f:1: outbound 'o': device 'wan*' must be one interface, without *"]
    );
}

#[test]
fn what_is_not_in_this_build_is_accepted_at_its_default_and_in_disabled_sections() {
    let text = "
config globals
	option kernel_verdicts yes
	option client_sessions 0
	option sniff_port 'tcp:80 tcp:443 tcp:8080 udp:443'
	option sniff_timeout 300ms
	option kernel_set_max auto
config outbound a; option type direct; option keep_source 0; option full_cone 1
config outbound b; option type socks5; option enabled 0; option method aes-128-gcm
config rule; option outbound a; option utc_time 0; option quota_period month
";
    fine(text);
}

#[test]
fn an_option_of_another_type_names_both() {
    assert_eq!(
        errors_in("direct", "option server 192.0.2.1"),
        ["f:1: outbound 'o': option 'server' belongs to type forward, socks5, http, shadowsocks, not to 'direct'"]
    );
    assert_eq!(
        errors_in("listener", "option accept_proxy 1"),
        ["f:1: listener 'lan': option 'accept_proxy' belongs to mode plain, not to 'tproxy'"]
    );
    assert_eq!(errors_in("rule", "option port 80"), ["f:1: rule 0: option 'port' belongs to listener, outbound"]);
    assert_eq!(
        errors_in("set", "option xyzzy 80"),
        [
            "f:1: set 's': unknown option 'xyzzy': expected one of type, label, entry, loadfile, strict, url, update_interval"
        ]
    );
}

#[test]
fn a_listener_that_does_not_intercept_needs_no_device() {
    let config = read("config listener 'lan'\n option mode socks5\n option port 1080").unwrap();
    assert_eq!(config.warnings, ["f:1: listener 'lan' has no list allow_ip: nobody may connect"]);
}

#[test]
fn what_is_missing_is_named_at_the_section() {
    assert_eq!(
        errors("\nconfig listener lan"),
        [
            "f:2: listener 'lan' needs option port",
            "f:2: listener 'lan' needs list device or list network: it never catches everything"
        ]
    );
    assert_eq!(errors("config outbound o"), ["f:1: outbound 'o' needs option type"]);
    assert_eq!(
        errors("config outbound o; option type socks5"),
        ["f:1: outbound 'o' needs option server", "f:1: outbound 'o' needs option port"]
    );
    assert_eq!(
        errors("config rule"),
        ["f:1: rule 0 needs option outbound: any outbound's name, or direct, reject, drop"]
    );
    assert_eq!(errors("config set"), ["f:1: set without a name: expected config set 'NAME'"]);
    assert_eq!(
        errors_in("socks5", "option username me"),
        ["f:1: outbound 'o': username without password; socks5 has both or none"]
    );
    assert_eq!(
        errors_in("socks5", "option password pw"),
        ["f:1: outbound 'o': password without username; socks5 has both or none"]
    );
}

#[test]
fn a_password_is_in_no_message() {
    let long = "hush".repeat(100);
    let errors = errors_in("socks5", &format!("option username me; option password {long}"));
    assert_eq!(errors, ["f:1: outbound 'o': password its 400 octets are not 1 to 255"]);
}

#[test]
fn references_must_lead_somewhere() {
    assert_eq!(
        errors_in("globals", "option default socks"),
        ["f:1: globals: default 'socks' is no outbound; expected direct, reject or drop, or config outbound 'socks'"]
    );
    assert_eq!(
        errors("config outbound o; option type direct; option enabled 0\nconfig rule; option outbound o"),
        ["f:2: rule 0: outbound 'o' is disabled (line 1)"]
    );
    assert_eq!(
        errors_in("rule", "list src_ip !@none"),
        ["f:1: rule 0: src_ip '@none' is no set; expected config set 'none'"]
    );
    let circle = "config outbound a\n option type direct\n option udp_outbound b\n\
                  config outbound b\n option type direct\n option udp_outbound c\n\
                  config outbound c\n option type direct\n option udp_outbound b\n";
    assert_eq!(errors(circle), ["f:6: outbound 'b': udp_outbound leads back to itself"]);
    assert_eq!(errors_in("direct", "option udp_outbound o"), ["f:1: outbound 'o': udp_outbound leads back to itself"]);
}

#[test]
fn names_are_unique_and_not_built_in() {
    assert_eq!(
        errors("config outbound x; option type drop\nconfig set x; list entry 192.0.2.1"),
        ["f:2: section 'x': line 1 has that name for type outbound; names are unique over all types"]
    );
    assert_eq!(
        errors("config outbound direct; option type direct"),
        ["f:1: 'direct' is built in; give this outbound another name"]
    );
    assert_eq!(
        errors("config outbound 'my-proxy'; option type drop\n"),
        ["f:1: name 'my-proxy' has other characters than A-Z a-z 0-9 _"]
    );
    assert_eq!(errors("config globals\nconfig globals"), ["f:2: globals a second time: the first is on line 1"]);
}

#[test]
fn the_same_port_twice_names_both_lines() {
    let two = |second: &str| {
        errors(&format!("{LISTENER}\nconfig listener b\n option port 2333\n list device eth1\n{second}"))
    };
    let clash = ["f:5: listener 'b' has the same port 2333, family and protocol as 'lan' on line 1"];
    assert_eq!(two(""), clash);
    assert_eq!(two(" option proto udp"), clash);
    assert_eq!(two(" option enabled 0"), Vec::<String>::new());
    let apart = LISTENER.replace("br-lan", "br-lan\n option proto tcp");
    assert_eq!(
        errors(&format!("{apart}\nconfig listener b\n option port 2333\n list device eth1\n option proto udp\n")),
        Vec::<String>::new()
    );
}

#[test]
fn marks_tables_and_priorities_keep_out_of_the_way() {
    for (lines, expected) in [
        ("option mark 0/0xff", "globals: mark is 0, as on packets of everybody else"),
        (
            "option self_mark 0x01000000/0x03000000",
            "globals: mark and self_mark can't be told apart: they must differ in a bit that both masks have",
        ),
        (
            "option mark 0x1/0x1; option self_mark 0x2/0x2",
            "globals: mark and self_mark can't be told apart: they must differ in a bit that both masks have",
        ),
        ("option table 254", "globals: table 254 is the kernel's own; any from 1 to 252 is free to choose"),
        ("option table 0", "globals: table '0' is not a number from 1 to 4294967295"),
        ("option table 4294967296", "globals: table '4294967296' is not a number from 1 to 4294967295"),
        ("option rule_priority 32766", "globals: rule_priority '32766' is not a number from 1 to 32765"),
        ("option tcp_sessions 15", "globals: tcp_sessions '15' is not auto or a number from 16 to 16384"),
        ("option relay_memory 1K", "globals: relay_memory '1K' is not auto or a size from 64K to 1G"),
        ("option control run.sock", "globals: control 'run.sock' is not an absolute path"),
        (
            "option resolver dns.example",
            "globals: resolver 'dns.example' is not the path of a resolv.conf, or an address with or without :port",
        ),
        ("list default direct", "globals: 'default' takes one value: expected option default, not list"),
    ] {
        assert_eq!(errors_in("globals", lines), [format!("f:1: {expected}")], "{lines}");
    }
    assert_eq!(errors_in("globals", &format!("option control /{}", "x".repeat(107))).len(), 1);
    assert_eq!(errors_in("globals", "option mark 5/7; option self_mark 2/7"), Vec::<String>::new());
}

#[test]
fn values_of_the_wrong_kind_say_what_was_expected() {
    for (section, lines, expected) in [
        (
            "listener",
            "option proto tpc",
            "listener 'lan': proto 'tpc' is not tcp, udp, tcpudp or any; nearest is 'tcp'",
        ),
        (
            "listener",
            "option family inet6",
            "listener 'lan': family 'inet6' is not any, ipv4 or ipv6; nearest is 'ipv6'",
        ),
        (
            "listener",
            "list device *",
            "listener 'lan': device '*' would be every device, the one to the internet too; name them",
        ),
        ("listener", "list device a/b", "listener 'lan': device 'a/b' is not the name of an interface: br-lan, wlan*"),
        (
            "listener",
            "list dest_port '80 443'",
            "listener 'lan': dest_port '80 443' is not a port: expected 1 to 65535",
        ),
        (
            "direct",
            "option udp maybe",
            "outbound 'o': udp 'maybe' is not 1 or 0 (or on/off, true/false, yes/no, enabled/disabled)",
        ),
        (
            "direct",
            "option udp_timeout 5x",
            "outbound 'o': udp_timeout '5x' is not a time from 1s to 1d: bare seconds, or with ms, s, m, h or d",
        ),
        ("rule", "option rate 0; option enabled 0", "rule 0: rate '0' is not bits per second: bare, or with K, M or G"),
        (
            "rule",
            "option start_time 24:00; option enabled 0",
            "rule 0: start_time '24:00' is not a time of day: 21:30, 21:30:00",
        ),
    ] {
        let errors = errors_in(section, lines);
        assert_eq!(errors.first(), Some(&format!("f:1: {expected}")), "{lines}");
    }
}
