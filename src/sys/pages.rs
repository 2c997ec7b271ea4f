//! The program's allocator: what is large comes from the kernel page by page.
//!
//! Tables and buffers are reserved at the start and must not cost memory before they are used. The allocator of the C library
//! that the routers' static programs carry fills zeroed memory by hand, which would touch all of it: 11 MB instead of half a
//! megabyte.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;

/// Large pieces from `mmap`, all else from the C library.
pub struct Allocator;

/// From this size on a piece has pages of its own. There are few pieces of that size, nearly all of them tables from the start.
const LARGE: usize = 8 * 1024;

/// Alignment that every page has, whatever its size.
const PAGE: usize = 4096;

fn has_own_pages(layout: &Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE
}

// SAFETY: which of both sources a piece comes from depends on its layout alone, and the caller gives the same one to `dealloc`.
// `realloc` is left to the trait, which allocates, copies and deallocates, so it may cross from one source to the other.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if has_own_pages(&layout) {
            return map(layout.size());
        }
        // SAFETY: the caller keeps the promises of `GlobalAlloc`, which are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if has_own_pages(&layout) {
            return map(layout.size());
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if has_own_pages(&layout) {
            // SAFETY: `at` came from `map` with this size, and nobody uses it any more.
            unsafe { libc::munmap(at.cast(), layout.size()) };
        } else {
            // SAFETY: as above.
            unsafe { System.dealloc(at, layout) }
        }
    }
}

/// Fresh pages, which are zero; null if there are none.
fn map(size: usize) -> *mut u8 {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: without MAP_FIXED no memory that is in use is touched.
    let at = unsafe { libc::mmap(null_mut(), size, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED { null_mut() } else { at.cast() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_pieces_are_zero_whole_and_can_grow_from_one_to_the_other() {
        for size in [1, LARGE - 1, LARGE, 10 * LARGE] {
            let layout = Layout::from_size_align(size, 16).unwrap();
            // SAFETY: the layout is not empty, all that is touched lies within the piece, and it is freed once.
            unsafe {
                let at = Allocator.alloc_zeroed(layout);
                assert!(std::slice::from_raw_parts(at, size).iter().all(|octet| *octet == 0));
                at.write_bytes(7, size);
                let grown = Allocator.realloc(at, layout, size + LARGE);
                assert!(std::slice::from_raw_parts(grown, size).iter().all(|octet| *octet == 7));
                Allocator.dealloc(grown, Layout::from_size_align(size + LARGE, 16).unwrap());
            }
        }
    }

    #[test]
    fn reserved_memory_is_not_touched() {
        let size = 64 << 20;
        let layout = Layout::from_size_align(size, 16).unwrap();
        let before = crate::sys::memory::usage().used;
        // SAFETY: the layout is not empty, and the piece is freed once.
        unsafe {
            let at = Allocator.alloc_zeroed(layout);
            assert!(crate::sys::memory::usage().used < before + size as u64 / 2);
            Allocator.dealloc(at, layout);
        }
    }
}
