//! Fair shares of a resource between tenants: dividing it, and who must give way to whom (preemption).
//!
//! ```text
//! share = what there is / tenants that run or wait
//!
//! a tenant takes from the one that holds most while
//!     its own + what it needs <= share    and    the other's > share
//! ```
//!
//! Whoever has taken holds at most its share, so nothing is taken back from it; whoever has given needs more
//! than its share to take anything. So the same place never goes to and fro, and one tenant alone, or tenants
//! within their shares, never give way.

/// The tenant that must give way so that `tenant` can have `n_needed` more. `held` has what each running
/// sequence holds, with its tenant; `n_active` tenants run or wait and share `n_total`.
pub(crate) fn gives_way(
    held: impl Iterator<Item = (u32, usize)>,
    (tenant, n_needed): (u32, usize),
    (n_total, n_active): (usize, usize),
) -> Option<u32> {
    let mut sums: Vec<(u32, usize)> = Vec::new();
    for (of, n) in held {
        match sums.iter_mut().find(|(tenant, _)| *tenant == of) {
            Some((_, sum)) => *sum += n,
            None => sums.push((of, n)),
        }
    }
    let own = sums.iter().find(|(of, _)| *of == tenant).map_or(0, |(_, n)| *n);
    if (own + n_needed) * n_active > n_total {
        return None;
    }
    let (other, n_most) = sums.into_iter().max_by_key(|(_, n)| *n)?;
    (n_most * n_active > n_total).then_some(other)
}

/// Divides `n_total` so that nobody gets more than it wants and all who want more get the same, but for the
/// remainder: max-min fairness.
pub(crate) fn divide(n_total: usize, wanted: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&idx| wanted[idx]);
    let mut given = vec![0; wanted.len()];
    let mut n_left = n_total;
    for (n_before, idx) in order.into_iter().enumerate() {
        let share = n_left.div_ceil(wanted.len() - n_before);
        given[idx] = wanted[idx].min(share);
        n_left -= given[idx];
    }
    given
}

/// Whether one that has `own` of `n_total` gets more when all others want `others` of it.
pub(crate) fn has_room(n_total: usize, own: usize, others: impl Iterator<Item = usize>) -> bool {
    let level = own + 1;
    level + others.map(|n| n.min(level)).sum::<usize>() <= n_total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(n: &[(u32, usize)]) -> impl Iterator<Item = (u32, usize)> {
        n.iter().copied()
    }

    #[test]
    fn who_holds_more_than_its_share_gives_way_to_who_stays_within() {
        let flood = [(0, 1); 4];
        assert_eq!(gives_way(held(&flood), (1, 1), (4, 2)), Some(0));
        assert_eq!(gives_way(held(&flood), (0, 1), (4, 2)), None, "not to itself");
        let one_given = [(0, 1), (0, 1), (0, 1), (1, 1)];
        assert_eq!(gives_way(held(&one_given), (1, 1), (4, 2)), Some(0));
        assert_eq!(
            gives_way(held(&one_given), (0, 1), (4, 2)),
            None,
            "nothing is taken back"
        );
        let even = [(0, 1), (0, 1), (1, 1), (1, 1)];
        for tenant in [0, 1] {
            assert_eq!(gives_way(held(&even), (tenant, 1), (4, 2)), None);
        }
        assert_eq!(
            gives_way(held(&even), (2, 1), (4, 3)),
            Some(1),
            "one of three has 4 / 3"
        );
        assert_eq!(
            gives_way(held(&[(0, 1)]), (1, 1), (1, 2)),
            None,
            "half a place is none"
        );
    }

    #[test]
    fn a_division_is_equal_but_for_those_who_want_less() {
        assert_eq!(divide(8, &[100, 100]), [4, 4]);
        assert_eq!(divide(8, &[100, 1]), [7, 1]);
        assert_eq!(divide(9, &[1, 100, 3]), [1, 5, 3]);
        assert_eq!(divide(2, &[5, 5, 5]), [1, 1, 0]);
        assert_eq!(divide(8, &[3]), [3]);
        assert_eq!(divide(0, &[3]), [0]);
        assert_eq!(divide(8, &[]), [0; 0]);
        assert!(has_room(8, 0, [100].into_iter()) && has_room(8, 3, [100].into_iter()));
        assert!(!has_room(8, 4, [100].into_iter()));
        assert!(has_room(8, 7, [].into_iter()) && !has_room(8, 8, [].into_iter()));
    }
}
