//! What the grammars of one vocabulary share: automata by what they were made from, masks by content, and
//! what was found out about equal leaves.
//!
//! Nothing here is needed for a right answer; all of it is bounded in bytes and may be forgotten at any time.
//! The lock is held for single look-ups and never while anything is computed.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::alphabet::{Alphabets, Safe};
use crate::dfa::Built;
use crate::dfa::{ByteSet, Dfa};
use crate::free_text::Split;
use crate::hash::Map;
use crate::mask::TokenMask;
use crate::open::Open;
use crate::text::TextSpec;
use crate::trie::Trie;

/// A mask and its number, which no other mask ever gets.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) mask: Arc<TokenMask>,
    pub(crate) id: u64,
}

/// One leaf at one place: the tokens that stay within it, and those that leave it.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) inside: Known,
    pub(crate) ways: Box<[Way]>,
}

/// The tokens that complete a leaf in one way.
#[derive(Debug, Default)]
pub(crate) struct Way {
    pub(crate) way: u32,
    /// They end with the leaf, and nothing of it could follow.
    pub(crate) here: Box<[u32]>,
    /// Nodes of the vocabulary's tree: what is longer goes on after the leaf.
    pub(crate) nodes: Box<[u32]>,
    /// Tokens that go on after the leaf, by what they have after it.
    pub(crate) suffixes: Option<Arc<Trie>>,
    /// The leaf may be complete nearly everywhere, so that tokens that go on are not listed here.
    pub(crate) is_dense: bool,
}

/// A leaf that grammars have in common.
#[derive(Debug)]
pub(crate) struct Fragment {
    /// Never used twice.
    id: u64,
    /// The bytes of each class of the automaton.
    pub(crate) sets: Box<[ByteSet]>,
    /// Found out when first asked.
    safe: OnceLock<Safe>,
    open: OnceLock<Open>,
}

/// A JSON string that grammars have in common.
#[derive(Debug)]
pub(crate) struct TextFragment {
    /// Never used twice, for any fragment.
    id: u64,
    pub(crate) content: Arc<Fragment>,
}

/// Strings are equal when their contents are, and the bounds that the content depends on.
#[derive(Clone, Debug)]
struct TextKey(Arc<TextSpec>);

impl PartialEq for TextKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || self.0.joint_bounds() == other.0.joint_bounds() && self.0.content() == other.0.content()
    }
}

impl Eq for TextKey {}

impl Hash for TextKey {
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        self.0.joint_bounds().hash(hasher);
        self.0.content().hash(hasher);
    }
}

/// A leaf's number and a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PieceKey {
    fragment: u64,
    place: [u32; 4],
}

/// Numbers of masks to be united, ascending, and further tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Union {
    pub(crate) parts: Vec<u64>,
    pub(crate) extras: Vec<u32>,
}

/// A table that forgets what was not asked for lately: when the young half is full it becomes the old one,
/// and the old one goes. Holds at most `max_bytes` and one entry.
#[derive(Debug)]
struct Generations<K, V> {
    young: Map<K, (V, usize)>,
    old: Map<K, (V, usize)>,
    n_young_bytes: usize,
    n_old_bytes: usize,
    max_bytes: usize,
}

impl<K: Eq + Hash, V: Clone> Generations<K, V> {
    fn new(max_bytes: usize) -> Self {
        Self {
            young: Map::default(),
            old: Map::default(),
            n_young_bytes: 0,
            n_old_bytes: 0,
            max_bytes,
        }
    }

    fn find<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if let Some((value, _)) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, (value, n_bytes)) = self.old.remove_entry(key)?;
        self.n_old_bytes -= n_bytes;
        self.insert(key, value.clone(), n_bytes);
        Some(value)
    }

    fn insert(&mut self, key: K, value: V, n_bytes: usize) {
        if self.n_young_bytes + n_bytes > self.max_bytes / 2 {
            self.old = std::mem::take(&mut self.young);
            self.n_old_bytes = std::mem::take(&mut self.n_young_bytes);
        }
        if self.young.insert(key, (value, n_bytes)).is_none() {
            self.n_young_bytes += n_bytes;
        }
    }

    fn n_bytes(&self) -> usize {
        self.n_young_bytes + self.n_old_bytes
    }
}

/// Owned by a vocabulary.
#[derive(Debug)]
pub(crate) struct Cache(Mutex<Shared>);

#[derive(Debug)]
struct Shared {
    n_numbers: u64,
    fragments: Generations<Arc<Dfa>, Arc<Fragment>>,
    texts: Generations<TextKey, Arc<TextFragment>>,
    pieces: Generations<PieceKey, Arc<Piece>>,
    masks: Generations<Arc<TokenMask>, Known>,
    unions: Generations<Union, Arc<TokenMask>>,
    /// Automata by what they were made from.
    automata: Generations<String, (Arc<Dfa>, u64)>,
    specs: Generations<SpecKey, Arc<TextSpec>>,
    /// Tokens by the bytes with which a free text's markers begin.
    splits: Generations<ByteSet, Arc<Split>>,
}

/// Content as given, and the bounds on its length.
type SpecKey = (Arc<Dfa>, u32, Option<u32>);

impl Cache {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self(Mutex::new(Shared {
            n_numbers: 0,
            fragments: Generations::new(max_bytes / 16),
            texts: Generations::new(max_bytes / 16),
            pieces: Generations::new(max_bytes / 4),
            masks: Generations::new(max_bytes / 16 * 5),
            unions: Generations::new(max_bytes / 8),
            automata: Generations::new(max_bytes / 16),
            specs: Generations::new(max_bytes / 16),
            splits: Generations::new(max_bytes / 16),
        }))
    }

    /// Entries are added whole and never changed, so that a holder's panic leaves nothing broken.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let shared = self.lock();
        shared.fragments.n_bytes()
            + shared.texts.n_bytes()
            + shared.pieces.n_bytes()
            + shared.masks.n_bytes()
            + shared.unions.n_bytes()
            + shared.automata.n_bytes()
            + shared.specs.n_bytes()
            + shared.splits.n_bytes()
    }

    /// The automaton that `make` makes, and the work that it was, whoever did it. `recipe` names all that it
    /// depends on, besides the vocabulary.
    pub(crate) fn automaton<E>(
        &self,
        recipe: String,
        make: impl FnOnce() -> Result<Built, E>,
    ) -> Result<(Arc<Dfa>, u64), E> {
        let known = self.lock().automata.find(&recipe);
        if let Some(known) = known {
            return Ok(known);
        }
        let Built { dfa, n_work } = make()?;
        let made = (Arc::new(dfa), n_work);
        let n_bytes = made.0.n_bytes() + recipe.len() + 64;
        self.lock().automata.insert(recipe, made.clone(), n_bytes);
        Ok(made)
    }

    /// Strings whose content `content` accepts and that have `min ..= max` characters.
    pub(crate) fn spec(
        &self,
        content: Arc<Dfa>,
        min: u32,
        max: Option<u32>,
        is_spelled: &[bool; 256],
    ) -> Arc<TextSpec> {
        let key = (content, min, max);
        let known = self.lock().specs.find(&key);
        if let Some(known) = known {
            return known;
        }
        let spec = Arc::new(TextSpec::new(&key.0, min, max, is_spelled));
        let n_bytes = key.0.n_bytes() + spec.n_bytes() + 64;
        self.lock().specs.insert(key, spec.clone(), n_bytes);
        spec
    }

    /// The vocabulary's tokens by whether they have one of the bytes `first`.
    pub(crate) fn split(&self, first: ByteSet, make: impl FnOnce() -> Split) -> Arc<Split> {
        let known = self.lock().splits.find(&first);
        if let Some(known) = known {
            return known;
        }
        let split = Arc::new(make());
        let n_bytes = split.n_bytes() + 64;
        self.lock().splits.insert(first, split.clone(), n_bytes);
        split
    }

    pub(crate) fn dfa(&self, dfa: &Arc<Dfa>) -> Arc<Fragment> {
        self.lock().fragment(dfa)
    }

    pub(crate) fn text(&self, text: &Arc<TextSpec>) -> Arc<TextFragment> {
        self.lock().text(text)
    }

    /// What is known about a leaf at one place, from `make` if nothing is.
    pub(crate) fn piece(&self, key: PieceKey, make: impl FnOnce() -> Piece) -> Arc<Piece> {
        let known = self.lock().pieces.find(&key);
        if let Some(known) = known {
            return known;
        }
        let piece = Arc::new(make());
        let n_bytes = piece.n_bytes() + size_of::<PieceKey>();
        self.lock().pieces.insert(key, piece.clone(), n_bytes);
        piece
    }

    /// The one mask that is equal to `mask`.
    pub(crate) fn mask(&self, mask: TokenMask) -> Known {
        self.lock().mask(mask)
    }

    pub(crate) fn union(&self, union: &Union) -> Option<Arc<TokenMask>> {
        self.lock().unions.find(union)
    }

    pub(crate) fn keep_union(&self, union: &Union, mask: &Arc<TokenMask>) {
        let n_bytes = size_of::<Union>() + union.parts.len() * 8 + union.extras.len() * 4 + mask.n_bytes();
        self.lock().unions.insert(union.clone(), mask.clone(), n_bytes);
    }
}

impl Shared {
    fn fragment(&mut self, dfa: &Arc<Dfa>) -> Arc<Fragment> {
        if let Some(known) = self.fragments.find(dfa) {
            return known;
        }
        self.n_numbers += 1;
        let fragment = Arc::new(Fragment {
            id: self.n_numbers,
            sets: dfa.classes().sets(),
            safe: OnceLock::new(),
            open: OnceLock::new(),
        });
        let n_own_bytes = fragment.sets.len() * size_of::<ByteSet>() + Safe::max_bytes(dfa) + dfa.n_states();
        let n_bytes = dfa.n_bytes() + n_own_bytes + 128;
        self.fragments.insert(dfa.clone(), fragment.clone(), n_bytes);
        fragment
    }

    fn text(&mut self, text: &Arc<TextSpec>) -> Arc<TextFragment> {
        let key = TextKey(text.clone());
        if let Some(known) = self.texts.find(&key) {
            return known;
        }
        let content = self.fragment(text.content());
        self.n_numbers += 1;
        let id = self.n_numbers;
        let fragment = Arc::new(TextFragment { id, content });
        self.texts.insert(key, fragment.clone(), text.n_bytes() + 128);
        fragment
    }

    fn mask(&mut self, mask: TokenMask) -> Known {
        if let Some(known) = self.masks.find(&mask) {
            return known;
        }
        self.n_numbers += 1;
        let (n_bytes, mask) = (mask.n_bytes() + 64, Arc::new(mask));
        let known = Known {
            mask: mask.clone(),
            id: self.n_numbers,
        };
        self.masks.insert(mask, known.clone(), n_bytes);
        known
    }
}

impl Fragment {
    /// The leaf in `state`.
    pub(crate) fn at(&self, state: u32) -> PieceKey {
        let (fragment, place) = (self.id, [state, 0, 0, 0]);
        PieceKey { fragment, place }
    }

    /// The alphabets of which every text of up to `n_chars` characters can follow in `state` of `dfa`, whose
    /// fragment this is, at a border between characters; maybe not all of them.
    #[inline]
    pub(crate) fn safe(&self, dfa: &Dfa, state: u32, n_chars: u8) -> Alphabets {
        if self.open(dfa).has(state) {
            return Alphabets::MAX;
        }
        self.safe.get_or_init(|| Safe::new(dfa)).at(state, n_chars)
    }

    /// The states of `dfa`, whose fragment this is, that any text can follow.
    pub(crate) fn open(&self, dfa: &Dfa) -> &Open {
        self.open.get_or_init(|| Open::new(dfa))
    }

    /// The same as the content of a string, for plain tokens.
    pub(crate) fn as_content(&self, state: u32) -> PieceKey {
        let (fragment, place) = (self.id, [state, 1, 0, 0]);
        PieceKey { fragment, place }
    }
}

impl TextFragment {
    /// The leaf at `place`, for tokens that are not plain.
    pub(crate) fn at(&self, place: [u32; 4]) -> PieceKey {
        let fragment = self.id;
        PieceKey { fragment, place }
    }

    /// The same of any string, at a place where it must not end.
    pub(crate) fn unended(&self) -> PieceKey {
        /// No mode has this bit.
        const UNENDED: u32 = 1 << 30;
        self.at([0, UNENDED, 0, 0])
    }

    /// The leaf at `place`, for plain tokens.
    pub(crate) fn at_plain(&self, [state, mode, needed, left]: [u32; 4]) -> PieceKey {
        /// No mode has this bit.
        const PLAIN: u32 = 1 << 31;
        let (fragment, place) = (self.id, [state, mode | PLAIN, needed, left]);
        PieceKey { fragment, place }
    }
}

impl Piece {
    pub(crate) fn n_bytes(&self) -> usize {
        let of_way = |way: &Way| {
            let suffixes = way.suffixes.as_ref().map_or(0, |suffixes| suffixes.n_bytes());
            size_of::<Way>() + (way.here.len() + way.nodes.len()) * 4 + suffixes
        };
        self.ways.iter().map(of_way).sum::<usize>() + size_of::<Self>() + self.inside.mask.n_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let mut kept = Generations::new(100);
        for n in 0..1_000u32 {
            kept.insert(n, n, 10);
            assert!(kept.n_bytes() <= 100, "{}", kept.n_bytes());
            assert_eq!(kept.find(&0), Some(0), "after {n}");
        }
        assert_eq!(kept.find(&1), None);
        assert_eq!(kept.find(&999), Some(999));
    }

    #[test]
    fn equal_masks_are_one() {
        let cache = Cache::new(1 << 20);
        let mask = |ids: &[u32]| cache.mask(TokenMask::from_sorted_ids(ids.to_vec(), 100)).mask;
        assert!(Arc::ptr_eq(&mask(&[1, 5]), &mask(&[1, 5])));
        assert!(!Arc::ptr_eq(&mask(&[1, 5]), &mask(&[1])));
    }
}
