//! Sets of allowed tokens.
//!
//! Invariant: a mask with at most [`TokenMask::MAX_IDS`] tokens is kept as a sorted list, any other as bits;
//! bits at or beyond `n_vocab` are zero. So equal sets are equal values.

/// Which tokens may come next. Cheap to share: the matcher hands it out in an `Arc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    n_vocab: u32,
    set: Set,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Set {
    Ids(Box<[u32]>),
    Bits(Box<[u64]>),
}

impl TokenMask {
    /// The most tokens that are listed one by one.
    pub const MAX_IDS: usize = 64;

    /// The tokens whose bits are set in `words`.
    pub(crate) fn from_words(words: Vec<u64>, n_vocab: u32) -> Self {
        let mut n_allowed = 0;
        for word in words.iter().filter(|word| **word != 0) {
            n_allowed += word.count_ones() as usize;
            if n_allowed > Self::MAX_IDS {
                let set = Set::Bits(words.into());
                return Self { n_vocab, set };
            }
        }
        let mut ids = Vec::with_capacity(n_allowed);
        for (at, word) in words.iter().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                ids.push(at as u32 * 64 + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
        Self::from_sorted_ids(ids, n_vocab)
    }

    /// Adds the tokens to `words`.
    pub(crate) fn add_to(&self, words: &mut [u64]) {
        match &self.set {
            Set::Ids(ids) => {
                for id in ids {
                    words[*id as usize / 64] |= 1 << (id % 64);
                }
            }
            Set::Bits(own) => {
                for (word, own) in words.iter_mut().zip(own) {
                    *word |= own;
                }
            }
        }
    }

    /// The tokens of `ids`: ascending, without repetition, at most [`Self::MAX_IDS`].
    pub(crate) fn from_sorted_ids(ids: Vec<u32>, n_vocab: u32) -> Self {
        debug_assert!(ids.is_sorted() && ids.len() <= Self::MAX_IDS);
        Self {
            n_vocab,
            set: Set::Ids(ids.into()),
        }
    }

    /// Tokens of the vocabulary.
    pub fn n_vocab(&self) -> u32 {
        self.n_vocab
    }

    /// Tokens that are allowed, counted at each call.
    pub fn n_allowed(&self) -> usize {
        match &self.set {
            Set::Ids(ids) => ids.len(),
            Set::Bits(words) => words.iter().map(|word| word.count_ones() as usize).sum(),
        }
    }

    /// Whether no token is allowed.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(&self.set, Set::Ids(ids) if ids.is_empty())
    }

    /// Whether `token` is allowed; one outside the vocabulary never is.
    pub fn allows(&self, token: u32) -> bool {
        match &self.set {
            Set::Ids(ids) => ids.binary_search(&token).is_ok(),
            Set::Bits(words) => words
                .get(token as usize / 64)
                .is_some_and(|word| word >> (token % 64) & 1 == 1),
        }
    }

    /// The allowed tokens in ascending order, when there are at most [`Self::MAX_IDS`]: the sampler gathers
    /// these instead of scanning the vocabulary.
    pub fn ids(&self) -> Option<&[u32]> {
        match &self.set {
            Set::Ids(ids) => Some(ids),
            Set::Bits(_) => None,
        }
    }

    /// The allowed tokens as bits, token `t` in bit `t % 64` of word `t / 64`, when there are more than
    /// [`Self::MAX_IDS`].
    pub fn words(&self) -> Option<&[u64]> {
        match &self.set {
            Set::Ids(_) => None,
            Set::Bits(words) => Some(words),
        }
    }

    /// Writes one bit per token, token 0 in the lowest bit of the first word; what lies beyond the vocabulary
    /// is zero.
    ///
    /// # Panics
    /// When `bits` has fewer than `n_vocab` bits.
    pub fn write_bits(&self, bits: &mut [u32]) {
        assert!(
            bits.len() >= (self.n_vocab as usize).div_ceil(32),
            "{} words for {} tokens",
            bits.len(),
            self.n_vocab
        );
        bits.fill(0);
        match &self.set {
            Set::Ids(ids) => {
                for id in ids {
                    bits[*id as usize / 32] |= 1 << (id % 32);
                }
            }
            Set::Bits(words) => {
                for (pair, word) in bits.chunks_mut(2).zip(words) {
                    pair[0] = *word as u32;
                    if let Some(high) = pair.get_mut(1) {
                        *high = (word >> 32) as u32;
                    }
                }
            }
        }
    }

    /// About how much memory it holds.
    pub(crate) fn n_bytes(&self) -> usize {
        match &self.set {
            Set::Ids(ids) => ids.len() * 4 + size_of::<Self>(),
            Set::Bits(words) => words.len() * 8 + size_of::<Self>(),
        }
    }
}

impl std::hash::Hash for TokenMask {
    /// Four words at a time, which do not wait for each other.
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
        let words = match &self.set {
            Set::Ids(ids) => return ids.iter().for_each(|id| hasher.write_u32(*id)),
            Set::Bits(words) => words,
        };
        let mut lanes = [0u64; 4];
        for four in words.chunks(4) {
            for (lane, word) in lanes.iter_mut().zip(four) {
                *lane = (lane.rotate_left(23) ^ word).wrapping_mul(FACTOR);
            }
        }
        lanes.into_iter().for_each(|lane| hasher.write_u64(lane));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_tokens_answer_alike() {
        for n in [0, 1, 64, 65, 130] {
            let mut words = vec![0; 3];
            for id in 0..n {
                words[id / 64] |= 1 << (id % 64);
            }
            let mask = TokenMask::from_words(words, 131);
            assert_eq!(mask.n_allowed(), n);
            assert_eq!(mask.ids().is_some(), n <= TokenMask::MAX_IDS);
            let mut bits = vec![u32::MAX; 5];
            mask.write_bits(&mut bits);
            for id in 0..160 {
                assert_eq!(mask.allows(id), (id as usize) < n, "{id} of {n}");
                assert_eq!(bits[id as usize / 32] >> (id % 32) & 1 == 1, (id as usize) < n);
            }
        }
    }
}
