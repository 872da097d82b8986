"""What another busy process on the machine costs the server, in tokens per second.

    python3 tests/hostile/busy_neighbour.py target/release/arbora --model FILE [--threads 1,2] [--at-once 1,8]

A server per binary and number of threads writes greedy answers, drafts off: alone, beside a process that never
stops, and beside one that is held on the last core. Several binaries are measured in turns. `ratio` is to one
thread of the same binary beside the same neighbour: with two threads and two cores, one busy neighbour leaves
half of a core, so 1.5 is the most there can be. Switches are those of all threads of the server, per second:
`slept` given by them, `lost` taken from them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time

from serving import Server, post

SPIN = "while True: pass"
NEIGHBOURS = ["nobody", "a free one", "one on a core"]


class Neighbour:
    """A busy process for the time of a `with` block."""

    def __init__(self, kind):
        self.kind, self.process = kind, None

    def __enter__(self):
        if self.kind == "nobody":
            return
        self.process = subprocess.Popen([sys.executable, "-c", SPIN])
        if self.kind == "one on a core":
            os.sched_setaffinity(self.process.pid, {max(os.sched_getaffinity(0))})

    def __exit__(self, *_):
        if self.process:
            self.process.kill()
            self.process.wait()


def metric(server, name):
    text = server.get("/metrics")[1].decode()
    found = [line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return int(found[0]) if found else 0


def switches(pid):
    """Voluntary and involuntary context switches of all threads so far."""
    counts = [0, 0]
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status") as status:
            for line in status:
                if line.startswith("voluntary_ctxt_switches"):
                    counts[0] += int(line.split()[1])
                elif line.startswith("nonvoluntary_ctxt_switches"):
                    counts[1] += int(line.split()[1])
    return counts


class Load:
    """Keeps `n` requests running until the end of a `with` block."""

    def __init__(self, server, n):
        self.server, self.n, self.stop = server, n, threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(i,), daemon=True) for i in range(n)]

    def run(self, i):
        # Short enough that the context stays small, long enough that prompts do not count.
        body = {"prompt": [1000 + i, 2000, 3000, 4000], "max_tokens": 200, "temperature": 0, "ignore_eos": True}
        while not self.stop.is_set():
            status, answer = post(self.server, "/v1/completions", body)
            if status != 200:
                raise SystemExit(f"the server answered {status}: {answer[:200]}")

    def __enter__(self):
        for thread in self.threads:
            thread.start()

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(60)


def measure(server, seconds):
    """Tokens, switches, and threads that were moved, each per second."""
    look = lambda: (metric(server, "arbora_generated_tokens_total"), *switches(server.process.pid),
                    metric(server, "arbora_thread_rescues_total"))
    before, started = look(), time.monotonic()
    time.sleep(seconds)
    after, took = look(), time.monotonic() - started
    return [(b - a) / took for a, b in zip(before, after)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=8320)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--at-once", default="1,8")
    parser.add_argument("--beside", default=",".join(NEIGHBOURS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--option", action="append", default=[], help="of the server, as --option=--isa=avx2")
    arguments = parser.parse_args()
    numbers = lambda text: [int(n) for n in text.split(",")]
    found = {}
    for _ in range(arguments.rounds):
        for threads in numbers(arguments.threads):
            for binary in arguments.binary:
                options = ["--threads", str(threads), "--draft", "off", *arguments.option]
                with Server(binary, arguments.model, arguments.port, *options) as server:
                    for at_once in numbers(arguments.at_once):
                        for beside in arguments.beside.split(","):
                            with Neighbour(beside), Load(server, at_once):
                                time.sleep(1)
                                figures = measure(server, arguments.seconds)
                            found.setdefault((at_once, beside, threads, binary), []).append(figures)
    print("| binary | at once | beside | threads | tokens/s | ratio | slept/s | lost/s | moved/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (at_once, beside, threads, binary), rounds in sorted(found.items(), key=lambda item: str(item[0])):
        rate, slept, lost, moved = (statistics.median(figures) for figures in zip(*rounds))
        alone = found.get((at_once, beside, 1, binary))
        ratio = rate / statistics.median(figures[0] for figures in alone) if alone else float("nan")
        print(f"| {binary} | {at_once} | {beside} | {threads} | {rate:.1f} | {ratio:.2f} | {slept:.0f} | {lost:.0f} "
              f"| {moved:.0f} |")


main()
