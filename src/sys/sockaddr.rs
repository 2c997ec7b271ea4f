//! `sockaddr` ⇄ `SocketAddr`. The one place where v4-mapped v6 addresses are wrapped and unwrapped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A socket address as the kernel reads and writes it, big enough for both families.
#[derive(Clone, Copy)]
pub struct RawAddr {
    // sockaddr_in6 is the larger of the two and has the stricter alignment; sockaddr_in is laid over it
    storage: libc::sockaddr_in6,
    len: libc::socklen_t,
}

/// Room for the address of either family.
pub(crate) const CAPACITY: libc::socklen_t = size_of::<libc::sockaddr_in6>() as libc::socklen_t;

impl RawAddr {
    /// An empty address for the kernel to fill.
    pub(crate) fn empty() -> RawAddr {
        // SAFETY: sockaddr_in6 is plain integers, for which all zeroes is a value.
        RawAddr { storage: unsafe { std::mem::zeroed() }, len: CAPACITY }
    }

    /// `address` in its own family.
    pub fn new(address: SocketAddr) -> RawAddr {
        match address {
            SocketAddr::V4(v4) => {
                let mut raw = RawAddr::empty();
                // SAFETY: sockaddr_in is smaller than sockaddr_in6 and less aligned, and both are plain integers.
                let sin = unsafe { &mut *(&raw mut raw.storage).cast::<libc::sockaddr_in>() };
                sin.sin_family = libc::AF_INET as libc::sa_family_t;
                sin.sin_port = v4.port().to_be();
                sin.sin_addr = libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) };
                raw.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
                raw
            }
            SocketAddr::V6(v6) => RawAddr::v6(v6),
        }
    }

    /// `address` for a dual-stack v6 socket: v4 becomes v4-mapped.
    pub fn mapped(address: SocketAddr) -> RawAddr {
        match address {
            SocketAddr::V4(v4) => RawAddr::v6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0)),
            SocketAddr::V6(v6) => RawAddr::v6(v6),
        }
    }

    fn v6(address: SocketAddrV6) -> RawAddr {
        let mut raw = RawAddr::empty();
        raw.storage.sin6_family = libc::AF_INET6 as libc::sa_family_t;
        raw.storage.sin6_port = address.port().to_be();
        raw.storage.sin6_addr = libc::in6_addr { s6_addr: address.ip().octets() };
        raw.storage.sin6_scope_id = address.scope_id();
        raw
    }

    /// The address, v4-mapped ones as v4; `None` if the kernel wrote another family or nothing.
    pub fn get(&self) -> Option<SocketAddr> {
        match libc::c_int::from(self.storage.sin6_family) {
            libc::AF_INET if self.len as usize >= size_of::<libc::sockaddr_in>() => {
                // SAFETY: as in `new`; the family says that this is what the kernel wrote.
                let sin = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in>() };
                Some(from_in(sin))
            }
            libc::AF_INET6 if self.len >= CAPACITY => Some(from_in6(&self.storage)),
            _ => None,
        }
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    pub(crate) fn len(&self) -> libc::socklen_t {
        self.len
    }

    pub(crate) fn len_mut(&mut self) -> &mut libc::socklen_t {
        &mut self.len
    }

    pub(crate) fn set_len(&mut self, len: libc::socklen_t) {
        self.len = len;
    }
}

/// A `sockaddr_in` as the kernel wrote it.
pub(crate) fn from_in(sin: &libc::sockaddr_in) -> SocketAddr {
    let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
    SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(sin.sin_port)))
}

/// A `sockaddr_in6` as the kernel wrote it, a v4-mapped address as v4.
pub(crate) fn from_in6(sin6: &libc::sockaddr_in6) -> SocketAddr {
    let ip = Ipv6Addr::from(sin6.sin6_addr.s6_addr);
    let port = u16::from_be(sin6.sin6_port);
    match ip.to_ipv4_mapped() {
        Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
        None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, sin6.sin6_scope_id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_come_back_as_they_went_in() {
        for text in ["203.0.113.9:443", "[2001:db8::9]:53", "0.0.0.0:0", "[::]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddr::new(address).get(), Some(address), "{text}");
            assert_eq!(RawAddr::mapped(address).get(), Some(address), "{text} through a v6 socket");
        }
    }

    #[test]
    fn a_scope_id_is_kept() {
        let address = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 1, 0, 7));
        assert_eq!(RawAddr::new(address).get(), Some(address));
    }

    #[test]
    fn nothing_written_is_no_address() {
        assert_eq!(RawAddr::empty().get(), None);
        let mut short = RawAddr::new("203.0.113.9:443".parse().unwrap());
        short.set_len(4);
        assert_eq!(short.get(), None);
    }
}
