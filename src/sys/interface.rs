//! Network interfaces by name and by number.

use std::io;

/// The number of an interface, as in the scope of a link-local address: if_nametoindex(3).
///
/// # Errors
/// `ENODEV` if there is no such interface.
pub fn index(name: &str) -> io::Result<u32> {
    let mut terminated = [0_u8; libc::IFNAMSIZ];
    // IFNAMSIZ counts the terminator; a longer name, or one with a terminator in it, is that of no interface.
    if name.len() >= terminated.len() || name.as_bytes().contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    terminated[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: `terminated` ends in a zero, and the call keeps no pointer.
    match unsafe { libc::if_nametoindex(terminated.as_ptr().cast()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_a_number_and_nonsense_has_none() {
        assert_eq!(index("lo").unwrap(), 1);
        for nonsense in ["", "no-such-if", "a-name-of-16-chars", "lo\0"] {
            assert!(index(nonsense).is_err(), "{nonsense:?}");
        }
    }
}
