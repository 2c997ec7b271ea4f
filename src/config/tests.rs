use std::collections::BTreeMap;
use std::io::{self, BufRead, Cursor};
use std::path::Path;

use super::*;

mod files;
mod golden;
mod properties;

const ROUTER: Env = Env { total_memory: 256 << 20, descriptors: u64::MAX };

/// Reads `text` as file `f`, with list files as given.
fn read_with(text: &str, files: &[(&str, &str)]) -> Result<Config, Errors> {
    let files: BTreeMap<String, String> =
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    parse("f", text.as_bytes(), &ROUTER, &mut |path: &Path| {
        let text = files.get(&path.display().to_string()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(text.clone().into_bytes())) as Box<dyn BufRead>)
    })
}

fn read(text: &str) -> Result<Config, Errors> {
    read_with(text, &[])
}

/// The error lines of `text`.
fn errors(text: &str) -> Vec<String> {
    read(text).err().map(|errors| errors.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

/// The errors that `lines` cause in an otherwise right section; line numbers are those of `lines`.
fn errors_in(section: &str, lines: &str) -> Vec<String> {
    let rest = match section {
        "globals" => "config globals",
        "listener" => "config listener 'lan'; option port 1; list device br-lan",
        "direct" => "config outbound 'o'; option type direct",
        "socks5" => "config outbound 'o'; option type socks5; option server 192.0.2.1; option port 1080",
        "set" => "config set 's'; list entry 192.0.2.1",
        "rule" => "config rule; option outbound direct",
        other => panic!("no section {other}"),
    };
    errors(&format!("{rest};{lines}"))
}

pub(super) fn fine(text: &str) -> Config {
    match read(text) {
        Ok(config) => config,
        Err(errors) => panic!("{errors}"),
    }
}

const LISTENER: &str = "config listener 'lan'\n option port 2333\n list device br-lan\n";

#[test]
fn an_empty_file_has_the_defaults_of_the_contract() {
    let config = fine("");
    let globals = config.globals;
    assert!(globals.enabled && globals.sandbox && globals.kernel_verdicts);
    assert_eq!(globals.log_level, log::LevelFilter::Info);
    assert_eq!(globals.default, Target::Direct);
    assert_eq!(globals.on_failure, OnFailure::Direct);
    assert_eq!(globals.mark, Mark { value: 0x0100_0000, mask: 0x0300_0000 });
    assert_eq!(globals.self_mark, Mark { value: 0x0200_0000, mask: 0x0300_0000 });
    assert_eq!((globals.table, globals.rule_priority), (233, 533));
    assert_eq!(globals.backend, Backend::Auto);
    assert_eq!((globals.tcp_sessions, globals.udp_sessions, globals.relay_memory), (4096, 4096, 8 << 20));
    assert_eq!(globals.control, Path::new("/var/run/tproxyd/control.sock"));
    assert_eq!(globals.resolver, Resolver::File("/etc/resolv.conf".into()));
    assert_eq!(config.warnings, ["f: no listener is enabled: nothing is intercepted"]);
}

#[test]
fn what_the_benchmark_asks_for_is_taken() {
    let config = fine(
        "
config globals 'globals'
	option enabled '1'
	option log_level 'error'
	option default 'up'
	option kernel_verdicts '0'
	option tcp_sessions '8000'
	option udp_sessions '8192'
	option control '/tmp/x/control.sock'

config listener 'lan'
	option mode 'tproxy'
	option port '1099'
	list device 'rc'
	list proto 'tcp'
	list proto 'udp'

config outbound 'up'
	option type 'socks5'
	option server '10.0.2.2'
	option port '1080'
	option udp '1'
",
    );
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.globals.default, Target::Outbound(0));
    assert_eq!((config.globals.tcp_sessions, config.globals.udp_sessions), (8000, 8192));
    let listener = &config.listeners[0];
    assert_eq!((listener.port, listener.device.as_slice()), (1099, ["rc".to_owned()].as_slice()));
    assert_eq!(listener.protos, Protos { tcp: true, udp: true });
    let outbound = &config.outbounds[0];
    assert_eq!(outbound.connect_timeout.as_secs(), 5);
    assert_eq!(outbound.idle_timeout.as_secs(), 125 * 60);
    assert_eq!(outbound.udp_timeout.as_secs(), 180);
    assert_eq!(outbound.udp_outbound, Target::Reject);
    let OutboundKind::Socks5 { server, credentials: None } = &outbound.kind else { panic!("{outbound:?}") };
    assert_eq!(*server, Server { host: Host::Address("10.0.2.2".parse().unwrap()), port: 1080 });
}

#[test]
fn a_list_may_be_list_lines_or_one_option_with_blanks() {
    let one = fine(&format!("{LISTENER} option dest_port '80  443 ! 8080'\n option proto 'tcp udp'\n"));
    let many = fine(&format!(
        "{LISTENER} list dest_port 80\n list dest_port 443\n list dest_port '! 8080'\n list proto tcp\n list proto udp\n"
    ));
    assert_eq!(one.listeners, many.listeners);
    let ports = &one.listeners[0].dest_port;
    assert_eq!((ports.plain.len(), ports.not.as_slice()), (2, [PortRange { first: 8080, last: 8080 }].as_slice()));
}

#[test]
fn one_protocol_alone_stays_alone() {
    assert_eq!(fine(&format!("{LISTENER} option proto udp")).listeners[0].protos, Protos { tcp: false, udp: true });
    assert_eq!(fine(&format!("{LISTENER} option family ipv6")).listeners[0].families, Families { v4: false, v6: true });
}

#[test]
fn an_address_to_listen_on_decides_the_family() {
    let families = |address: &str| fine(&format!("{LISTENER} option address {address}")).listeners[0].families;
    assert_eq!(families("0.0.0.0"), Families { v4: true, v6: false });
    assert_eq!(families("2001:db8::1"), Families { v4: false, v6: true });
    assert_eq!(families("::"), Families { v4: true, v6: true });
    assert_eq!(
        errors(&format!("{LISTENER} option address 192.0.2.1\n option family ipv6")),
        ["f:4: listener 'lan': address 192.0.2.1 is not of its family"]
    );
}

#[test]
fn rules_are_numbered_with_the_disabled_ones_and_refer_by_place() {
    let config = fine(
        "config rule; option enabled 0; option outbound nobody
         config outbound off; option enabled 0; option type shadowsocks
         config outbound a; option type direct
         config outbound b; option type reject
         config set s; list entry 192.0.2.1
         config rule 'named'; option name 'To b'; list dest_ip @s; list dest_ip !@s; option outbound b
         config rule; option outbound drop",
    );
    assert_eq!(config.outbounds.len(), 2);
    let [first, second] = config.rules.as_slice() else { panic!() };
    assert_eq!((first.number, first.outbound, first.name.as_deref()), (1, Target::Outbound(1), Some("To b")));
    assert_eq!(first.dest_ip, Values { plain: vec![AddressMatch::Set(0)], not: vec![AddressMatch::Set(0)] });
    assert_eq!((second.number, second.outbound), (2, Target::Drop));
}

#[test]
fn a_set_is_merged_from_entries_and_files() {
    let text = "config set s\n list entry 192.0.2.0/25\n option loadfile '/a /b'";
    let config = read_with(text, &[("/a", "# a\n192.0.2.128/25 # half\r\n\n"), ("/b", "2001:db8::/32\n192.0.2.7\n")]);
    let set = config.unwrap().sets.remove(0);
    let shown: Vec<String> =
        set.entries.nets().ranges().map(|range| format!("{}-{}", range.first, range.last)).collect();
    assert_eq!(shown, ["192.0.2.0-192.0.2.255", "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"]);
    assert!(!set.incomplete);
}

#[test]
fn a_missing_or_empty_list_file_is_a_warning_and_silences_rules_that_exclude_the_set() {
    let text = format!(
        "{LISTENER}config set s\n list entry 192.0.2.1\n list loadfile /gone\nconfig set e\n list loadfile /empty\n\
         config set none\n\
         config rule\n list dest_ip !@s\n option outbound drop\nconfig rule\n list dest_ip @s\n option outbound drop\n"
    );
    let config = read_with(&text, &[("/empty", "# nothing\n")]).unwrap();
    assert_eq!(
        config.warnings,
        [
            "f:6: set 's': cannot read /gone: entity not found; it counts as empty",
            "f:8: set 'e': /empty has no entry",
            "f:9: set 'none' is empty",
            "f:10: rule 0 is inactive: it excludes set 's', which is not complete",
        ]
    );
    assert!(config.sets.iter().all(|set| set.incomplete));
    assert_eq!((config.rules[0].active, config.rules[1].active), (false, true));
}

#[test]
fn a_bad_line_of_a_list_is_an_error_or_skipped_as_strict_says() {
    let text = "config set s\n list loadfile /a\n list entry nonsense\n";
    let files = [("/a", "192.0.2.1\n\nwww.example.com\n")];
    let errors = read_with(text, &files).unwrap_err().to_string();
    let (in_file, in_entry) = (
        "/a:3: 'www.example.com' is not an address: expected 192.0.2.1 or 2001:db8::1",
        "f:3: set 's': entry 'nonsense' is not an address: expected 192.0.2.1 or 2001:db8::1",
    );
    assert_eq!(errors, format!("{in_file}\n{in_entry}"));
    let config = read_with(&format!("{text} option strict 0\n{LISTENER}"), &files).unwrap();
    assert_eq!(config.warnings, [format!("{in_file}; skipped"), format!("{in_entry}; skipped")]);
    assert!(config.sets[0].entries.nets().len() == 1 && !config.sets[0].incomplete);
}

#[test]
fn a_list_file_full_of_bad_lines_is_told_in_short() {
    let errors = read_with("config set s\n list loadfile /a\n", &[("/a", &"x\n".repeat(1000))]).unwrap_err();
    assert_eq!(errors.count(), 11);
    assert!(errors.to_string().ends_with("/a:1000: 1000 bad lines in all"));
}

#[test]
fn a_set_too_large_for_the_memory_is_refused() {
    let many: String = (0..100_000u32).map(|n| format!("1{}.{}.{}.1\n", n >> 16, n >> 8 & 255, n & 255)).collect();
    let small = Env { total_memory: 8 << 20, descriptors: u64::MAX };
    let read = |env| {
        parse("f", b"config set s\n list loadfile /a\n", &env, &mut |_| {
            Ok(Box::new(Cursor::new(many.clone().into_bytes())) as Box<dyn BufRead>)
        })
    };
    let errors = read(small).unwrap_err().to_string();
    assert_eq!(errors, "f:2: set 's': more than 557 KiB in all sets: too many for this memory");
    assert_eq!(read(ROUTER).unwrap().sets[0].entries.nets().len(), 100_000);
}

#[test]
fn overlapping_listeners_are_a_warning_unless_they_are_seen_to_be_apart() {
    let warnings = |first: &str, second: &str| {
        let text = format!("{LISTENER}{first}\nconfig listener b; option port 2334; list device 'br-*'\n{second}\n");
        fine(&text).warnings
    };
    let overlap = ["f:5: listener 'b' overlaps 'lan' on line 1, which takes what both match"];
    assert_eq!(warnings("", ""), overlap);
    assert_eq!(warnings(" option dest_port 80", " option dest_port 70-90"), overlap);
    for (first, second) in [
        (" option proto tcp", " option proto udp"),
        (" option family ipv4", " option family ipv6"),
        (" option dest_port 80", " option dest_port 443"),
        (" option src_ip 192.0.2.1", " option src_ip 2001:db8::/32"),
        (" option src_mac 02:00:5e:10:00:01", " option src_mac 02:00:5e:10:00:02"),
    ] {
        assert_eq!(warnings(first, second), Vec::<String>::new(), "{first} {second}");
    }
}

#[test]
fn a_rule_after_one_that_matches_everything_is_a_warning() {
    let text = format!(
        "{LISTENER}config rule\n option proto tcp\n option outbound direct\n\
         config rule\n option outbound direct\nconfig rule\n option outbound drop\n"
    );
    assert_eq!(fine(&text).warnings, ["f:9: rule 2 is never reached: rule 1 matches everything"]);
}

#[test]
fn globals_that_are_not_enabled_are_still_checked() {
    assert_eq!(errors("config globals\n option enabled 0\n option backend pf\n").len(), 1);
    assert!(!fine("config globals\n option enabled 0\n").globals.enabled);
}

#[test]
fn host_bits_of_a_prefix_are_taken_off_with_a_warning() {
    let config = fine(&format!("{LISTENER} list src_ip 192.168.1.5/24"));
    assert_eq!(config.warnings, ["f:4: listener 'lan': src_ip '192.168.1.5/24' is taken to begin at 192.168.1.0"]);
}

#[test]
fn the_same_text_gives_an_equal_configuration() {
    let text = format!("{LISTENER}config set s; list entry 192.0.2.1\nconfig rule; option outbound direct\n");
    assert_eq!(fine(&text), fine(&text));
    assert_ne!(fine(&text), fine(&text.replace("2333", "2334")));
}

#[test]
fn load_reads_real_files_and_says_when_it_cannot() {
    let directory = std::env::temp_dir().join(format!("tproxyd-config-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let (list, file) = (directory.join("list"), directory.join("config"));
    std::fs::write(&list, "192.0.2.0/24\n").unwrap();
    std::fs::write(&file, format!("config set s\n list loadfile '{}'\n", list.display())).unwrap();
    let config = load(&file);
    let gone = load(&directory.join("gone")).unwrap_err().to_string();
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(config.unwrap().sets[0].entries.nets().len(), 1);
    assert!(gone.ends_with("gone: cannot read it: No such file or directory (os error 2)"), "{gone}");
    assert!(load::total_memory() > 0);
}

#[test]
fn a_file_larger_than_a_mebibyte_is_refused() {
    let text = " ".repeat(LARGEST_FILE + 1);
    assert_eq!(read(&text).unwrap_err().to_string(), "f: larger than 1024 KiB; put long lists into loadfile");
}

#[test]
fn a_set_that_the_kernel_does_not_hold_is_a_warning_where_a_rule_names_it() {
    let text = "config globals\n option kernel_set_max 1\nconfig set s\n list entry 192.0.2.1\n list entry 192.0.2.9\n\
                config rule\n list dest_ip @s\n option outbound direct\n";
    let about =
        |text: &str| read(text).unwrap().warnings.into_iter().filter(|line| line.contains("kernel_set_max")).count();
    assert_eq!(about(text), 1);
    assert_eq!(about(&text.replace("kernel_set_max 1", "kernel_set_max 2")), 0);
    assert_eq!(about(&text.replace("kernel_set_max 1", "kernel_set_max 1\n option kernel_verdicts 0")), 0);
    assert_eq!(about(&text.replace("@s", "192.0.2.1")), 0);
}

/// The figures of the README; `cargo test --release -- --ignored --nocapture full_size` prints them.
#[test]
#[ignore = "a second of work, and figures for people"]
fn lists_of_full_size_load_in_less_than_a_second() {
    use std::fmt::Write;
    let mut nets = String::new();
    for n in 0..250_000u32 {
        let _ = writeln!(nets, "{}.{}.{}.0/25", 1 + n / 65_536 * 7, n >> 8 & 255, n & 255);
    }
    let mut names = String::new();
    for n in 0..200_000u32 {
        let _ = writeln!(names, "host-{n}.{}.example", n % 1000);
    }
    for (kind, list, entries) in [("net", &nets, 250_000), ("domain", &names, 200_000)] {
        let text = format!("config set s\n option type {kind}\n list loadfile /list");
        let begin = std::time::SystemTime::now();
        let config = parse("f", text.as_bytes(), &ROUTER, &mut |_| {
            Ok(Box::new(Cursor::new(list.clone().into_bytes())) as Box<dyn BufRead>)
        })
        .unwrap();
        let took = begin.elapsed().unwrap();
        let (held, bytes) = match &config.sets[0].entries {
            Entries::Nets(nets) => (nets.len(), nets.memory()),
            Entries::Domains(domains) => (domains.len(), domains.memory()),
        };
        println!("{kind}: {held} entries in {took:?}, {:.1} bytes each", bytes as f64 / held as f64);
        assert_eq!(held, entries);
        assert!(took.as_secs() < 1, "{took:?}");
    }
}
