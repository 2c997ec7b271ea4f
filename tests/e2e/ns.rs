//! Network namespaces without names, and processes in them: nothing is left behind, however the test ends.
//!
//! A namespace lives as long as a descriptor of it is open. It is made by a thread that unshares, and held by an
//! [`OwnedFd`]; when the test process is gone, even by SIGKILL, so are its namespaces, and `PR_SET_PDEATHSIG` takes
//! the children along. This is the only module of the tests with `unsafe` code.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;

/// A network namespace of one test's own.
#[derive(Clone)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// A fresh namespace: a loopback device that is down, nothing else.
    pub fn new() -> Namespace {
        let fd = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare needs root, or `unshare -Urnm` around it: `ci/test e2e`");
            own_namespace()
        });
        Namespace { fd: Arc::new(fd.join().expect("the thread that unshares")) }
    }

    /// A path that other processes can open while this test runs (`ip link set … netns PATH`).
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Runs `f` on this thread inside the namespace. A socket belongs for ever to the namespace in which it was made,
    /// so this is needed around its creation alone.
    pub fn within<T>(&self, f: impl FnOnce() -> T) -> T {
        struct Back(OwnedFd);
        impl Drop for Back {
            fn drop(&mut self) {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("back into the thread's own namespace");
            }
        }
        let _back = Back(own_namespace());
        setns(&self.fd, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
        f()
    }

    /// Writes kernel settings of this namespace, `net.ipv4.ip_forward` style with slashes.
    pub fn sysctl(&self, settings: &[(&str, &str)]) {
        self.within(|| {
            for (name, value) in settings {
                std::fs::write(format!("/proc/sys/net/{name}"), value)
                    .unwrap_or_else(|e| panic!("cannot set net/{name} to {value}: {e}"));
            }
        });
    }

    /// A command that will run in this namespace, with a `/run` of its own and no `/dev/log`, and that the kernel kills
    /// when the thread that started it ends.
    pub fn command(&self, program: &str) -> Command {
        let ns = Arc::clone(&self.fd);
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        let enter = move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            setns(&ns, CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE)?;
            mount(c"tmpfs", c"/run", c"tmpfs", libc::MS_NOSUID | libc::MS_NODEV)?;
            // So that it shows this namespace's devices.
            let _ = mount(c"sysfs", c"/sys", c"sysfs", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC);
            // A socket there would swallow the log lines that tests wait for. Where there is none the mount fails.
            let _ = mount(c"/dev/null", c"/dev/log", c"", libc::MS_BIND);
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only; it neither allocates nor takes a lock
        // (nix turns an errno into an io::Error without allocating, and the Arc is only read).
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a tool to its end, with `input` on its standard input, and returns what it printed. Panics if it fails.
    pub fn tool(&self, program: &str, args: &[&str], input: &str) -> String {
        use std::io::Write as _;
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the tool reads its input");
        let output = child.wait_with_output().expect("wait for a child");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program} {args:?}: {}\n{out}{err}\ninput:\n{input}", output.status);
        out.into_owned()
    }
}

fn own_namespace() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").expect("open /proc/thread-self/ns/net").into()
}

/// mount(2).
fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the three strings end in NUL and outlive the call; a null `data` is allowed.
    let rc = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The next close of `socket` sends a reset instead of an end (SO_LINGER with 0 seconds, socket(7)).
pub fn reset_on_close(socket: &impl AsFd) {
    set_option(socket, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 });
}

/// Makes a blocking `accept` give up after `limit` (SO_RCVTIMEO, socket(7): it covers accept too).
pub fn set_accept_timeout(socket: &impl AsFd, limit: Duration) {
    let tv_sec = libc::time_t::try_from(limit.as_secs()).expect("a short time");
    set_option(socket, libc::SO_RCVTIMEO, &libc::timeval { tv_sec, tv_usec: 0 });
}

fn set_option<T>(socket: &impl AsFd, name: libc::c_int, value: &T) {
    let len = libc::socklen_t::try_from(size_of::<T>()).expect("an option is small");
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `fd` is borrowed, so open for the whole call; the kernel reads `len` bytes of `value`, keeps no pointer.
    let rc = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, name, std::ptr::from_ref(value).cast(), len) };
    assert_eq!(rc, 0, "setsockopt {name}: {}", io::Error::last_os_error());
}

/// Sends one byte of urgent data (MSG_OOB, send(2)).
pub fn send_urgent(socket: &impl AsFd, byte: u8) {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `fd` is borrowed, so open for the whole call; the kernel reads one byte at the address of `byte`.
    let sent = unsafe { libc::send(fd, std::ptr::from_ref(&byte).cast(), 1, libc::MSG_OOB) };
    assert_eq!(sent, 1, "send urgent data: {}", io::Error::last_os_error());
}

/// Waits until one of `fds` can be read, or has ended, and says which: the first of them (poll(2)). `None`: `limit` passed.
pub fn first_readable(fds: &[BorrowedFd<'_>], limit: Duration) -> Option<usize> {
    let wanted = |fd: &BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut polled: Vec<libc::pollfd> = fds.iter().map(wanted).collect();
    let count = libc::nfds_t::try_from(polled.len()).expect("few descriptors");
    let limit = libc::c_int::try_from(limit.as_millis()).expect("a short time");
    // SAFETY: `polled` holds `count` entries that live and are written to only here during the call; each descriptor is
    // borrowed, so open.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), count, limit) };
    assert!(ready >= 0, "poll: {}", io::Error::last_os_error());
    polled.iter().position(|fd| fd.revents != 0)
}
