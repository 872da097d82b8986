"""Perplexity of model files on one text, each beside another file of the same weights.

    python3 bench/perplexity.py target/release/arbora FILE[=REFERENCE] ... [--text tests/golden/text.txt]

A server each scores the text (`POST /v1/completions` with `echo`) in pieces of at most a context, the first
token of a piece aside. With a REFERENCE its perplexity, the ratio, and the mean difference of the
log-probabilities of single tokens are printed too. Standard library only.
"""

import argparse
import json
import math
import pathlib
import subprocess
import time
import urllib.request

PORT = 8351
ROOT = pathlib.Path(__file__).parent.parent


def ask(path, body=None):
    body = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def ready(server):
    while server.poll() is None:
        try:
            return ask("/health")
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"the server ended with {server.returncode}")


def logprobs(binary, model, text):
    """Log-probabilities of the tokens of `text`, in nats."""
    command = [binary, "serve", "--model", model, "--port", str(PORT), "--log", "warn"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        ready(server)
        context = ask("/v1/models")["data"][0]["max_model_len"]
        tokens = ask("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
        found = []
        for start in range(0, len(tokens), context - 1):
            piece = tokens[start:start + context - 1]
            body = {"prompt": piece, "max_tokens": 1, "echo": True, "logprobs": 0, "temperature": 0}
            scored = ask("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
            found += scored[1:len(piece)]
        return found
    finally:
        server.kill()
        server.wait()


def perplexity(values):
    return math.exp(-sum(values) / len(values))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("models", nargs="+", metavar="FILE[=REFERENCE]")
    parser.add_argument("--text", type=pathlib.Path, default=ROOT / "tests/golden/text.txt")
    arguments = parser.parse_args()
    text = arguments.text.read_text()
    print("| file | tokens | perplexity | of the reference | | mean difference |\n|---|---|---|---|---|---|")
    for pair in arguments.models:
        model, _, reference = pair.partition("=")
        own = logprobs(arguments.binary, model, text)
        row = [pathlib.Path(model).name, str(len(own)), f"{perplexity(own):.3f}", "", "", ""]
        if reference:
            other = logprobs(arguments.binary, reference, text)
            if len(other) != len(own):
                raise SystemExit(f"{reference} has other tokens: {len(other)}, not {len(own)}")
            difference = sum(abs(a - b) for a, b in zip(own, other)) / len(own)
            ratio = perplexity(own) / perplexity(other) - 1
            row[3:] = [f"{perplexity(other):.3f}", f"{100 * ratio:+.2f} %", f"{difference:.3f}"]
        print("| " + " | ".join(row) + " |", flush=True)


main()
