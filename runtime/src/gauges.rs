//! What the engine holds between two steps, published as a whole: readers see the figures of one moment.
//!
//! A sequence lock. The engine is the only one who writes, and never waits for readers:
//!
//! ```text
//! write:  version odd  |  values  |  version even
//! read:   version, values, version again         the same even version: the values belong together
//! ```

use std::sync::atomic::{AtomicU64, Ordering, fence};

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

const N_GAUGES: usize = 8;

/// Looks at gauges that are being written before the writer's thread is given way to.
const SPINS: u64 = 100;

impl Gauges {
    /// Pages that running sequences need: their own, and those of the tree that they read.
    pub fn pages_in_use(&self) -> u64 {
        self.pages_total - self.pages_free - self.pages_evictable
    }

    fn to_words(self) -> [u64; N_GAUGES] {
        let Gauges {
            waiting,
            waiting_tokens,
            running,
            pages_total,
            pages_free,
            pages_cached,
            pages_evictable,
            pages_owned,
        } = self;
        [
            waiting,
            waiting_tokens,
            running,
            pages_total,
            pages_free,
            pages_cached,
            pages_evictable,
            pages_owned,
        ]
    }

    fn from_words(words: [u64; N_GAUGES]) -> Self {
        let [
            waiting,
            waiting_tokens,
            running,
            pages_total,
            pages_free,
            pages_cached,
            pages_evictable,
            pages_owned,
        ] = words;
        Gauges {
            waiting,
            waiting_tokens,
            running,
            pages_total,
            pages_free,
            pages_cached,
            pages_evictable,
            pages_owned,
        }
    }
}

/// The latest [`Gauges`].
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// Odd while the words are being changed.
    version: AtomicU64,
    words: [AtomicU64; N_GAUGES],
}

impl Published {
    /// Makes `gauges` the latest ones. For one thread at a time.
    pub(crate) fn write(&self, gauges: Gauges) {
        let version = self.version.load(Ordering::Relaxed);
        assert!(version.is_multiple_of(2), "two write at the same time");
        self.version.store(version + 1, Ordering::Relaxed);
        // No word is seen changed by a reader that does not see the odd version afterwards.
        fence(Ordering::Release);
        for (place, word) in self.words.iter().zip(gauges.to_words()) {
            place.store(word, Ordering::Relaxed);
        }
        self.version.store(version + 2, Ordering::Release);
    }

    /// The latest ones. Waits for the few stores of a write that is going on.
    pub(crate) fn read(&self) -> Gauges {
        for attempt in 0_u64.. {
            let before = self.version.load(Ordering::Acquire);
            let words = std::array::from_fn(|idx| self.words[idx].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return Gauges::from_words(words);
            }
            if attempt < SPINS {
                std::hint::spin_loop();
            } else {
                // The writer was interrupted half-way.
                std::thread::yield_now();
            }
        }
        unreachable!("it looks until it finds them")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn every_gauge_comes_out_where_it_went_in() {
        let published = Published::default();
        let words = std::array::from_fn(|idx| idx as u64 + 1);
        published.write(Gauges::from_words(words));
        let gauges = published.read();
        assert_eq!(gauges.to_words(), words);
        assert_eq!((gauges.waiting, gauges.running, gauges.pages_owned), (1, 3, 8));
    }

    #[test]
    fn what_is_read_while_another_writes_was_written_at_once() {
        /// How many different moments each reader sees: enough that many of its reads cross a write.
        const N_SEEN: usize = 3000;
        let (published, is_over) = (Published::default(), AtomicBool::new(false));
        let moment = |n: u64| Gauges::from_words([n; N_GAUGES]);
        std::thread::scope(|scope| {
            let reader = || {
                let (mut latest, mut n_seen) = (0, 0);
                while n_seen < N_SEEN {
                    let gauges = published.read();
                    assert_eq!(gauges, moment(gauges.waiting), "of one moment");
                    assert!(gauges.waiting >= latest, "never an older one");
                    n_seen += usize::from(gauges.waiting > latest);
                    latest = gauges.waiting;
                }
            };
            let readers = [scope.spawn(reader), scope.spawn(reader)];
            scope.spawn(|| {
                let mut moments = 1..;
                while !is_over.load(Ordering::Relaxed) {
                    published.write(moment(moments.next().expect("there are enough")));
                    // Or readers would hardly ever find nothing being written.
                    (0..100).for_each(|_| std::hint::spin_loop());
                }
            });
            let all_read = readers.map(std::thread::ScopedJoinHandle::join);
            is_over.store(true, Ordering::Relaxed);
            all_read.into_iter().for_each(|read| read.expect("no torn read"));
        });
    }
}
