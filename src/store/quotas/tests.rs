//! Accounts under a simulated calendar.

use super::*;
use proptest::prelude::*;

const TV: Grant = Grant { rule: 7, bytes: 1000, monthly: false };

fn ip(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

fn on(day: i32) -> Today {
    Today { day, month: day.div_euclid(30) }
}

/// A new flow moves so many bytes and ends; false: there was nothing left.
fn uses(quotas: &mut Quotas, of: Grant, n: u8, bytes: u64) -> bool {
    match quotas.take(of, ip(n), None) {
        Taken::Within(account) => {
            quotas.count(&account, bytes);
            quotas.give_back(account);
            true
        }
        other => {
            assert_eq!(other, Taken::UsedUp);
            false
        }
    }
}

#[test]
fn what_is_used_up_is_told_once_and_begins_anew_with_the_period() {
    let mut quotas = Quotas::new(8, 3);
    quotas.follow(on(100));
    assert!(uses(&mut quotas, TV, 1, 999) && uses(&mut quotas, TV, 1, 500) && uses(&mut quotas, TV, 2, 10));
    let told = quotas.next_used_up().expect("it is news");
    assert_eq!((told.rule, told.ip, told.used), (7, ip(1), 1499));
    assert!(!uses(&mut quotas, TV, 1, 1) && uses(&mut quotas, TV, 2, 10));
    assert_eq!((quotas.next_used_up(), quotas.used_up()), (None, 1));
    assert!(quotas.is_used_up(TV, ip(1), None) && !quotas.is_used_up(TV, ip(2), None));
    assert!(!quotas.follow(on(100)) && quotas.follow(on(101)));
    assert_eq!(quotas.usage().0, 0);
    assert!(uses(&mut quotas, TV, 1, 2000));
    assert!(quotas.next_used_up().is_some());
}

#[test]
fn a_live_flow_counts_on_in_the_new_period() {
    let mut quotas = Quotas::new(8, 3);
    quotas.follow(on(100));
    let Taken::Within(account) = quotas.take(TV, ip(1), None) else { panic!("nothing is used") };
    quotas.count(&account, 900);
    assert!(quotas.follow(on(101)));
    quotas.count(&account, 900);
    assert_eq!(quotas.next_used_up(), None);
    quotas.count(&account, 100);
    assert_eq!(quotas.next_used_up().map(|told| (told.used, account.is_in(told.slot))), Some((1000, true)));
    quotas.give_back(account);
}

#[test]
fn a_clock_that_is_not_set_or_is_set_back_gives_nothing_away() {
    let mut quotas = Quotas::new(8, 3);
    assert!(uses(&mut quotas, TV, 1, 1000));
    assert!(!quotas.follow(on(100)), "it was this day all along");
    assert!(!uses(&mut quotas, TV, 1, 1));
    assert!(!quotas.follow(on(99)) && !uses(&mut quotas, TV, 1, 1));
    assert!(!quotas.follow(on(100)) && !uses(&mut quotas, TV, 1, 1));
    // one that had been years ahead does not hold it for years
    assert!(quotas.follow(on(5000)) && uses(&mut quotas, TV, 1, 1000));
    assert!(quotas.follow(on(101)) && uses(&mut quotas, TV, 1, 1));
}

#[test]
fn days_and_months_are_counted_apart() {
    let mut quotas = Quotas::new(8, 3);
    let month = Grant { monthly: true, ..TV };
    quotas.follow(on(100));
    assert!(uses(&mut quotas, TV, 1, 1000) && uses(&mut quotas, month, 1, 1000));
    assert!(quotas.follow(on(101)));
    assert!(uses(&mut quotas, TV, 1, 1) && !uses(&mut quotas, month, 1, 1));
    assert!(quotas.follow(on(130)) && uses(&mut quotas, month, 1, 1));
}

#[test]
fn a_rule_that_gives_more_is_followed() {
    let mut quotas = Quotas::new(8, 3);
    assert!(uses(&mut quotas, TV, 1, 1500) && quotas.next_used_up().is_some());
    assert!(!uses(&mut quotas, TV, 1, 1));
    let more = Grant { bytes: 2000, ..TV };
    assert!(uses(&mut quotas, more, 1, 400) && quotas.next_used_up().is_none());
    assert!(uses(&mut quotas, more, 1, 400) && quotas.next_used_up().is_some());
}

#[test]
fn a_full_table_refuses_who_is_new_until_the_period_is_over() {
    let mut quotas = Quotas::new(2, 3);
    quotas.follow(on(100));
    assert!(uses(&mut quotas, TV, 1, 1) && uses(&mut quotas, TV, 2, 1));
    assert_eq!((quotas.take(TV, ip(3), None), quotas.refused()), (Taken::Full, 1));
    assert!(uses(&mut quotas, TV, 1, 1));
    quotas.follow(on(101));
    assert!(uses(&mut quotas, TV, 3, 1));
}

#[test]
fn who_has_moved_nothing_takes_no_account() {
    let mut quotas = Quotas::new(1, 3);
    assert!(uses(&mut quotas, TV, 1, 0) && uses(&mut quotas, TV, 2, 5));
    assert!(quotas.has_changed());
}

#[test]
fn what_was_used_is_restored_and_nobody_told_again() {
    let mut before = Quotas::new(8, 3);
    let month = Grant { monthly: true, ..TV };
    let mac = Some([2, 0, 0, 0, 0, 1]);
    assert!(matches!(before.take(TV, ip(3), mac), Taken::Within(account) if { before.count(&account, 5); true }));
    before.follow(on(100));
    assert!(uses(&mut before, TV, 1, 1000) && uses(&mut before, month, 1, 700));
    assert!(before.next_used_up().is_some());
    let lines: Vec<String> = before.lines().map(|line| line.to_string()).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    let mut after = Quotas::new(8, 99);
    assert!(lines.iter().all(|line| after.restore(line)));
    assert!(!after.restore(&lines[0]), "twice");
    assert!(!after.follow(on(100)));
    assert!(!uses(&mut after, TV, 1, 1) && uses(&mut after, month, 1, 300));
    assert_eq!(after.next_used_up().map(|told| told.used), Some(1000));
    assert_eq!(after.next_used_up(), None);
    assert!(after.is_used_up(Grant { bytes: 5, ..TV }, ip(77), mac));
}

#[test]
fn a_line_that_is_none_is_refused() {
    for line in
        ["", "month", "week 1 0 1 1 1 -", "day x 0 1 1 1 -", "day 1 3 1 1 1 -", "day 1 0 1 1 1 - 1", "day 1 0 g 1 1 -"]
    {
        assert!(!Quotas::new(2, 1).restore(line), "{line}");
    }
    let mut full = Quotas::new(1, 1);
    assert!(full.restore("day 1 0 1 1 1 -") && !full.restore("day 1 0 2 1 1 !"));
}

proptest! {
    #[test]
    fn nobody_gets_more_than_the_quota_and_one_flow(
        steps in proptest::collection::vec((0u8..4, 0u64..400, 0i32..3), 1..200),
    ) {
        let mut quotas = Quotas::new(8, 1);
        let (mut day, mut used) = (100, [0u64; 4]);
        quotas.follow(on(day));
        for (n, bytes, later) in steps {
            if later == 2 {
                day += 1;
                quotas.follow(on(day));
                used = [0; 4];
            }
            let within = used[usize::from(n)] < TV.bytes;
            prop_assert_eq!(uses(&mut quotas, TV, n, bytes), within);
            used[usize::from(n)] += if within { bytes } else { 0 };
            let untold = quotas.slots.iter().filter(|(_, used)| used.told == Told::Due).count();
            prop_assert_eq!(usize::from(quotas.untold), untold);
            if later == 1 {
                while let Some(told) = quotas.next_used_up() {
                    prop_assert!(told.used >= TV.bytes);
                }
            }
        }
    }
}
