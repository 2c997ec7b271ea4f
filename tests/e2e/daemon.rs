//! The daemon under test: its configuration, its start, what it says of itself, its end.

use std::cell::Cell;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix::sys::signal::Signal;

use crate::json::Json;
use crate::lab::Lab;
use crate::ns::Namespace;
use crate::process::{Process, TempDir, describe};
use crate::sock::PATIENCE;

/// The program that Cargo built for these tests.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tproxyd");

/// In the environment of the tests, names the `option backend` of every daemon: `ci/test iptables` has those that hold for any
/// backend run once more. Which iptables that is goes by `PATH`.
pub const BACKEND: &str = "TPROXYD_E2E_BACKEND";

/// The line that says that everything is in place.
const READY: &[&str] = &["tproxyd", "ready"];

/// A configuration file in the making: globals, one listener on the LAN, one outbound `out` which is the default.
#[derive(Clone)]
pub struct Uci {
    globals: Vec<(String, String)>,
    listener: Vec<(String, String)>,
    outbound: Vec<(String, String)>,
    sections: String,
}

impl Uci {
    /// Everything goes to an outbound of this type.
    pub fn new(outbound_type: &str) -> Uci {
        let uci = Uci { globals: Vec::new(), listener: Vec::new(), outbound: Vec::new(), sections: String::new() };
        // most tests are about flows through the process, and would see none of what goes `direct`
        let backend = std::env::var(BACKEND).unwrap_or_else(|_| "auto".into());
        uci.globals(&[("log_level", "debug"), ("default", "out"), ("kernel_verdicts", "0"), ("backend", &backend)])
            .listener(&[("port", "2333"), ("device", "lan0")])
            .outbound(&[("type", outbound_type)])
    }

    /// Sets options of `config globals`.
    #[must_use]
    pub fn globals(mut self, options: &[(&str, &str)]) -> Uci {
        set(&mut self.globals, options);
        self
    }

    /// Sets options of the listener `lan`.
    #[must_use]
    pub fn listener(mut self, options: &[(&str, &str)]) -> Uci {
        set(&mut self.listener, options);
        self
    }

    /// Sets options of the outbound `out`.
    #[must_use]
    pub fn outbound(mut self, options: &[(&str, &str)]) -> Uci {
        set(&mut self.outbound, options);
        self
    }

    /// Adds text at the end: further sections.
    #[must_use]
    pub fn section(mut self, text: &str) -> Uci {
        self.sections.push_str(text);
        self.sections.push('\n');
        self
    }

    /// The whole file, with its control socket at that path.
    pub fn text(&self, control: &str) -> String {
        let mut text = String::from("config globals\n");
        let options = |text: &mut String, options: &[(String, String)]| {
            for (name, value) in options {
                let _ = writeln!(text, "\toption {name} '{value}'");
            }
        };
        options(&mut text, &self.globals);
        let _ = writeln!(text, "\toption control '{control}'");
        text.push_str("\nconfig listener 'lan'\n");
        options(&mut text, &self.listener);
        text.push_str("\nconfig outbound 'out'\n");
        options(&mut text, &self.outbound);
        text.push('\n');
        text + &self.sections
    }
}

/// Later values replace earlier ones.
fn set(options: &mut Vec<(String, String)>, new: &[(&str, &str)]) {
    for (name, value) in new {
        options.retain(|(old, _)| old != name);
        options.push(((*name).to_owned(), (*value).to_owned()));
    }
}

/// A `tproxyd run` in the router's namespace.
pub struct Daemon {
    process: Process,
    router: Namespace,
    dir: TempDir,
    config: PathBuf,
    refusals_are_meant: Cell<bool>,
}

impl Daemon {
    /// Starts it and waits until it says that it is ready.
    pub fn start(lab: &Lab, uci: &Uci) -> Daemon {
        Daemon::start_with(lab, uci, &[])
    }

    /// Starts it with more arguments and waits until it says that it is ready.
    pub fn start_with(lab: &Lab, uci: &Uci, args: &[&str]) -> Daemon {
        let daemon = Daemon::launch_by(lab, uci, args, |router| router.command(PROGRAM));
        daemon.process.wait_for_line(READY);
        daemon
    }

    /// Starts it in any namespace, and waits until it says that it is ready.
    pub fn start_in(ns: &Namespace, uci: &Uci) -> Daemon {
        let (dir, router) = (TempDir::new(), ns.clone());
        let config = dir.write("tproxyd", &uci.text(&control_of(&dir)));
        let mut command = router.command(PROGRAM);
        command.args(["run", "--config"]).arg(&config);
        let daemon =
            Daemon { process: Process::start(command), router, dir, config, refusals_are_meant: Cell::default() };
        daemon.process.wait_for_line(READY);
        daemon
    }

    /// Starts it without waiting.
    pub fn launch(lab: &Lab, uci: &Uci) -> Daemon {
        Daemon::launch_by(lab, uci, &[], |router| router.command(PROGRAM))
    }

    /// Starts it by another command in front, without waiting.
    pub fn launch_by(lab: &Lab, uci: &Uci, args: &[&str], command: impl FnOnce(&Namespace) -> Command) -> Daemon {
        let (dir, router) = (TempDir::new(), lab.router.clone());
        let config = dir.write("tproxyd", &uci.text(&control_of(&dir)));
        let mut command = command(&router);
        command.args(["run", "--config"]).arg(&config).args(args);
        Daemon { process: Process::start(command), router, dir, config, refusals_are_meant: Cell::default() }
    }

    /// That its sandbox refuses system calls is what this test is about.
    pub fn refusals_are_meant(&self) {
        self.refusals_are_meant.set(true);
    }

    /// Starts it once more after its end, with the same files.
    pub fn restart(&mut self) {
        let mut command = self.router.command(PROGRAM);
        command.args(["run", "--config"]).arg(&self.config);
        self.process = Process::start(command);
        self.process.wait_for_line(READY);
    }

    /// Replaces the configuration file; the daemon is not told.
    pub fn write_config(&self, uci: &Uci) {
        self.dir.write("tproxyd", &uci.text(&control_of(&self.dir)));
    }

    /// Replaces the file by text of any kind.
    pub fn write_config_text(&self, text: &str) {
        self.dir.write("tproxyd", text);
    }

    /// SIGHUP; returns the first later line that contains all of `words`.
    pub fn reload(&self, words: &[&str]) -> String {
        let before = self.process.line_count();
        self.process.signal(Signal::SIGHUP);
        self.process.wait_for_line_after(before, words).1
    }

    /// SIGTERM; the daemon must end with status 0, its helper with it.
    pub fn stop(&self) {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait_end(PATIENCE);
        assert_eq!(describe(status), "exit 0", "after SIGTERM; it said:\n{}", self.process.said());
        self.process.wait_silence(PATIENCE);
    }

    /// SIGKILL; returns when the helper has done its part and is gone too.
    pub fn kill(&self) {
        self.process.signal(Signal::SIGKILL);
        self.process.wait_end(PATIENCE);
        self.process.wait_silence(PATIENCE);
    }

    /// How it ended, when it does so by itself; by then all that it said has been heard.
    pub fn end(&self) -> ExitStatus {
        self.process.wait_silence(PATIENCE);
        self.process.wait_end(PATIENCE)
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// A command of the same program, with the same configuration, in the router's namespace.
    pub fn command(&self, name: &str, args: &[&str]) -> String {
        let config = self.config.to_str().expect("a plain path");
        let all = [&[name, "--config", config], args].concat();
        self.router.tool(PROGRAM, &all, "")
    }

    /// What `check` says of the machine, whether it is content or not.
    pub fn check(&self) -> String {
        let mut command = self.router.command(PROGRAM);
        command.args(["check", "--config"]).arg(&self.config);
        let output = command.output().expect("run check");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// What `status --json` says now.
    pub fn status(&self) -> Json {
        Json::parse(&self.command("status", &["--json"]))
    }

    /// Asks for the status again and again until `wanted` is content with it.
    pub fn status_until(&self, what: &str, wanted: impl Fn(&Json) -> bool) -> Json {
        let begin = std::time::Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}; last status: {status}");
        }
    }

    /// Waits until no session, no flow and no lent buffer is left. (`destinations` is a cache of verdicts: its entries stay
    /// until others take their places.)
    pub fn wait_idle(&self) -> Json {
        self.status_until("all sessions and flows have ended", |status| {
            ["tcp.active", "udp.active", "pool.lent"].iter().all(|what| status.number(what) == 0)
        })
    }

    /// Open descriptors of the network process.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.pid())).expect("the daemon runs").count()
    }

    /// Waits until it has no more descriptors than `before`. (The one of the last `status` is closed a moment after its
    /// answer, and may have been among those.)
    pub fn wait_descriptors(&self, before: usize) {
        let begin = std::time::Instant::now();
        while self.descriptors() > before {
            let now = self.descriptors();
            assert!(begin.elapsed() < PATIENCE, "{now} descriptors are open, {before} were");
            std::thread::yield_now();
        }
    }

    /// Private and shared memory of the network process, in bytes: its proportional set size.
    pub fn memory(&self) -> u64 {
        self.memory_of("Pss:")
    }

    /// The same of the network process and its helper together.
    pub fn memory_with_helper(&self) -> u64 {
        let pid = self.process.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let helpers: u64 = children.split_whitespace().map(|pid| memory_of(pid, "Pss:")).sum();
        self.memory() + helpers
    }

    /// Memory that it has written to and shares with nobody: unlike PSS it does not depend on who else runs the program.
    pub fn private_memory(&self) -> u64 {
        self.memory_of("Private_Dirty:")
    }

    /// Memory that no file stands behind, where a file that was just built is not yet on disk, either.
    pub fn own_memory(&self) -> u64 {
        self.memory_of("Anonymous:")
    }

    fn memory_of(&self, kind: &str) -> u64 {
        memory_of(&self.process.pid().to_string(), kind)
    }
}

impl Drop for Daemon {
    /// The sandbox must have allowed all that was needed, in every test.
    fn drop(&mut self) {
        let said = self.process.said();
        let refused = said.lines().find(|line| line.contains("has refused system call"));
        if !self.refusals_are_meant.get() && !std::thread::panicking() {
            assert_eq!(refused, None);
        }
    }
}

fn memory_of(pid: &str, kind: &str) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it runs");
    let size = rollup.lines().find_map(|line| line.strip_prefix(kind)).expect("a line of this kind");
    let kilobytes = size.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number");
    kilobytes * 1024
}

fn control_of(dir: &TempDir) -> String {
    dir.path().join("control.sock").display().to_string()
}
