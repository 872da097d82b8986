"""Grammars made to be expensive: the worst compile and the worst mask on random walks, or what refused them.

    python hostile.py CONSTRAINED_BENCH FOLDER       FOLDER: what vocabulary.py wrote

Everything is done in three fresh processes, and of each compile and each mask the fastest counts: walks are
the same in all, and what is left out are time slices of other programs.
"""

import json
import subprocess
import sys
import time


def schemas():
    names = [f"key{n}" for n in range(300)]
    letters = "abcdefghijklmnopqrstuvwxyz"
    yield "300 optional keys", {"type": "object", "properties": {name: {"type": "string"} for name in names}}
    yield "5,000 strings in an enum", {"enum": [f"{letters[n % 26]}{n * 7919}x" for n in range(5000)]}
    yield "maxLength 100,000", {"type": "string", "minLength": 50_000, "maxLength": 100_000}
    yield "pattern [a-z]{0,2000}", {"type": "string", "pattern": "^[a-z]{0,2000}$"}
    yield "pattern .*a.{12}", {"type": "string", "pattern": "^.*a.{12}$"}
    yield "pattern (a|b)*a(a|b){16}", {"type": "string", "pattern": "^(a|b)*a(a|b){16}$"}
    yield "64 patterns at once", {"anyOf": [{"type": "string", "pattern": f"{letters[n % 26]}[a-z]*{n}"} for n in range(64)]}
    yield "pattern (?:[a-z]+ ?){1,400}", {"type": "string", "pattern": "^(?:[a-z]+ ?){1,400}$"}
    yield "pattern (?:.{0,200}a){0,10}", {"type": "string", "pattern": "^(?:.{0,200}a){0,10}$"}
    yield "pattern of three counts", {"type": "string", "pattern": "^(?:[a-f]{3}|[d-k]{4}|[g-z]{5}){0,200}$"}
    yield "pattern of capitalised words", {"type": "string", "pattern": "^(?:\\p{Lu}\\p{Ll}*\\s?){1,64}$"}
    yield "200 patterns of names", {"anyOf": [{"pattern": f"[a-f]{{{n % 9},40}}x{n}"} for n in range(200)]}
    yield "20,000 random strings in an enum", {"enum": [f"{n * 2654435761 % 2**32:08x}" for n in range(20_000)]}
    yield "anything", {}
    yield "nested arrays", {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}
    yield "10 email alternatives", {"anyOf": [{"type": "object", "properties": {f"k{n}": {"format": "email"}}} for n in range(10)]}


REGEXES = ["(a|b)*a(a|b){16}", "[ab]{0,5000}", "(?:(?:a?){30}b?){30}", "(.*a.*){8}", "(?:[a-z]+ ?){1,400}", "\\p{L}{1,1000}", "(?:a|aa|aaa)*b", ".*", "(?s:.*)", ".*a.{12}", "(?:[^a]*a){1,300}", "(?:.{0,50}a){0,300}", "\\w+( \\w+)*"]


LETTERS = "abcdefghijklmnopqrstuvwxyz"
PRINTABLE = LETTERS + LETTERS.upper() + "0123456789 ,.;:!?()-_"


def palindromes(letters, middle):
    ways = [f'"{letter}" root "{letter}"' for letter in letters]
    return "root ::= " + " | ".join([*ways, middle])


# Text grammars that can be read in very many ways.
GBNFS = {
    "palindromes of a and b": palindromes("ab", '""'),
    "palindromes of letters": palindromes(LETTERS, '""'),
    "palindromes around letters": palindromes(LETTERS, "[a-z]*"),
    "palindromes of printable text": palindromes(PRINTABLE, '""'),
    "500 stars": "root ::= (" + "[ab]* " * 500 + ')* "z"',
    "letters, letters": "root ::= [a-zA-Z]* [a-zA-Z]*",
    "words that begin anew": 'root ::= w*\nw ::= [a-zA-Z]* [a-zA-Z]* (" " w)?',
    "three of itself": "root ::= root root root | root root | [a-z ]",
    "pairs and brackets": 'root ::= root root | "(" root ")" | "[" root "]" | [a-z ]+ | ""',
    "sums without precedence": 'root ::= root [-+*/^] root | "(" root ")" | [0-9]+ | [a-z]+ | root root',
    "counts within counts": 'root ::= ((x{1,3}){1,3} " "?){50,90}\nx ::= [a-z] | "(" root ")"',
    "200 common prefixes": "root ::= (" + " | ".join(f'"item" t{n}' for n in range(200)) + ")*\n"
    + "".join(f't{n} ::= [a-z]* " " (root | "{n}")\n' for n in range(200)),
    "60 words that share letters": 'root ::= (p ("," | " "))*\np ::= ' + " | ".join(f'"{LETTERS[n % 10]}{LETTERS[10 + n % 6]}" q{n}' for n in range(60)) + "\n"
    + "".join(f'q{n} ::= [a-z]* | [a-z]* "-" p | "<" p ">"\n' for n in range(60)),
    "300 rules that may be empty": "root ::= " + " ".join(f"r{n}" for n in range(300)) + ' ";"\n'
    + "".join(f'r{n} ::= "" | [a-z]+ | "{n}" r{(n + 1) % 300}\n' for n in range(300)),
    "double recursion, apart": 'root ::= x y | [a-z]\nx ::= root | root " "\ny ::= root | "-" root',
    "letters from both ends": 'root ::= [a-z] root [a-z] | [a-z] root | ""',
    "pairs of forty rules": "root ::= " + " | ".join(f"r{n}" for n in range(40)) + "\n"
    + "".join(f"r{n} ::= [^A-Z] r{(n * 7 + 1) % 40} [^0-9] | [^A-Z] r{(n * 3 + 2) % 40} | [{LETTERS[n % 26]}]\n" for n in range(40)),
    "markdown": 'root ::= block+\nblock ::= "#"+ " " text+ "\\n" | "- " text+ "\\n" | text+ "\\n"\n'
    'text ::= [^*_`\\n] | "*" text+ "*" | "**" text+ "**" | "_" text+ "_" | "`" [^`]* "`" | [^\\n]',
    "markdown, stars": 'root ::= text*\ntext ::= [^*_] | "*" text* "*" | "**" text* "**" | "*" | "_" text* "_" | "_"',
    "HTML": "root ::= el*\nel ::= " + " | ".join(f'"<{t}>" el* "</{t}>"' for t in "a b i p ul li div span h1 h2 em".split()) + " | [^<]+ | [a-z ]+",
    "CSV of any cells": 'root ::= row+\nrow ::= cell ("," cell)* "\\n"\ncell ::= [^,\\n"]* | "\\"" ([^"] | "\\"\\"")* "\\"" | [^\\n]*',
    "key: value": 'root ::= line*\nline ::= t ":" t "\\n"?\nt ::= [^\\n]* | "{" line* "}" | t t',
    "statements": 'root ::= stmt*\nstmt ::= "if (" e ") " stmt | "if (" e ") " stmt "else " stmt | "{" stmt* "}" | id " = " e ";" | e ";" | " " stmt\n'
    'e ::= e op e | e "(" e ")" | "(" e ")" | id | [0-9]+ ("." [0-9]*)? | e "." id | "-" e | e e\nop ::= " + " | "+" | "-" | " - " | "*"\nid ::= [a-zA-Z_] [a-zA-Z0-9_]*',
    "rules that may be empty between others": 'root ::= a b c a b c\na ::= "" | b c "x" | [a-z] a\nb ::= "" | a c "y" | [a-z] b\nc ::= "" | a b "z" | [a-z] c',
    "nothing or brackets on all sides": 'root ::= n root n root n | [a-z]\nn ::= "" | " " n | "(" root ")"',
    "hidden double recursion": 'root ::= a | [a-z ]\na ::= b b | "(" root ")"\nb ::= c\nc ::= root root? | root "," root',
    "rules that mention all others on all sides": 'root ::= a "."\na ::= b a c | [a-z] | ""\nb ::= c a b | "x" | ""\nc ::= a b c | "y" | ""',
    "unit cycles": 'root ::= a | b\na ::= b | root | "(" a b ")" | [a-z]\nb ::= a | root a | "" | "[" b a "]"',
    "any letter, nothing on either side": 'root ::= n root n | [^x]\nn ::= "" | [^y] n | n n | root n',
}

LARKS = {
    "Lark: palindromes": "start: r\nr: " + " | ".join(f'"{letter}" r "{letter}"' for letter in LETTERS) + ' | ""',
    "Lark: sums": 'start: e\ne: e "+" e | e e | "(" e ")" | NAME | NUM\nNAME: /[a-z]+/\nNUM: /[0-9]+/\n%ignore " "',
    "Lark: stars": 'start: (A* B* C*)* "."\nA: /[a-z]/\nB: /[a-z]+/\nC: /[a-z ]/',
    "Lark: words of words": 'start: (w " "?)+ "."\nw: W | W w | "(" w+ ")"\nW: /[^ ().]+/',
    "Lark: any text in turns": 'start: (x | y)*\nx: /[^0-9]*/ y?\ny: /(?s:.)/ x | "<" x ">"',
    "Lark: markdown": 'start: t*\nt: /[^*_]/ | "*" t* "*" | "**" t* "**" | "*" | "_" t* "_" | "_"',
    "Lark: CSV": 'start: row+\nrow: cell ("," cell)* "\\n"\ncell: /[^,\\n"]*/ | /"([^"]|"")*"/ | /[^\\n]*/',
}


N_RUNS = 3


def run(program, folder, cases):
    """Of each case: milliseconds to compile, nanoseconds of each mask, bytes, what ended it."""
    process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(**request):
        print(json.dumps(request), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    n_vocab = sum(1 for _ in open(f"{folder}/vocab.jsonl"))
    ask(op="init", n_vocab=n_vocab, eos=2, options={}, vocab=f"{folder}/vocab.jsonl")
    for _, source in cases:
        begin = time.perf_counter()
        reply = ask(op="compile", **source, options={})
        took = 1e3 * (time.perf_counter() - begin)
        if not reply["ok"]:
            yield took, [], 0, reply["error"]
            continue
        walks = [ask(op="wander", n=200, seed=seed) for seed in range(3)]
        yield reply["compile_us"] / 1e3, sum((walk["mask_ns"] for walk in walks), []), walks[-1]["n_bytes"], ""
    process.stdin.close()
    process.wait()


def main():
    program, folder = sys.argv[1:]
    cases = [(name, {"schema": json.dumps(schema)}) for name, schema in schemas()]
    cases += [(f"`{regex}`", {"kind": "regex", "schema": regex}) for regex in REGEXES]
    cases += [(name, {"kind": "gbnf", "schema": grammar}) for name, grammar in GBNFS.items()]
    cases += [(name, {"kind": "lark", "schema": grammar}) for name, grammar in LARKS.items()]
    runs = [list(run(program, folder, cases)) for _ in range(N_RUNS)]
    print(f"{time.strftime('%Y-%m-%d')}; walks of 200 random tokens, 3 each\n")
    print("| grammar | compile ms | worst mask ms | kB | refused by |\n|---|---|---|---|---|")
    for (name, _), results in zip(cases, zip(*runs)):
        took = min(result[0] for result in results)
        masks = [min(times) for times in zip(*(result[1] for result in results))]
        worst = f"{max(masks) / 1e6:.2f}" if masks else ""
        kilobytes, error = f"{results[0][2] / 1e3:.0f}" if masks else "", results[0][3]
        limit = next((f"`{word}`" for word in error.split("`") if word.startswith("max_")), error[:60])
        print(f"| {name} | {took:.1f} | {worst} | {kilobytes} | {limit} |".replace("a|b", "a\\|b").replace("a|aa|", "a\\|aa\\|"))


main()
