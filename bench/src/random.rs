//! Seeded numbers and texts: the same seed gives the same workload on every machine.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

/// Common words that English byte-level vocabularies hold as one token each, so that a text has about as many
/// tokens as words.
pub(crate) const WORDS: [&str; 32] = [
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

    /// Uniform in [0, 1), in steps of 2^-53.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Any order of `items`, equally likely (Fisher and Yates).
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (2..=items.len()).rev() {
            items.swap(n - 1, self.below(n));
        }
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

    #[test]
    fn a_shuffle_keeps_every_item_and_units_stay_below_one() {
        let mut items: Vec<usize> = (0..100).collect();
        let mut random = Random(3);
        random.shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
        let units: Vec<f64> = (0..10_000).map(|_| random.unit()).collect();
        assert!(units.iter().all(|unit| (0.0..1.0).contains(unit)));
        let mean = units.iter().sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
