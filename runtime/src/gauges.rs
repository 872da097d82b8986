//! Gauges: requests, queue and KV pages as the engine holds them between two steps.

/// What goes up and down: `pages_free + pages_cached + pages_owned = pages_total`, and `pages_evictable` are
/// some of the cached ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Requests waiting, those in the inbox included.
    pub waiting: u64,
    /// Prompt tokens of those.
    pub waiting_tokens: u64,
    /// Sequences that hold pages.
    pub running: u64,
    /// Pages in the pool: free + cached + owned.
    pub pages_total: u64,
    /// Pages nobody holds.
    pub pages_free: u64,
    /// Pages in the tree.
    pub pages_cached: u64,
    /// Of those, pages no running sequence needs.
    pub pages_evictable: u64,
    /// Pages that belong to one running sequence.
    pub pages_owned: u64,
}

impl Gauges {
    /// Pages that running sequences need: their own, and those of the tree that they read.
    pub fn pages_in_use(&self) -> u64 {
        self.pages_total - self.pages_free - self.pages_evictable
    }
}
