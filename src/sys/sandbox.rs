//! The filter of system calls that the network process puts on itself: seccomp(2), where the build has it.
//!
//! A call that is not on the list does not end the process, since all traffic of a house hangs on it: the kernel sends
//! SIGSYS, the handler notes which call it was, and the caller sees `ENOSYS`, as from a kernel that has no such call. C
//! libraries have a second way for that answer, and whoever has taken the process over gets no further by it.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

#[cfg(all(feature = "sandbox", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
mod calls;
#[cfg(all(feature = "sandbox", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
mod filter;

/// True if this build can filter at all: its features and its processor have it.
pub const BUILT: bool =
    cfg!(all(feature = "sandbox", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")));

/// The last call that was refused, [`NONE`] if it was taken.
static REFUSED: AtomicI32 = AtomicI32::new(NONE);

/// No call has this number; even -1 is one that debuggers use.
const NONE: i32 = i32::MIN;

/// From here on this process gets only the system calls of the list. There is no way back.
///
/// To be called while the process has one thread.
///
/// # Errors
/// `Unsupported` if this build has none ([`BUILT`]) or the kernel lacks `CONFIG_SECCOMP_FILTER` (`EINVAL`, `ENOSYS`).
pub fn enter() -> io::Result<()> {
    #[cfg(all(feature = "sandbox", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
    return filter::install();
    #[cfg(not(all(
        feature = "sandbox",
        any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
    )))]
    Err(io::ErrorKind::Unsupported.into())
}

/// The number of the call that was refused last, once.
pub fn take_refused() -> Option<i32> {
    // (a read that costs nothing, since this is asked at every turn)
    if REFUSED.load(Ordering::Relaxed) == NONE {
        return None;
    }
    Some(REFUSED.swap(NONE, Ordering::Relaxed)).filter(|call| *call != NONE)
}
