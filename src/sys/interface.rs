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

/// The name of interface number `index`: if_indextoname(3).
///
/// # Errors
/// `ENXIO` if there is no such interface.
pub fn name(index: u32) -> io::Result<String> {
    let mut buffer = [0_u8; libc::IFNAMSIZ];
    // SAFETY: the call writes at most IFNAMSIZ bytes, the terminator included, and keeps no pointer.
    if unsafe { libc::if_indextoname(index, buffer.as_mut_ptr().cast()) }.is_null() {
        return Err(io::Error::last_os_error());
    }
    let end = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
    Ok(String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_a_number_and_nonsense_has_none() {
        assert_eq!(index("lo").unwrap(), 1);
        assert_eq!(name(1).unwrap(), "lo");
        assert!(name(u32::MAX).is_err());
        for nonsense in ["", "no-such-if", "a-name-of-16-chars", "lo\0"] {
            assert!(index(nonsense).is_err(), "{nonsense:?}");
        }
    }
}
