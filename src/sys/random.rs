//! Random numbers from the kernel, never waited for.

use super::cvt_len;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

/// Fills `out` with octets that an outsider cannot guess: the kernel's generator, getrandom(2).
///
/// A router that has just booted may not have seeded it for minutes, and waiting would stop the loop. Then the unseeded
/// generator serves (`GRND_INSECURE`, Linux 5.6), and on older kernels the clock, the process id and where memory lies:
/// guessable with effort, but better than no traffic until then.
pub fn fill(out: &mut [u8]) {
    let mut rest = &mut out[..];
    for flags in [libc::GRND_NONBLOCK, libc::GRND_INSECURE] {
        while !rest.is_empty() {
            match getrandom(rest, flags) {
                Ok(n) => rest = &mut rest[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }
    fill_poorly(rest);
}

/// 16 random bits.
pub fn u16() -> u16 {
    let mut octets = [0; 2];
    fill(&mut octets);
    u16::from_ne_bytes(octets)
}

/// 64 random bits.
pub fn u64() -> u64 {
    let mut octets = [0; 8];
    fill(&mut octets);
    u64::from_ne_bytes(octets)
}

/// One call: at least one octet, since the kernel answers `EAGAIN` instead of zero.
///
/// By number, not by libc's name: the standard library refers to that name weakly, and in a static program that is
/// optimized as a whole this made our reference weak too. Nothing was linked, and the call went nowhere.
fn getrandom(out: &mut [u8], flags: libc::c_uint) -> io::Result<usize> {
    // SAFETY: the kernel writes at most out.len() bytes into a slice that is ours alone for the call.
    cvt_len(unsafe { libc::syscall(libc::SYS_getrandom, out.as_mut_ptr(), out.len(), flags) } as isize)
}

/// What a process knows without the kernel's generator.
fn fill_poorly(out: &mut [u8]) {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    for chunk in out.chunks_mut(8) {
        let here = 0_u8;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Not RandomState: it panics where the kernel gives it nothing.
        let mut hasher = DefaultHasher::new();
        hasher.write_u32(CALLS.fetch_add(1, Ordering::Relaxed));
        hasher.write_u128(now.as_nanos());
        hasher.write_u32(std::process::id());
        hasher.write_usize((&raw const here).addr());
        hasher.write_usize((fill as fn(&mut [u8]) as *const ()).addr());
        chunk.copy_from_slice(&hasher.finish().to_ne_bytes()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fill = fn(&mut [u8]);

    #[test]
    fn every_octet_is_filled_whatever_the_length() {
        for fill in [fill as Fill, fill_poorly] {
            for length in 0..40 {
                // An octet that stays 0 in 16 fillings is one that is never written.
                let mut seen = vec![0_u8; length];
                for _ in 0..16 {
                    let mut out = vec![0; length];
                    fill(&mut out);
                    seen.iter_mut().zip(out).for_each(|(seen, octet)| *seen |= octet);
                }
                assert!(seen.iter().all(|octet| *octet != 0), "length {length}");
            }
        }
    }

    #[test]
    fn no_two_fillings_are_the_same() {
        for fill in [fill as Fill, fill_poorly] {
            let mut fillings = [[0_u8; 8]; 1000];
            fillings.iter_mut().for_each(|out| fill(out));
            fillings.sort_unstable();
            assert!(fillings.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }
}
