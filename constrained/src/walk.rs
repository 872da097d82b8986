//! Masks of very ambiguous states: the vocabulary's tree is walked level by level, shorter tokens first.
//!
//! Where an output may be read in many ways, nearly every node of the tree has stacks of its own. Two things
//! keep a node cheap. What is complete waits on one set of stacks, and is entered when the next byte is
//! known: of a hundred alternatives that begin with a letter each, one is looked at and not all. And a place
//! of the walk that was met before, with what each byte does there, is known for the next mask.
//!
//! Tokens that are certainly allowed ([`crate::ahead`]) are not walked.
//!
//! The walk ends before the first level that would take the work beyond [`MAX_WORK`]. Then tokens up to a
//! length are allowed as the grammar has it, and of longer ones those alone that stay within what the output
//! is in the middle of. Where each byte is a token no text is lost, only some of its spellings; the same ones
//! each time, since the work is counted as if nothing were known.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ahead::Ahead;
use crate::beginnings::Firsts;
use crate::closure::Closure;
use crate::fill::{Asked, Filling, has_all};
use crate::hash::Map;
use crate::ir::Ir;
use crate::stacks::StackId;
use crate::step::{Leaf, Reading};
use crate::tables::{StateId, Tables};

/// A unit is about the cost of one byte after one place with shallow stacks, a microsecond or two.
const MAX_WORK: usize = 4_096;

/// Where a walk stands; 0 is nowhere.
type PlaceId = u32;
const NOWHERE: PlaceId = 0;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct WalkPlace {
    /// Leaves that were begun, in order.
    begun: Box<[Reading]>,
    /// What is still to come where a leaf was completed.
    waiting: Option<StackId>,
}

/// All places met so far.
#[derive(Debug)]
pub(crate) struct Walks {
    firsts: Option<Arc<Firsts>>,
    ahead: Option<Ahead>,
    places: Vec<Arc<WalkPlace>>,
    ids: Map<Arc<WalkPlace>, PlaceId>,
    /// By place and class of bytes.
    steps: Map<(PlaceId, u8), PlaceId>,
    n_readings: usize,
}

impl Default for Walks {
    fn default() -> Self {
        let nowhere = Arc::new(WalkPlace::default());
        Self {
            firsts: None,
            ahead: None,
            places: vec![nowhere.clone()],
            ids: [(nowhere, NOWHERE)].into_iter().collect(),
            steps: Map::default(),
            n_readings: 0,
        }
    }
}

impl Walks {
    /// About how much memory they hold.
    pub(crate) fn n_bytes(&self) -> usize {
        /// A place, and its entry in the table that finds it.
        const PLACE_BYTES: usize = 96;
        let n_ahead = self.ahead.as_ref().map_or(0, Ahead::n_bytes);
        self.places.len() * PLACE_BYTES
            + self.n_readings * size_of::<Reading>()
            + self.steps.len() * 20
            + n_ahead
    }

    fn number(&mut self, place: WalkPlace) -> PlaceId {
        if let Some(known) = self.ids.get(&place) {
            return *known;
        }
        let id = self.places.len() as PlaceId;
        let place = Arc::new(place);
        self.n_readings += place.begun.len();
        self.places.push(place.clone());
        self.ids.insert(place, id);
        id
    }
}

impl Tables {
    /// The mask of `state`, in which nothing keeps a text.
    pub(crate) fn fill_by_walk(&mut self, asked: Asked<'_>, state: StateId, filling: &mut Filling) {
        // What was found on the way here depends on the order in which stacks were met.
        filling.begin();
        self.fill_inside(asked, state, filling);
        let max_depth = self.stacks.max_depth;
        let ahead = self
            .walks
            .ahead
            .get_or_insert_with(|| Ahead::new(asked.ir, max_depth));
        let readings = &self.states[state as usize].readings;
        if let Some(tokens) = ahead.tokens(asked, &self.stacks, readings) {
            filling.add_part(&tokens);
        }
        let known = filling.known_places(asked.vocabulary);
        let is_some = self.is_accepting(state) || filling.parts.iter().any(|part| !part.mask.is_empty());
        let trie = asked.vocabulary.trie();
        let begun = self.readings(state)[..].into();
        let waiting = None;
        let mut level = vec![(None, self.walks.number(WalkPlace { begun, waiting }))];
        let (mut met, mut work) = (BTreeSet::new(), 0);
        let mut children = Vec::new();
        while !level.is_empty() {
            // Single bytes are always tried, so that every text can be written.
            let is_first = matches!(level[..], [(None, _)]);
            let fresh = level.iter().filter(|(_, place)| met.insert(*place) && !is_first);
            work += fresh
                .map(|(node, place)| self.work(asked, &known, *node, *place))
                .sum::<usize>();
            if work > MAX_WORK && (is_some || !filling.extras.is_empty()) {
                break;
            }
            let mut next_level = Vec::new();
            for (node, place) in level {
                children.clear();
                trie.for_each_child(node, [u64::MAX; 4], |child| children.push(child));
                for child in &children {
                    if has_all(&known, trie.range_below(*child)) {
                        continue;
                    }
                    let next = self.walk_step(asked.ir, place, trie.nodes()[*child].byte);
                    if next == NOWHERE {
                        continue;
                    }
                    filling.extras.extend(trie.tokens_at(*child));
                    if !trie.is_leaf(*child) {
                        next_level.push((Some(*child), next));
                    }
                }
            }
            level = next_level;
        }
    }

    /// Adds the tokens that stay within the leaves of `state`.
    fn fill_inside(&mut self, asked: Asked<'_>, state: StateId, filling: &mut Filling) {
        for reading in self.readings(state).iter() {
            if matches!(
                reading.leaf,
                Leaf::Dfa { .. } | Leaf::Text { .. } | Leaf::Free { .. }
            ) {
                let piece = self.piece(asked, reading, filling);
                filling.add_part(&piece.inside);
            }
        }
    }

    /// What it costs to go on from `place` at `node`.
    fn work(&mut self, asked: Asked<'_>, known: &[u64], node: Option<usize>, place: PlaceId) -> usize {
        let trie = asked.vocabulary.trie();
        let WalkPlace { begun, waiting } = &*self.walks.places[place as usize].clone();
        let stacks = begun.iter().map(|reading| reading.stack).chain(*waiting);
        let costs = stacks.map(|stack| self.stacks.cost(asked.ir, stack));
        let mut n_children = 0;
        trie.for_each_child(node, [u64::MAX; 4], |child| {
            n_children += usize::from(!has_all(known, trie.range_below(child)));
        });
        n_children * costs.max().expect("a place has a leaf or waits")
    }

    fn walk_step(&mut self, ir: &Ir, place: PlaceId, byte: u8) -> PlaceId {
        // There are 256 classes at most.
        let slot = (place, ir.classes.of(byte) as u8);
        if let Some(known) = self.walks.steps.get(&slot) {
            return *known;
        }
        let firsts = self.walks.firsts.get_or_insert_with(|| Arc::new(Firsts::new(ir)));
        let (firsts, before) = (firsts.clone(), self.walks.places[place as usize].clone());
        let entered = before
            .waiting
            .map(|stack| Closure::above_with(&mut self.stacks, ir, stack, (&firsts, byte)));
        let (mut begun, mut complete) = (Vec::new(), Vec::new());
        for reading in before
            .begun
            .iter()
            .chain(entered.iter().flat_map(|found| found.iter()))
        {
            let moved = self.stacks.move_leaf(ir, reading, byte);
            begun.extend(moved.inside);
            complete.extend(moved.complete);
        }
        self.stacks.merge(ir, &mut begun);
        let waiting = (!complete.is_empty()).then(|| self.stacks.union_of(ir, complete));
        let waiting = waiting.filter(|stack| self.stacks.can_follow(ir, *stack));
        let begun = begun.into();
        let next = self.walks.number(WalkPlace { begun, waiting });
        self.walks.steps.insert(slot, next);
        next
    }
}
