//! Sizes that follow the memory of the machine: what `auto` stands for.

/// `tcp_sessions` and `udp_sessions`: 1024 at 64 MB, 4096 at 256 MB, in proportion, from 128 to 16384 (1 GB and more).
pub(super) fn sessions(total_memory: u64) -> u32 {
    let sessions = installed(total_memory) / (64 * KIB);
    u32::try_from(sessions.clamp(128, super::schema::MOST_SESSIONS)).unwrap_or(128)
}

/// [`sessions`] that `descriptors` hold as well: two tables, two for each session, some for everything else.
pub(super) fn sessions_within(total_memory: u64, descriptors: u64) -> u32 {
    let held = descriptors.saturating_sub(500) / 4;
    sessions(total_memory).min(u32::try_from(held.max(128)).unwrap_or(u32::MAX))
}

/// `relay_memory` in bytes: 2M at 64 MB, 8M at 256 MB, in proportion, from 256K to 32M (1 GB and more).
pub(super) fn relay_memory(total_memory: u64) -> u64 {
    (installed(total_memory) / 32).clamp(256 * KIB, 32 * 1024 * KIB)
}

/// `kernel_set_max`: 16384 at 256 MB, in proportion, from 2048 to 65536. An interval takes 150 bytes of the kernel, and
/// several times that of `nft` while it is loaded.
pub(super) fn kernel_set_max(total_memory: u64) -> u32 {
    let intervals = installed(total_memory) / (16 * KIB);
    u32::try_from(intervals.clamp(2048, 65_536)).unwrap_or(2048)
}

/// The memory that is printed on the box. The kernel shows less (57 to 61 of 64 MB), having taken its own share, so that
/// it is rounded up to the next quarter of a power of two. 0, unknown, counts as 64 MB.
fn installed(total_memory: u64) -> u64 {
    let total = if total_memory == 0 { 64 * 1024 * KIB } else { total_memory };
    let quarter = (1u64 << total.ilog2()) / 4;
    if quarter == 0 { total } else { total.div_ceil(quarter).saturating_mul(quarter) }
}

const KIB: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * KIB;

    #[test]
    fn the_figures_of_the_contract_hold_for_what_the_kernel_shows_of_that_memory() {
        for shown in [57, 59, 61, 64] {
            assert_eq!((sessions(shown * MIB), relay_memory(shown * MIB)), (1024, 2 * MIB), "{shown}");
        }
        for shown in [230, 243, 250, 256] {
            assert_eq!((sessions(shown * MIB), relay_memory(shown * MIB)), (4096, 8 * MIB), "{shown}");
        }
        assert_eq!((sessions(120 * MIB), relay_memory(120 * MIB)), (2048, 4 * MIB));
    }

    #[test]
    fn a_low_descriptor_limit_makes_the_tables_smaller() {
        assert_eq!(sessions_within(256 * MIB, 20_000), 4096);
        assert_eq!(sessions_within(1024 * MIB, 20_000), 4875);
        assert_eq!(sessions_within(1024 * MIB, 64), 128);
        assert_eq!(sessions_within(1024 * MIB, u64::MAX), 16_384);
    }

    #[test]
    fn very_much_and_very_little_memory_stay_within_the_range() {
        assert_eq!((sessions(0), relay_memory(0)), (1024, 2 * MIB));
        assert_eq!((sessions(1), relay_memory(1)), (128, 256 * KIB));
        assert_eq!((sessions(8 << 40), relay_memory(8 << 40)), (16_384, 32 * MIB));
        assert_eq!((sessions(u64::MAX), relay_memory(u64::MAX)), (16_384, 32 * MIB));
    }
}
