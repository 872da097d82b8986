//! Random seeds and ids. The standard library's random keys, stepped at every call, are
//! enough: whoever sees some cannot guess the next.

use std::hash::{BuildHasher, RandomState};

/// 64 random bits.
pub(crate) fn random_u64() -> u64 {
    RandomState::new().hash_one(0)
}

/// 32 hexadecimal digits that nobody will see twice.
pub(crate) fn random_id() -> String {
    format!("{:016x}{:016x}", random_u64(), random_u64())
}
