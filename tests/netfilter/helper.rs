//! The helper, with a daemon that lives and dies as real ones do: in a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tproxyd::helper::{Answer, Event, Helper, Request};
use tproxyd::netfilter::{Facts, Installation, questions, render};

use crate::lab::{Lab, SOON, Stub, lab, piped};
use crate::{PLAIN, config};

/// The other side of [`Daemon`]: starts a helper, installs what the file says, and obeys lines on its standard input.
#[test]
#[ignore = "a process that the tests of this file start"]
fn daemon_process() {
    let path = PathBuf::from(std::env::var_os("TPROXYD_CONFIG").expect("started by hand"));
    let mut helper = match Helper::start(&path, &path.with_extension("bridges")) {
        Ok(helper) => helper,
        Err(error) => {
            println!("\nfailed {error}");
            return;
        }
    };
    println!("\nhelper {}", helper.process_id());
    let install = |helper: &mut Helper| {
        let Answer::File(mut file) = helper.call(Request::ReadConfig, SOON)? else { panic!("no file") };
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        let cfg = config(&text);
        let (networks, devices) = questions(&cfg);
        let Answer::Surroundings(found) = helper.call(Request::Look { networks, devices }, SOON)? else { panic!() };
        let rules = render(&cfg, &Facts::new(&cfg, &found, &[])) + &std::env::var("TPROXYD_APPEND").unwrap_or_default();
        let installation = Installation::new(&cfg.globals);
        helper.call(Request::Install { rules, installation, on_failure: cfg.globals.on_failure }, SOON)
    };
    match install(&mut helper) {
        Ok(_) => println!("ready"),
        Err(error) => println!("failed {}", error.to_string().replace('\n', " ")),
    }
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "stop" => {
                helper.call(Request::Remove, SOON).unwrap();
                helper.goodbye(SOON);
                println!("stopped");
                return;
            }
            "update" => {
                let rules = {
                    let cfg = config("config globals\n");
                    let found = tproxyd::netfilter::look(&[], &[]).unwrap();
                    tproxyd::netfilter::render_servers(&cfg, &Facts::new(&cfg, &found, &[]))
                };
                let number = helper.submit(Request::Update { rules }).unwrap();
                loop {
                    match helper.next_event() {
                        Some(Event::Answered(n, result)) if n == number => break drop(result.unwrap()),
                        Some(event) => panic!("{event:?}"),
                        None => std::thread::yield_now(),
                    };
                }
                println!("updated");
            }
            path => match helper.call(Request::ReadFile(path.into()), SOON) {
                Ok(_) => println!("opened"),
                Err(error) => println!("failed {error}"),
            },
        }
    }
}

pub(crate) struct Daemon {
    child: Child,
    helper: Pid,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    file: PathBuf,
}

impl Daemon {
    fn spawn(lab: &Lab, text: &str, append: &str) -> (Daemon, String) {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("tproxyd-test-{}-{number}", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let mut command = piped(Command::new(std::env::current_exe().unwrap()));
        command.args(["helper::daemon_process", "--exact", "--ignored", "--nocapture"]);
        command.env("TPROXYD_CONFIG", &file).env("TPROXYD_APPEND", append);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = lab.router.run(move || command.spawn().unwrap());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut daemon = Daemon { child, helper: Pid::from_raw(0), lines, file };
        let first = daemon.read(&["helper ", "failed "]);
        if let Some(id) = first.strip_prefix("helper ") {
            daemon.helper = Pid::from_raw(id.parse().unwrap());
            let second = daemon.read(&["ready", "failed "]);
            return (daemon, second);
        }
        (daemon, first)
    }

    pub(crate) fn start(lab: &Lab, text: &str) -> Daemon {
        let (daemon, said) = Daemon::spawn(lab, text, "");
        assert_eq!(said, "ready");
        daemon
    }

    /// The next line that begins with one of `starts`; the test harness says things of its own.
    fn read(&mut self, starts: &[&str]) -> String {
        loop {
            let line = self.lines.next().expect("the daemon ended").unwrap();
            if starts.iter().any(|start| line.starts_with(start)) {
                return line;
            }
        }
    }

    fn tell(&mut self, line: &str, answers: &[&str]) -> String {
        writeln!(self.child.stdin.as_ref().unwrap(), "{line}").unwrap();
        self.read(answers)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until the helper is gone, too. Its end closes the last copy of the daemon's standard output.
    pub(crate) fn wait_for_helper(&mut self) {
        while let Some(Ok(_)) = self.lines.next() {}
        // It is about to end, then a zombie for init to take away.
        let alive = |stat: &str| !stat.is_empty() && !stat.contains(") Z") && !stat.contains(") X");
        let stat = format!("/proc/{}/stat", self.helper);
        while alive(&std::fs::read_to_string(&stat).unwrap_or_default()) {
            std::thread::yield_now();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(Ok(_)) = self.lines.next() {
            while let Some(Ok(_)) = self.lines.next() {}
        }
        let _ = std::fs::remove_file(&self.file);
    }
}

#[test]
fn a_daemon_that_stops_in_order_leaves_the_namespace_as_it_was() {
    lab(|lab| {
        let before = lab.state();
        let mut daemon = Daemon::start(&lab, PLAIN);
        let stub = Stub::open(&lab, 2333, "stub");
        assert_eq!(lab.connect("203.0.113.2:80").unwrap().who(), "stub");
        assert_eq!(daemon.tell("update", &["updated"]), "updated");
        assert_eq!(lab.connect("203.0.113.2:1080").unwrap().who(), "stub", "the server is not spared any more");
        drop(stub);
        assert_eq!(daemon.tell("stop", &["stopped"]), "stopped");
        daemon.wait_for_helper();
        assert_eq!(lab.state(), before);
        let entries = lab.router.sh("conntrack -L 2>/dev/null");
        assert!(!entries.contains("mark=16777216"), "{entries}");
    });
}

#[test]
fn when_the_daemon_is_killed_everything_goes_and_a_fixed_port_is_masqueraded() {
    lab(|lab| {
        let before = lab.state();
        let mut daemon = Daemon::start(&lab, PLAIN);
        let stub = Stub::open(&lab, 2333, "stub");
        let client = lab.udp("192.168.1.2:51820");
        client.send_to(b"x", "203.0.113.2:80").unwrap();
        stub.datagram().unwrap();
        drop(stub);
        daemon.kill();
        daemon.wait_for_helper();
        assert_eq!(lab.state(), before);
        assert_eq!(lab.connect("203.0.113.2:80").unwrap().who(), "server");
        client.send_to(b"x", "203.0.113.2:80").unwrap();
        let mut buffer = [0; 64];
        let (n, _) = client.recv_from(&mut buffer).unwrap();
        assert!(buffer[..n].starts_with(b"203.0.113.1:"));
    });
}

#[test]
fn with_block_a_killed_daemon_leaves_its_rules_and_the_next_takes_over() {
    lab(|lab| {
        let text = PLAIN.replace("config globals", "config globals\n option on_failure 'block'");
        let before = lab.state();
        let mut daemon = Daemon::start(&lab, &text);
        let stub = Stub::open(&lab, 2333, "stub");
        let mut live = lab.connect("203.0.113.2:80").unwrap();
        assert_eq!(live.who(), "stub");
        let client = lab.udp("192.168.1.2:5000");
        client.send_to(b"x", "203.0.113.2:80").unwrap();
        stub.datagram().unwrap();
        drop(stub);
        daemon.kill();
        daemon.wait_for_helper();
        assert!(lab.connect("203.0.113.2:80").is_err());
        client.send_to(b"x", "203.0.113.2:80").unwrap();
        assert!(client.recv_from(&mut [0; 64]).is_err(), "the flow that it had is dropped, too");
        let mut next = Daemon::start(&lab, &text);
        let stub = Stub::open(&lab, 2333, "stub");
        assert_eq!(lab.connect("203.0.113.2:80").unwrap().who(), "stub");
        drop(stub);
        next.tell("stop", &["stopped"]);
        next.wait_for_helper();
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn a_daemon_that_is_back_at_once_keeps_its_rules_though_the_old_helper_still_cleans() {
    lab(|lab| {
        let _stub = Stub::open(&lab, 2333, "stub");
        let mut daemon = Daemon::start(&lab, PLAIN);
        for _ in 0..5 {
            daemon.child.kill().unwrap();
            let next = Daemon::start(&lab, PLAIN);
            daemon.kill();
            daemon.wait_for_helper();
            daemon = next;
            assert_eq!(lab.connect("203.0.113.2:80").unwrap().who(), "stub");
            assert!(lab.router.sh("ip rule").contains("0x1000000/0x3000000"));
        }
    });
}

#[test]
fn the_helper_survives_what_a_terminal_sends_to_the_group() {
    lab(|lab| {
        let before = lab.state();
        let mut daemon = Daemon::start(&lab, PLAIN);
        let group = Pid::from_raw(daemon.child.id() as i32);
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            kill(daemon.helper, signal).unwrap();
        }
        assert_eq!(daemon.tell("update", &["updated"]), "updated");
        // Even a kill of the whole group: the helper is in a session of its own.
        killpg(group, Signal::SIGKILL).unwrap();
        daemon.child.wait().unwrap();
        daemon.wait_for_helper();
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn when_nft_refuses_nothing_stays_and_its_words_arrive() {
    lab(|lab| {
        let before = lab.state();
        let (mut daemon, said) = Daemon::spawn(&lab, PLAIN, "add rule inet tproxyd caught no_such_word\n");
        assert!(said.contains("Error: syntax error"), "{said}");
        assert_eq!(lab.state(), before);
        daemon.kill();
        daemon.wait_for_helper();
        let (_daemon, said) = Daemon::spawn(&lab, PLAIN, "delete table ip nat\n");
        assert!(said.contains("not about our table"), "{said}");
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn the_helper_opens_what_the_configuration_names_and_nothing_else() {
    lab(|lab| {
        let text = format!("{PLAIN}\nconfig set 'x'\n option _note '/etc/hostname'\n list loadfile '/etc/hosts'\n");
        let mut daemon = Daemon::start(&lab, &text);
        assert_eq!(daemon.tell("/etc/hosts", &["opened", "failed"]), "opened");
        for bad in ["/etc/shadow", "/etc/host", "etc/hosts", "/dev/null"] {
            assert!(daemon.tell(bad, &["opened", "failed"]).starts_with("failed"), "{bad}");
        }
        assert!(Path::new("/etc/hosts").exists());
    });
}

#[test]
fn a_second_daemon_in_the_same_namespace_is_refused() {
    lab(|lab| {
        let _first = Daemon::start(&lab, PLAIN);
        let (_second, said) = Daemon::spawn(&lab, PLAIN, "");
        assert!(said.contains("another tproxyd runs"), "{said}");
    });
}
