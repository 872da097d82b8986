//! What the integration tests in `tests/` share: a toy model, its plain evaluation, and an engine driven by
//! hand.

pub mod oracle;
pub mod random;
pub mod toy;
pub mod world;
