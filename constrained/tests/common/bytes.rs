//! A vocabulary of the 256 bytes and an end, for tests of languages rather than of tokens.

use std::sync::Arc;

use arbora_constrained::{Grammar, Vocabulary};

pub(crate) const EOS: u32 = 256;

pub(crate) fn vocabulary() -> Arc<Vocabulary> {
    let tokens = (0..=255u8).map(|byte| Some(vec![byte])).chain([None]);
    Arc::new(Vocabulary::new(tokens, &[EOS]).expect("257 tokens"))
}

pub(crate) fn accepts(grammar: &Grammar, text: &str) -> bool {
    let mut matcher = grammar.matcher();
    let is_taken = text.bytes().all(|byte| matcher.advance(u32::from(byte)).is_ok());
    is_taken && matcher.advance(EOS).is_ok()
}
