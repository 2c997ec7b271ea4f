//! `sockaddr` ⇄ `SocketAddr`. The one place where v4-mapped v6 addresses are wrapped and unwrapped.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

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
        let mut raw = RawAddr::empty();
        raw.set(&address);
        raw
    }

    /// Becomes `address` in its own family.
    pub(crate) fn set(&mut self, address: &SocketAddr) {
        match address {
            SocketAddr::V4(v4) => {
                // SAFETY: sockaddr_in is smaller than sockaddr_in6 and less aligned, and both are plain integers.
                let sin = unsafe { &mut *(&raw mut self.storage).cast::<libc::sockaddr_in>() };
                sin.sin_family = libc::AF_INET as libc::sa_family_t;
                sin.sin_port = v4.port().to_be();
                sin.sin_addr = libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) };
                self.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => self.set_v6(v6),
        }
    }

    /// `address` for a dual-stack v6 socket: v4 becomes v4-mapped.
    pub fn mapped(address: SocketAddr) -> RawAddr {
        match address {
            SocketAddr::V4(v4) => RawAddr::new(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()),
            v6 => RawAddr::new(v6),
        }
    }

    fn set_v6(&mut self, address: &SocketAddrV6) {
        self.storage.sin6_family = libc::AF_INET6 as libc::sa_family_t;
        self.storage.sin6_port = address.port().to_be();
        self.storage.sin6_flowinfo = 0;
        self.storage.sin6_addr = libc::in6_addr { s6_addr: address.ip().octets() };
        self.storage.sin6_scope_id = address.scope_id();
        self.len = CAPACITY;
    }

    /// Becomes none at all.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// The address, v4-mapped ones as v4; `None` if the kernel wrote another family or nothing.
    pub fn get(&self) -> Option<SocketAddr> {
        read(&self.storage, self.len)
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

/// What the kernel wrote as the address of either family, `len` octets of it.
pub(crate) fn read(storage: &libc::sockaddr_in6, len: libc::socklen_t) -> Option<SocketAddr> {
    match libc::c_int::from(storage.sin6_family) {
        libc::AF_INET if len as usize >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: as in `set`; the family says that this is what the kernel wrote.
            let sin = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            Some(from_in(sin))
        }
        libc::AF_INET6 if len >= CAPACITY => Some(from_in6(storage)),
        _ => None,
    }
}

/// A `sockaddr_in` as the kernel wrote it.
pub(crate) fn from_in(sin: &libc::sockaddr_in) -> SocketAddr {
    let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
    SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(sin.sin_port)))
}

/// A `sockaddr_in6` as the kernel wrote it, a v4-mapped address as v4.
pub(crate) fn from_in6(sin6: &libc::sockaddr_in6) -> SocketAddr {
    let octets = &sin6.sin6_addr.s6_addr;
    let port = u16::from_be(sin6.sin6_port);
    // by words: `to_ipv4_mapped` compares octet by octet where a program is built for size
    let (words, _) = octets.as_chunks::<4>();
    match *words {
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0xff, 0xff], v4] => {
            SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from(v4), port))
        }
        _ => SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(*octets), port, 0, sin6.sin6_scope_id)),
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
        let mut cleared = RawAddr::new("[2001:db8::1]:9".parse().unwrap());
        cleared.clear();
        assert_eq!(cleared.get(), None);
        cleared.set(&"203.0.113.9:443".parse().unwrap());
        assert_eq!(cleared.get(), Some("203.0.113.9:443".parse().unwrap()));
        let mut short = RawAddr::new("203.0.113.9:443".parse().unwrap());
        short.set_len(4);
        assert_eq!(short.get(), None);
    }
}
