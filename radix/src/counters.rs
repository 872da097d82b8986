//! Counters of the radix tree since it was made.

/// Exact totals since the tree was made; all but the ages can be cross-checked:
/// `inserted_pages = cached + evicted_pages + superseded_pages`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls of `match_prefix`. Also the tree's clock: ages are counted in lookups.
    pub lookups: u64,
    /// Tokens that those calls were allowed to match.
    pub lookup_tokens: u64,
    /// Tokens found in whole pages.
    pub hit_tokens_page: u64,
    /// Tokens found at the start of a donor page.
    pub hit_tokens_donor: u64,
    /// Pages the tree took.
    pub inserted_pages: u64,
    /// Pages offered by `checkpoint` and `finish` whose content the tree held already.
    pub duplicate_pages: u64,
    /// Partly filled pages given up for one that holds the same tokens and more.
    pub superseded_pages: u64,
    /// Pages given back by `evict` and `clear`.
    pub evicted_pages: u64,
    /// Sum over evicted pages of the lookups between their last use and their eviction.
    pub evicted_age_sum: u64,
    /// The largest of those ages.
    pub evicted_age_max: u64,
}
