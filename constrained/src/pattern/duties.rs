//! What look-ahead demands of the rest of a text: duties that are all to be met, and choices between them.

use std::rc::Rc;

/// The number of a list of ways: what a rest may be.
pub(super) type Ways = u32;

/// Ways that the rest must match, or must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Duty {
    pub(super) ways: Ways,
    pub(super) is_negated: bool,
}

/// Duties that are all to be met, ascending.
pub(super) type Duties = Rc<[Duty]>;

/// One of several: none is never met, an empty list of duties always.
pub(super) type Choice = Vec<Duties>;

/// Whether all of `few`, which is sorted, is in `many`, too.
pub(super) fn is_within<T: Ord>(few: &[T], many: &[T]) -> bool {
    let mut many = many.iter();
    few.iter().all(|one| many.any(|other| other == one))
}

/// `duties` in order; `None` where one is the opposite of another.
pub(super) fn united(mut duties: Vec<Duty>) -> Option<Duties> {
    duties.sort_unstable();
    duties.dedup();
    let is_contradiction = duties.windows(2).any(|pair| pair[0].ways == pair[1].ways);
    (!is_contradiction).then(|| duties.into())
}

/// The choices that are not implied by others.
pub(super) fn least(mut choice: Choice) -> Choice {
    choice.sort_unstable_by_key(|duties| duties.len());
    let mut kept = Choice::new();
    for duties in choice {
        if !kept.iter().any(|kept| is_within(kept, &duties)) {
            kept.push(duties);
        }
    }
    kept
}

pub(super) fn all_of(a: &Choice, b: &Choice) -> Choice {
    let pairs = a
        .iter()
        .flat_map(|a| b.iter().map(move |b| [&a[..], &b[..]].concat()));
    least(pairs.filter_map(united).collect())
}

/// What holds where nothing of `choice` does: of each the opposite of a duty.
pub(super) fn none_of(choice: &Choice) -> Choice {
    let opposite = |duty: &Duty| -> Duties {
        let is_negated = !duty.is_negated;
        [Duty { is_negated, ..*duty }].into()
    };
    let opposites = choice
        .iter()
        .map(|duties| duties.iter().map(opposite).collect::<Choice>());
    opposites.fold(vec![Rc::default()], |all, one| all_of(&all, &one))
}
