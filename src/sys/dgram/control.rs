//! Control messages of datagrams that are sent.

use std::net::IpAddr;

/// `UDP_SEGMENT`, linux/udp.h.
const UDP_SEGMENT: libc::c_int = 103;

/// Writes which source address the datagram shall have (`IP_PKTINFO`'s `ipi_spec_dst`, ip(7); `IPV6_PKTINFO`, RFC 3542
/// section 6) behind the first `used` octets of the control buffer; returns the octets written.
pub(in crate::sys) fn write_source(header: &libc::msghdr, used: usize, source: IpAddr) -> usize {
    match source {
        IpAddr::V4(v4) => {
            let source = libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: libc::in_addr { s_addr: 0 } };
            write(header, used, (libc::SOL_IP, libc::IP_PKTINFO), info)
        }
        IpAddr::V6(v6) => {
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: v6.octets() }, ipi6_ifindex: 0 };
            write(header, used, (libc::SOL_IPV6, libc::IPV6_PKTINFO), info)
        }
    }
}

/// Writes that the payload is a row of datagrams of `size` octets each (`UDP_SEGMENT`).
pub(in crate::sys) fn write_segment(header: &libc::msghdr, used: usize, size: u16) -> usize {
    write(header, used, (libc::SOL_UDP, UDP_SEGMENT), size)
}

/// Writes one control message behind the first `used` octets, which are whole messages.
fn write<T: Copy>(header: &libc::msghdr, used: usize, (level, kind): (libc::c_int, libc::c_int), value: T) -> usize {
    let len = size_of::<T>() as libc::c_uint;
    // SAFETY: no pointers are followed.
    let space = unsafe { libc::CMSG_SPACE(len) } as usize;
    // msg_controllen has another type with musl
    #[allow(clippy::unnecessary_cast)]
    let room = header.msg_controllen as usize;
    assert!(used + space <= room, "control buffers hold every message that is written");
    // SAFETY: `used` is a sum of CMSG_SPACEs, so the place is aligned for cmsghdr, and the message ends within the buffer, as
    // was just asserted.
    unsafe {
        let at = header.msg_control.cast::<u8>().add(used).cast::<libc::cmsghdr>();
        (*at).cmsg_level = level;
        (*at).cmsg_type = kind;
        (*at).cmsg_len = libc::CMSG_LEN(len) as _;
        libc::CMSG_DATA(at).cast::<T>().write_unaligned(value);
    }
    space
}
