//! A limit that tenants share, so that none of them can use all of it up.
//!
//! ```text
//! limit = n_tenants * own + shared
//!
//! each tenant:  taken of its own part       <= own
//! all tenants:  taken of the shared part    <= shared
//! a tenant takes of the shared part while it has less of it than is left
//! ```
//!
//! The last line is the dynamic threshold that switches use for the queues of one memory (Choudhury and
//! Hahne, IEEE/ACM Transactions on Networking 6(2), 1998): one tenant alone gets half of the shared part, the
//! next one half of the rest, and n of them that take and give back all the time 1/(n + 1) each. What stays
//! free is what the next tenant finds. The threshold alone would run dry after a dozen tenants, so each has a
//! small part of its own besides: who holds less than that is never refused, whatever the others do. One
//! tenant owns the whole limit.
//!
//! Nothing here waits. Whoever takes remembers of which part, so counters never need to be moved from one
//! part to the other, and each is right at any moment; two who race for the last of it are never both served.

use std::fmt::{Display, Formatter};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The part that is divided among the tenants for good: one in this many.
const OWN_SHARE: usize = 8;

/// A limit and who has how much of it.
#[derive(Debug)]
pub struct FairLimit {
    what: &'static str,
    limit: usize,
    /// What each tenant has for itself.
    own: usize,
    /// What they share.
    shared: usize,
    n_taken: AtomicUsize,
    /// Of the shared part.
    n_shared: AtomicUsize,
    tenants: Box<[Tenant]>,
}

/// What one tenant has taken.
#[derive(Debug, Default)]
struct Tenant {
    n_own: AtomicUsize,
    n_shared: AtomicUsize,
}

/// What was taken, to be given back once.
#[derive(Debug, Default)]
#[must_use = "what is not given back is lost"]
pub struct Taken {
    n_own: usize,
    n_shared: usize,
}

/// There is not enough left for this tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// What is limited.
    pub what: &'static str,
    /// Asked for.
    pub n_wanted: usize,
    /// What the tenant has; absent where there is only one.
    pub n_held: Option<usize>,
    /// What all of them have.
    pub n_taken: usize,
    /// The most they may have.
    pub limit: usize,
}

impl Display for NoRoom {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let NoRoom {
            what,
            n_wanted,
            n_taken,
            limit,
            ..
        } = self;
        match self.n_held {
            None => write!(
                f,
                "{n_taken} {what} are waiting, {n_wanted} more would exceed the limit of {limit}"
            ),
            Some(n_held) => write!(
                f,
                "{n_held} {what} of this API key are waiting and {n_taken} of all keys, {n_wanted} more would \
                 exceed this key's share of {limit}"
            ),
        }
    }
}

impl std::error::Error for NoRoom {}

impl FairLimit {
    /// At most `limit` of `what`, for `n_tenants`.
    ///
    /// # Panics
    /// Where there is no tenant.
    pub fn new(what: &'static str, limit: usize, n_tenants: usize) -> Self {
        assert!(n_tenants > 0, "a limit on nobody");
        let own = match n_tenants {
            1 => limit,
            n if n > limit => 0,
            n => (limit / OWN_SHARE / n).max(1),
        };
        FairLimit {
            what,
            limit,
            own,
            shared: limit - n_tenants * own,
            n_taken: AtomicUsize::new(0),
            n_shared: AtomicUsize::new(0),
            tenants: (0..n_tenants).map(|_| Tenant::default()).collect(),
        }
    }

    /// Who shares it.
    pub fn n_tenants(&self) -> usize {
        self.tenants.len()
    }

    /// The most that one tenant can ever take.
    pub fn most_of_one(&self) -> usize {
        self.own + self.shared
    }

    /// What all tenants have together. What is refused was never in it.
    pub fn n_taken(&self) -> usize {
        self.n_taken.load(Ordering::SeqCst)
    }

    /// What `tenant` has.
    ///
    /// # Panics
    /// Where there is no such tenant.
    pub fn held(&self, tenant: usize) -> usize {
        let its = &self.tenants[tenant];
        its.n_own.load(Ordering::SeqCst) + its.n_shared.load(Ordering::SeqCst)
    }

    /// Takes `n` for `tenant`, of its own part first, or nothing.
    ///
    /// # Panics
    /// Where there is no such tenant.
    pub fn take(&self, tenant: usize, n: usize) -> Result<Taken, NoRoom> {
        let its = &self.tenants[tenant];
        let raise = |held: usize| Some((held + n).min(self.own));
        let held_own = its.n_own.fetch_update(Ordering::SeqCst, Ordering::SeqCst, raise);
        let held_own = held_own.expect("it is always raised");
        let n_own = n.min(self.own - held_own);
        let n_shared = n - n_own;
        // The tenant's counter is raised before the limit is looked at, so that two of one tenant see each
        // other.
        let held_shared = its.n_shared.fetch_add(n_shared, Ordering::SeqCst);
        let taken = Taken { n_own, n_shared };
        if n_shared == 0 || self.take_shared(held_shared, n_shared) {
            self.n_taken.fetch_add(n, Ordering::SeqCst);
            return Ok(taken);
        }
        its.give_back(&taken);
        Err(NoRoom {
            what: self.what,
            n_wanted: n,
            n_held: (self.tenants.len() > 1).then_some(held_own + held_shared),
            n_taken: self.n_taken(),
            limit: self.limit,
        })
    }

    /// Takes `n` of the shared part for a tenant that has `held` of it.
    fn take_shared(&self, held: usize, n: usize) -> bool {
        let raise = |n_shared: usize| {
            let left = self.shared - n_shared;
            (held < left && n <= left).then(|| n_shared + n)
        };
        let raised = self
            .n_shared
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, raise);
        raised.is_ok()
    }

    /// Gives back what `tenant` took.
    #[expect(clippy::needless_pass_by_value, reason = "it can be given back once")]
    pub fn give_back(&self, tenant: usize, taken: Taken) {
        self.n_shared.fetch_sub(taken.n_shared, Ordering::SeqCst);
        self.tenants[tenant].give_back(&taken);
        self.n_taken
            .fetch_sub(taken.n_own + taken.n_shared, Ordering::SeqCst);
    }
}

impl Tenant {
    fn give_back(&self, taken: &Taken) {
        self.n_shared.fetch_sub(taken.n_shared, Ordering::SeqCst);
        self.n_own.fetch_sub(taken.n_own, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes one at a time for `tenant` until it is refused; returns how many it got.
    fn flood(limit: &FairLimit, tenant: usize) -> Vec<Taken> {
        std::iter::from_fn(|| limit.take(tenant, 1).ok()).collect()
    }

    fn give_all(limit: &FairLimit, tenant: usize, taken: impl IntoIterator<Item = Taken>) {
        taken.into_iter().for_each(|taken| limit.give_back(tenant, taken));
    }

    fn is_zero(limit: &FairLimit) -> bool {
        let of = |counter: &AtomicUsize| counter.load(Ordering::SeqCst) == 0;
        let tenants = limit
            .tenants
            .iter()
            .all(|its| of(&its.n_own) && of(&its.n_shared));
        tenants && of(&limit.n_shared) && of(&limit.n_taken)
    }

    #[test]
    fn one_tenant_has_the_whole_limit_and_nothing_beyond() {
        let limit = FairLimit::new("requests", 10, 1);
        let most = limit.take(0, 7).expect("7 of 10");
        let refused = limit.take(0, 4).expect_err("11 of 10");
        let expected = NoRoom {
            what: "requests",
            n_wanted: 4,
            n_held: None,
            n_taken: 7,
            limit: 10,
        };
        assert_eq!(refused, expected);
        let text = "7 requests are waiting, 4 more would exceed the limit of 10";
        assert_eq!(refused.to_string(), text);
        let rest = flood(&limit, 0);
        assert_eq!(rest.len(), 3);
        give_all(&limit, 0, rest.into_iter().chain([most]));
        assert!(is_zero(&limit));
    }

    #[test]
    fn who_floods_gets_half_and_the_next_half_of_the_rest() {
        let limit = FairLimit::new("requests", 1024, 2);
        let first = flood(&limit, 0);
        assert_eq!(first.len(), 512);
        let refused = limit.take(0, 1).expect_err("it floods");
        let text = "512 requests of this API key are waiting and 512 of all keys, 1 more would exceed this key's \
                    share of 1024";
        assert_eq!(refused.to_string(), text);
        let second = flood(&limit, 1);
        assert_eq!(
            second.len(),
            64 + 224,
            "its own and half of the 448 that are left"
        );
        give_all(&limit, 0, first);
        assert_eq!(second.len() + flood(&limit, 1).len(), 512, "now it is alone");
    }

    #[test]
    fn who_holds_less_than_its_own_part_is_never_refused() {
        for (n_limit, n_tenants) in [(2, 2), (3, 2), (16, 5), (100, 13), (1024, 100), (100, 100)] {
            let limit = FairLimit::new("requests", n_limit, n_tenants);
            assert!(limit.own > 0, "{n_limit} for {n_tenants}");
            let n_taken: usize = (1..n_tenants).map(|tenant| flood(&limit, tenant).len()).sum();
            let n_quiet = flood(&limit, 0).len();
            assert!(n_quiet >= limit.own, "{n_quiet} of {n_limit} for {n_tenants}");
            assert!(n_taken + n_quiet <= n_limit);
            assert_eq!(limit.n_taken(), n_taken + n_quiet);
        }
    }

    #[test]
    fn tenants_that_all_flood_come_to_equal_parts() {
        let limit = FairLimit::new("requests", 600, 5);
        let mut held: Vec<Vec<Taken>> = (0..3).map(|tenant| flood(&limit, tenant)).collect();
        assert!(held[0].len() > 3 * held[2].len(), "who came first has most");
        // All are served in turn and come back at once.
        for round in 0..3000 {
            let tenant = round % 3;
            let oldest = held[tenant].remove(0);
            limit.give_back(tenant, oldest);
            for (tenant, held) in held.iter_mut().enumerate() {
                held.extend(limit.take(tenant, 1).ok());
            }
        }
        let n_held: Vec<usize> = held.iter().map(Vec::len).collect();
        let (least, most) = (n_held.iter().min(), n_held.iter().max());
        assert!(most.expect("three") - least.expect("three") <= 1, "{n_held:?}");
        assert_eq!(*least.expect("three"), limit.own + limit.shared / 4);
    }

    #[test]
    fn what_is_taken_at_once_is_taken_whole_and_not_out_of_anothers_part() {
        let limit = FairLimit::new("prompt tokens", 160, 2);
        assert_eq!((limit.own, limit.shared), (10, 140));
        assert!(limit.take(0, 151).is_err(), "10 are the other's");
        assert_eq!(limit.most_of_one(), 150);
        let large = limit.take(0, 150).expect("all that may be one's");
        assert_eq!((limit.held(0), limit.held(1)), (150, 0));
        assert!(limit.take(0, 1).is_err());
        let small = limit.take(1, 10).expect("its own part");
        let refused = limit.take(1, 1).expect_err("nothing is left");
        assert_eq!((refused.n_held, refused.n_taken), (Some(10), 160));
        limit.give_back(0, large);
        limit.give_back(1, small);
        assert!(is_zero(&limit));
    }

    #[test]
    fn more_tenants_than_places_share_what_there_is() {
        let limit = FairLimit::new("requests", 2, 3);
        let one = limit.take(0, 1).expect("the first of two");
        assert!(limit.take(0, 1).is_err(), "the other one is for somebody else");
        let other = limit.take(2, 1).expect("the second of two");
        assert!(limit.take(1, 1).is_err());
        limit.give_back(0, one);
        limit.give_back(2, other);
        assert!(is_zero(&limit));
    }
}
