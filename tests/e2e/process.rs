//! A process under test: its output as it comes, its end, and that it never outlives its test.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sock::PATIENCE;

/// Looks until `done`, but not for ever.
pub fn until(what: &str, done: impl FnMut() -> bool) {
    until_within(PATIENCE, || what.to_owned(), done);
}

/// Looks until `done`, but not for longer than `limit`: then it fails with what `missing` says. For what nobody tells of, such as
/// the state of the kernel.
pub fn until_within(limit: Duration, missing: impl Fn() -> String, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < limit, "{}: not within {limit:?}", missing());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A running child and all that it has said (both standard output and standard error).
pub struct Process {
    name: String,
    pid: u32,
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

#[derive(Default)]
struct Heard {
    lines: Vec<String>,
    /// Nobody holds the output any more: the process and all that it forked are gone.
    silent: bool,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`, which must come from [`crate::ns::Namespace::command`].
    pub fn start(mut command: Command) -> Process {
        let name = command.get_program().to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned();
        let (reader, writer) = std::io::pipe().expect("a pipe");
        command.stderr(writer.try_clone().expect("dup")).stdout(writer);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        drop(command); // it holds the pipe's other end
        let process = Process { name, pid: child.id(), heard: Arc::default() };
        let heard = Arc::clone(&process.heard);
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                heard.0.lock().expect("no poison").lines.push(line);
                heard.1.notify_all();
            }
            heard.0.lock().expect("no poison").silent = true;
            heard.1.notify_all();
        });
        let heard = Arc::clone(&process.heard);
        std::thread::spawn(move || {
            let status = child.wait().expect("wait for a child");
            heard.0.lock().expect("no poison").status = Some(status);
            heard.1.notify_all();
        });
        process
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until `look` finds what it wants.
    fn wait_for<T>(&self, what: &str, limit: Duration, mut look: impl FnMut(&Heard) -> Option<T>) -> T {
        let heard = self.heard.0.lock().expect("no poison");
        let found = std::cell::RefCell::new(None);
        let pending = |heard: &mut Heard| {
            *found.borrow_mut() = look(heard);
            found.borrow().is_none()
        };
        let (heard, _) = self.heard.1.wait_timeout_while(heard, limit, pending).expect("no poison");
        drop(heard); // before anything here panics: those who show the output need the lock
        match found.into_inner() {
            Some(found) => found,
            None => panic!("{}: no {what} within {limit:?}; it said:\n{}", self.name, self.said()),
        }
    }

    /// Waits for a line that contains all of `words`, from the `skip`th line on; returns it with its number.
    pub fn wait_for_line_after(&self, skip: usize, words: &[&str]) -> (usize, String) {
        let what = format!("line with {words:?} after line {skip}");
        let found = self.wait_for(&what, PATIENCE, |heard| {
            let fits = |line: &&String| words.iter().all(|word| line.contains(word));
            let line = heard.lines.iter().enumerate().skip(skip).find(|(_, line)| fits(line));
            let gone = heard.silent && heard.status.is_some();
            match line {
                Some((n, line)) => Some(Some((n, line.clone()))),
                None => gone.then_some(None),
            }
        });
        found.unwrap_or_else(|| panic!("{}: it ended without {what}; it said:\n{}", self.name, self.said()))
    }

    /// Waits for a line that contains all of `words`.
    pub fn wait_for_line(&self, words: &[&str]) -> String {
        self.wait_for_line_after(0, words).1
    }

    /// How many lines it has written so far.
    pub fn line_count(&self) -> usize {
        self.heard.0.lock().expect("no poison").lines.len()
    }

    /// Everything it has written so far.
    pub fn said(&self) -> String {
        self.heard.0.lock().expect("no poison").lines.join("\n")
    }

    /// Sends a signal; to a process that is gone: nothing.
    pub fn signal(&self, signal: Signal) {
        let heard = self.heard.0.lock().expect("no poison");
        if heard.status.is_none() {
            let pid = i32::try_from(self.pid).expect("a pid");
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits until the process itself has ended.
    pub fn wait_end(&self, limit: Duration) -> ExitStatus {
        self.wait_for("end of the process", limit, |heard| heard.status)
    }

    /// Waits until the process and everything that it forked has ended.
    pub fn wait_silence(&self, limit: Duration) {
        self.wait_for("end of all its processes", limit, |heard| heard.silent.then_some(()));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_end(PATIENCE);
        if std::thread::panicking() {
            println!("--- what {} said:\n{}", self.name, self.said());
        }
    }
}

/// A server on a thread of the test's own. When this is dropped the thread has ended, and its listening sockets are closed.
pub struct Service {
    alive: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Runs `serve` until the pipe that it is given can be read.
    pub fn start(serve: impl FnOnce(PipeReader) + Send + 'static) -> Service {
        let (stop, alive) = std::io::pipe().expect("a pipe");
        Service { alive: Some(alive), thread: Some(std::thread::spawn(move || serve(stop))) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic of its own is in the output already
        }
    }
}

/// Status as a person would say it: `exit 2`, `signal 9`.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    }
}

/// A directory of one test's own, gone when dropped. What a killed run left is swept by the next.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static SWEPT: OnceLock<()> = OnceLock::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEPT.get_or_init(sweep);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("{PREFIX}{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("create {}: {e}", dir.display()));
        TempDir(dir)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        path
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const PREFIX: &str = "tproxyd-e2e-";

fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
