//! How much memory this process takes, as the kernel counts it.

use std::fs::File;
use std::io::Read;

/// Memory of this process in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Now: its private pages, and its share of those that it has in common with others (the binary, with the helper). On
    /// kernels before 4.14 all resident pages.
    pub used: u64,
    /// Most resident pages ever, shared ones included (`VmHWM`).
    pub peak: u64,
}

/// Asks the kernel. It walks the page tables of this process, which is a matter of microseconds for a small one; nothing is
/// allocated.
pub fn usage() -> Usage {
    let mut buffer = [0; 4096];
    let status = read("/proc/self/status", &mut buffer);
    let (resident, peak) = (field(status, "VmRSS:"), field(status, "VmHWM:"));
    let used = field(read("/proc/self/smaps_rollup", &mut buffer), "Pss:");
    let used = used.or(resident).unwrap_or(0);
    Usage { used, peak: peak.unwrap_or(0).max(used) }
}

/// Bytes of this process's address space that files are mapped to: the binary, and the C library if it is linked to one.
/// No more than this can ever be resident of them.
pub fn mapped_files() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let lengths = maps.lines().filter_map(|line| {
        // proc_pid_maps(5): START-END PERMISSIONS OFFSET DEVICE INODE PATH
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let is_file = rest.split_ascii_whitespace().nth(4).is_some_and(|path| path.starts_with('/'));
        let length = u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)?;
        is_file.then_some(length)
    });
    lengths.sum()
}

fn read<'b>(path: &str, buffer: &'b mut [u8]) -> &'b str {
    let mut filled = 0;
    if let Ok(mut file) = File::open(path) {
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read(rest) {
                Ok(0) | Err(_) => break,
                Ok(n) => filled += n,
            }
        }
    }
    std::str::from_utf8(buffer.get(..filled).unwrap_or_default()).unwrap_or_default()
}

/// `Name:   123 kB` in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_is_counted() {
        let before = usage();
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = usage();
        // other tests of the same process give some back meanwhile
        assert!(after.used >= before.used + (16 << 20), "{before:?} {after:?}");
        assert!(after.peak >= after.used && before.used > 0);
        drop(touched);
        // the kernel counts pages by CPU and adds up now and then
        assert!(usage().peak >= after.used - (16 << 20));
    }

    #[test]
    fn the_binary_is_mapped() {
        assert!(mapped_files() > 100_000);
    }

    #[test]
    fn a_field_is_told_from_another_of_a_longer_name() {
        let text = "PssX:  1 kB\nPss:     12 kB\nPss_Anon: 3 kB\n";
        assert_eq!(field(text, "Pss:"), Some(12 * 1024));
        assert_eq!(field(text, "Swap:"), None);
    }
}
