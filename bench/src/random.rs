//! Seeded numbers and texts: the same seed gives the same workload on every machine.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

/// Common words that English byte-level vocabularies hold as one token each, so that a text has about as many
/// tokens as words.
const WORDS: [&str; 32] = [
    "the", "river", "house", "light", "people", "under", "water", "small", "green", "where", "music",
    "paper", "table", "north", "story", "white", "child", "world", "field", "voice", "power", "early",
    "along", "stone", "until", "heart", "seven", "never", "quite", "group", "plant", "clear",
];

impl Random {
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform enough below `limit`, which is far below 2^64.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next_u64() % limit as u64) as usize
    }

    /// A text of `n_words` words.
    pub(crate) fn text(&mut self, n_words: usize) -> String {
        let words: Vec<&str> = (0..n_words).map(|_| WORDS[self.below(WORDS.len())]).collect();
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_text() {
        assert_eq!(Random(7).text(50), Random(7).text(50));
        assert_ne!(Random(7).text(50), Random(8).text(50));
        assert_eq!(Random(7).text(50).split(' ').count(), 50);
    }
}
