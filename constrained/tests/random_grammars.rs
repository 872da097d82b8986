//! Random grammars, most of them very ambiguous and full of parts that may be empty, against an Earley
//! recogniser: what a mask allows can always be completed, something is always allowed, and unless the stacks
//! outgrow their bound no byte is missing and the output can end wherever a walk gets.

#[path = "common/random.rs"]
mod random;

use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use arbora_constrained::{Grammar, Limits, Matcher, Vocabulary};
use random::Random;

const EOS: u32 = 0;
const LETTERS: &[u8] = b"abcd()";

/// How a class or literal is written, and the bytes of each of its characters.
const TERMINALS: [(&str, &[&[u8]]); 9] = [
    ("[a-d]", &[b"abcd"]),
    ("[ab]", &[b"ab"]),
    ("[bcd()]", &[b"bcd()"]),
    ("[bc]", &[b"bc"]),
    ("\"a\"", &[b"a"]),
    ("\"ab\"", &[b"a", b"b"]),
    ("\"(\"", &[b"("]),
    ("\")\"", &[b")"]),
    ("[cd]", &[b"cd"]),
];

#[derive(Clone, Copy)]
enum Symbol {
    OneOf(&'static [u8]),
    Rule(usize),
}

/// By rule its ways, without repetitions; each rule derives something.
#[derive(Default)]
struct Rules(Vec<Vec<Vec<Symbol>>>);

impl Rules {
    fn add(&mut self, ways: Vec<Vec<Symbol>>) -> usize {
        self.0.push(ways);
        self.0.len() - 1
    }
}

/// A random grammar in GBNF, and as rules of which the first one is the root.
struct Made {
    random: Random,
    n_rules: usize,
    rules: Rules,
}

impl Made {
    fn grammar(seed: u64) -> (String, Rules) {
        let mut random = Random(seed);
        let n_rules = 1 + random.below(3);
        let rules = Rules(vec![Vec::new(); n_rules]);
        let mut made = Self {
            random,
            n_rules,
            rules,
        };
        let mut text = String::new();
        for rule in 0..n_rules {
            let name = name_of(rule);
            write!(text, "{name} ::= ").expect("a string");
            let mut ways = made.ways(0, &mut text);
            text += " | ";
            ways.push(made.terminal(&mut text));
            text += "\n";
            made.rules.0[rule] = ways;
        }
        (text, made.rules)
    }

    fn terminal(&mut self, text: &mut String) -> Vec<Symbol> {
        let (written, characters) = TERMINALS[self.random.below(TERMINALS.len())];
        *text += written;
        characters.iter().map(|bytes| Symbol::OneOf(bytes)).collect()
    }

    fn ways(&mut self, depth: usize, text: &mut String) -> Vec<Vec<Symbol>> {
        let mut ways = Vec::new();
        for n in 0..=self.random.below(2) {
            *text += if n > 0 { " | " } else { "" };
            let mut way = Vec::new();
            for n in 0..=self.random.below(3) {
                *text += if n > 0 { " " } else { "" };
                way.extend(self.element(depth, text));
            }
            ways.push(way);
        }
        if self.random.below(5) == 0 {
            *text += " | \"\"";
            ways.push(Vec::new());
        }
        ways
    }

    fn element(&mut self, depth: usize, text: &mut String) -> Vec<Symbol> {
        let mut body = match self.random.below(10) {
            0..4 => self.terminal(text),
            4..8 => {
                let rule = self.random.below(self.n_rules);
                *text += &name_of(rule);
                vec![Symbol::Rule(rule)]
            }
            _ if depth > 1 => self.terminal(text),
            _ => {
                *text += "(";
                let ways = self.ways(depth + 1, text);
                *text += ")";
                vec![Symbol::Rule(self.rules.add(ways))]
            }
        };
        match self.random.below(8) {
            0 => {
                *text += "+";
                let list = self.list(&body);
                body.push(Symbol::Rule(list));
            }
            1 => {
                *text += "*";
                body = vec![Symbol::Rule(self.list(&body))];
            }
            2 => {
                *text += "?";
                body = vec![Symbol::Rule(self.rules.add(vec![Vec::new(), body]))];
            }
            _ => {}
        }
        body
    }

    /// The rule of any number of `body`.
    fn list(&mut self, body: &[Symbol]) -> usize {
        let list = self.rules.add(Vec::new());
        let more = [body, &[Symbol::Rule(list)]].concat();
        self.rules.0[list] = vec![Vec::new(), more];
        list
    }
}

fn name_of(rule: usize) -> String {
    match rule {
        0 => "root".to_owned(),
        _ => format!("r{rule}"),
    }
}

/// A rule's way with a dot in it.
struct Dotted {
    rule: usize,
    next: Option<Symbol>,
    /// The places in the chart's rows of what follows the dot.
    rest: Range<usize>,
}

/// Earley's chart: after each byte, the dotted ways that may be on and where they began.
struct Chart {
    dotted: Vec<Dotted>,
    /// By rule, the dotted ways that begin it.
    begins: Vec<Vec<usize>>,
    /// By number of bytes and dotted way, a bit for each beginning.
    rows: Vec<Vec<Vec<u64>>>,
    /// By rule, a shortest text.
    shortest: Vec<Vec<u8>>,
}

fn set(bits: &mut Vec<u64>, bit: usize) -> bool {
    if bits.len() <= bit / 64 {
        bits.resize(bit / 64 + 1, 0);
    }
    let before = bits[bit / 64];
    bits[bit / 64] |= 1 << (bit % 64);
    before != bits[bit / 64]
}

fn add(bits: &mut Vec<u64>, others: &[u64]) -> bool {
    if bits.len() < others.len() {
        bits.resize(others.len(), 0);
    }
    let mut is_more = false;
    for (word, other) in bits.iter_mut().zip(others) {
        is_more |= other & !*word != 0;
        *word |= other;
    }
    is_more
}

fn members(bits: &[u64]) -> impl Iterator<Item = usize> {
    let has = |bit: &usize| bits[bit / 64] >> (bit % 64) & 1 == 1;
    (0..bits.len() * 64).filter(has)
}

fn is_empty(bits: &[u64]) -> bool {
    bits.iter().all(|word| *word == 0)
}

impl Chart {
    fn new(rules: &Rules) -> Self {
        let (mut dotted, mut begins) = (Vec::new(), vec![Vec::new(); rules.0.len()]);
        for (rule, ways) in rules.0.iter().enumerate() {
            for way in ways {
                begins[rule].push(dotted.len());
                let end = dotted.len() + way.len() + 1;
                for next in way.iter().map(|symbol| Some(*symbol)).chain([None]) {
                    let rest = dotted.len()..end;
                    dotted.push(Dotted { rule, next, rest });
                }
            }
        }
        let mut chart = Self {
            shortest: shortest(rules),
            rows: vec![vec![Vec::new(); dotted.len()]],
            dotted,
            begins,
        };
        for at in chart.begins[0].clone() {
            set(&mut chart.rows[0][at], 0);
        }
        chart.close();
        chart
    }

    fn n_bytes(&self) -> usize {
        self.rows.len() - 1
    }

    /// Predicts and completes until nothing is new.
    fn close(&mut self) {
        let here = self.n_bytes();
        let mut row = std::mem::take(&mut self.rows[here]);
        loop {
            let mut is_more = false;
            for (at, dotted) in self.dotted.iter().enumerate() {
                if is_empty(&row[at]) {
                    continue;
                }
                match dotted.next {
                    Some(Symbol::OneOf(_)) => {}
                    Some(Symbol::Rule(rule)) => {
                        for begin in &self.begins[rule] {
                            is_more |= set(&mut row[*begin], here);
                        }
                    }
                    None => {
                        let begun: Vec<usize> = members(&row[at]).collect();
                        for (waiting, other) in self.dotted.iter().enumerate() {
                            if !matches!(other.next, Some(Symbol::Rule(rule)) if rule == dotted.rule) {
                                continue;
                            }
                            for begin in &begun {
                                let origins = match begin {
                                    begin if *begin == here => row[waiting].clone(),
                                    begin => self.rows[*begin][waiting].clone(),
                                };
                                is_more |= add(&mut row[waiting + 1], &origins);
                            }
                        }
                    }
                }
            }
            if !is_more {
                break;
            }
        }
        self.rows[here] = row;
    }

    /// Takes `byte`; whether any text goes on so.
    fn push(&mut self, byte: u8) -> bool {
        let mut row = vec![Vec::new(); self.dotted.len()];
        for (at, dotted) in self.dotted.iter().enumerate() {
            if matches!(dotted.next, Some(Symbol::OneOf(bytes)) if bytes.contains(&byte)) {
                row[at + 1] = self.rows[self.n_bytes()][at].clone();
            }
        }
        self.rows.push(row);
        self.close();
        !self.rows[self.n_bytes()].iter().all(|bits| is_empty(bits))
    }

    /// Whether `bytes` may come.
    fn can_follow(&mut self, bytes: &[u8]) -> bool {
        let n_bytes = self.n_bytes();
        let can = bytes.iter().all(|byte| self.push(*byte));
        self.rows.truncate(n_bytes + 1);
        can
    }

    fn accepts(&self) -> bool {
        let row = &self.rows[self.n_bytes()];
        let is_complete = |(at, dotted): (usize, &Dotted)| {
            dotted.rule == 0 && dotted.next.is_none() && row[at].first().is_some_and(|word| word & 1 == 1)
        };
        self.dotted.iter().enumerate().any(is_complete)
    }

    /// A shortest text of what follows a dot.
    fn rest(&self, dotted: &Dotted) -> Vec<u8> {
        let symbols = self.dotted[dotted.rest.clone()]
            .iter()
            .filter_map(|other| other.next);
        let texts = symbols.map(|symbol| match symbol {
            Symbol::OneOf(bytes) => vec![bytes[0]],
            Symbol::Rule(rule) => self.shortest[rule].clone(),
        });
        texts.collect::<Vec<_>>().concat()
    }

    /// A text that completes what was taken.
    fn completion(&self) -> Vec<u8> {
        // By beginning and rule: what completes the whole once the rule is complete.
        let mut after: Vec<Vec<Option<Vec<u8>>>> = vec![vec![None; self.begins.len()]; self.rows.len()];
        after[0][0] = Some(Vec::new());
        let best = |after: &[Vec<Option<Vec<u8>>>], dotted: &Dotted, bits: &[u64], rest: Vec<u8>| {
            let ends = members(bits).filter_map(|begin| after[begin][dotted.rule].as_ref());
            let shortest = ends.min_by_key(|end| end.len())?;
            Some([&rest[..], shortest].concat())
        };
        for (here, row) in self.rows.iter().enumerate() {
            loop {
                let mut is_more = false;
                for (at, dotted) in self.dotted.iter().enumerate() {
                    let Some(Symbol::Rule(rule)) = dotted.next else {
                        continue;
                    };
                    let rest = self.rest(&self.dotted[at + 1]);
                    let Some(found) = best(&after, dotted, &row[at], rest) else {
                        continue;
                    };
                    let known = &mut after[here][rule];
                    if known.as_ref().is_none_or(|known| known.len() > found.len()) {
                        *known = Some(found);
                        is_more = true;
                    }
                }
                if !is_more {
                    break;
                }
            }
        }
        let last = self.rows[self.n_bytes()].iter().zip(&self.dotted);
        let ways = last.filter_map(|(bits, dotted)| best(&after, dotted, bits, self.rest(dotted)));
        ways.min_by_key(Vec::len).expect("something is on")
    }
}

/// By rule a shortest text.
fn shortest(rules: &Rules) -> Vec<Vec<u8>> {
    let mut known: Vec<Option<Vec<u8>>> = vec![None; rules.0.len()];
    loop {
        let mut is_more = false;
        for (rule, ways) in rules.0.iter().enumerate() {
            for way in ways {
                let texts = way.iter().map(|symbol| match symbol {
                    Symbol::OneOf(bytes) => Some(vec![bytes[0]]),
                    Symbol::Rule(rule) => known[*rule].clone(),
                });
                let Some(text) = texts.collect::<Option<Vec<_>>>() else {
                    continue;
                };
                let text = text.concat();
                if known[rule].as_ref().is_none_or(|known| known.len() > text.len()) {
                    known[rule] = Some(text);
                    is_more = true;
                }
            }
        }
        if !is_more {
            return known
                .into_iter()
                .map(|text| text.expect("each derives something"))
                .collect();
        }
    }
}

/// The end of the text, every byte, and all texts of two to five of the letters.
fn vocabulary() -> Arc<Vocabulary> {
    let mut texts: Vec<Vec<u8>> = vec![Vec::new()];
    let mut begin = 0;
    for _ in 0..5 {
        let end = texts.len();
        for at in begin..end {
            let longer = LETTERS.iter().map(|letter| [&texts[at][..], &[*letter]].concat());
            let longer: Vec<_> = longer.collect();
            texts.extend(longer);
        }
        begin = end;
    }
    let bytes = (0..=255u8).map(|byte| vec![byte]);
    let longer = texts.into_iter().filter(|text| text.len() > 1);
    let tokens = [None].into_iter().chain(bytes.chain(longer).map(Some));
    Arc::new(Vocabulary::new(tokens, &[EOS]).expect("10,000 tokens"))
}

fn byte_token(byte: u8) -> u32 {
    1 + u32::from(byte)
}

/// What a walk has met.
#[derive(Default)]
struct Tally {
    n_masks: usize,
    /// Longer tokens that a mask lacks although they could come.
    n_left_out: usize,
    /// Walks that came to where stacks were given up: a byte or the end could come and is not allowed.
    n_narrowed: u64,
}

/// An output, and the chart of the same text.
struct Walk<'a> {
    vocabulary: &'a Vocabulary,
    matcher: Matcher,
    chart: Chart,
    random: Random,
    /// Whether the matcher takes less than the grammar.
    is_narrowed: bool,
}

impl Walk<'_> {
    /// Compares a mask with the chart: all bytes, the end, and some of the longer tokens.
    fn compare(&mut self, tally: &mut Tally, what: &str) {
        const N_LOOKED_AT: usize = 6;
        let (mask, chart) = (self.matcher.mask(), &mut self.chart);
        tally.n_masks += 1;
        assert!(!mask.allows(EOS) || chart.accepts(), "{what}: it cannot end");
        self.is_narrowed |= mask.allows(EOS) != chart.accepts();
        for byte in LETTERS.iter().chain(b"x") {
            let (is_allowed, can) = (mask.allows(byte_token(*byte)), chart.can_follow(&[*byte]));
            assert!(!is_allowed || can, "{what}: {} leads nowhere", char::from(*byte));
            self.is_narrowed |= is_allowed != can;
        }
        let longer: Vec<u32> = (257..mask.n_vocab())
            .filter(|token| mask.allows(*token))
            .collect();
        for _ in 0..N_LOOKED_AT.min(longer.len()) {
            let token = longer[self.random.below(longer.len())];
            let text = self.vocabulary.token_bytes(token);
            assert!(
                chart.can_follow(text),
                "{what}: {} leads nowhere",
                text.escape_ascii()
            );
        }
        for _ in 0..N_LOOKED_AT {
            let token = 257 + self.random.below(mask.n_vocab() as usize - 257) as u32;
            let can = chart.can_follow(self.vocabulary.token_bytes(token));
            tally.n_left_out += usize::from(can && !mask.allows(token));
        }
    }

    /// Takes a random token that the mask allows, most of them longer than a byte; false at the end.
    fn step(&mut self, what: &str) -> bool {
        let mask = self.matcher.mask();
        let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
        assert!(!allowed.is_empty(), "{what}: nothing may follow");
        let is_long = self.random.below(4) > 0;
        let of_length = allowed
            .iter()
            .copied()
            .filter(|token| (*token > 256) == is_long && *token != EOS);
        let of_length: Vec<u32> = of_length.collect();
        let from = if of_length.is_empty() {
            &allowed
        } else {
            &of_length
        };
        let token = from[self.random.below(from.len())];
        if token == EOS {
            return false;
        }
        self.matcher.advance(token).expect("the mask allows it");
        for byte in self.vocabulary.token_bytes(token) {
            assert!(
                self.chart.push(*byte),
                "{what}: {byte} of token {token} leads nowhere"
            );
        }
        true
    }

    /// Takes a random byte that may come, without a mask; false where there is none.
    fn step_by_byte(&mut self) -> bool {
        let chart = &mut self.chart;
        let can = LETTERS.iter().copied().filter(|byte| chart.can_follow(&[*byte]));
        let can: Vec<u8> = can.collect();
        if can.is_empty() {
            return false;
        }
        let byte = can[self.random.below(can.len())];
        if self.matcher.advance(byte_token(byte)).is_err() {
            self.is_narrowed = true;
            return false;
        }
        self.chart.push(byte)
    }

    /// Takes a shortest text that completes what was taken; whether it may.
    fn end(&mut self) -> bool {
        for byte in self.chart.completion() {
            if self.matcher.advance(byte_token(byte)).is_err() {
                return false;
            }
        }
        self.matcher.mask().allows(EOS)
    }
}

#[test]
fn whatever_a_mask_allows_can_be_completed() {
    const N_GRAMMARS: u64 = 60;
    const N_TOKENS: usize = 40;
    /// So few tokens leave no more stacks than are kept.
    const N_EXACT: usize = 10;
    /// What a mask and a token may add to the tables.
    const MAX_BYTES: usize = 6 << 20;
    let (vocabulary, mut tally, mut n_compiled) = (vocabulary(), Tally::default(), 0);
    // No text of the walks nests deeper.
    let limits = Limits {
        max_output_depth: 1 << 14,
        // The tables are never begun anew.
        max_cache_bytes: usize::MAX,
        max_lazy_states: usize::MAX,
        ..Limits::default()
    };
    for seed in 0..N_GRAMMARS {
        let (text, rules) = Made::grammar(seed);
        let Ok(grammar) = Grammar::compile_gbnf(&vocabulary, &text, &limits) else {
            continue;
        };
        n_compiled += 1;
        let mut walk = Walk {
            vocabulary: &vocabulary,
            matcher: grammar.matcher(),
            chart: Chart::new(&rules),
            random: Random(seed),
            is_narrowed: false,
        };
        for n in 0..N_TOKENS {
            let what = format!("{text}, seed {seed}, token {n}");
            let n_bytes = grammar.n_bytes();
            // Masks take most of the time.
            let goes_on = if n % 10 == 0 {
                walk.compare(&mut tally, &what);
                walk.step(&what)
            } else {
                walk.step_by_byte()
            };
            assert!(!walk.is_narrowed || n >= N_EXACT, "{what}: something is missing");
            let n_more = grammar.n_bytes() - n_bytes;
            assert!(n_more <= MAX_BYTES, "{what}: {n_more} bytes more");
            if !goes_on {
                break;
            }
        }
        tally.n_narrowed += u64::from(walk.is_narrowed || !walk.end());
    }
    assert!(n_compiled > N_GRAMMARS / 2, "{n_compiled} compiled");
    let n_narrowed = tally.n_narrowed;
    assert!(
        n_narrowed * 10 < n_compiled,
        "{n_narrowed} of {n_compiled} took less than the grammar"
    );
    // The bound on the work of a mask was met.
    assert!(tally.n_left_out > 0, "all of {} masks are exact", tally.n_masks);
}
