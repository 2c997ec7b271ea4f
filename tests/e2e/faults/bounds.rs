//! Memory: what `check` announces is what it takes, with all tables full, in a cgroup that has no more.

use std::io::Write;
use std::path::PathBuf;

use crate::daemon::{Daemon, PROGRAM, Uci};
use crate::lab::{Family, Lab};
use crate::ns::Namespace;
use crate::sock::{accept, connect, exchange, listen, receive, udp};

/// A control group of this test's own, removed when dropped. Version 1 counts kernel memory with the rest, as version 2 does.
struct Group(PathBuf);

impl Group {
    /// `None`, with the reason printed, where this process may not make one.
    fn new(limit: u64) -> Option<Group> {
        let name = format!("tproxyd-e2e-{}", std::process::id());
        for (root, file) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let folder = PathBuf::from(root).join(&name);
            if std::fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Group(folder);
            if std::fs::write(group.0.join(file), limit.to_string()).is_ok() {
                return Some(group);
            }
        }
        println!("not tested in a cgroup: there is none of memory that this user may make");
        None
    }

    /// A command of `ns` that runs the daemon in it.
    fn command(&self, ns: &Namespace) -> std::process::Command {
        let mut command = ns.command("sh");
        // by a descriptor: there is another /sys where it runs
        let procs = std::fs::OpenOptions::new().write(true).open(self.0.join("cgroup.procs")).expect("its list");
        let script = "echo $$ >&0 && exec \"$@\" </dev/null";
        command.args(["-c", script, "sh", PROGRAM]).stdin(procs);
        command
    }

    /// Most that it ever held, in bytes.
    fn peak(&self) -> Option<u64> {
        let read = |name: &str| std::fs::read_to_string(self.0.join(name)).ok()?.trim().parse().ok();
        read("memory.max_usage_in_bytes").or_else(|| read("memory.peak"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // the last process may be a moment from its end
        for _ in 0..2_000 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// The two numbers of "at most 12 MB of memory … about 10 MB of the kernel's", in bytes.
fn announced(text: &str) -> (u64, u64) {
    let before = |words: &str| {
        let (number, _) = text.split_once(words).unwrap_or_else(|| panic!("no {words:?} in:\n{text}"));
        number.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok()).expect("a number") << 20
    };
    (before(" MB of memory"), before(" MB of the kernel"))
}

#[test]
fn full_tables_fit_into_a_cgroup_of_what_check_announces() {
    const COUNT: u32 = 1_000;
    let lab = Lab::new();
    let tables = [("tcp_sessions", "1000"), ("udp_sessions", "1000"), ("relay_memory", "2M"), ("log_level", "info")];
    let uci = Uci::new("direct").globals(&tables);
    let files = crate::process::TempDir::new();
    let config = files.write("tproxyd", &uci.text("/run/x.sock"));
    let said = lab.router.tool(PROGRAM, &["check", "--config-only", "--config", config.to_str().expect("a path")], "");
    let (bound, kernel) = announced(&said);
    let group = Group::new(bound + kernel);
    let daemon = match &group {
        Some(group) => Daemon::launch_by(&lab, &uci, &[], |router| group.command(router)),
        None => Daemon::launch(&lab, &uci),
    };
    daemon.process().wait_for_line(&["tproxyd", "ready"]);

    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let at = listener.local_addr().expect("bound");
    let mut pairs: Vec<_> = (0..COUNT).map(|_| (connect(&lab.client, at), accept(&listener))).collect();
    let echo = udp(&lab.server, Family::V4.destination(7), 4_000);
    let sockets: Vec<_> = (0..COUNT).map(|_| udp(&lab.client, Family::V4.client(), 0)).collect();
    for (n, socket) in sockets.iter().enumerate() {
        socket.send_to(&[9; 700], echo.local_addr().expect("bound")).expect("send");
        let (asked, from) = receive(&echo);
        assert_eq!(asked.len(), 700, "datagram {n}");
        echo.send_to(&asked, from).expect("answer");
        receive(socket);
    }
    for (client, server) in &mut pairs {
        exchange(client, server, &[1; 10_000], &[2; 10_000]);
    }
    // some that do not read
    for (_, server) in pairs.iter_mut().take(20) {
        server.set_nonblocking(true).expect("O_NONBLOCK");
        while server.write(&[3; 65_536]).is_ok() {}
    }
    let status = daemon.status();
    assert_eq!((status.number("tcp.active"), status.number("udp.active")), (1_000, 1_000), "{status}");
    // (where the C library is no part of the program, `run` has more of it mapped than `check`)
    assert!(status.number("memory.bound") >= bound - (1 << 20), "{status} {bound}");
    daemon.reload(&["reload"]);
    let pss = daemon.memory_with_helper();
    println!(
        "1,000 sessions and 1,000 flows: {pss} bytes by PSS of {bound}; with the kernel's {:?} of {}",
        group.as_ref().and_then(Group::peak),
        bound + kernel
    );
    assert!(pss <= bound, "{pss} of {bound}");
    for (client, server) in pairs.iter_mut().skip(20).take(50) {
        exchange(client, server, b"still", b"there");
    }
    daemon.stop();
}
