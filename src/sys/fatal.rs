//! The last words of a process that stops itself.
//!
//! A broken promise inside the program ends it at once: as a panic, with its text, where the toolchain's own standard library is
//! linked; as a bare trap in the routers' programs (`ci/cross`), which have no text for it. The trap's address takes its
//! place: with the symbols of that build it tells the line.

use std::ptr::null_mut;

/// From now on a trap is told of on standard error, which procd puts into the log, before it ends the process as it would.
pub fn tell_of_traps() {
    for signal in [libc::SIGILL, libc::SIGTRAP] {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = last_words;
        // SAFETY: all zeros is a valid `sigaction`, whose mask is then empty.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
        // SAFETY: the action is whole, its handler has the signature that SA_SIGINFO asks for and calls only what
        // signal-safety(7) lists; the kernel keeps no pointer to it. It cannot fail for these two signals.
        unsafe { libc::sigaction(signal, &raw const action, null_mut()) };
    }
}

/// What is said of `address`; nothing is allocated.
fn words(address: u64) -> [u8; WORDS.len()] {
    let mut line = *WORDS;
    let digits = line.iter_mut().skip(AT).take(16);
    for (n, digit) in digits.enumerate() {
        *digit = b"0123456789abcdef"[(address >> (60 - 4 * n) & 15) as usize];
    }
    line
}

const WORDS: &[u8; 100] =
    b"tproxyd: stopped by a defect at 0x0000000000000000; please report this line and `tproxyd --version`\n";

/// Where the digits begin.
const AT: usize = b"tproxyd: stopped by a defect at 0x".len();

extern "C" fn last_words(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with SA_SIGINFO; for a trap `si_addr` is its address, for a
    // signal that somebody sent it is a number without meaning.
    let (address, sent) = unsafe { ((*info).si_addr().addr() as u64, (*info).si_code <= 0) };
    let line = words(address);
    // SAFETY: `line` is whole, and write(2) and raise(3) may be called by a handler. What write(2) returns matters no more.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        if sent {
            // the handler is no longer in force; a trap comes again by itself
            libc::raise(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_where_the_words_have_room_for_it() {
        let said = String::from_utf8(words(0x000a_1b2c).to_vec()).unwrap();
        assert!(said.starts_with("tproxyd: stopped by a defect at 0x00000000000a1b2c; please report"), "{said}");
    }
}
