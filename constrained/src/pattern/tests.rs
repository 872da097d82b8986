//! Regular expressions against a backtracking matcher that knows nothing of automata.

use super::*;

fn bounds() -> Bounds {
    Bounds::new(&Limits::default())
}

fn search(pattern: &str) -> Result<Built, CompileError> {
    Pattern::parse(pattern, Syntax::Ecma)?.search(bounds())
}

#[test]
fn patterns_are_searched_for_unless_anchored() {
    for (pattern, text, is_match) in [
        ("b+", "abbc", true),
        ("^b+$", "abb", false),
        ("^a|b$", "xb", true),
        ("^a|b$", "xbx", false),
        ("a$|^b", "xa", true),
        ("^\\d$", "٣", false),
        ("^[\\w-]+$", "a-b", true),
        ("^.$", "\n", false),
        ("^[[]$", "[", true),
        ("^\\u00e9$", "é", true),
        ("^\\$$", "$", true),
        ("^a\\$", "a$b", true),
        ("^{a}$", "{a}", true),
        ("^\\p{Lu}$", "É", true),
        ("", "anything", true),
    ] {
        let dfa = search(pattern).expect(pattern).dfa;
        assert_eq!(dfa.matches(text.as_bytes()), is_match, "{pattern} on {text}");
    }
}

#[test]
fn what_is_not_regular_or_too_large_is_refused() {
    for pattern in ["(a)\\1", "\\ya", "a{,2}", "\\u12", "(a", "a)"] {
        assert!(search(pattern).is_err(), "{pattern}");
    }
    let error = search("(a|b)*a(a|b){16}").expect_err("131,072 states");
    assert!(error.to_string().contains("max_automaton_states"), "{error}");
}

#[test]
fn counted_patterns_are_contents_of_so_many_characters() {
    for (pattern, content, min, max) in [
        ("^[a-z]{0,2000}$", "^[a-z]*$", 0, 2_000),
        (
            "^[A-Z]{3}-(?:[0-9é]\\.){2,50}$",
            "^[A-Z]{3}-(?:[0-9é]\\.)*$",
            8,
            104,
        ),
        ("^(?:ab|cd)x{17}$", "^(?:ab|cd)x*$", 19, 19),
        ("^\\p{L}{1,20}😀$", "^\\p{L}*😀$", 2, 21),
        ("^(?=.{1,64}$)a*b*$", "^(?=.*$)a*b*$", 1, 64),
        ("^(?=.{1,64}$)(?!b)[ab]{9,90}$", "^(?=.*$)(?!b)[ab]*$", 9, 64),
        ("^(?=[ab]{1,64}$)(?=.{6,90}$)b", "^(?=[ab]*$)(?=.*$)b", 6, 64),
        ("^(?!.*cd)(?=.*b)[a-d]{8,128}$", "^(?!.*cd)(?=.*b)[a-d]*$", 8, 128),
    ] {
        let found = Pattern::parse(pattern, Syntax::Ecma).expect(pattern).counted();
        let found = found.expect(pattern);
        assert_eq!((found.min, found.max), (min, Some(max)), "{pattern}");
        let of = found.content.search(bounds()).expect(pattern);
        assert_eq!(of.dfa, search(content).expect(content).dfa, "{pattern}");
    }
    for pattern in [
        "[a-z]{0,2000}",
        "^[a-z]{0,2000}",
        "^[a-z]{0,15}$",
        "^a?[a-z]{0,2000}$",
        "^[a-z]{0,20}[0-9]{0,20}$",
        "^(?:a|bc){0,20}$",
        "^(?:a*){0,20}$",
        "^[a-z]{16,}$",
        "^[a-z]{0,20}$|x",
        "^(?:\\b){0,20}$",
        "^(?!.{1,64}$)a*$",
        "^a(?=.{1,64}$)a*$",
        "^(?=.{1,64})a*$",
        "(?=.{1,64}$)a*$",
    ] {
        let pattern_of = Pattern::parse(pattern, Syntax::Ecma).expect(pattern);
        assert!(pattern_of.counted().is_none(), "{pattern}");
    }
}

/// An expression as the matcher below reads it.
#[derive(Clone, Debug)]
enum Expr {
    /// Its text and what it matches.
    Class(&'static str, fn(char) -> bool),
    Seq(Vec<Self>),
    Alt(Vec<Self>),
    Repeat(Box<Self>, usize, usize, &'static str),
    Around(&'static str, Box<Self>),
    Atomic(Box<Self>),
    Start,
    End,
    Border(bool),
}

const MANY: usize = 99;

impl Expr {
    fn text(&self) -> String {
        let group = |body: &Self| format!("(?:{})", body.text());
        match self {
            Self::Class(text, _) => (*text).to_owned(),
            Self::Seq(parts) => parts.iter().map(group).collect(),
            Self::Alt(parts) => parts.iter().map(Self::text).collect::<Vec<_>>().join("|"),
            Self::Repeat(body, min, MANY, mark) => format!("{}{{{min},}}{mark}", group(body)),
            Self::Repeat(body, min, max, mark) => format!("{}{{{min},{max}}}{mark}", group(body)),
            Self::Around(mark, body) => format!("({mark}{})", body.text()),
            Self::Atomic(body) => format!("(?>{})", body.text()),
            Self::Start => "^".to_owned(),
            Self::End => "$".to_owned(),
            Self::Border(true) => "\\b".to_owned(),
            Self::Border(false) => "\\B".to_owned(),
        }
    }

    /// Where matches that begin at `at` end, the preferred ones first.
    fn ends(&self, text: &[char], at: usize) -> Vec<usize> {
        let holds = |is: bool| if is { vec![at] } else { Vec::new() };
        let word = |at: Option<usize>| {
            at.and_then(|at| text.get(at))
                .is_some_and(|c| c.is_ascii_alphanumeric())
        };
        let mut ends = match self {
            Self::Class(_, has) => match text.get(at) {
                Some(c) if has(*c) => vec![at + 1],
                _ => Vec::new(),
            },
            Self::Seq(parts) => parts.iter().fold(vec![at], |from, part| {
                from.into_iter().flat_map(|at| part.ends(text, at)).collect()
            }),
            Self::Alt(parts) => parts.iter().flat_map(|part| part.ends(text, at)).collect(),
            Self::Repeat(body, 0, 0, _) => body.ends(text, at).into_iter().take(0).chain([at]).collect(),
            Self::Repeat(body, min, max, mark) => {
                let left = if *max == MANY { MANY } else { max - 1 };
                let rest = Self::Repeat(body.clone(), min.saturating_sub(1), left, mark);
                let mut more: Vec<usize> = body.ends(text, at);
                more.retain(|end| *end > at || *min > 0);
                let more = more.into_iter().flat_map(|end| rest.ends(text, end));
                let stop = (*min == 0).then_some(at);
                match *mark {
                    "?" => stop.into_iter().chain(more).collect(),
                    "+" => more.chain(stop).take(1).collect(),
                    _ => more.chain(stop).collect(),
                }
            }
            Self::Around("?=", body) => holds(!body.ends(text, at).is_empty()),
            Self::Around("?!", body) => holds(body.ends(text, at).is_empty()),
            Self::Around(mark, body) => {
                let is_found = (0..=at).any(|from| body.ends(text, from).contains(&at));
                holds(is_found == (*mark == "?<="))
            }
            Self::Atomic(body) => body.ends(text, at).into_iter().take(1).collect(),
            Self::Start => holds(at == 0),
            Self::End => holds(at == text.len()),
            Self::Border(is) => holds((word(at.checked_sub(1)) != word(Some(at))) == *is),
        };
        let mut seen = [false; 16];
        ends.retain(|end| !std::mem::replace(&mut seen[*end], true));
        ends
    }

    fn random(below: &mut impl FnMut(usize) -> usize, depth: usize) -> Self {
        type Holds = fn(char) -> bool;
        const CLASSES: [(&str, Holds); 5] = [
            ("a", |c| c == 'a'),
            ("b", |c| c == 'b'),
            ("[^a]", |c| c != 'a'),
            (".", |_| true),
            ("[é ]", |c| c == 'é' || c == ' '),
        ];
        let kind = if depth == 0 { below(6) } else { below(20) };
        let inner = |below: &mut _| Box::new(Self::random(below, depth - 1));
        match kind {
            0..4 => {
                let (text, has) = CLASSES[below(CLASSES.len())];
                Self::Class(text, has)
            }
            4 => [Self::Start, Self::End][below(2)].clone(),
            5 => Self::Border(below(2) == 0),
            6..10 => Self::Seq((0..1 + below(3)).map(|_| *inner(below)).collect()),
            10..12 => Self::Alt((0..2 + below(2)).map(|_| *inner(below)).collect()),
            12..15 => {
                let (min, max) = [(0, 1), (0, MANY), (1, MANY), (0, 3), (1, 3), (2, 2)][below(6)];
                let mark = ["", "", "?", "+"][below(4)];
                Self::Repeat(inner(below), min, max, mark)
            }
            15 => Self::Atomic(inner(below)),
            _ => Self::Around(["?=", "?!", "?<=", "?<!"][below(4)], inner(below)),
        }
    }
}

/// All texts of up to `n` of the characters `a`, `b`, `é` and space.
fn texts(n: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut begin = 0;
    for _ in 0..n {
        let end = all.len();
        for at in begin..end {
            all.extend(["a", "b", "é", " "].map(|c| all[at].clone() + c));
        }
        begin = end;
    }
    all
}

#[test]
fn random_expressions_match_what_backtracking_finds() {
    let mut random = 20u32;
    let mut below = |n: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) as usize % n
    };
    let texts = texts(4);
    let (mut n_compiled, mut n_arounds, mut n_mixed) = (0, 0, 0);
    while n_compiled < 2_000 {
        let expr = Expr::random(&mut below, 4);
        let source = expr.text();
        let pattern = match Pattern::parse(&source, Syntax::Rust) {
            Ok(pattern) => pattern,
            // An atomic group that is not supported.
            Err(error) => {
                assert!(error.to_string().contains("several lengths"), "{error}");
                continue;
            }
        };
        n_arounds += usize::from(!pattern.arounds.is_empty());
        let built = [pattern.automaton(bounds()), pattern.search(bounds())];
        let [whole, found] = match built {
            [Ok(whole), Ok(found)] => [whole.dfa, found.dfa],
            built => panic!("{source}: {built:?}"),
        };
        n_compiled += 1;
        let mut n_found = 0;
        for text in &texts {
            let chars: Vec<char> = text.chars().collect();
            let is_whole = expr.ends(&chars, 0).contains(&chars.len());
            assert_eq!(whole.matches(text.as_bytes()), is_whole, "{source} is {text:?}");
            let is_found = (0..=chars.len()).any(|at| !expr.ends(&chars, at).is_empty());
            assert_eq!(found.matches(text.as_bytes()), is_found, "{source} in {text:?}");
            n_found += usize::from(is_found);
        }
        n_mixed += usize::from(n_found > 0 && n_found < texts.len());
    }
    assert!(n_arounds > 500 && n_mixed > 500, "{n_arounds} {n_mixed}");
}
