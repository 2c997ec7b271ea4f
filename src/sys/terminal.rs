//! The terminal of a command that redraws its screen: its size, and keys one by one without echo.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Columns and lines of the terminal `fd`; `None` if it is none.
pub fn size(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `fd` is borrowed, so open for the whole call, which writes one `struct winsize`: ioctl_tty(2).
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ as _, &raw mut size) };
    (rc == 0 && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Keys come one by one, unseen, until this is dropped. Ctrl-C comes as a key, too.
pub struct KeyMode<'f> {
    fd: BorrowedFd<'f>,
    before: libc::termios,
}

impl<'f> KeyMode<'f> {
    /// Sets the terminal `fd`.
    ///
    /// # Errors
    /// `ENOTTY` if it is none.
    pub fn set(fd: BorrowedFd<'f>) -> io::Result<KeyMode<'f>> {
        // SAFETY: zeros are a `struct termios`; the call writes one.
        let mut now: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `fd` is borrowed, so open for the whole call, which keeps no pointer.
        super::cvt(unsafe { libc::tcgetattr(fd.as_raw_fd(), &raw mut now) })?;
        let before = now;
        now.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG);
        // SAFETY: as above; the call reads one.
        super::cvt(unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &raw const now) })?;
        Ok(KeyMode { fd, before })
    }
}

impl Drop for KeyMode<'_> {
    fn drop(&mut self) {
        // SAFETY: `fd` is borrowed, so open for the whole call, which reads one `struct termios`. A terminal that has gone
        // needs no mending.
        unsafe { libc::tcsetattr(self.fd.as_raw_fd(), libc::TCSANOW, &raw const self.before) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_no_terminal_has_neither_size_nor_keys() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(size(file.as_fd()), None);
        assert!(KeyMode::set(file.as_fd()).is_err());
    }
}
