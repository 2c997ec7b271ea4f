//! Unix stream sockets with what std's cannot do: a mode from the first moment on, a short queue, a connect that gives up.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::time::TimeVal;

/// Listens at `path`, non-blocking. The file that comes into being has `mode` at once: unlike after a chmod by path, nobody
/// can connect in between. `backlog` connections wait at most.
///
/// # Errors
/// `EADDRINUSE` if something is at `path`; `ENOENT`, `EACCES`, `EROFS` of the directory.
pub fn listen(path: &Path, mode: u32, backlog: u8) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Linux gives the file the mode of the socket's own inode, less the umask (net/unix/af_unix.c, unix_bind_bsd)
    fchmod(fd.as_fd(), Mode::from_bits_truncate(mode as _))?;
    socket::bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&fd, Backlog::new(i32::from(backlog))?)?;
    Ok(fd.into())
}

/// Connects to `path`, blocking for at most `patience`.
///
/// # Errors
/// `ENOENT`: nothing is there; `ECONNREFUSED`: nobody listens there any more; `EACCES`; `EAGAIN`: whoever listens there has
/// not taken its connections for that long.
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let timeout = TimeVal::new(patience.as_secs() as _, patience.subsec_micros() as _);
    socket::setsockopt(&fd, sockopt::SendTimeout, &timeout)?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd.into())
}

/// Holds a directory for one process; dropping it lets go.
#[derive(Debug)]
pub struct DirectoryLock(#[allow(dead_code, reason = "held, not used")] Flock<File>);

/// Takes the lock of `directory` (flock(2)), which only programs that ask for it respect.
///
/// # Errors
/// `EAGAIN`: another process has it; those of open(2).
pub fn lock_directory(directory: &Path) -> io::Result<DirectoryLock> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let file = File::from(nix::fcntl::open(directory, flags, Mode::empty())?);
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(DirectoryLock(lock)),
        Err((_, errno)) => Err(errno.into()),
    }
}
