//! Characters by whether expressions tell them apart.
//!
//! Automata of expressions are over *letters*: sets of characters of which each class of the expression has
//! all or none. There are few of them, however many characters the classes have, and none of UTF-8's states
//! between the bytes of a character.

use std::borrow::Cow;
use std::collections::BTreeSet;

use regex_syntax::hir::{Class, ClassUnicode, Hir, HirKind};

use super::determinize::{Budget, Excess};
use super::look::{Look, Neighbour};
use crate::hash::Map;

/// The number of a letter.
pub(super) type Letter = u16;

/// Characters from the first to the last.
type Range = (u32, u32);

#[derive(Debug)]
pub(super) struct Letters {
    /// Every character, ascending. Letter 0 is what no class has.
    ranges: Vec<(Range, Letter)>,
    /// By letter, what an assertion sees of it.
    seen: Vec<Neighbour>,
    /// All that assertions see of letters.
    neighbours: BTreeSet<Neighbour>,
    /// By class that was asked for, its letters, ascending.
    sets: Vec<Box<[Letter]>>,
    ids: Map<Vec<Range>, u32>,
}

impl Letters {
    /// The letters of `expressions` together.
    pub(super) fn new<'a>(
        expressions: impl Iterator<Item = &'a Hir>,
        budget: &mut Budget,
    ) -> Result<Self, Excess> {
        let mut classes = Classes::default();
        expressions.for_each(|hir| classes.add_all(hir));
        let parts = classes.parts(budget)?;
        let mut numbers: Map<(&[u32], Neighbour), Letter> = Map::default();
        let mut letters = Self {
            ranges: Vec::new(),
            seen: vec![Neighbour::Other],
            neighbours: BTreeSet::new(),
            sets: Vec::new(),
            ids: Map::default(),
        };
        numbers.insert((&[], Neighbour::Other), 0);
        let mut sets = vec![Vec::new(); classes.ids.len()];
        for Part { range, of } in &parts {
            let seen = classes.seen(range.0);
            let fresh = Letter::try_from(letters.seen.len()).map_err(|_| Excess::States)?;
            let letter = *numbers.entry((of, seen)).or_insert(fresh);
            if letter == fresh {
                letters.seen.push(seen);
                of.iter().for_each(|class| sets[*class as usize].push(letter));
            }
            letters.ranges.push((*range, letter));
        }
        letters.neighbours = letters.seen.iter().copied().collect();
        letters.sets = sets.into_iter().map(Vec::into_boxed_slice).collect();
        letters.ids = classes.ids;
        Ok(letters)
    }

    pub(super) fn n_letters(&self) -> usize {
        self.seen.len()
    }

    /// All of them that are of some character.
    pub(super) fn of_characters(&self) -> std::ops::Range<Letter> {
        let has_others = self.ranges.iter().any(|(_, letter)| *letter == 0);
        Letter::from(!has_others)..self.n_letters() as Letter
    }

    /// Every range of characters with its letter, ascending.
    pub(super) fn ranges(&self) -> &[(Range, Letter)] {
        &self.ranges
    }

    /// All that assertions see of letters.
    pub(super) fn neighbours(&self) -> impl Iterator<Item = Neighbour> + use<> {
        self.neighbours.clone().into_iter()
    }

    pub(super) fn seen(&self, letter: Letter) -> Neighbour {
        self.seen[usize::from(letter)]
    }

    /// The number of the class `class`, which one of the expressions has.
    pub(super) fn class(&self, class: &Class) -> u32 {
        self.ids[&ranges_of(&characters(class))]
    }

    /// The same of a character by itself.
    pub(super) fn character(&self, c: char) -> u32 {
        self.ids[&vec![(u32::from(c), u32::from(c))]]
    }

    /// The letters of the class with the number `class`, ascending.
    pub(super) fn of(&self, class: u32) -> &[Letter] {
        &self.sets[class as usize]
    }
}

/// The characters of a class. One of bytes is what the parser makes of ASCII and of nothing.
pub(super) fn characters(class: &Class) -> Cow<'_, ClassUnicode> {
    match class {
        Class::Unicode(class) => Cow::Borrowed(class),
        Class::Bytes(class) => Cow::Owned(class.to_unicode_class().expect("expressions are of characters")),
    }
}

fn ranges_of(class: &ClassUnicode) -> Vec<Range> {
    let ranges = class.ranges().iter();
    ranges
        .map(|range| (u32::from(range.start()), u32::from(range.end())))
        .collect()
}

/// Classes that expressions have, each once.
#[derive(Default)]
struct Classes {
    ids: Map<Vec<Range>, u32>,
    /// Whether neighbours matter as parts of words, and as ends of lines.
    has_words: bool,
    has_lines: bool,
}

impl Classes {
    fn add(&mut self, class: Vec<Range>) {
        let fresh = self.ids.len() as u32;
        self.ids.entry(class).or_insert(fresh);
    }

    fn add_all(&mut self, hir: &Hir) {
        let mut todo = vec![hir];
        while let Some(hir) = todo.pop() {
            todo.extend(hir.kind().subs());
            match hir.kind() {
                HirKind::Literal(literal) => {
                    let text = std::str::from_utf8(&literal.0).expect("expressions are of characters");
                    text.chars()
                        .for_each(|c| self.add(vec![(u32::from(c), u32::from(c))]));
                }
                HirKind::Class(class) => self.add(ranges_of(&characters(class))),
                HirKind::Look(look) => match Look::of(*look) {
                    Look::Start | Look::End => {}
                    Look::LineStart | Look::LineEnd | Look::CrlfStart | Look::CrlfEnd => {
                        self.has_lines = true;
                    }
                    _ => self.has_words = true,
                },
                HirKind::Empty
                | HirKind::Repetition(_)
                | HirKind::Capture(_)
                | HirKind::Concat(_)
                | HirKind::Alternation(_) => {}
            }
        }
    }

    /// What an assertion sees of the character `c`, as far as there are assertions that look.
    fn seen(&self, c: u32) -> Neighbour {
        let neighbour = char::from_u32(c).map_or(Neighbour::Other, Neighbour::of);
        let matters = match neighbour {
            Neighbour::Word => self.has_words,
            Neighbour::LineFeed | Neighbour::CarriageReturn => self.has_lines,
            Neighbour::Other | Neighbour::Outside => true,
        };
        if matters { neighbour } else { Neighbour::Other }
    }

    /// All characters, ascending, in ranges that no class parts.
    fn parts(&self, budget: &mut Budget) -> Result<Vec<Part>, Excess> {
        /// Of ASCII's words and of lines: where they begin and behind where they end.
        const WORDS: [u32; 8] = [0x30, 0x3a, 0x41, 0x5b, 0x5f, 0x60, 0x61, 0x7b];
        const LINES: [u32; 4] = [0xa, 0xb, 0xd, 0xe];
        const SURROGATES: Range = (0xD800, 0xE000);
        const END: u32 = 0x11_0000;
        let mut borders: Vec<(u32, u32)> = Vec::new();
        for (ranges, class) in &self.ids {
            let ends = ranges.iter().flat_map(|(first, last)| [*first, last + 1]);
            borders.extend(ends.map(|at| (at, *class)));
        }
        borders.sort_unstable();
        let mut cuts: BTreeSet<u32> = borders.iter().map(|(at, _)| *at).collect();
        cuts.extend([0, SURROGATES.0, SURROGATES.1]);
        cuts.extend(WORDS.iter().filter(|_| self.has_words));
        cuts.extend(LINES.iter().filter(|_| self.has_lines));
        cuts.remove(&END);
        let ends: Vec<u32> = cuts.iter().copied().skip(1).chain([END]).collect();
        let mut borders = borders.into_iter().peekable();
        let mut open: BTreeSet<u32> = BTreeSet::new();
        let mut parts = Vec::with_capacity(ends.len());
        for (begin, end) in cuts.into_iter().zip(ends) {
            while let Some((_, class)) = borders.next_if(|(at, _)| *at == begin) {
                if !open.remove(&class) {
                    open.insert(class);
                }
            }
            budget.spend(1 + open.len())?;
            if begin != SURROGATES.0 {
                parts.push(Part {
                    range: (begin, end - 1),
                    of: open.iter().copied().collect(),
                });
            }
        }
        Ok(parts)
    }
}

/// Characters and the classes that have them.
struct Part {
    range: Range,
    of: Box<[u32]>,
}
