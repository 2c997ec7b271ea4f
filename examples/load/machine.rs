//! What Debian's tools do elsewhere, for machines that have none of them.
#![allow(unsafe_code, reason = "two ioctls that no crate of ours knows")]

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// What the pool of random numbers is given: every run of the benchmark draws the same.
const SEED: &[u8; 64] = b"the same figures at every run, as long as nothing else is change";

/// Credits the kernel's random pool: where the clock counts instructions there is no jitter to fill it, and whoever asks for
/// random numbers would wait for ever.
pub(crate) fn seed() -> io::Result<String> {
    #[repr(C)]
    struct Pool {
        bits: libc::c_int,
        len: libc::c_int,
        bytes: [u8; 64],
    }
    // RNDADDENTROPY, linux/random.h; MIPS numbers its ioctls otherwise
    const ADD: u32 = if cfg!(any(target_arch = "mips", target_arch = "mips32r6")) { 0x8008_5203 } else { 0x4008_5203 };
    let pool = Pool { bits: 512, len: 64, bytes: *SEED };
    let random = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the descriptor is open, and the kernel only reads what `pool` holds.
    let done = unsafe { libc::ioctl(random.as_raw_fd(), ADD as _, &raw const pool) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok("seeded".to_owned()) }
}

/// Switches an offload of a device, as `ethtool -K` does.
pub(crate) fn nic(device: &str, feature: &str, on: bool) -> io::Result<String> {
    #[repr(C)]
    struct Value {
        command: u32,
        value: u32,
    }
    // linux/ethtool.h: ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO
    let command = match feature {
        "tso" => 0x1f,
        "gso" => 0x24,
        "gro" => 0x2c,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "tso, gso or gro")),
    };
    const SIOCETHTOOL: u32 = 0x8946;
    let mut value = Value { command, value: on.into() };
    // SAFETY: ifreq is plain integers and pointers, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as _;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: the request and the value that it points to live through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(format!("{device}: {feature} {on}")) }
}
