"""Writes goldens.json: which texts llguidance accepts of Lark grammars, byte by byte.

    pip install llguidance==1.9.1
    python make.py

Where Arbora means something else on purpose, tests/lark.rs has the case instead.
"""

import json
import pathlib

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

CASES = [
    # Options.
    ('%llguidance {}\nstart: "a"', ["a", "", "aa"]),
    ('%llguidance {"no_forcing": true}\nstart: "ab"', ["ab", "a"]),
    ('%ignore / +/\nstart: "a" "b"', ["ab", "a  b", " ab", "a"]),
    ('%llguidance {"allow_initial_skip": true}\n%ignore / +/\nstart: "a" "b"', ["ab", "  a b", "b"]),
    ('%llguidance {"ignore_once": true}\n%ignore / /\nstart: "a" "b"', ["ab", "a b", "a  b", " ab"]),
    ('%llguidance {"ignore_once": true}\n%llguidance {"allow_initial_skip": true}\n%ignore / /\nstart: "a"',
     ["a", " a", "  a"]),
    # Layout of the text.
    ('start: "a" -> first\n | "b" -> second', ["a", "b", "ab"]),
    ('start: "a"\n\n    | "b"', ["b", "c"]),
    ('start: "a" // one\n    | "b" # other\n\n# end', ["a", "b"]),
    ('start: "//" "#"', ["//#", ""]),
    ('start: x-y\nx-y: "a"', ["a", "b"]),
    ('start: ("a" | "b")', ["a", "b"]),
    ('?start: _x\n!_x: "a"', ["a"]),
    ('start: ("b" | ) "a"', ["a", "ba", "b"]),
    # Repetition.
    ('start: "a"{2}', ["a", "aa", "aaa"]),
    ('start: "a"{2,}', ["a", "aa", "aaaa"]),
    ('start: "a"{,2} "b"', ["b", "ab", "aab", "aaab"]),
    ('start: "a"{1,2} "b"', ["b", "ab", "aab", "aaab"]),
    ('start: "a"~2 "b"~1..2', ["aab", "aabb", "ab", "aabbb"]),
    ('start: "a" ~ 2', ["aa", "a"]),
    ('start: x{2}\nx: "a" | "b"', ["ab", "a", "bb"]),
    ('start: [ "a" ] "b"?', ["", "a", "b", "ab", "ba"]),
    # Texts.
    (r'start: "\x41\u00e9\n\t\\\"\/"', ['Aé\n\t\\"/', "A"]),
    ('start: "Ab"i', ["ab", "AB", "aB", "a"]),
    ('start: "a".."c" "0" .. "9"', ["a0", "c9", "d0", "ac"]),
    ('start: /a.b/s /[x-z]+/i', ["a\nbX", "acbz", "ab"]),
    ('start: /^ab$/', ["ab", "a"]),
    ('start: A A\nA: /b/', ["bb", "b"]),
    # Terminals as sets.
    ('start: A\nA: /[a-z]*/ & ~/(?s:.*)aa(?s:.*)/', ["", "a", "ba", "baa", "aab", "aba"]),
    ('start: A\nA: /[a-c]+/ & /[b-d]+/ | "x"', ["b", "cc", "a", "d", "x"]),
    ('start: A "!"\nA: /[ab]+/ & ~B & ~"ab"\nB: "a"', ["a!", "b!", "ab!", "aa!", "ba!"]),
    ('start: A\nA: (~"a" & /[ab]/)+', ["b", "bb", "a", "ab"]),
    ('start: A\nA: /[ab]{2}/ & (~"ab")', ["ab", "ba", "aa", "a"]),
    ('start: A\nA: ~/[a-z]+/ & /[a-z1]+/', ["1", "a1", "a", "za"]),
    # Substrings.
    ('start: %regex {"substring_words": "foo bar. baz"}', ["", "foo bar", "bar.", "fo", " ", "o", "baz", "foo baz"]),
    ('start: A\nA: %regex {"substring_chunks": ["abc", "de", "fg"]} "!"',
     ["!", "abc!", "de!", "abcde!", "defg!", "abcdefg!", "ab!", "cde!", "abcfg!"]),
    ('start: %regex {"substring_chars": "ab é"}', ["ab", "b é", " ", "aé", "é"]),
    # Tokens by number; byte n is token n.
    ('start: <[97]> <[98-99,101]>', ["ab", "ac", "ae", "ad", "bb"]),
    ('start: <[*]> <[^97,100-102]>', ["ab", "aa", "ae", "zg"]),
    # JSON and nested grammars.
    ('start: "x" %json {"type": "integer", "minimum": 5, "maximum": 17} "y"', ["x5y", "x17y", "x18y", "xy"]),
    ('start: j "!" | "no"\nj: %json {\n  "enum": ["a", 1]\n}', ['"a"!', "1!", "no", '"b"!', "1"]),
    ('start: %json {"type": "array", "items": {"enum": [1]}, "x-guidance": {"item_separator": ", ",'
     ' "key_separator": ": ", "whitespace_flexible": false}}', ["[]", "[1]", "[1, 1]", "[1,1]", "[ 1]"]),
    ('start: a %lark {\nstart: a "c"\na: "b"\n} a\na: "x"', ["xbcx", "xxcx", "xbcb"]),
    ('start: %lark { start: "a" "b"\n%ignore " "\n } "!" "!"', ["ab!!", "a b!!", "ab! !"]),
    # Attributes.
    ('start[capture]: x y\nx[capture="one"]: "a"+\ny[capture,]: "b"', ["ab", "aab", "a"]),
    ('start: x "!"\nx[lazy]: /(?s:.*)<end>/', ["fo<end>!", "fo<end>a<end>!", "fo!"]),
    ('start: x "!"\nx[lazy]: /a*b?/', ["!", "ab!"]),
    ('start: x "!"\nx[lazy]: /[0-9]+/', ["1!", "12!", "!"]),
    ('start: x "!"\nx[suffix="."]: /[a-z.]*/', ["ab.!", ".!", "ab!", "a..!", "a.b.!"]),
    ('start: x "!"\nx[suffix=/[0-9]+/]: /[a-z]*/', ["a1!", "a12!", "1!", "a!"]),
    ('start: x "!"\nx[suffix=S, stop_capture="s"]: /[a-z]*/\nS: "b" "c"', ["abc!", "bc!", "ab!", "abcbc!"]),
    ('start: x "!"\nx[stop="."]: /.*/', ["ab.!", ".!", "ab!", "a..!"]),
    ('start: x "./"\nx[stop="."]: /.*/', ["ab./", "ab../", "ab/", "./"]),
    ('start: x E "!"\nx[stop="<e>"]: /.*/\nE: "<e>"', ["ab<e>!", "ab<e><e>!", "<e>!", "ab!"]),
    ('start: x\nx[stop="."]: /.*/', ["ab.", ".", "a.b."]),
    ('start: x "!"\nx[stop=""]: /[a-z]*/', ["ab!", "!", "ab"]),
    ('start: x "b" | "c"\nx[stop=/\\n|\\./, stop_capture="s"]: /.*/', ["a\nb", "a.b", "ab", "c"]),
    ('start: x "!"\nx[max_tokens=3]: /[a-z]*/', ["abc!", "ab!", "!", "abcd!"]),
    ('start: x "!"\nx[max_tokens=3, stop="."]: /.*/', ["abc!", "ab.!", "abc.!", "ab!!"]),
    ('start: x "."\nx[max_tokens=4, stop="."]: /[a-z]*/', ["abc.", "abcd.", "abcde.", "."]),
    ('start: x\nx[max_tokens=0]: /a*/', ["", "a"]),
    ('start: (x ",")+\nx[max_tokens=2, capture="__LIST_APPEND:x"]: /[0-9]*/', ["12,34,", "123,", ",1,", "1"]),
    ('start: x "!"\nx[capture, temperature=0.5]: X\nX: /[a-z]+/', ["a!", "ab!", "!"]),
    # Recursion.
    ('start: e\ne: e "+" t | t\nt: "(" e ")" | /[0-9]+/', ["1", "1+2", "(1+2)+3", "1+", "(1"]),
    ('%import common.INT\n%import common (CNAME, WS)\n%import common.WORD -> W\n%ignore WS\n'
     'start: INT CNAME "." W', ["1a.b", "12 b1 \n. c", "a.b", "1 a"]),
]


class Bytes:
    """Every byte is a token, and token 256 ends the text."""

    eos_token_id = 256
    bos_token_id = None
    tokens = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    special_token_ids = [256]

    def __call__(self, text):
        return list(text if isinstance(text, bytes) else text.encode())


TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()))


def accepts(grammar, text):
    matcher = LLMatcher(TOKENIZER, grammar, log_level=0)
    assert not matcher.is_error(), (grammar, matcher.get_error())
    for byte in text.encode():
        if matcher.is_stopped() or not matcher.consume_token(byte):
            return False
    return matcher.is_accepting() or (matcher.is_stopped() and not matcher.is_error())


def main():
    goldens = [
        {"grammar": grammar, "texts": {text: accepts(grammar, text) for text in texts}} for grammar, texts in CASES
    ]
    lines = ",\n".join(json.dumps(golden, ensure_ascii=False) for golden in goldens)
    pathlib.Path(__file__).with_name("goldens.json").write_text(f"[\n{lines}\n]\n")


main()
