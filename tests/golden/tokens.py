"""Token ids of awkward strings as Hugging Face's tokenizer library gives them.

    python tokens.py MODEL.gguf          (needs tokenizers, transformers, gguf)

Writes `tokens.json`: `texts`, and under `ids`, by the name of the pre-tokenizer, the ids of each text with
special tokens recognised.
"""

import json
import pathlib
import random
import sys
import unicodedata

import reference_tokenizer

FIXED = [
    "", " ", "  ", "   a", "\t", "\n", "\n\n", "\r\n", "\r\n\r\n  x", " \n \n", "a \n", "\u00a0", "\u2003x", "\u3000日本",
    "Hello, world!", "hello  world", "I'm you're we'll they've he'd it's", "I'M YOU'RE", "don’t", "'s's's",
    "0", "12", "123", "1234567890", "3.14159", "1,234,567.89", "٣٤٥", "४५६", "½ ⅓ Ⅷ", "x1y2z3", "2026-11-23T23:14:29Z",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", " <|im_end|> ", "<|im_end|><|im_end|>", "<|im_en|d>", "<repo_name>x",
    "<file_sep>", "<|im_start", "|>", "<jupyter_code>print(1)",
    "def f(x):\n    return x**2  # square\n", "if (a && b) { c->d[0] = 0x1F; }", "SELECT * FROM t WHERE a='b';", "\t\tindented\n\t\t\tmore",
    "    four\n        eight\n", "{\"a\": [1, 2.5e-3, null, true]}", "https://example.org/a/b?c=d&e=%20#f", "user@example.org",
    "naïve café", "cafe\u0301", "Ångström", "ÅNGSTRÖM", "ﬁne ﬀ", "ß ẞ", "İstanbul ı", "Привет, мир", "Ελληνικά", "עברית", "العربية", "हिन्दी", "ไทย",
    "日本語のテキスト", "中文字符，标点。", "한국어", "👍", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "a👍b", "☃", "∑∫√", "→⇒", "\u200b", "a\u200db", "\ufeffbom", "\ufffd",
    "a\u0000b", "\u0001\u0002", "\x7f", "\u0085", "\u2028line", "z̷̢͇a̸l̶g̵o̴", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𐍈", "\U0010ffff",
    "a" * 300, " " * 300, "\n" * 100, "ab" * 200, "1" * 100, "!" * 120, "é" * 120, "日" * 90, " a" * 100, "a  b   c    d     e", "\t \t \t",
    "word\u00a0word", "trailing ", " leading", "CamelCaseIdentifier", "snake_case_identifier", "SCREAMING_CASE", "kebab-case", "...", "…", "--", "—",
    "$100", "€1.000,00", "50%", "#hashtag", "@mention", "C++", "C#", "f(x)=x^2", "~/.config", "\\n", "\"quoted\"", "“curly”", "‘single’", "`code`", "```\nfence\n```",
    "'ſ", "I'ſ it", "'S'T'RE'VE'M'LL'D", "'ﬁ", "'ﬆ", "ŉ", "'ß", "'ẞ", "'\u212a", "\u1112\u1161\u11ab", "\u212b", "\u0344", "\u0f43", "a\u0301\u0323", "q\u0307\u0323",
    "a\r\n  \r\n b", "  \n\n  x", "x \r\r y", "!!!\n\n", " !\n", "a!/b//c", "//\n/", "\u2028\n\u2029", "HTTPServer", "HTTPserver", "aB", "ABc", "Ǆǅǆ", "ªº", "ʰx", "A\u0301b", "\u0301\u0301", "१२३४५", "1\u00b2\u00b3", "x\u20dd",
    ("ab  \n" * 60), (" " * 50 + "x") * 4, ("\t" * 30 + "\n") * 5, "\n " * 80,
]


def random_texts(count):
    source = random.Random(20261123)
    alphabet = [" ", "  ", "\n", "\t", "'", "'s", "'ll", ".", ",", "0", "7", "42", "a", "the", "The", "ing", "é", "ß", "ж", "日", "👍", "\u0301", "\u200d", "_", "-", "<", "|", ">"]
    return ["".join(source.choices(alphabet, k=source.randrange(2, 24))) for _ in range(count)]


def unicode_texts(count):
    """Characters of any kind; old ones, so that no two versions of Unicode disagree."""
    source = random.Random(3141)
    old = unicodedata.ucd_3_2_0
    known = [chr(code) for code in range(0x30000) if old.category(chr(code)) not in ("Cn", "Cs", "Co")]
    by_category = {}
    for character in known:
        by_category.setdefault(old.category(character), []).append(character)
    categories = sorted(by_category)
    return ["".join(source.choice(by_category[source.choice(categories)]) for _ in range(source.randrange(1, 16))) for _ in range(count)]


texts = FIXED + random_texts(80) + unicode_texts(60)
ids = {}
for name in reference_tokenizer.PRE_TOKENIZERS:
    tokenizer = reference_tokenizer.load(pathlib.Path(sys.argv[1]), name)
    ids[name] = [tokenizer.encode(text).ids for text in texts]
target = pathlib.Path(__file__).parent / "tokens.json"
compact = {"separators": (",", ":")}
rows = ",\n".join(f"{json.dumps(name)}:{json.dumps(rows, **compact)}" for name, rows in ids.items())
target.write_text(f'{{"texts":{json.dumps(texts, **compact)},\n"ids":{{\n{rows}\n}}}}\n')
print(len(texts), "texts,", len(ids), "pre-tokenizers")
