//! What a process does to itself: fork, limits, privileges, signals.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, User};

/// A child process of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child(Pid);

impl Child {
    /// Its process id.
    pub fn id(self) -> i32 {
        self.0.as_raw()
    }

    /// Takes the zombie away if it has ended, without waiting. True if there is nothing (more) to wait for.
    pub fn reap(self) -> bool {
        !matches!(waitpid(self.0, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
    }

    /// Waits until it has ended.
    pub fn wait(self) {
        while let Err(nix::errno::Errno::EINTR) = waitpid(self.0, None) {}
    }
}

/// Splits the process in two. The child runs `body` with `keep` as its only descriptor above 2, and ends with its result.
///
/// To be called before any thread or listening socket exists.
///
/// # Errors
/// Those of fork(2).
pub fn fork_child(keep: OwnedFd, body: impl FnOnce(OwnedFd) -> i32) -> io::Result<Child> {
    // SAFETY: the process has one thread here (the contract above), so the child may use everything it inherits.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Child(child)),
        ForkResult::Child => {
            close_all_but(keep.as_fd());
            let status = body(keep);
            // SAFETY: _exit(2) has no preconditions; unlike exit(3) it doesn't flush what the parent had buffered.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Closes every descriptor above 2 except `keep`: a listening socket or another pair's end must not live on in here.
fn close_all_but(keep: BorrowedFd<'_>) {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for fd in open {
        if fd > 2 && fd != keep.as_raw_fd() {
            // SAFETY: in the new child nobody runs who still relies on `fd`; closing one that is gone already is EBADF.
            unsafe { libc::close(fd) };
        }
    }
}

/// Gives the process a name of at most 15 octets, as `ps` shows it.
pub fn set_name(name: &CStr) {
    // Only a pointer outside of the process makes this fail.
    let _ = nix::sys::prctl::set_name(name);
}

/// What a terminal or procd sends to a whole group, and SIGPIPE.
const GROUP_SIGNALS: [Signal; 5] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE];

/// Leaves the terminal's session and ignores what a terminal or procd sends to a whole group (ctrl-C, hang-up, stop).
///
/// # Errors
/// Those of sigaction(2).
pub fn ignore_group_signals() -> io::Result<()> {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for signal in GROUP_SIGNALS {
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe { sigaction(signal, &ignore) }?;
    }
    // Fails only for a group leader, which a fresh child is not.
    let _ = nix::unistd::setsid();
    Ok(())
}

/// Runs `command` for at most `limit` in a session of its own, with the signals as a new process has them; returns its exit
/// status, `None` if it could not be started or was killed. For a child that does nothing else: see [`fork_child`].
pub fn run_script(mut command: std::process::Command, limit: Duration) -> Option<i32> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in GROUP_SIGNALS {
        // SAFETY: SIG_DFL runs no code of ours; this process has one thread.
        unsafe { sigaction(signal, &default) }.ok()?;
    }
    let mut child = command.process_group(0).spawn().ok()?;
    let step = Duration::from_millis(20);
    for _ in 0..limit.as_millis() / step.as_millis() {
        if let Some(status) = child.try_wait().ok()? {
            return status.code();
        }
        std::thread::sleep(step);
    }
    // what it has started as well
    let _ = nix::sys::signal::killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let _ = child.wait();
    None
}

/// Sends SIGHUP to another process.
///
/// # Errors
/// Those of kill(2).
pub fn hang_up(process_id: u32) -> io::Result<()> {
    let pid = i32::try_from(process_id).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGHUP)?)
}

/// A signal that the daemon understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// SIGTERM, SIGINT and SIGHUP as a readable descriptor: signalfd(2).
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the three signals for this thread and opens the descriptor, non-blocking. SIGPIPE is ignored by std already.
    ///
    /// # Errors
    /// Those of sigprocmask(2) and signalfd(2).
    pub fn open() -> io::Result<Signals> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next signal, `None` when there is none left.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn take(&mut self) -> io::Result<Option<Wish>> {
        Ok(self.0.read_signal()?.map(
            |info| {
                if info.ssi_signo == Signal::SIGHUP as u32 { Wish::Reload } else { Wish::Stop }
            },
        ))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Raises the soft limit of descriptors to `needed`, the hard one too where that is allowed. Returns the limit in force,
/// which is below `needed` if it could not be had.
///
/// # Errors
/// Those of getrlimit(2).
pub fn raise_descriptor_limit(needed: u64) -> io::Result<u64> {
    let (soft, hard) = descriptor_limit()?;
    if soft >= needed {
        return Ok(soft);
    }
    if hard < needed && setrlimit(Resource::RLIMIT_NOFILE, needed as _, needed as _).is_ok() {
        return Ok(needed);
    }
    let reachable = hard.min(needed);
    match setrlimit(Resource::RLIMIT_NOFILE, reachable as _, hard as _) {
        Ok(()) => Ok(reachable),
        Err(_) => Ok(soft),
    }
}

/// The soft and the hard limit of descriptors.
///
/// # Errors
/// Those of getrlimit(2).
pub fn descriptor_limit() -> io::Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // rlim_t has 32 bits with some C libraries.
    #[allow(clippy::unnecessary_cast)]
    Ok((soft as u64, hard as u64))
}

/// A capability of capabilities(7), by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Ports below 1024.
    NetBindService = 10,
    /// Rules, routes, `IP_TRANSPARENT`, marks.
    NetAdmin = 12,
    /// Raw sockets.
    NetRaw = 13,
}

/// What the network process keeps.
pub const KEPT: [Capability; 3] = [Capability::NetAdmin, Capability::NetRaw, Capability::NetBindService];

/// True if `capability` is in force for this thread.
pub fn has_capability(capability: Capability) -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    bits >> (capability as u32) & 1 == 1
}

/// True if this process runs as user 0 of its user namespace.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// True if `user` is who this process acts as.
pub fn is_own(user: u32) -> bool {
    Uid::effective().as_raw() == user
}

/// The user and group ids of `name` in /etc/passwd; `None` if there is no such user.
pub fn user_ids(name: &str) -> Option<(u32, u32)> {
    let user = User::from_name(name).ok().flatten()?;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

/// Becomes user `user` (uid, gid; `None` keeps it), keeps only the capabilities of [`KEPT`], and gives up the way back
/// (`no_new_privs`).
///
/// # Errors
/// `EPERM` if a capability of [`KEPT`] is not there to be kept or the user can't be changed.
pub fn drop_privileges(user: Option<(u32, u32)>) -> io::Result<()> {
    if let Some((uid, gid)) = user.filter(|_| is_root()) {
        nix::sys::prctl::set_keepcaps(true)?;
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(Gid::from_raw(gid), Gid::from_raw(gid), Gid::from_raw(gid))?;
        nix::unistd::setresuid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(uid))?;
    }
    set_capabilities(KEPT.iter().fold(0, |bits, kept| bits | 1 << (*kept as u32)))?;
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}

/// Sets the permitted and the effective capabilities to `bits` (all below 32), the inheritable to none: capset(2).
fn set_capabilities(bits: u32) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Words {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // linux/capability.h: version 3 takes two words of each kind.
    let header = Header { version: 0x2008_0522, pid: 0 };
    let low = Words { effective: bits, permitted: bits, inheritable: 0 };
    let words = [low, Words { effective: 0, permitted: 0, inheritable: 0 }];
    // SAFETY: both pointers are to live values laid out as capset(2) says; the kernel reads them during the call only.
    let rc = unsafe { libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_ends_with_its_bodys_result_and_leaves_no_zombie() {
        let (ours, theirs) = crate::sys::passing::pair().unwrap();
        let child = fork_child(theirs, |fd| {
            crate::sys::passing::send(fd.as_fd(), b"x", None).unwrap();
            0
        })
        .unwrap();
        let mut buffer = [0; 4];
        assert_eq!(crate::sys::passing::receive(ours.as_fd(), &mut buffer).unwrap().0, 1);
        child.wait();
        assert!(child.reap());
    }

    #[test]
    fn a_limit_that_is_high_enough_already_stays() {
        let (soft, _) = descriptor_limit().unwrap();
        assert_eq!(raise_descriptor_limit(1).unwrap(), soft);
        assert_eq!(descriptor_limit().unwrap().0, soft);
    }

    #[test]
    fn a_user_that_is_not_there_has_no_ids() {
        assert_eq!(user_ids("root").map(|ids| ids.0), Some(0));
        assert_eq!(user_ids("no-such-user"), None);
    }
}
