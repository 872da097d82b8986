"""A hash over the outputs of seeded requests to a running server, to compare two builds bit for bit.

    python3 tests/golden/outputs.py http://127.0.0.1:8000 [--requests 1000] [--clients 16] [--out FILE]

Greedy and sampled texts, several choices, log-probabilities, regular expressions, JSON schemas and tool
calls, with shared and with own prefixes, many at a time. The same build gives the same hash whatever the
order and the cache (contract C3); two builds that should compute the same give the same on each instruction
set.
Standard library only.
"""

import argparse
import hashlib
import http.client
import json
import random
import threading
import urllib.parse
from collections import defaultdict

WORDS = """river stone window market engine garden letter copper winter bridge doctor island silver planet
village camera history summer mirror forest""".split()

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12},
                   "age": {"type": "integer", "minimum": 0, "maximum": 120},
                   "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3}},
    "required": ["name", "age", "tags"], "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "lookup", "parameters": {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 16}, "days": {"type": "integer"}},
    "required": ["city", "days"], "additionalProperties": False}}}


def text(rng, n_words):
    return " ".join(rng.choice(WORDS) for _ in range(n_words))


def greedy(rng, _):
    return "/v1/completions", {"prompt": text(rng, rng.randrange(3, 60)), "temperature": 0}


def sampled(rng, seed):
    return "/v1/completions", {"prompt": text(rng, rng.randrange(3, 60)), "seed": seed, "temperature": 0.9,
                               "top_p": rng.choice([1.0, 0.9]), "top_k": rng.choice([0, 40]),
                               "repetition_penalty": rng.choice([1.0, 1.1])}


def choices(rng, seed):
    return "/v1/completions", {"prompt": text(rng, 20), "seed": seed, "temperature": 1.0, "n": 3}


def logprobs(rng, seed):
    return "/v1/completions", {"prompt": text(rng, 12), "seed": seed, "logprobs": 3,
                               "echo": rng.random() < 0.5}


def shared(rng, seed):
    question = {"role": "user", "content": f"What about the {rng.choice(WORDS)}?"}
    context = text(random.Random(rng.randrange(5)), 150)
    messages = [{"role": "system", "content": context}, question]
    return "/v1/chat/completions", {"messages": messages, "seed": seed, "temperature": 0.7}


def regex(rng, seed):
    return "/v1/completions", {"prompt": text(rng, 8), "seed": seed,
                               "guided_regex": "[a-z]{3,9}( [0-9]{1,3}){1,3}"}


def schema(rng, seed):
    messages = [{"role": "user", "content": f"A person near the {text(rng, 2)} as JSON."}]
    format = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    return "/v1/chat/completions", {"messages": messages, "seed": seed, "response_format": format}


def tools(rng, seed):
    messages = [{"role": "user", "content": f"Weather at the {text(rng, 2)}?"}]
    return "/v1/chat/completions", {"messages": messages, "seed": seed, "tools": [TOOL],
                                    "tool_choice": "required"}


KINDS = [greedy, sampled, choices, logprobs, shared, regex, schema, tools]


def request(number):
    """Kind, path and body of request `number`: the same on every run."""
    rng = random.Random(f"outputs {number}")
    kind = KINDS[number % len(KINDS)]
    path, body = kind(rng, number)
    body.setdefault("max_tokens", rng.randrange(4, 32))
    return kind.__name__, path, body


def essence(answer):
    """What must not change: texts, calls, reasons and log-probabilities, without ids and times."""
    said = []
    for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
        message = choice.get("message") or {}
        calls = [call["function"] for call in message.get("tool_calls") or []]
        text = choice.get("text"), message.get("content")
        said.append([text, calls, choice["finish_reason"], choice.get("logprobs")])
    usage = answer["usage"]
    return json.dumps([said, usage["prompt_tokens"], usage["completion_tokens"]], sort_keys=True)


def ask(host, path, body):
    connection = http.client.HTTPConnection(host, timeout=600)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {answer[:300]!r} for {body}")
    return json.loads(answer)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--out", help="file for one output a line, to see where two builds differ")
    arguments = parser.parse_args()
    host = urllib.parse.urlsplit(arguments.url).netloc
    outputs, numbers, lock = {}, iter(range(arguments.requests)), threading.Lock()
    failed = []

    def client():
        while not failed:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            kind, path, body = request(number)
            try:
                outputs[number] = kind, essence(ask(host, path, body))
            except BaseException as error:
                failed.append(error)

    threads = [threading.Thread(target=client) for _ in range(arguments.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f"{failed[0]}")
    hashes = defaultdict(hashlib.sha256)
    for number in range(arguments.requests):
        kind, said = outputs[number]
        for name in (kind, "all"):
            hashes[name].update(said.encode() + b"\n")
    for name, digest in sorted(hashes.items()):
        print(f"{name:10} {digest.hexdigest()}")
    if arguments.out:
        with open(arguments.out, "w") as file:
            file.writelines(f"{number} {' '.join(outputs[number])}\n" for number in sorted(outputs))


if __name__ == "__main__":
    main()
