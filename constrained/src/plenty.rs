//! How many values the parts of a grammar have, as far as it matters to parts that must be distinct.
//!
//! Every number is a lower bound: so many values there are at least.

use crate::array::{Array, Variant};
use crate::dfa::{DEAD, Dfa};
use crate::error::CompileError;
use crate::ir::{Ir, Node, NodeId};
use crate::memory::MAX_DISTINCT;
use crate::nesting::NEVER;
use crate::object::Object;
use crate::open::Open;
use crate::records::Items;
use crate::schema::{Enforcement, Relaxed};
use crate::text::{OPENING, PLAIN, Place, TextSpec};

/// Values by node, object and string.
#[derive(Debug)]
pub(crate) struct Plenty {
    nodes: Vec<u32>,
    objects: Vec<u32>,
    /// By state of a string's content: whether endlessly many texts can follow, lengths apart.
    endless: Vec<Box<[bool]>>,
    /// The same: where any text can follow, lengths apart.
    open: Vec<Open>,
}

/// From so many on, exact numbers do not matter.
const LIMIT: u64 = 2 * MAX_DISTINCT as u64 + 2;
/// Passes over the nodes of a recursive grammar; fewer only make the bounds lower.
const MAX_PASSES: usize = 32;

/// `n`, or `u32::MAX` for all that is plenty.
fn clamped(n: u64) -> u32 {
    if n >= LIMIT { u32::MAX } else { n as u32 }
}

fn product(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(1, u64::saturating_mul)
}

impl Plenty {
    pub(crate) fn new(ir: &Ir) -> Self {
        let contents = || ir.texts.iter().map(|text| &**text.content());
        let mut plenty = Self {
            nodes: vec![0; ir.nodes.len()],
            objects: vec![0; ir.objects.len()],
            endless: contents().map(endless_states).collect(),
            open: contents().map(Open::new).collect(),
        };
        for (id, node) in ir.nodes.iter().enumerate() {
            plenty.nodes[id] = match node {
                _ if ir.needs[id] == NEVER => 0,
                Node::Dfa(dfa) => n_words(&ir.dfas[*dfa as usize]),
                Node::Text(text) => n_texts(&ir.texts[*text as usize]),
                _ => 0,
            };
        }
        for _ in 0..MAX_PASSES {
            let mut changed = false;
            for (id, node) in ir.nodes.iter().enumerate() {
                if ir.needs[id] != NEVER && plenty.nodes[id] != u32::MAX {
                    let n = plenty.of_node(ir, id as NodeId, node);
                    changed |= n > plenty.nodes[id];
                    plenty.nodes[id] = n.max(plenty.nodes[id]);
                }
            }
            if !changed {
                break;
            }
        }
        plenty
    }

    pub(crate) fn n_values(&self, node: NodeId) -> u32 {
        self.nodes[node as usize]
    }

    /// Of the object with the given number.
    pub(crate) fn n_objects(&self, object: u32) -> u32 {
        self.objects[object as usize]
    }

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        let n_states: usize = self.endless.iter().map(|states| states.len()).sum();
        (self.nodes.len() + self.objects.len()) * 4 + 2 * n_states
    }

    fn of_node(&mut self, ir: &Ir, id: NodeId, node: &Node) -> u32 {
        match node {
            Node::Never => 0,
            Node::Dfa(_) | Node::Text(_) => self.nodes[id as usize],
            Node::Rule(rule) => self.n_values(ir.rules[*rule as usize]),
            Node::Alt(parts) => self.of_alternatives(ir, parts),
            Node::Object(object) => {
                let n = self.of_object(&ir.objects[*object as usize]);
                self.objects[*object as usize] = n;
                n
            }
            Node::Array(array) => self.of_array(&ir.arrays[*array as usize]),
            Node::Empty | Node::Token(_) | Node::Free(_) => 1,
            Node::Seq(_) | Node::Repeat { .. } | Node::Marked { .. } => 1,
        }
    }

    /// Values of different types differ; others might be the same.
    fn of_alternatives(&self, ir: &Ir, parts: &[NodeId]) -> u32 {
        let mut by_type = [0u32; 6];
        for part in parts {
            let slot = &mut by_type[first_type(ir, *part)];
            *slot = self.n_values(*part).max(*slot);
        }
        let [mixed, apart @ ..] = by_type;
        let sum: u64 = apart.into_iter().map(u64::from).sum();
        clamped(sum).max(mixed)
    }

    fn of_object(&self, object: &Object) -> u32 {
        if !object.conditions.is_empty() {
            return 1;
        }
        let n_required = object.keys.iter().filter(|key| key.is_required).count() as u32;
        let n_most = object.max.unwrap_or(u32::MAX);
        let names = object.extras.iter().map(|extra| self.n_values(extra.names));
        let n_names = names
            .max()
            .filter(|_| n_required < n_most && object.min <= n_required + 1);
        let of_key = |key: &crate::object::Key| {
            let most = key.choices.iter().map(|choice| self.n_values(choice.value)).max();
            let absent = !key.is_required && object.min == 0;
            u64::from(most.unwrap_or(0)) + u64::from(absent)
        };
        let by_keys = if object.keys.len() as u64 <= u64::from(n_most) {
            product(object.keys.iter().map(of_key))
        } else {
            1
        };
        clamped(by_keys).max(n_names.unwrap_or(0)).max(1)
    }

    fn of_array(&self, array: &Array) -> u32 {
        if array.is_endless() && !array.is_unique() {
            return u32::MAX;
        }
        if array.min > 1 || array.is_counted() {
            return 1;
        }
        let items = array.items(0, 0).map(|(item, ..)| self.n_values(item));
        items.max().unwrap_or(0).max(1)
    }

    /// Whether items that may come after `items` make more than `n` values.
    pub(crate) fn has_items(&self, ir: &Ir, items: Items, n: u32) -> bool {
        let shape = &ir.arrays[items.array as usize];
        let mut nodes = shape.items(items.n, items.used).map(|(item, ..)| item);
        if shape.is_unique() {
            return nodes.any(|item| self.n_values(item) > n + MAX_DISTINCT);
        }
        nodes.any(|item| shape.is_endless() || self.n_values(item) > n)
    }

    /// Whether items can surely be chosen one after another, each different from those before, until the
    /// array may end.
    fn has_enough(&self, ir: &Ir, array: &Array) -> bool {
        let most = |variants: &[Variant]| variants.iter().map(|variant| self.n_values(variant.item)).max();
        if array.min > MAX_DISTINCT {
            return false;
        }
        if array.is_counted() {
            let n_counted = array.counters().iter().map(|counter| counter.min);
            let n_counted = n_counted.fold(0, u32::saturating_add);
            let is_bounded = array.counters().iter().any(|counter| counter.max.is_some());
            return (0..=array.n_prefix()).all(|at| {
                let enough = |variant: &Variant| {
                    let needed = match variant.counts {
                        _ if is_bounded => u32::MAX,
                        0 => array.min.saturating_add(n_counted),
                        _ => n_counted,
                    };
                    self.n_values(variant.item) >= needed
                };
                array.variants(at).iter().all(enough)
            });
        }
        let types = |at: u32| {
            let types = array
                .variants(at)
                .iter()
                .map(|variant| first_type(ir, variant.item));
            types.collect::<Vec<_>>()
        };
        let n_prefix = array.n_prefix();
        // The first ones, and the last one that there must be.
        let places = (1..n_prefix.min(array.min)).chain((array.min > n_prefix).then(|| array.min - 1));
        places.into_iter().all(|at| {
            let own = types(at);
            let may_share = |before: &u32| {
                let others = types(*before);
                own.contains(&0) || others.contains(&0) || own.iter().any(|own| others.contains(own))
            };
            let n_before =
                (0..at.min(n_prefix)).filter(may_share).count() as u32 + at.saturating_sub(n_prefix);
            most(array.variants(at)).is_some_and(|n| n > n_before)
        })
    }

    /// Whether more than `n` texts can follow `place`; not every time that they can.
    pub(crate) fn has_text(&self, ir: &Ir, text: u32, place: Place, n: u32) -> bool {
        let spec = &ir.texts[text as usize];
        let is_plain = place.mode == PLAIN || place.mode == OPENING;
        let is_endless = self.endless[text as usize][place.state as usize];
        let is_open = self.open[text as usize].has(place.state);
        match spec.n_chars_left(place) {
            None => is_endless && (is_plain || is_open),
            // One more character alone has more values than are ever compared.
            Some(n_left) => is_open && n_left >= if is_plain { 1 } else { 2 } && n < MAX_DISTINCT * 2,
        }
    }
}

impl Ir {
    /// Objects that are compared with others write no name twice, and count their names.
    pub(crate) fn prepare_distinct(&mut self) {
        let unique = self.arrays.iter().filter(|array| array.is_unique());
        let mut todo: Vec<NodeId> = unique.flat_map(Array::all_items).collect();
        let mut is_seen = vec![false; self.nodes.len()];
        while let Some(node) = todo.pop() {
            if std::mem::replace(&mut is_seen[node as usize], true) {
                continue;
            }
            match &self.nodes[node as usize] {
                Node::Seq(parts) | Node::Alt(parts) => todo.extend(parts),
                Node::Repeat { body, .. } => todo.push(*body),
                Node::Rule(rule) => todo.push(self.rules[*rule as usize]),
                Node::Array(array) => todo.extend(self.arrays[*array as usize].all_items()),
                Node::Object(object) => {
                    let object = &mut self.objects[*object as usize];
                    object.has_distinct_names |= !object.extras.is_empty();
                    let keys = object.keys.iter().map(|key| &key.choices);
                    let choices = keys.chain(object.extras.iter().map(|extra| &extra.choices));
                    todo.extend(choices.flatten().map(|choice| choice.value));
                }
                _ => {}
            }
        }
        for object in self.objects.iter_mut().filter(|object| object.has_distinct_names) {
            for extra in &mut object.extras {
                let Node::Text(names) = self.nodes[extra.names as usize] else {
                    unreachable!("names are strings");
                };
                extra.n_names = n_texts(&self.texts[names as usize]);
            }
        }
    }

    /// Counts values where some must be distinct; an error where so many as are asked for may not exist.
    pub(crate) fn count_distinct(&mut self) -> Result<(), CompileError> {
        let is_asked = self.arrays.iter().any(Array::is_unique)
            || self.objects.iter().any(|object| object.has_distinct_names);
        if !is_asked {
            return Ok(());
        }
        let plenty = Plenty::new(self);
        for (id, node) in self.nodes.iter().enumerate() {
            let Node::Array(array) = node else { continue };
            let array = *array as usize;
            let Some(unique) = self.arrays[array].uniqueness() else {
                continue;
            };
            if self.needs[id] == NEVER || plenty.has_enough(self, &self.arrays[array]) {
                continue;
            }
            let why = "it does not show that there are as many distinct items as there must be";
            let (pointer, keyword, why) = (unique.pointer.clone(), "uniqueItems".to_owned(), why.to_owned());
            if unique.enforcement == Enforcement::Whole {
                return Err(CompileError::Unsupported {
                    pointer,
                    keyword,
                    why,
                });
            }
            self.relaxed.push(Relaxed {
                pointer,
                keyword,
                why,
            });
            self.arrays[array].drop_uniqueness();
        }
        self.plenty = Some(plenty);
        Ok(())
    }
}

/// 1 to 5 for what is of one type for sure.
fn first_type(ir: &Ir, mut node: NodeId) -> usize {
    for _ in 0..8 {
        match &ir.nodes[node as usize] {
            Node::Rule(rule) => node = ir.rules[*rule as usize],
            Node::Text(_) => return 1,
            Node::Object(_) => return 2,
            Node::Array(_) => return 3,
            Node::Dfa(dfa) => {
                let dfa = &ir.dfas[*dfa as usize];
                let begins = |bytes: &[u8]| bytes.iter().any(|byte| dfa.step(dfa.start(), *byte) != DEAD);
                return match (begins(b"-0123456789"), begins(b"ntf")) {
                    (true, false) => 4,
                    // `true` and `null` are alternatives of one automaton or of several.
                    (false, true) => 5,
                    _ => 0,
                };
            }
            _ => return 0,
        }
    }
    0
}

/// By state, whether endlessly many texts lead on from it.
fn endless_states(content: &Dfa) -> Box<[bool]> {
    let n = content.n_states();
    if content.as_all_but().is_some() {
        return (0..n).map(|state| state != DEAD as usize).collect();
    }
    let members = content.classes().members();
    let edges = |state: usize| {
        let next = members.iter().map(move |byte| content.step(state as u32, *byte));
        next.filter(|next| *next != DEAD)
    };
    let mut into = vec![Vec::new(); n];
    let mut n_open = vec![0u32; n];
    for (state, n_ways) in n_open.iter_mut().enumerate() {
        for next in edges(state) {
            into[next as usize].push(state);
            *n_ways += 1;
        }
    }
    // States from which every way ends soon are taken away, from the ends on.
    let mut ending: Vec<usize> = (0..n).filter(|state| n_open[*state] == 0).collect();
    let mut is_endless = vec![true; n];
    while let Some(state) = ending.pop() {
        is_endless[state] = false;
        for before in &into[state] {
            n_open[*before] -= 1;
            if n_open[*before] == 0 {
                ending.push(*before);
            }
        }
    }
    is_endless.into()
}

/// Strings that differ in their content.
fn n_texts(text: &TextSpec) -> u32 {
    let content = text.content();
    let (min, max) = text.bounds();
    if max.is_none() && endless_states(content)[content.start() as usize] {
        return u32::MAX;
    }
    if max.is_some_and(|max| max > 0) && Open::new(content).has(content.start()) {
        return u32::MAX;
    }
    let mut sizes = vec![0u64; content.classes().len()];
    (0..=255u8).for_each(|byte| sizes[content.classes().of(byte)] += 1);
    let mut n = 0u64;
    let mut open = vec![(content.start(), 0u32, 1u64)];
    while let Some((state, n_chars, n_alike)) = open.pop() {
        if content.is_accepting(state) && n_chars >= min {
            n = n.saturating_add(n_alike);
        }
        if n >= LIMIT {
            break;
        }
        for (byte, size) in content.classes().members().iter().zip(&sizes) {
            let n_chars = n_chars + u32::from(byte & 0xC0 != 0x80);
            let next = content.step(state, *byte);
            if text.is_alive(next, n_chars) {
                open.push((next, n_chars, n_alike.saturating_mul(*size)));
            }
        }
    }
    clamped(n)
}

/// What a spelling is so far; only one spelling of each number is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelled {
    Start,
    Minus,
    Zero,
    NegativeZero,
    Whole,
    Point,
    Fraction,
    ZeroAtEnd,
    Word,
}

impl Spelled {
    fn step(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            (Self::Start, b'-') => Some(Self::Minus),
            (Self::Start, b'0') => Some(Self::Zero),
            (Self::Minus, b'0') => Some(Self::NegativeZero),
            (Self::Start | Self::Minus, b'1'..=b'9') | (Self::Whole, b'0'..=b'9') => Some(Self::Whole),
            (Self::Zero | Self::NegativeZero | Self::Whole, b'.') => Some(Self::Point),
            (Self::Point | Self::Fraction | Self::ZeroAtEnd, b'1'..=b'9') => Some(Self::Fraction),
            (Self::Point | Self::Fraction | Self::ZeroAtEnd, b'0') => Some(Self::ZeroAtEnd),
            (Self::Start | Self::Word, b'a'..=b'z') => Some(Self::Word),
            _ => None,
        }
    }

    fn is_whole(self) -> bool {
        matches!(self, Self::Zero | Self::Whole | Self::Fraction | Self::Word)
    }
}

/// Numbers that differ, and literals.
fn n_words(dfa: &Dfa) -> u32 {
    const MAX_BYTES: u32 = 40;
    const MAX_STEPS: usize = 40_000;
    let mut n = 0;
    let mut open = vec![(dfa.start(), Spelled::Start, 0)];
    for _ in 0..MAX_STEPS {
        let Some((state, spelled, n_bytes)) = open.pop().filter(|_| n < LIMIT) else {
            break;
        };
        n += u64::from(dfa.is_accepting(state) && spelled.is_whole());
        if n_bytes == MAX_BYTES {
            continue;
        }
        for byte in *b"-.0123456789aeflnrstu" {
            let next = dfa.step(state, byte);
            if let Some(spelled) = spelled.step(byte).filter(|_| next != DEAD) {
                open.push((next, spelled, n_bytes + 1));
            }
        }
    }
    clamped(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_by_value() {
        let of = |words: &[&str]| n_words(&Dfa::of_strings(words.iter().map(|word| word.as_bytes())));
        assert_eq!(
            of(&["1", "1.0", "1.50", "1.5", "-0", "0", "0.0", "true", "null"]),
            5
        );
        assert_eq!(of(&[]), 0);
    }
}
