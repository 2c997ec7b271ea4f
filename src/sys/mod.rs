//! The one room that says `unsafe` and `libc`: thin, checked doors to the kernel. Nothing here decides anything.
#![allow(unsafe_code)]

pub mod clock;
pub mod dgram;
pub mod errqueue;
pub mod fatal;
pub mod ingress;
pub mod interface;
pub mod memory;
pub mod netlink;
pub mod pages;
pub mod passing;
pub mod process;
pub mod random;
pub mod raw;
pub mod sandbox;
pub mod sockaddr;
pub mod socket;
pub mod sockopt;
pub mod splice;
pub mod terminal;
pub mod unix;

use std::io;

/// Turns a return code of -1 into the `errno` it left.
pub(crate) fn cvt(rc: libc::c_int) -> io::Result<libc::c_int> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// [`cvt`] for calls that return a length.
pub(crate) fn cvt_len(rc: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(rc).map_err(|_| io::Error::last_os_error())
}

/// True if `error` says that there are no descriptors left (`EMFILE`, `ENFILE`) or no kernel memory (`ENOBUFS`,
/// `ENOMEM`): the call may succeed later, and trying at once again would spin.
pub fn out_of_resources(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// True if `error` concerns only the connection that `accept` would have returned, so the next call may succeed at once
/// (accept(2), "Error handling": pending network errors of the new socket).
pub fn accept_may_go_on(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    )
}

/// True if the kernel has no such address family (`EAFNOSUPPORT`) or it is switched off (`EADDRNOTAVAIL` on `::`).
pub fn no_such_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// True if the datagram was larger than the way allows (`EMSGSIZE`).
pub fn too_large(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_classes_are_told_apart() {
        let error = io::Error::from_raw_os_error;
        assert!(out_of_resources(&error(libc::EMFILE)) && out_of_resources(&error(libc::ENFILE)));
        assert!(!out_of_resources(&error(libc::ECONNABORTED)) && accept_may_go_on(&error(libc::ECONNABORTED)));
        assert!(no_such_family(&error(libc::EAFNOSUPPORT)) && !no_such_family(&error(libc::EINVAL)));
    }
}
