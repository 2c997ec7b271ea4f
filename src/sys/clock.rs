//! The clock on the wall, and a descriptor that tells when it reaches a moment, or is set.

use super::{cvt, cvt_len};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970, as the kernel believes.
pub fn utc() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// timerfd_create(2) by `CLOCK_REALTIME`: readable at the moment that was set, and when the clock has been set (by `date`,
/// or by NTP in a step; small corrections are none).
#[derive(Debug)]
pub struct Alarm(OwnedFd);

impl Alarm {
    /// Not set yet; does not block.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> io::Result<Alarm> {
        // SAFETY: no memory is passed.
        let fd = cvt(unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) })?;
        // SAFETY: the kernel has just opened it, and nobody else knows it.
        Ok(Alarm(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Rings at `utc`, seconds since 1970; `None`: never.
    ///
    /// # Errors
    /// Those of timerfd_settime(2).
    pub fn set(&self, utc: Option<i64>) -> io::Result<()> {
        // SAFETY: integers only, for which zero is a value.
        let mut when: libc::itimerspec = unsafe { std::mem::zeroed() };
        // 0 would be "never", and 2038 is where a time_t of 32 bits ends
        when.it_value.tv_sec = utc.map_or(0, |utc| utc.clamp(1, i32::MAX.into())) as _;
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        // SAFETY: `when` lives over the call, and the old value is not asked for.
        cvt(unsafe { libc::timerfd_settime(self.0.as_raw_fd(), flags, &raw const when, std::ptr::null_mut()) })?;
        Ok(())
    }

    /// Takes what made it readable: true if it rang, or the clock was set (`ECANCELED`).
    pub fn take(&self) -> bool {
        let mut count = [0_u8; 8];
        // SAFETY: the kernel writes at most the eight octets of `count`.
        let read = unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        cvt_len(read).map_or_else(|error| error.raw_os_error() == Some(libc::ECANCELED), |_| true)
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::passing;
    use std::os::fd::AsFd;
    use std::time::Duration;

    #[test]
    fn it_rings_at_a_moment_that_has_passed_and_once() {
        let alarm = Alarm::new().unwrap();
        assert!(!alarm.take());
        alarm.set(Some(utc() - 1)).unwrap();
        passing::wait_readable(alarm.0.as_fd(), Duration::from_secs(10)).unwrap();
        assert!(alarm.take() && !alarm.take());
        alarm.set(None).unwrap();
        assert!(!alarm.take());
    }
}
