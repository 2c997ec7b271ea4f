//! `splice(2)`: bytes from one socket to another through a pipe, never copied into the process.

use super::{cvt, cvt_len};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A pipe that both ends of a splice pass through.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

const FLAGS: libc::c_uint = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;

impl Pipe {
    /// Opens a pipe that takes `size` bytes, or as many as the kernel lets this user have (`fs.pipe-max-size`,
    /// `fs.pipe-user-pages-soft`; pipe(7)).
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn open(size: usize) -> io::Result<Pipe> {
        let mut ends = [0; 2];
        // SAFETY: the kernel writes two descriptors into `ends`, which lives through the call.
        cvt(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
        // SAFETY: the kernel has just given us both descriptors, and nobody else owns them.
        let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        // SAFETY: no pointers; the descriptor is open. A refusal leaves the default of 64 KB, which works as well.
        let _ = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, size as libc::c_int) };
        Ok(Pipe { read, write })
    }

    /// Moves up to `len` bytes from a socket into the pipe. 0: the end of the stream, or urgent data before its end, which
    /// only a read tells apart.
    ///
    /// # Errors
    /// `EAGAIN` when the socket has nothing or the pipe is full; `ECONNRESET`; `EINVAL` where the kernel can't splice.
    pub fn fill(&self, from: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        transfer(from.as_raw_fd(), self.write.as_raw_fd(), len)
    }

    /// Moves up to `len` bytes from the pipe into a socket.
    ///
    /// # Errors
    /// `EAGAIN` when the socket takes nothing; `EPIPE`, `ECONNRESET`. SIGPIPE is ignored in this process.
    pub fn drain(&self, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        transfer(self.read.as_raw_fd(), to.as_raw_fd(), len)
    }
}

fn transfer(from: libc::c_int, to: libc::c_int, len: usize) -> io::Result<usize> {
    let none = std::ptr::null_mut();
    // SAFETY: both descriptors are open for the call, and no offsets are given.
    cvt_len(unsafe { libc::splice(from, none, to, none, len, FLAGS) })
}
