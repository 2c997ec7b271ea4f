use super::*;
use crate::config::schema::SECTIONS;

fn time(text: &str) -> Option<Duration> {
    match Kind::Time(Duration::ZERO, Duration::MAX).parse(text) {
        Ok(Value::Time(time)) => Some(time),
        _ => None,
    }
}

#[test]
fn times_are_seconds_or_have_a_unit() {
    assert_eq!(time("5"), Some(Duration::from_secs(5)));
    assert_eq!(time("5s"), time("5"));
    assert_eq!(time("300ms"), Some(Duration::from_millis(300)));
    assert_eq!(time("125m"), Some(Duration::from_secs(7500)));
    assert_eq!(time("2h"), time("120m"));
    assert_eq!(time("1d"), time("24h"));
    for wrong in ["", "s", "ms", "-5", "+5", "5 s", "1.5s", "5S", "99999999999999999999", "300000000000000000d"] {
        assert_eq!(time(wrong), None, "{wrong}");
    }
}

#[test]
fn sizes_count_by_1024_and_rates_by_1000() {
    assert_eq!(Kind::Size(0, u64::MAX).parse("2M"), Ok(Value::Number(2 << 20)));
    assert_eq!(Kind::Size(0, u64::MAX).parse("1g"), Ok(Value::Number(1 << 30)));
    assert_eq!(Kind::Size(0, u64::MAX).parse("17"), Ok(Value::Number(17)));
    assert_eq!(Kind::Rate.parse("20M"), Ok(Value::Number(20_000_000)));
    for wrong in ["", "K", "1T", "1KB", "-1", "99999999999G"] {
        assert!(Kind::Size(0, u64::MAX).parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn flags_have_five_spellings() {
    for (on, off) in [("1", "0"), ("on", "off"), ("true", "false"), ("yes", "no"), ("enabled", "disabled")] {
        assert_eq!(Kind::Flag.parse(on), Ok(Value::Flag(true)));
        assert_eq!(Kind::Flag.parse(off), Ok(Value::Flag(false)));
    }
    assert!(Kind::Flag.parse("2").is_err());
}

#[test]
fn a_mark_has_no_bit_outside_its_mask() {
    assert_eq!(Kind::Mark.parse("0x10/0xF0"), Ok(Value::Mark(Mark { value: 0x10, mask: 0xf0 })));
    assert_eq!(Kind::Mark.parse("16"), Ok(Value::Mark(Mark { value: 16, mask: u32::MAX })));
    for wrong in ["", "/", "0x", "1/0", "3/1", "0x+1", "0x100000000", "1/2/3", "-1"] {
        assert!(Kind::Mark.parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn blanks_may_follow_an_exclamation_mark() {
    assert_eq!(Kind::Ports.parse("! 80"), Kind::Ports.parse("!80"));
    assert_eq!(
        Kind::Addresses.parse("!  @s"),
        Ok(Value::Addresses { not: true, what: Addresses::Set("s".to_owned()) })
    );
    assert!(Kind::Ports.parse("!!80").is_err());
    assert!(Kind::Port.parse("!80").is_err());
    assert!(Kind::Device.parse("!eth0").is_err());
    assert!(Kind::Ports.parse("!").is_err());
}

#[test]
fn a_device_is_a_name_that_the_kernel_and_nft_take() {
    for good in ["br-lan", "eth0.2", "wlan*", "pppoe-wan", "abcdefghijklmno", "abcdefghijklmno*"] {
        assert!(Kind::Device.parse(good).is_ok(), "{good}");
    }
    for wrong in ["", "*", ".", "..", "a b", "a\"b", "a*b", "abcdefghijklmnop", "e:1", "{x}"] {
        assert!(Kind::Device.parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_is_built_later_is_told_apart_already() {
    for (kind, good, wrong) in [
        (Kind::SniffPort, "udp:443", "443"),
        (Kind::HostPort, "a.example:443", "a.example"),
        (Kind::Endpoint, "[::1]:9100", "9100"),
        (Kind::Domain, "!=example.com", "192.0.2.1"),
        (Kind::Clock, "6:05", "6"),
        (Kind::Clock, "23:59:59", "23:60"),
        (Kind::Weekday, "! monday", "Mo"),
        (Kind::Url, "https://a.example/", "ftp://a.example/"),
        (Kind::DeviceOrNot, "!br-lan", "!"),
        (Kind::Text, "Größe", "a\tb\n"),
        (Kind::Network, "lan", "la n"),
        (Kind::Resolver, "[2001:db8::1]:5353", "etc/resolv.conf"),
    ] {
        assert!(kind.parse(good).is_ok(), "{good}");
        assert!(kind.parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn every_kind_says_what_it_expects() {
    for option in SECTIONS.iter().flat_map(|section| section.options) {
        assert!(!option.kind.expects().is_empty());
    }
}
