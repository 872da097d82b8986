//! Namespaces: which prompts may share KV pages.

/// A part of the cache that never matches another: a typed tuple, so that no two different tuples can collide
/// the way concatenated strings do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace {
    /// The served model.
    pub model: u32,
    /// The adapter on top of it; 0 is none.
    pub adapter: u32,
    /// Salt derived by the server from the tenant and the request's `cache_salt`; all zero is shared by all.
    pub salt: [u8; 16],
}
