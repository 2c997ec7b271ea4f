//! Whole messages, each with at most one open file, over a SOCK_SEQPACKET pair: unix(7), `SCM_RIGHTS`.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType};

/// Two connected ends, both closed on exec.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one message whole, `file` with it.
///
/// # Errors
/// Those of sendmsg(2); `EMSGSIZE` for one that is longer than the socket's buffer.
pub fn send(fd: BorrowedFd<'_>, message: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let files = file.map(|file| [file.as_raw_fd()]);
    let rights = files.as_ref().map(|files| [ControlMessage::ScmRights(files)]);
    let control: &[ControlMessage<'_>] = rights.as_ref().map_or(&[], |rights| rights);
    socket::sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(message)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one message; 0 bytes mean that the other end is closed.
///
/// # Errors
/// Those of recvmsg(2), `WouldBlock` among them; `InvalidData` for a message that did not fit into `buffer`.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = socket::recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut file = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            for raw in received {
                // SAFETY: the kernel has just made `raw` for this process by SCM_RIGHTS; nobody else knows of it.
                file = Some(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((message.bytes, file))
}
/// Waits until `fd` can be read or its other end is closed; false if `timeout` passed first.
///
/// # Errors
/// Those of poll(2).
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: std::time::Duration) -> io::Result<bool> {
    wait(fd, nix::poll::PollFlags::POLLIN, timeout)
}

/// Waits until `fd` can be written, which is when a connection is decided; false if `timeout` passed first.
///
/// # Errors
/// Those of poll(2).
pub fn wait_writable(fd: BorrowedFd<'_>, timeout: std::time::Duration) -> io::Result<bool> {
    wait(fd, nix::poll::PollFlags::POLLOUT, timeout)
}

fn wait(fd: BorrowedFd<'_>, what: nix::poll::PollFlags, timeout: std::time::Duration) -> io::Result<bool> {
    use nix::poll::{PollFd, PollTimeout, poll};
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(fd, what)], timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A file in memory that holds `text`, read from its beginning by whoever gets it: memfd_create(2), Linux 3.17.
///
/// # Errors
/// Those of memfd_create(2) and write(2).
pub fn text_file(text: &str) -> io::Result<std::fs::File> {
    use std::io::{Seek, Write};
    let fd = nix::sys::memfd::memfd_create(c"tproxyd", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// `O_NONBLOCK`, for opening a path that may be a pipe without anybody at its other end.
pub const NONBLOCKING: i32 = nix::fcntl::OFlag::O_NONBLOCK.bits();

/// `O_NOFOLLOW`, for opening a path whose last part somebody else may have put there.
pub const NO_LINK: i32 = nix::fcntl::OFlag::O_NOFOLLOW.bits();

/// Makes `fd` answer `WouldBlock` where it would wait.
///
/// # Errors
/// Those of fcntl(2).
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A name that one process in each network namespace can hold, until it ends however it ends: an abstract unix socket.
/// Unlike a lock file it leaves nothing behind, and namespaces that share a file system don't disturb each other.
#[derive(Debug)]
pub struct NamespaceLock {
    _socket: OwnedFd,
}

impl NamespaceLock {
    /// Takes the lock; `None` if another process holds it.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub fn try_take(name: &str) -> io::Result<Option<NamespaceLock>> {
        let fd = socket::socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let address = socket::UnixAddr::new_abstract(name.as_bytes())?;
        match socket::bind(fd.as_raw_fd(), &address) {
            Ok(()) => Ok(Some(NamespaceLock { _socket: fd })),
            Err(nix::errno::Errno::EADDRINUSE) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_travels_with_its_message_and_an_end_that_closes_is_told() {
        let (left, right) = pair().unwrap();
        let file = text_file("hello").unwrap();
        send(left.as_fd(), b"abc", Some(file.as_fd())).unwrap();
        send(left.as_fd(), b"d", None).unwrap();
        drop(left);
        let mut buffer = [0; 16];
        let (n, file) = receive(right.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"abc");
        let mut text = String::new();
        std::fs::File::from(file.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        let (n, file) = receive(right.as_fd(), &mut buffer).unwrap();
        assert_eq!((n, file.is_none()), (1, true));
        assert_eq!(receive(right.as_fd(), &mut buffer).unwrap().0, 0);
    }

    #[test]
    fn a_message_longer_than_the_buffer_is_refused_not_cut() {
        let (left, right) = pair().unwrap();
        send(left.as_fd(), &[7; 100], None).unwrap();
        let error = receive(right.as_fd(), &mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
