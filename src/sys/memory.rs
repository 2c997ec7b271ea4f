//! How much memory this process takes, as the kernel counts it, and how it gives back what it no longer uses.

use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;

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

/// Gives the whole pages of `spare` back to the kernel. There is nothing in it, so nobody can tell.
pub fn discard<T>(spare: &mut [MaybeUninit<T>]) {
    give_back(spare.as_mut_ptr().cast(), size_of_val(spare));
}

/// Sets everything to zero; whole pages by giving them back to the kernel, which hands out zeroes when they are touched again.
pub fn clear<T: Number>(numbers: &mut [T]) {
    let (at, len) = (numbers.as_mut_ptr(), numbers.len());
    let (before, given) = give_back(at.cast(), size_of_val(numbers));
    // pages begin and end between two numbers, whose sizes divide a page's
    let (before, behind) = (before / size_of::<T>(), (before + given) / size_of::<T>());
    numbers[..before.min(len)].fill(T::default());
    numbers[behind.min(len)..].fill(T::default());
}

/// Numbers whose zero is all zero bits.
pub trait Number: Copy + Default {}
impl Number for u8 {}
impl Number for u16 {}
impl Number for u64 {}

fn page_size() -> usize {
    // SAFETY: no memory is touched.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Gives the whole pages among `len` bytes from `at` on back; returns how many bytes lie before them, and how many they have.
fn give_back(at: *mut u8, len: usize) -> (usize, usize) {
    let page = page_size();
    let before = at.align_offset(page).min(len);
    let given = (len - before) / page * page;
    // SAFETY: the range lies within what the caller has borrowed exclusively, whose bytes may all become zero; it comes from
    // the allocator, so it is anonymous private memory, of which MADV_DONTNEED takes the content and leaves the mapping.
    if given == 0 || unsafe { libc::madvise(at.add(before).cast(), given, libc::MADV_DONTNEED) } != 0 {
        return (len, 0);
    }
    (before, given)
}

/// Gives back the pages of the stack below what is in use: starting takes more of it than anything that comes after. Does
/// nothing in a thread other than the first.
#[inline(never)]
pub fn discard_stack() {
    let here = 0_u8;
    let here = (&raw const here).addr();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Some(start) = stack_of(&maps, here) else { return };
    let unused = (here - UNTOUCHED) / page_size() * page_size();
    if unused > start {
        let at = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is part of this thread's stack and below every frame: `madvise` is given `UNTOUCHED` bytes for its
        // own. Whoever uses these pages next writes to them before reading, so that they may become zero.
        unsafe { libc::madvise(at, unused - start, libc::MADV_DONTNEED) };
    }
}

/// Room that is left to the frames below the one that asks; these are two, of some hundred bytes.
const UNTOUCHED: usize = 16 * 1024;

/// Where the stack of the first thread begins, if `address` lies in it; as proc_pid_maps(5) lists it.
fn stack_of(maps: &str, address: usize) -> Option<usize> {
    let line = maps.lines().find(|line| line.ends_with("[stack]"))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (start..end).contains(&address).then_some(start)
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
    fn the_stack_is_given_back_by_the_thread_whose_it_is() {
        let maps =
            "00010000-00020000 r-xp 00000000 00:00 0   /bin/x\n7ffd0000-7fff1000 rw-p 00000000 00:00 0   [stack]\n";
        assert_eq!(stack_of(maps, 0x7ffe_0000), Some(0x7ffd_0000));
        assert_eq!(stack_of(maps, 0x1_8000), None);
        assert_eq!(stack_of("", 0x1_8000), None);
        let kept = std::hint::black_box([7_u8; 4096]);
        discard_stack();
        assert_eq!(std::hint::black_box(kept), [7; 4096]);
    }

    #[test]
    fn a_field_is_told_from_another_of_a_longer_name() {
        let text = "PssX:  1 kB\nPss:     12 kB\nPss_Anon: 3 kB\n";
        assert_eq!(field(text, "Pss:"), Some(12 * 1024));
        assert_eq!(field(text, "Swap:"), None);
    }

    #[test]
    fn what_is_cleared_is_zero_everywhere_and_what_is_beside_it_stays() {
        let mut numbers = vec![7_u16; 100_000];
        for (from, to) in [(1, 99_990), (5, 9), (0, 0), (50_000, 51_000)] {
            numbers.fill(7);
            clear(&mut numbers[from..to]);
            assert!(numbers[from..to].iter().all(|n| *n == 0));
            assert!(numbers[..from].iter().chain(&numbers[to..]).all(|n| *n == 7));
        }
        clear(&mut vec![1_u64; 10_000]);
    }

    #[test]
    fn discarded_pages_are_no_longer_resident() {
        let mut memory: Vec<u64> = Vec::with_capacity(4 << 20);
        memory.resize(4 << 20, 1);
        let before = usage().used;
        memory.truncate(10);
        discard(memory.spare_capacity_mut());
        // others run beside it, but do not take 16 MB
        assert!(before - usage().used.min(before) > 16 << 20);
        assert_eq!(memory, [1; 10]);
    }
}
