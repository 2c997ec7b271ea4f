//! Numbers as people read them.

/// `512 B`, `1.2 KiB`, `34 MiB`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut unit, mut shift) = ("B", 0);
    for larger in UNITS {
        // what would be shown as 1024 is shown as 1.0 of the next
        if u128::from(bytes) * 2 < 2047 << shift {
            break;
        }
        (unit, shift) = (larger, shift + 10);
    }
    // in integers: formatting floats would cost 10 KB
    let rounded = |of: u128| (of + (1 << shift) / 2) >> shift;
    let tenths = rounded(u128::from(bytes) * 10);
    if unit == "B" || tenths >= 100 {
        format!("{} {unit}", rounded(bytes.into()))
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

/// `0 bit/s`, `640 bit/s`, `1.2 Mbit/s`, of bits per second.
pub(super) fn bits(bits: u64) -> String {
    const UNITS: [&str; 4] = ["kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    // in integers, as above
    let (bits, mut unit, mut size) = (u128::from(bits), "bit/s", 1);
    for larger in UNITS {
        if bits * 2 < 1999 * size {
            break;
        }
        (unit, size) = (larger, size * 1000);
    }
    let tenths = (bits * 20 + size) / (size * 2);
    if unit == "bit/s" || tenths >= 100 {
        format!("{} {unit}", (bits * 2 + size) / (size * 2))
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

/// `45 s`, `3 min 5 s`, `2 h 13 min`, `3 d 4 h`.
pub(super) fn seconds(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let largest = UNITS.iter().position(|(size, _)| seconds >= *size).unwrap_or(UNITS.len() - 1);
    let (size, unit) = UNITS[largest];
    let first = format!("{} {unit}", seconds / size);
    match UNITS.get(largest + 1) {
        Some((small, unit)) if seconds % size >= *small => format!("{first} {} {unit}", seconds % size / small),
        _ => first,
    }
}

/// `2026-11-25 02:10:33 UTC`, of seconds since 1970.
pub(super) fn moment(time: u64) -> String {
    let (days, second) = (time / 86_400, time % 86_400);
    // days since 1 March of year 0, in eras of 400 years, so that the leap day stands at the end of its year
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (era * 400 + year, month + 3) } else { (era * 400 + year + 1, month - 9) };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_two_or_three_figures() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10 * 1024, "10 KiB"),
            (1_048_575, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn rates_have_two_or_three_figures() {
        for (n, text) in [
            (0, "0 bit/s"),
            (999, "999 bit/s"),
            (1000, "1.0 kbit/s"),
            (1249, "1.2 kbit/s"),
            (9_949, "9.9 kbit/s"),
            (9_950, "10 kbit/s"),
            (999_499, "999 kbit/s"),
            (999_500, "1.0 Mbit/s"),
            (2_500_000_000, "2.5 Gbit/s"),
            (u64::MAX, "18446744 Tbit/s"),
        ] {
            assert_eq!(bits(n), text);
        }
    }

    #[test]
    fn spans_have_two_units_at_most() {
        for (n, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (185, "3 min 5 s"),
            (7_980, "2 h 13 min"),
            (86_400, "1 d"),
            (273_600, "3 d 4 h"),
            (86_459, "1 d"),
        ] {
            assert_eq!(seconds(n), text);
        }
    }

    #[test]
    fn a_moment_is_told_by_the_calendar() {
        for (n, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_795_572_633, "2026-11-25 02:10:33 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(moment(n), text);
        }
    }
}
