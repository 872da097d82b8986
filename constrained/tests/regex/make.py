"""Writes goldens.json: what Python's `re` and Node's `RegExp` match, for tests/regex.rs.

Needs Python 3.11 or later and `node` (made with Python 3.11 and Node 20). Every pattern is tried on all texts
of up to `n` characters of an alphabet; the ones that match are kept. ECMA-262's patterns are searched for, as
JSON Schema does, where `(?i)` at the beginning stands for the flag `i`; Python's are matched from end to end,
with ASCII's classes.
"""

import itertools
import json
import re
import subprocess
from pathlib import Path

SPACES = [" ", "\t", "\n", "\v", "\f", "\r", "\u00a0", "\u2003", "\u2028", "\ufeff", "\u180e", "\x1c"]
OTHERS = ["a", "Z", "_", "0", "-", "é", "٣", "ſ", "K", "\u212a", "😀"]

# Pattern, alphabet, length.
ECMA = [
    (r"^(?!\.)(?!.*\.\.)[a.]+$", "a.b", 5),
    (r"^(?=.*[0-9])[a0]{2,}$", "a0-", 5),
    (r"^(?=.*a)(?=.*b)(?!.*c)[abcd]{3,}$", "abcd", 5),
    (r"(?<!x)y$", "xyz", 4),
    (r"a(?=b)", "abc", 4),
    (r"(?<=a)b(?!c)", "abc", 5),
    (r"^(?:(?!ab).)*$", "abc", 5),
    (r"^((?!(a|A)(b|B)).)*$", "abAB", 5),
    (r"^(?=(?:..)*$)a*b*$", "ab", 7),
    (r"(?<=^|b)a(?=$|b)", "ab", 6),
    (r"(?<!(?<!a)b)c", "abc", 5),
    (r"(?<=(?<=a)b)c", "abc", 5),
    (r"(?=a(?!b))[ab]+$", "abc", 5),
    (r"(?!a(?=b))[ab]$", "abc", 5),
    (r"(?<=a(?=bc))b", "abc", 5),
    (r"(?<!a(?=b))b", "abc", 5),
    (r"^(?!a|b$)", "ab", 4),
    (r"^(?!.*b)^(.*[^a]+.*)$", "abc", 4),
    (r"^(a://|/?.?(?!b+c)b).+c$", "abc:/", 5),
    (r"((?:[^/]*/)*)(?=\.(a|b))", "ab./", 5),
    (r"(?:a(?=b)|b(?=a))+$", "ab", 6),
    (r"(?:(?<=a)b|(?<=b)a|^a)+$", "ab", 6),
    (r"^(?=\bab\b)", "ab -", 4),
    (r"\bab\b|\Bb\B", "ab -", 4),
    (r"^(?!$)a*$", "ab", 3),
    (r"(?!)|^a$", "ab", 3),
    (r"(?=)a", "ab", 3),
    (r"(?=a)*b", "ab", 3),
    (r"^(?=[^]{2}$)[^a]", "ab\né", 3),
    (r"[]|a", "ab", 2),
    (r"^[^]$", ["a", "\n", "é", "😀"], 2),
    (r"^\s$", SPACES + OTHERS, 1),
    (r"^\S$", SPACES + OTHERS, 1),
    (r"^[\s\S]$", SPACES + OTHERS, 1),
    (r"^[^\S]$", SPACES + OTHERS, 1),
    (r"^\w$", SPACES + OTHERS, 1),
    (r"^\W$", SPACES + OTHERS, 1),
    (r"^\d$", SPACES + OTHERS, 1),
    (r"^\D$", SPACES + OTHERS, 1),
    (r"^.$", SPACES + OTHERS, 1),
    (r"^[^a]$", SPACES + OTHERS, 1),
    (r"^\p{L}$", SPACES + OTHERS, 1),
    (r"^\P{Script=Latin}$", SPACES + OTHERS, 1),
    (r"^[\p{Lu}\d]$", SPACES + OTHERS, 1),
    (r"^[\w-]$", "a-z\\", 1),
    (r"^[a\-z]$", "a-zb\\", 1),
    (r"^[a-]$", "a-b", 1),
    (r"^[-a]$", "a-b", 1),
    (r"^[a\]\\^]$", "a]\\^b", 1),
    (r"^[[&~|]$", "[&~|a", 1),
    (r"^[[:alpha:]]$", "[]:alph", 2),
    (r"^[\b]$", ["\b", "b", "\\"], 1),
    (r"^[+--]$", "+,-.a", 1),
    (r"^[\w-a]$", "a-b,", 1),
    (r"^\cJ$", ["\n", "J", "c"], 2),
    (r"^\u{e9}\u00e9\xe9$", ["é", "e"], 3),
    (r"^\ud83d\ude00$", ["😀", "😁"], 1),
    (r"^[\ud83d\ude00a]$", ["😀", "😁", "a"], 1),
    (r"^[\x80-\uffff]$", ["a", "é", "\ue000", "😀"], 1),
    (r"^\/a\-b\_$", "/a-b_\\", 5),
    (r"^\0$", ["\0", "0"], 1),
    (r"(?<n>a)b", "ab", 3),
    (r"a{2", "a{2", 3),
    (r"a{b}", "a{}b", 4),
    (r"^a}]$", "a}]", 3),
    (r"^a??b*?$", "ab", 4),
    (r"^(a|b){2,3}?$", "ab", 4),
    (r"$^", "a", 2),
    (r"^a|b$", "abc", 3),
    (r"(^a|b$)", "abc", 3),
    (r"(?:^)*a$", "ab", 3),
    (r"^a\$", "a$", 3),
    (r"^a$", ["a", "\n", "\r", "\u2028"], 3),
    (r"^[a\ud83d\ude00-\ud83d\ude02]$", ["😀", "😁", "😂", "😃", "a"], 1),
    (r"^[^\ud83d\ude00]$", ["😀", "😁", "a"], 1),
    (r"(?i)^éß$", ["é", "É", "e", "ß", "s"], 2),
    (r"(?i)^[à-ý]$", ["É", "é", "Þ", "z"], 1),
    (r"(?i)^[^é]$", ["É", "é", "E"], 1),
    (r"(?i)^(?!É)[Kkſ]+$", ["k", "K", "\u212a", "ſ", "s", "S"], 2),
    (r"(?i)^σ$", ["σ", "Σ", "ς"], 1),
    (r"(?i)^aB\w$", ["a", "A", "b", "B", "ſ"], 3),
]
PYTHON = [
    (r"(?P<n>a)b", "ab", 3),
    (r"(?i)aB", "aAbB", 3),
    (r"(?i:a)b", "aAbB", 3),
    (r"a(?i:b(?-i:c))", "abcABC", 3),
    (r"(?i)[^k]", OTHERS + ["k", "s", "S"], 1),
    (r"(?i)[a-z]", OTHERS + ["k", "s", "S"], 1),
    (r".", ["a", "\n", "\r", "\u2028"], 1),
    (r"(?s).", ["a", "\n", "\r", "\u2028"], 1),
    (r"(?s:.)a", ["a", "\n"], 2),
    (r"(?m)a$\n^b", ["a", "b", "\n"], 3),
    (r"(?m)(?:^a?$\n?)+", ["a", "\n"], 4),
    ("(?x) a b # c\n c ", "abc ", 4),
    ("(?x: a\\ b ) c", "abc ", 5),
    (r"a(?#c*)b", "abc", 3),
    (r"a(?#c)*b", "abc", 3),
    (r"\Aa\Z", ["a", "\n"], 2),
    (r"(?:\Aa|b\Z)*", "ab", 3),
    (r"\bab\b ?\B", "ab ", 4),
    (r"a++b", "ab", 5),
    (r"a*+a", "ab", 5),
    (r"a?+a", "ab", 3),
    (r"a?+ab?+b", "ab", 5),
    (r"(?:ab){1,2}+a?b?", "ab", 7),
    (r"(?:a|b){1,2}+b", "ab", 5),
    (r"(?>a|ab)c", "abc", 4),
    (r"(?>ab|a)c?b?", "abc", 4),
    (r"(?>a|b*)b", "ab", 4),
    (r"(?>a*?)b", "ab", 3),
    (r"x?(?>(?:a|ab)|b)b*", "abx", 4),
    (r"(?>\bab?)b?", "ab", 4),
    (r"[]a]", "]a[", 1),
    (r"[^]a]", "]a[", 1),
    (r"[a\-\]b]", "ab-]\\", 1),
    (r"a{,2}", "a", 3),
    (r"a{2", "a{2", 3),
    (r"{a}", "{a}", 3),
    (r"(?<=a)b|a(?<!b)b", "ab", 3),
    (r"a(?!b).", "abc", 3),
    (r"a(?=b)", "ab", 3),
    (r"(?=.*b)[abc]{2,3}", "abc", 4),
    (r"(?!.*(.)\Z)a|b", "ab", 2),
    (r"\x41\u00e9\U0001F600?\a", ["A", "é", "😀", "\a"], 4),
    (r"[\d_]", SPACES + OTHERS, 1),
    (r"\s", SPACES[:6] + OTHERS, 1),
    (r"\w", SPACES + OTHERS, 1),
    (r"\W", SPACES + OTHERS, 1),
    (r"\D", SPACES + OTHERS, 1),
    (r"(?:\d|[^\d])", SPACES + OTHERS, 1),
    (r"^a$|^b", "ab", 2),
    (r"(a|)(b|)|", "ab", 3),
]

NODE = """
let text = require("fs").readFileSync(0, "utf8");
let found = JSON.parse(text).map(([pattern, texts]) => {
    let compiled;
    let flags = pattern.startsWith("(?i)") ? "i" : "";
    if (flags) pattern = pattern.slice("(?i)".length);
    try { if (!flags) compiled = new RegExp(pattern, "u"); } catch {}
    compiled ??= new RegExp(pattern, flags);
    return texts.filter((text) => compiled.test(text));
});
console.log(JSON.stringify(found));
"""


def texts(alphabet, n):
    return ["".join(text) for length in range(n + 1) for text in itertools.product(alphabet, repeat=length)]


def main():
    asked = [(pattern, texts(alphabet, n)) for pattern, alphabet, n in ECMA]
    run = subprocess.run(["node", "-e", NODE], input=json.dumps(asked), capture_output=True, text=True, check=True)
    cases = {"ecma": ECMA, "python": PYTHON}
    found = {"ecma": json.loads(run.stdout)}
    found["python"] = [
        [text for text in texts(alphabet, n) if re.compile(pattern, re.ASCII).fullmatch(text)]
        for pattern, alphabet, n in PYTHON
    ]
    lines = [
        json.dumps(
            {"syntax": syntax, "pattern": pattern, "alphabet": list(alphabet), "n": n, "matches": matches},
            separators=(",", ":"),
        )
        for syntax in cases
        for (pattern, alphabet, n), matches in zip(cases[syntax], found[syntax], strict=True)
    ]
    target = Path(__file__).with_name("goldens.json")
    target.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="ascii")


main()
