"""Grammars made to be expensive: the worst compile and the worst mask on random walks, or what refused them.

    python hostile.py CONSTRAINED_BENCH FOLDER       FOLDER: what vocabulary.py wrote
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
    yield "anything", {}
    yield "nested arrays", {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}
    yield "10 email alternatives", {"anyOf": [{"type": "object", "properties": {f"k{n}": {"format": "email"}}} for n in range(10)]}


REGEXES = ["(a|b)*a(a|b){16}", "[ab]{0,5000}", "(?:(?:a?){30}b?){30}", "(.*a.*){8}", "(?:[a-z]+ ?){1,400}", "\\p{L}{1,1000}", "(?:a|aa|aaa)*b", ".*"]


def main():
    program, folder = sys.argv[1:]
    process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(**request):
        print(json.dumps(request), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    ask(op="init", n_vocab=sum(1 for _ in open(f"{folder}/vocab.jsonl")), eos=2, options={}, vocab=f"{folder}/vocab.jsonl")
    print(f"{time.strftime('%Y-%m-%d')}; walks of 200 random tokens, 3 each\n")
    print("| grammar | compile ms | worst mask ms | kB | ended by |\n|---|---|---|---|---|")
    cases = [(name, {"schema": json.dumps(schema)}) for name, schema in schemas()]
    cases += [(f"`{regex}`".replace("|", "\\|"), {"kind": "regex", "schema": regex}) for regex in REGEXES]
    for name, source in cases:
        begin = time.perf_counter()
        reply = ask(op="compile", **source, options={})
        took = 1e3 * (time.perf_counter() - begin)
        if not reply["ok"]:
            print(f"| {name} | {took:.1f} | | | {reply['error'].replace('|', chr(92) + '|')[:90]} |")
            continue
        walks = [ask(op="wander", n=200, seed=seed) for seed in range(3)]
        worst = max(max(walk["mask_ns"]) for walk in walks) / 1e6
        stopped = next((walk["stopped"] for walk in walks if walk["stopped"]), "")
        print(f"| {name} | {reply['compile_us'] / 1e3:.1f} | {worst:.2f} | {walks[-1]['n_bytes'] / 1e3:.0f} | {stopped} |", flush=True)


main()
