"""What one client's requests do to the pace of another client's stream.

    python3 tests/hostile/neighbours.py target/release/arbora --model FILE [--port PORT] [--rounds N]

A plain stream runs; then neighbours of one kind come. Printed is the time between two pieces of the stream's
text while they run, and the ratio of each p99 to that beside eight plain neighbours. The goal is 3.
"""

import argparse
import random
import time

from serving import Server, Stream, quantile

KINDS = ["8 plain", "prompt of 7,500 tokens", "8 with 100 tools", "8 with 5,000 choices", "8 with an enum of 5,000"]


def words(rng, n):
    """About `n` tokens that no cache knows."""
    return [rng.randrange(1000, 30000) for _ in range(n)]


def name(rng):
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(4, 12)))


def tool(rng):
    fields = {name(rng): {"type": rng.choice(["string", "integer", "boolean"])} for _ in range(2)}
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "function", "function": {"name": name(rng), "parameters": schema}}


def requests(kind, rng):
    """Paths and bodies of the neighbours."""
    plain = lambda: {"prompt": words(rng, 30), "max_tokens": 150, "temperature": 0, "ignore_eos": True}
    if kind == "8 plain":
        return [("/v1/completions", plain()) for _ in range(8)]
    if kind == "prompt of 7,500 tokens":
        return [("/v1/completions", {**plain(), "prompt": words(rng, 7500), "max_tokens": 20})]
    if kind == "8 with 100 tools":
        ask = lambda: {"messages": [{"role": "user", "content": name(rng)}], "max_tokens": 40,
                       "tool_choice": "required", "tools": [tool(rng) for _ in range(100)]}
        return [("/v1/chat/completions", ask()) for _ in range(8)]
    choices = lambda: list({" ".join(name(rng) for _ in range(3)) for _ in range(5000)})
    if kind == "8 with 5,000 choices":
        return [("/v1/completions", {**plain(), "ignore_eos": False, "guided_choice": choices()}) for _ in range(8)]
    schema = lambda: {"type": "object", "properties": {"a": {"enum": choices()}}, "required": ["a"]}
    return [("/v1/completions", {**plain(), "ignore_eos": False, "guided_json": schema()}) for _ in range(8)]


def gaps(server, kind, rng):
    """Times between pieces of a plain stream while neighbours of `kind` run, in ms, and what failed."""
    body = {"prompt": words(rng, 20), "max_tokens": 4000, "temperature": 0, "ignore_eos": True}
    stream = Stream(server, "/v1/completions", body)
    stream.start()
    while len(stream.times) < 30 and stream.is_alive():
        time.sleep(0.01)
    started = time.monotonic()
    others = [Stream(server, path, body) for path, body in requests(kind, rng)] if kind else []
    for other in others:
        other.start()
    if not others:
        time.sleep(2)
    for other in others:
        other.join(120)
    ended = time.monotonic()
    times = [at for at in list(stream.times) if started <= at <= ended]
    errors = {other.error for other in [stream, *others] if other.error}
    return [1000 * (b - a) for a, b in zip(times, times[1:])], errors, ended - started


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=8310)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    base = None
    print(f"{'beside':26} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'ratio':>6} {'s':>6}")
    for kind in [None, *KINDS]:
        found, errors, seconds = [], set(), 0.0
        for _ in range(arguments.rounds):
            # A server each, so that an unfinished stream of one kind is no neighbour of the next.
            with Server(arguments.binary, arguments.model, arguments.port, *arguments.options) as server:
                more, wrong, took = gaps(server, kind, rng)
            found += more
            errors |= wrong
            seconds += took
        p99 = quantile(found, 0.99)
        base = p99 if kind == "8 plain" else base
        ratio = f"{p99 / base:6.2f}" if base else "     -"
        print(f"{kind or 'nobody':26} {quantile(found, 0.5):8.1f} {p99:8.1f} {max(found, default=0):8.1f} {ratio} "
              f"{seconds:6.1f}", *(error[:200] for error in errors), flush=True)


main()
