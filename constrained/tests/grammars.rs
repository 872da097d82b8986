//! GBNF, EBNF and Lark: what is accepted, what is refused, and why a grammar is.

mod walk;

use std::collections::BTreeSet;

use arbora_constrained::{CompileError, Constraint, Grammar, Limits, MatchError, SchemaOptions};
use walk::{
    Random, accepts, accepts_tokens, byte_token, check_masks, check_token_masks, first_special, vocabulary,
};

fn gbnf(text: &str) -> Constraint<'_> {
    Constraint::Gbnf(text)
}

fn ebnf(text: &str) -> Constraint<'_> {
    Constraint::Ebnf { text, root: "root" }
}

fn lark(text: &str) -> Constraint<'_> {
    Constraint::Lark {
        text,
        options: SchemaOptions::default(),
    }
}

struct Case {
    constraint: Constraint<'static>,
    accepted: &'static [&'static str],
    refused: &'static [&'static str],
}

fn case(
    constraint: Constraint<'static>,
    accepted: &'static [&'static str],
    refused: &'static [&'static str],
) -> Case {
    Case {
        constraint,
        accepted,
        refused,
    }
}

fn gbnf_cases() -> Vec<Case> {
    vec![
        case(
            gbnf(
                "# a sum\nroot ::= term (\n  \"+\" term\n)* # of terms\nterm ::= [0-9]+ |\n  \"(\" root \")\"\r\n",
            ),
            &["1", "12+1", "(1+12)+(1)", "((1))"],
            &["", "1+", "(1", "1)", "a"],
        ),
        case(
            gbnf("root ::= \"\\x41\\u00e9\\U0001F600\\n\\t\\r\\\\\\\"\\[\\]\\-\" [\\]\\-^a] [a-] [^a-c\\n]"),
            &[
                "Aé😀\n\t\r\\\"[]-]ax",
                "Aé😀\n\t\r\\\"[]-^-é",
                "Aé😀\n\t\r\\\"[]--a😀",
            ],
            &[
                "Aé😀\n\t\r\\\"[]-]aa",
                "Aé😀\n\t\r\\\"[]-]a\n",
                "Aé😀\n\t\r\\\"[]-bax",
            ],
        ),
        case(
            gbnf("root ::= \"a\"{2} \"b\"{1,} \"c\"{0,2} \"a\"{ 1 , 3 } (\"b\" | )? [12]+?"),
            &["aaba", "aabbccaaab", "aaba12", "aabab1"],
            &["aba", "aaa", "aabcccaa", "aabaaaa"],
        ),
        case(
            gbnf("root ::= . .*\n unused ::= unused \"x\""),
            &["a", "é", "😀\n"],
            &[""],
        ),
        case(
            gbnf("root ::= a-1 b_2 |\n\n a-1\na-1 ::= | \"a\"\nb_2 ::= \"b\""),
            &["", "a", "ab", "b"],
            &["ba", "bb"],
        ),
        case(
            gbnf("root ::= root \"a\" | \"b\""),
            &["b", "ba", "baa"],
            &["", "a", "ab", "bab"],
        ),
        case(
            gbnf("root ::= (\"a\"?){1000000} \"b\""),
            &["b", "ab", "aaab"],
            &["", "a", "ba"],
        ),
        case(
            gbnf("root ::= \"line one\nline two\""),
            &["line one\nline two"],
            &["line one"],
        ),
    ]
}

fn ebnf_cases() -> Vec<Case> {
    vec![
        case(
            ebnf(
                "root ::= expr (\"=\" expr)*\nexpr ::= term\n  ([-+*/] term)*\nterm ::= num | \"(\" expr \")\"\nnum ::= [0-9]+",
            ),
            &["1+2", "(3*4)-5=7", "2=2=2"],
            &["", "1+", "(3", "=1"],
        ),
        case(
            ebnf(
                "root ::= a.b _c -d | ()\na.b ::= \"\\x1F600\\e\\0\\'\" \n_c ::= [^] [\\.\\^\\-] # any\n-d ::= \"\"",
            ),
            &["", "😀\u{1b}\0'x.", "😀\u{1b}\0'\n-"],
            &["😀\u{1b}\0'x", "😀\u{1b}\0'x\\"],
        ),
        case(
            ebnf("root ::= a\na ::= b \"x\" | \"a\"\nb ::= a \"y\" | \"b\" | a\n"),
            &["a", "bx", "axx", "ayx", "bxyxx"],
            &["b", "ay", "x"],
        ),
        case(
            ebnf("root ::= Regex(\"[a-c]+\\\\d\") {1,2} \"!\""),
            &["a1!", "abc1b2!"],
            &["a!", "a1", "a1a1a1!", "a٣!"],
        ),
        case(
            ebnf("root ::= word | root \" \" word\nword ::= Regex(\"^(?!no-)[a-z][a-z-]*(?<!-)x|$\")"),
            &["ax", "nox n-ax", "a-ax  xx", "", " "],
            &["no-ax", "a-x", "a x"],
        ),
        case(
            Constraint::Ebnf {
                text: "a ::= \"1\" b\nb ::= \"2\" a | \"\"",
                root: "b",
            },
            &["", "21", "2121"],
            &["1", "12"],
        ),
    ]
}

fn lark_cases() -> Vec<Case> {
    vec![
        case(
            lark(
                "%import common.INT\n%import common (WS, CNAME)\n%import common.WS_INLINE -> SP\n%ignore WS\n\
                 // sums\n?start: sum\n    | \"let\" CNAME \"=\" sum -> assign\n\
                 sum: sum \"+\" product | product   # left\n!product: INT (\"*\" INT)~0..2\n",
            ),
            &["1", "1+2 * 3*4", "let x1 =\n 1 + 1 ", "let a=1", "leta=1"],
            &["", " 1", "1*2*3*4", "let = 1", "1 2"],
        ),
        case(
            lark("start: [A] \"b\"i~2 C\nA: /a\\/[[&~]/s | \"1\"..\"3\"\nC: (\"x\" | _D)+\n_D: \"y\"?"),
            &["bBx", "a/[bbyx", "a/&Bb", "2bb", "a/~bbxy"],
            &["bx", "4bb", "a/]bb"],
        ),
        case(
            lark(
                "%import common.ESCAPED_STRING\n%import common.SIGNED_NUMBER\nstart: value\nvalue: dict | list | ESCAPED_STRING | SIGNED_NUMBER | \"true\" \n\
                 list: \"[\" [value (\",\" value)*] \"]\"\ndict: \"{\" [pair (\",\" pair)*] \"}\"\npair: ESCAPED_STRING \":\" value\n",
            ),
            &["[]", "{\"a\":[1,-2.5e3,\"\\\"\"],\"b\":true}", "12"],
            &["[1,]", "{a:1}", "\"a", "{\"a\"}"],
        ),
        case(
            lark("start: WORD /(?i:x+?)/ \nWORD: /\\w{2}/ \"\\u00e9\\x41\\n\""),
            &["abéA\nX", "_1éA\nxxX"],
            &["abéA\n", "aéA\nx", "é1éA\nx"],
        ),
        case(
            lark("start: A B\nA: /\"(?!\\s).*?(?<!\\\\)\"/ \nB: / b  (?: \\b | - ) - /x"),
            &["\"a\"b-", "\"a\\\"\"b--", "\"é\"b-"],
            &["\"a\\\"b-", "\" a\"b-", "\"a\"b", "\"\"b - "],
        ),
    ]
}

#[test]
fn texts_are_accepted_by_bytes_and_by_tokens_and_masks_are_exact() {
    let vocabulary = vocabulary();
    for case in [gbnf_cases(), ebnf_cases(), lark_cases()].into_iter().flatten() {
        let what = format!("{:?}", case.constraint);
        let grammar = Grammar::compile(&vocabulary, &case.constraint, &Limits::default()).expect(&what);
        for text in case.accepted {
            assert!(accepts(&grammar, text), "{what} must accept {text:?}");
        }
        for text in case.refused {
            assert!(!accepts(&grammar, text), "{what} must refuse {text:?}");
        }
        check_masks(&grammar, &what);
    }
}

#[test]
fn tokens_are_taken_by_number_and_by_name() {
    let vocabulary = vocabulary();
    let call = first_special();
    let numbered = format!("root ::= \"a\" <[{call}]> \"b\" <<|end|>>");
    for text in ["root ::= \"a\" <|call|> \"b\" <|end|>", numbered.as_str()] {
        // A name ends at its first `>`, so the last form is malformed.
        let grammar = Grammar::compile_gbnf(&vocabulary, text, &Limits::default());
        if text == numbered {
            let error = grammar.expect_err("`<<|end|>` is no token").to_string();
            assert!(
                error.contains("line 1, column 26: `<<|end|>` is not one token"),
                "{error}"
            );
            continue;
        }
        let grammar = grammar.expect(text);
        let (a, b) = (byte_token(b'a'), byte_token(b'b'));
        assert!(accepts_tokens(&grammar, &[a, call, b, call + 1]));
        assert!(!accepts_tokens(&grammar, &[a, call + 1]) && !accepts(&grammar, "a<|call|>b<|end|>"));
        check_masks(&grammar, text);
    }
    let limits = Limits::default();
    // `<tool_call>` is a special token and an ordinary one; the special one is meant.
    let grammar = Grammar::compile_gbnf(&vocabulary, "root ::= <tool_call> !<[270]>* <|end|>", &limits);
    let grammar = grammar.expect("both exist");
    assert!(accepts_tokens(&grammar, &[call + 2, 269, 271, 5, call + 1]));
    assert!(!accepts_tokens(&grammar, &[call + 2, 270]) && !accepts_tokens(&grammar, &[call + 2, call]));
    check_token_masks(&grammar, "any token but one");
    let text = format!("root ::= Token({call}, \"ab\") ExcludeToken(5)");
    let grammar = Grammar::compile_ebnf(&vocabulary, &text, "root", &limits).expect("both exist");
    assert!(accepts_tokens(&grammar, &[257, 6]) && accepts_tokens(&grammar, &[call, 290]));
    assert!(!accepts_tokens(&grammar, &[257, 5]) && !accepts_tokens(&grammar, &[byte_token(b'a'), 6]));
    let text = "start: <|call|> \"a\"\n%ignore \" \"";
    let grammar = Grammar::compile(&vocabulary, &lark(text), &limits).expect("it exists");
    let (a, space) = (byte_token(b'a'), byte_token(b' '));
    assert!(accepts_tokens(&grammar, &[call, space, a]) && !accepts_tokens(&grammar, &[space, call, a]));
}

#[test]
fn every_error_names_its_place() {
    let vocabulary = vocabulary();
    let cases = [
        (gbnf(""), "line 1, column 1: the grammar has no rule `root`"),
        (
            gbnf("root ::= a\na ::= b c\n"),
            "line 2, column 7: `b` is used and not defined",
        ),
        (
            gbnf("root ::= \"a\"\nroot ::= \"b\""),
            "line 2, column 1: `root` is defined already, at line 1",
        ),
        (gbnf("root ::= (\"a\""), "line 1, column 10: `(` is never closed"),
        (gbnf("root ::= \"a\")"), "column 13: `)` without `(`"),
        (gbnf("root ::= \"a"), "column 10: a quoted text has no end"),
        (gbnf("root ::= [a"), "column 10: a class has no end"),
        (gbnf("root ::= []"), "column 10: a class without characters"),
        (gbnf("root ::= [z-a]"), "a range ends before it begins"),
        (gbnf("root ::= \"\\q\""), "`\\q` is no escape here"),
        (gbnf("root ::= \"\\ud800\""), "U+D800 is no character"),
        (gbnf("root ::= \"\\x4\""), "the escape needs 2 hexadecimal digits"),
        (gbnf("root ::= * \"a\""), "column 10: there is nothing to repeat"),
        (gbnf("root ::= \"a\"{3,2}"), "maximum is below its minimum"),
        (gbnf("root ::= \"a\"{99999999999}"), "larger than 4294967295"),
        (gbnf("root ::= \"a\"{,2}"), "a number is missing"),
        (gbnf("root ::= \"a\"{2"), "`}` is missing"),
        (gbnf("root = \"a\""), "column 6: `::=` is missing behind `root`"),
        (
            gbnf("root ::= \"a\"\n| \"b\""),
            "line 2, column 1: a rule's name is missing",
        ),
        (gbnf("root ::= é"), "`é` is unexpected"),
        (
            gbnf("root ::= <nothing>"),
            "`<nothing>` is not one token of the vocabulary",
        ),
        (gbnf("root ::= <[0]>"), "token 0 ends the text"),
        (
            gbnf("root ::= <[99999]>"),
            "token 99999 is outside the vocabulary",
        ),
        (gbnf("root ::= <[1>"), "`]>` is missing"),
        (gbnf("root ::= !\"a\""), "a token in `<…>` is missing"),
        (
            gbnf("root ::= a\na ::= \"x\" a | b\nb ::= a"),
            "line 1, column 1: `root` derives no text",
        ),
        (
            gbnf("root ::= \"b\" | a\na ::= \"x\" a"),
            "line 2, column 1: `a` derives no text",
        ),
        (ebnf("root ::= \"a\" |"), "an alternative is missing"),
        (
            ebnf("root ::= \"a\" (= \"b\")"),
            "look-ahead `(=…)` is not supported",
        ),
        (
            ebnf("root ::= TagDispatch((\"a\", b))\nb ::= \"b\""),
            "the macro `TagDispatch` is not supported",
        ),
        (
            ebnf("root[max_tokens=3] ::= \"a\""),
            "attributes of the rule `root` are not supported",
        ),
        (
            ebnf("root ::= b\nb[capture] ::= \"a\""),
            "attributes of the rule `b` are not supported",
        ),
        (ebnf("root ::= \"a\"*+"), "there is nothing to repeat"),
        (ebnf("root ::= [\\d]"), "`\\d` is no escape here"),
        (ebnf("root ::= \"a\nb\""), "does not end on its line"),
        (
            ebnf("root ::= Regex(\"(^a|b)+\")"),
            "looks at what stands around it",
        ),
        (
            ebnf("root ::= Regex(\"a\\\\b\")"),
            "looks at what stands around it",
        ),
        (
            ebnf("root ::= Regex(\"(?=a)\")"),
            "looks at what stands around it",
        ),
        (ebnf("root ::= Token(\"no such\")"), "`no such` is not one token"),
        (lark("a: \"b\""), "no rule `start`"),
        (
            lark("start.2: \"b\""),
            "`start` has a priority, which is not supported",
        ),
        (
            lark("start: A\nA.2: \"b\""),
            "line 2, column 2: `A` has a priority",
        ),
        (lark("start: s{\"a\"}\ns{x}: x"), "`s` is a template"),
        (
            lark("%declare A\nstart: A"),
            "line 1, column 1: `%declare` is not supported",
        ),
        (
            lark("%import python.STRING\nstart: STRING"),
            "`%import` is supported from `common` only",
        ),
        (
            lark("%import common.NOTHING\nstart: \"a\""),
            "`common.NOTHING` is not supported",
        ),
        (
            lark("start: A\nA: b\nb: \"b\""),
            "a terminal cannot use the rule `b`",
        ),
        (
            lark("start: A\nA: \"x\" B\nB: A?"),
            "a terminal uses itself: A → B → A",
        ),
        (lark("start: /a(?=b)/"), "looks at what stands around it"),
        (lark("start: /(?<!b)a/"), "looks at what stands around it"),
        (lark("start: /\\bab/"), "looks at what stands around it"),
        (lark("start: /(b|^)a/"), "looks at what stands around it"),
        (lark("start: /a/l"), "the flag `l` is not supported"),
        (lark("start: /a*+/"), "looks at what stands around it"),
        (
            lark("start: /(a)\\1/"),
            "back-references are not regular, at character 4",
        ),
        (lark("start: \"é\"i"), "`é` is to be read in any case"),
        (lark("start: \"z\"..\"a\""), "a range needs two characters"),
        (lark("start: (\"a\"]"), "`]` without `[`"),
        (lark("start: \"a\" \"b\n"), "does not end on its line"),
        (
            lark("start: @other"),
            "other grammars (`@name`) are not supported",
        ),
    ];
    for (constraint, word) in cases {
        let error = Grammar::compile(&vocabulary, &constraint, &Limits::default());
        let error = error.expect_err(word).to_string();
        assert!(error.contains(word), "{constraint:?}\n{error}\nwithout {word}");
    }
}

/// A hostile text is refused by a limit, by name, or compiled and can be walked.
#[test]
fn hostile_grammars_meet_a_named_limit_or_compile() {
    let vocabulary = vocabulary();
    let deep = |n: usize| format!("root ::= {}\"a\"{}", "(".repeat(n), ")".repeat(n));
    let rules = |n: usize, body: &dyn Fn(usize) -> String| {
        let rules = (0..n).map(|i| format!("r{i} ::= {}\n", body(i)));
        format!("root ::= r0\n{}r{n} ::= \"a\"\n", rules.collect::<String>())
    };
    let limited = [
        (deep(100_000), "max_source_depth"),
        (format!("root ::= {}", "(".repeat(100_000)), "max_source_depth"),
        (rules(20_000, &|i| format!("r{}", i + 1)), "max_rules"),
        (
            format!("root ::= {}", "\"a\" ".repeat(300_000)),
            "max_source_bytes",
        ),
        (format!("root ::= {}", "[a] ".repeat(250_000)), "max_nodes"),
        (rules(9_000, &|i| format!("r{} \"b\"", i + 1)), "max_output_depth"),
        (
            rules(40, &|i| {
                format!("(r{0} | r{0} \"b\" | \"c\" r{0}) (r{0} | \"d\")?", i + 1)
            }),
            "max_readings",
        ),
        (
            rules(300, &|i| {
                (0..300)
                    .map(|j| format!("r{j} \"{i}.{j}\" |"))
                    .collect::<String>()
                    + "\"b\""
            }),
            "max_nodes",
        ),
    ];
    for (text, name) in limited {
        let what: String = text.chars().take(60).collect();
        let limits = Limits {
            max_source_bytes: if name == "max_source_bytes" {
                1 << 20
            } else {
                1 << 24
            },
            ..Limits::default()
        };
        match Grammar::compile_gbnf(&vocabulary, &text, &limits) {
            Err(CompileError::Limit { name: hit, .. }) => assert_eq!(hit, name, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let compiled = [
        deep(90),
        rules(60, &|i| format!("r{0} r{0}", i + 1)),
        rules(9_000, &|i| format!("r{} | \"{}\"", i + 1, i % 7)),
        "root ::= \"a\"{1000000}".to_owned(),
        "root ::= (\"a\" | \"b\"){1000000,4000000000}".to_owned(),
        "root ::= ((\"a\"{1000}){1000}){1000}".to_owned(),
        "root ::= (a | \"b\")*\na ::= a a | a | \"\" | \"x\" a".to_owned(),
        format!("root ::= {}\"z\"", "\"a\"? ".repeat(1_000)),
        (0..20_000).fold("root ::= \"a\"".to_owned(), |text, i| format!("{text} | \"{i}\"")),
        format!("root ::= ({})* \"z\"", "[ab]* ".repeat(500)),
        rules(20, &|i| {
            format!("r{} \"x\" | r{} | r0 \"y\"", i + 1, (i + 7) % 20)
        }),
    ];
    for text in compiled {
        let what: String = text.chars().take(60).collect();
        let grammar = Grammar::compile_gbnf(&vocabulary, &text, &Limits::default()).expect(&what);
        let mut matcher = grammar.matcher();
        for _ in 0..20 {
            let mask = matcher.mask();
            let token = (0..mask.n_vocab())
                .find(|token| mask.allows(*token))
                .expect(&what);
            matcher.advance(token).expect("the mask allows it");
            if token == walk::EOS {
                break;
            }
        }
    }
}

/// An expression over `a` and `b`, as its text and as the rule numbers and letters of its language.
enum Shape {
    Letter(char),
    Rule(usize),
    Seq(Vec<Shape>),
    Alt(Vec<Shape>),
    Repeat(Box<Shape>, usize, Option<usize>),
}

const N_RULES: usize = 4;
const MAX_LETTERS: usize = 5;

impl Shape {
    fn random(random: &mut Random, depth: usize) -> Self {
        let many = |random: &mut Random| {
            let n = random.below(3);
            (0..n).map(|_| Self::random(random, depth - 1)).collect()
        };
        match random.below(if depth == 0 { 5 } else { 10 }) {
            0..2 => Self::Letter(if random.below(2) == 0 { 'a' } else { 'b' }),
            2..5 => Self::Rule(random.below(N_RULES)),
            5..7 => Self::Seq(many(random)),
            7..9 => Self::Alt(
                [vec![Self::random(random, depth - 1)], many(random)]
                    .into_iter()
                    .flatten()
                    .collect(),
            ),
            _ => {
                let min = random.below(3);
                let max = (random.below(2) == 0).then_some(min + random.below(3));
                Self::Repeat(Box::new(Self::random(random, depth - 1)), min, max)
            }
        }
    }

    fn text(&self) -> String {
        let join = |parts: &[Self], by: &str| parts.iter().map(Self::text).collect::<Vec<_>>().join(by);
        match self {
            Self::Letter(letter) => format!("\"{letter}\""),
            Self::Rule(rule) => format!("r{rule}"),
            Self::Seq(parts) => format!("({})", join(parts, " ")),
            Self::Alt(parts) => format!("({})", join(parts, " | ")),
            Self::Repeat(body, min, max) => {
                let max = max.map_or(String::new(), |max| max.to_string());
                format!("({}){{{min},{max}}}", body.text())
            }
        }
    }

    /// Its texts of up to [`MAX_LETTERS`] letters, given those of the rules.
    fn language(&self, rules: &[BTreeSet<String>]) -> BTreeSet<String> {
        let product = |a: &BTreeSet<String>, b: &BTreeSet<String>| -> BTreeSet<String> {
            let pairs = a.iter().flat_map(|a| b.iter().map(move |b| format!("{a}{b}")));
            pairs.filter(|text| text.len() <= MAX_LETTERS).collect()
        };
        let one = BTreeSet::from([String::new()]);
        match self {
            Self::Letter(letter) => BTreeSet::from([letter.to_string()]),
            Self::Rule(rule) => rules[*rule].clone(),
            Self::Seq(parts) => parts
                .iter()
                .fold(one, |text, part| product(&text, &part.language(rules))),
            Self::Alt(parts) => parts.iter().flat_map(|part| part.language(rules)).collect(),
            Self::Repeat(body, min, max) => {
                let body = body.language(rules);
                let mut texts = (0..*min).fold(one, |text, _| product(&text, &body));
                let mut all = texts.clone();
                for _ in *min..max.unwrap_or(min + MAX_LETTERS) {
                    texts = product(&texts, &body);
                    all.extend(texts.iter().cloned());
                }
                all
            }
        }
    }
}

#[test]
fn random_grammars_left_recursive_or_not_accept_their_language() {
    let vocabulary = vocabulary();
    let mut texts = vec![String::new()];
    for at in 0.. {
        if texts[at].len() == MAX_LETTERS {
            break;
        }
        texts.extend(["a", "b"].map(|letter| format!("{}{letter}", texts[at])));
    }
    let mut n_compiled = 0;
    for seed in 0..1_500 {
        let mut random = Random(seed);
        let shapes: Vec<Shape> = (0..N_RULES).map(|_| Shape::random(&mut random, 2)).collect();
        let rules = shapes
            .iter()
            .enumerate()
            .map(|(i, shape)| format!("r{i} ::= {}\n", shape.text()));
        let text: String = rules.collect();
        let text = format!("root ::= r0\n{text}");
        let mut languages = vec![BTreeSet::new(); N_RULES];
        loop {
            let next: Vec<_> = shapes.iter().map(|shape| shape.language(&languages)).collect();
            if next == languages {
                break;
            }
            languages = next;
        }
        let grammar = match Grammar::compile_gbnf(&vocabulary, &text, &Limits::default()) {
            Ok(grammar) => grammar,
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("derives no text"), "seed {seed}: {error}\n{text}");
                continue;
            }
        };
        n_compiled += 1;
        for word in &texts {
            let mut matcher = grammar.matcher();
            let mut taken = word.bytes().map(|byte| matcher.advance(byte_token(byte)));
            let accepted = taken.all(|result| result.is_ok()) && matcher.is_accepting();
            assert_eq!(
                accepted,
                languages[0].contains(word),
                "seed {seed}: {word:?}\n{text}"
            );
        }
    }
    assert!(n_compiled > 700, "{n_compiled} grammars");
}
