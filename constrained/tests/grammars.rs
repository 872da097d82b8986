//! GBNF, EBNF and Lark: what is accepted, what is refused, and why a grammar is.

mod walk;

use std::collections::BTreeSet;

use arbora_constrained::{CompileError, Constraint, Grammar, Limits};
use walk::{Random, accepts, accepts_tokens, byte_token, check_masks, first_special, vocabulary};

fn gbnf(text: &str) -> Constraint<'_> {
    Constraint::Gbnf(text)
}

fn ebnf(text: &str) -> Constraint<'_> {
    Constraint::Ebnf { text, root: "root" }
}

fn lark(text: &str) -> Constraint<'_> {
    Constraint::Lark(text)
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
            &["a!", "a1", "a1a1a1!"],
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
            &["abéA\nX", "é1éA\nxxX"],
            &["abéA\n", "aéA\nx"],
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
