"""Arbora, llguidance and XGrammar on the same schemas and tokens, one after the other; prints a table.

    python compare.py CONSTRAINED_BENCH FOLDER SCHEMAS [--wrong FILE] [--engines NAME,NAME]
                      [--order any|schema]

FOLDER is what vocabulary.py wrote. SCHEMAS has either a schema a line with its instances (`schema`, `valid`,
`invalid`; each instance is tried as `json.dumps` writes it with and without escapes for what is not ASCII) or
an instance a line (`id`, `schema`, `valid`, `text`), lines of a schema together; `.xz` is unpacked. A schema
is right when it compiles, its valid instances are accepted and its invalid ones are not. `--wrong` lists the
schemas that are not, with the reason. Members come in any order, as JSON Schema has it, or with
`--order schema` in the schema's, as the server has a model write them; the peers only know that one.

Needs the packages tokenizers and numpy, and for the peers llguidance and xgrammar; a peer that cannot be
imported is left out.
"""

import argparse
import itertools
import json
import lzma
import subprocess
import sys
import time

import numpy
from tokenizers import Tokenizer

EOS = 2


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def resident(process):
    """Bytes of memory that the process has at hand."""
    lines = open(f"/proc/{process}/status")
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


class Arbora:
    name = "arbora"

    def __init__(self, program, folder, n_vocab, order):
        self.options = {"order": order}
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        paths = {"tokenizer": f"{folder}/tokenizer.json", "vocab": f"{folder}/vocab.jsonl"}
        print(self.ask(op="init", n_vocab=n_vocab, eos=EOS, options={}, **paths), file=sys.stderr)

    def ask(self, **request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def compile(self, schema):
        reply = self.ask(op="compile", id="", schema=schema, options=self.options)
        self.why = None if reply["ok"] else reply["error"]
        return reply["compile_us"] if reply["ok"] else None

    def again(self, schema):
        """Microseconds to the first mask of a schema that was compiled and used before."""
        reply = self.ask(op="compile", id="", schema=schema, options=self.options, again=True)
        return reply["again_us"] if reply["ok"] else None

    def n_resident(self):
        return resident(self.process.pid)

    def walk(self, tokens):
        reply = self.ask(op="walk", tokens=tokens, want=[])
        self.n_bytes = reply.get("n_bytes", 0)
        self.why = reply.get("error")
        is_whole = reply["ok"] and reply["accepted"] == len(tokens) and reply["eos"]
        return is_whole, reply.get("mask_ns", []), reply.get("adv_ns", []), reply.get("ff", 0)


class Peer:
    """Common steps: a matcher with `fill`, `allows`, `take`."""

    n_bytes = None
    why = None

    def n_resident(self):
        return resident("self")

    def walk(self, tokens):
        masks, advances = [], []
        self.begin()
        for token in [*tokens, EOS]:
            begin = time.perf_counter_ns()
            self.fill()
            masks.append(time.perf_counter_ns() - begin)
            word = int(self.bits()[token // 32])
            if not word >> token % 32 & 1:
                return False, masks, advances, 0
            if token != EOS:
                begin = time.perf_counter_ns()
                self.take(token)
                advances.append(time.perf_counter_ns() - begin)
        return True, masks, advances, 0


class Llguidance(Peer):
    name = "llguidance"

    def __init__(self, folder, n_vocab):
        import llguidance
        import llguidance.numpy

        self.module, self.numpy = llguidance, llguidance.numpy
        self.tokenizer = llguidance.LLTokenizer(f"{folder}/tokenizer.json", n_vocab=n_vocab, eos_token=EOS)
        self.bitmask = self.numpy.allocate_token_bitmask(1, n_vocab)

    def compile(self, schema):
        begin = time.perf_counter_ns()
        grammar = self.module.LLMatcher.grammar_from_json_schema(schema)
        self.matcher = self.module.LLMatcher(self.tokenizer, grammar)
        return None if self.matcher.is_error() else (time.perf_counter_ns() - begin) / 1e3

    def begin(self):
        self.matcher.reset()

    def fill(self):
        self.numpy.fill_next_token_bitmask(self.matcher, self.bitmask, 0)

    def bits(self):
        return self.bitmask[0].view(numpy.uint32)

    def take(self, token):
        self.matcher.consume_token(token)


class Xgrammar(Peer):
    name = "xgrammar"

    def __init__(self, folder, n_vocab):
        import xgrammar

        self.module = xgrammar
        tokens = [json.loads(line) for line in open(f"{folder}/vocab.jsonl")]
        texts = [bytes.fromhex(token["hex"]) for token in tokens]
        info = xgrammar.TokenizerInfo(texts, xgrammar.VocabType.RAW, vocab_size=n_vocab, stop_token_ids=[EOS])
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.bitmask = xgrammar.allocate_token_bitmask(1, n_vocab)

    def compile(self, schema):
        begin = time.perf_counter_ns()
        try:
            self.grammar = self.compiler.compile_json_schema(schema, any_whitespace=True, strict_mode=False)
        except RuntimeError:
            return None
        return (time.perf_counter_ns() - begin) / 1e3

    def begin(self):
        self.matcher = self.module.GrammarMatcher(self.grammar)

    def fill(self):
        self.bitmask.fill_(-1)
        self.matcher.fill_next_token_bitmask(self.bitmask, 0)

    def bits(self):
        return self.bitmask[0].numpy().view(numpy.uint32)

    def take(self, token):
        self.matcher.accept_token(token)


def texts_of(value):
    """The ways to write an instance, and whether one is timed."""
    return [(json.dumps(value, ensure_ascii=False), True), (json.dumps(value), False)]


def read(path):
    """Schemas in the file's order: `(id, schema, [(text, is_valid, is_timed)])`."""
    lines = (lzma.open if path.endswith(".xz") else open)(path, "rt")
    rows = (json.loads(line) for line in lines)
    for key, group in itertools.groupby(rows, lambda row: row["id"]):
        group = list(group)
        if "text" in group[0]:
            tries = [(row["text"], row["valid"], row["valid"]) for row in group]
        else:
            tries = [
                (text, kind == "valid", is_timed and kind == "valid")
                for kind in ["valid", "invalid"]
                for value in group[0][kind]
                for text, is_timed in texts_of(value)
            ]
        yield key, group[0]["schema"], tries


def run(engine, schemas, tokenizer, wrong):
    compiles, firsts, masks, advances = [], [], [], []
    n_right = n_unsound = n_tokens = n_forced = 0
    sizes, n_resident = [], engine.n_resident()
    for name, schema, tries in schemas:
        took = engine.compile(json.dumps(schema))
        if took is None:
            wrong.append(dict(engine=engine.name, id=name, what="not compiled", why=engine.why))
            continue
        compiles.append(took)
        is_right, is_first = True, True
        for text, is_valid, is_timed in tries:
            tokens = tokenizer.encode(text, add_special_tokens=False).ids
            accepted, mask_ns, advance_ns, forced = engine.walk(tokens)
            if accepted != is_valid:
                what = "invalid accepted" if accepted else "valid refused"
                found = dict(engine=engine.name, id=name, what=what, why=engine.why)
                wrong.append(found | dict(n_masks=len(mask_ns), text=text))
                is_right = False
            n_unsound += accepted and not is_valid
            if is_timed:
                if is_first and mask_ns:
                    firsts.append(took + mask_ns[0] / 1e3)
                is_first = False
                masks += mask_ns
                advances += advance_ns
                n_tokens += len(tokens)
                n_forced += forced
        n_right += is_right
        sizes.append(engine.n_bytes)
    growth = (engine.n_resident() - n_resident) / 1e6
    again = [engine.again(json.dumps(schema)) for _, schema, _ in schemas] if hasattr(engine, "again") else []
    again = [took for took in again if took is not None]
    row = [percentile(compiles, s) for s in (0.5, 0.95, 1)] + [percentile(firsts, 0.5)]
    row += [percentile(masks, s) / 1e3 for s in (0.5, 0.9, 0.99, 1)] + [numpy.mean(masks) / 1e3]
    row += [percentile(advances, 0.99) / 1e3]
    row.append(percentile(again, 0.5))
    kilobytes = "" if None in sizes else f"{percentile(sizes, 0.5) / 1e3:,.0f} / {max(sizes) / 1e3:,.0f}"
    figures = " | ".join(f"{value:,.1f}" for value in row)
    share, jumped = 100 * n_right / len(schemas), 100 * n_forced / max(1, n_tokens)
    print(f"| {engine.name} | {len(compiles)} | {figures} | {share:.1f} % | {n_unsound} | {jumped:.1f} % |"
          f" {kilobytes} | {growth:,.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("folder")
    parser.add_argument("schemas")
    parser.add_argument("--wrong")
    parser.add_argument("--order", default="any", choices=["any", "schema"])
    parser.add_argument("--engines", default="arbora,llguidance,xgrammar")
    asked = parser.parse_args()
    program, folder = asked.program, asked.folder
    schemas = list(read(asked.schemas))
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    n_vocab = sum(1 for _ in open(f"{folder}/vocab.jsonl"))
    print(f"{len(schemas)} schemas, {time.strftime('%Y-%m-%d')}; all times in microseconds")
    print("| engine | compiled | compile p50 | p95 | max | first mask p50 | mask p50 | p90 | p99 | max | mean |"
          " advance p99 | repeated first mask p50 | right | unsound | jumped | grammar kB p50 / max | resident MB grown |")
    print("|" + "---|" * 18)
    makers = {
        "arbora": lambda: Arbora(program, folder, n_vocab, asked.order),
        "llguidance": lambda: Llguidance(folder, n_vocab),
        "xgrammar": lambda: Xgrammar(folder, n_vocab),
    }
    wrong = []
    for name in asked.engines.split(","):
        try:
            engine = makers[name]()
        except (ImportError, ValueError) as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        run(engine, schemas, tokenizer, wrong)
    if asked.wrong:
        with open(asked.wrong, "w") as out:
            out.writelines(json.dumps(line) + "\n" for line in wrong)


main()
