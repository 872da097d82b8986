"""What a key that asks for little waits beside a key that floods.

    python3 tests/hostile/fair_shares.py target/release/arbora --model FILE [--port PORT] [--seconds S]

Capacity is what the flood alone gets. The light key sends a fifth of that, at random times, alone and beside
the flood. The goal: its p99 is at most three times that alone, and both together get 95 % of the capacity.
"""

import argparse
import random
import threading
import time

from serving import Server, Stream, quantile

N_PROMPT, N_OUTPUT = 64, 32


def body(rng, n_prompt, n_output):
    prompt = [rng.randrange(1000, 30000) for _ in range(n_prompt)]
    return {"prompt": prompt, "max_tokens": n_output, "temperature": 0, "ignore_eos": True}


class Flood:
    """`n` clients of the heavy key, each with one request at any time."""

    def __init__(self, server, n, sizes):
        self.server, self.sizes = server, sizes
        self.is_over, self.done = False, []
        self.threads = [threading.Thread(target=self.ask, args=(seed,), daemon=True) for seed in range(n)]
        for thread in self.threads:
            thread.start()

    def ask(self, seed):
        rng = random.Random(f"{seed} {time.monotonic()}")
        while not self.is_over:
            stream = Stream(self.server, "/v1/completions", body(rng, *self.sizes), "heavy")
            stream.run()
            if stream.status == 429:
                time.sleep(0.2)
            self.done += [(at, 1) for at in stream.times]

    def stop(self):
        self.is_over = True
        for thread in self.threads:
            thread.join(120)


def light(server, rate, seconds, rng):
    """Requests of the light key at random times."""
    streams, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(rng.expovariate(rate))
        stream = Stream(server, "/v1/completions", body(rng, N_PROMPT, N_OUTPUT), "light")
        stream.start()
        streams.append(stream)
    for stream in streams:
        stream.join(120)
    return streams


def report(what, streams):
    whole = [s for s in streams if s.status == 200 and s.times and not s.error]
    first = [1000 * (s.times[0] - s.started) for s in whole]
    total = [1000 * (s.ended - s.started) for s in whole]
    print(f"{what:22} {len(whole):5} of {len(streams):5}   first token p50 {quantile(first, .5):7.0f} p99 "
          f"{quantile(first, .99):7.0f} ms   whole p50 {quantile(total, .5):7.0f} p99 {quantile(total, .99):7.0f} ms",
          flush=True)
    return quantile(first, .99), quantile(total, .99)


def n_tokens(times, start, end):
    return sum(start <= at <= end for at in times)


def beside_flood(server, arguments, rng, rate, capacity):
    """The light key alone, then beside the flood."""
    alone = report("light key alone", light(server, rate, arguments.seconds, rng))
    flood = Flood(server, arguments.clients, arguments.heavy)
    time.sleep(3)
    start = time.monotonic()
    streams = light(server, rate, arguments.seconds, rng)
    end = time.monotonic()
    beside = report("beside the flood", streams)
    print(f"p99 ratio: first token {beside[0] / alone[0]:.1f}, whole {beside[1] / alone[1]:.1f}")
    if capacity:
        flood.stop()
        times = [at for at, _ in flood.done] + [at for s in streams for at in s.times]
        both = n_tokens(times, start, end) / (end - start)
        print(f"both keys {both:.0f} tokens/s, {both / capacity:.2f} of the capacity")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=8320)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--clients", type=int, default=96)
    parser.add_argument("--heavy", type=int, nargs=2, default=[N_PROMPT, N_OUTPUT], metavar=("PROMPT", "OUTPUT"))
    parser.add_argument("--rate", type=float, help="requests/s of the light key, instead of a fifth of what is measured")
    arguments = parser.parse_args()
    rng, seconds = random.Random(1), arguments.seconds
    keys = ("--api-key", "light", "--api-key", "heavy")
    with Server(arguments.binary, arguments.model, arguments.port, *keys) as server:
        light(server, 5, 3, rng)
        if arguments.rate:
            beside_flood(server, arguments, rng, arguments.rate, None)
            return
        flood = Flood(server, arguments.clients, arguments.heavy)
        time.sleep(3)
        start = time.monotonic()
        time.sleep(seconds)
        end = time.monotonic()
        flood.stop()
        capacity = n_tokens([at for at, _ in flood.done], start, end) / (end - start)
        rate = capacity / N_OUTPUT / 5 * min(1.0, N_OUTPUT / arguments.heavy[1])
        print(f"capacity {capacity:.0f} tokens/s; the light key sends {rate:.2f} requests/s")
        beside_flood(server, arguments, rng, rate, capacity)


main()
