"""What another busy process on the machine costs the server, in tokens per second.

    python3 tests/hostile/busy_neighbour.py target/release/arbora --model FILE [--threads 1,2] [--at-once 1,8]

A server per binary and number of threads writes greedy answers, drafts off: alone, beside a process that
never stops, and beside one that is held on the last core. Servers are measured in turns, window by window.
Windows during which other processes took more than a part of a core do not count (`--others`), and are tried
again (`--tries`). `ratio` is to one thread of the same binary beside the same neighbour: with two threads and
two cores, one busy neighbour leaves half of a core, so 1.5 is the most there can be. Switches are those of
all threads of the server, per second: `slept` given by them, `lost` taken from them.
"""

import argparse
import contextlib
import itertools
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
            return None
        self.process = subprocess.Popen([sys.executable, "-c", SPIN])
        if self.kind == "one on a core":
            os.sched_setaffinity(self.process.pid, {max(os.sched_getaffinity(0))})
        return self.process

    def __exit__(self, *_):
        if self.process:
            self.process.kill()
            self.process.wait()


def metric(server, name):
    text = server.get("/metrics")[1].decode()
    found = [line.split()[-1] for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return float(found[0]) if found else 0.0


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
        # So short that windows do not wait long for the last ones, so long that prompts do not count.
        body = {"prompt": [1000 + i, 2000, 3000], "max_tokens": 64, "temperature": 0, "ignore_eos": True}
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


def cpu_time(pids):
    """Seconds that all CPUs were busy with anything but `pids` so far."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:]]
    busy = sum(fields[:3]) + sum(fields[5:7])
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            busy -= sum(int(field) for field in stat.read().rsplit(")", 1)[1].split()[11:13])
    return busy / os.sysconf("SC_CLK_TCK")


def measure(server, seconds):
    """Tokens, switches, threads that were moved and seconds waited for one, each per second."""
    look = lambda: (metric(server, "arbora_generated_tokens_total"), *switches(server.process.pid),
                    metric(server, "arbora_thread_rescues_total"),
                    metric(server, "arbora_thread_wait_seconds_total"))
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
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--others", type=float, default=0.1, help="most cores that other processes may take")
    parser.add_argument("--option", action="append", default=[], help="of the server, as --option=--isa=avx2")
    arguments = parser.parse_args()
    numbers = lambda text: [int(n) for n in text.split(",")]
    found = {}
    with contextlib.ExitStack() as running:
        servers = {}
        # All at once, idle but for one: so windows of all of them lie close together.
        kinds = itertools.product(arguments.binary, numbers(arguments.threads))
        for i, (binary, threads) in enumerate(kinds):
            options = ["--threads", str(threads), "--draft", "off", *arguments.option]
            server = Server(binary, arguments.model, arguments.port + i, *options)
            servers[threads, binary] = running.enter_context(server)
        own = [os.getpid(), *(server.process.pid for server in servers.values())]
        for at_once, beside in itertools.product(numbers(arguments.at_once), arguments.beside.split(",")):
            with Neighbour(beside) as neighbour:
                pids = own + ([neighbour.pid] if neighbour else [])
                for _ in range(arguments.tries):
                    for (threads, binary), server in servers.items():
                        windows = found.setdefault((at_once, beside, threads, binary), [])
                        if len(windows) == arguments.rounds:
                            continue
                        with Load(server, at_once):
                            time.sleep(arguments.seconds / 4)
                            before, started = cpu_time(pids), time.monotonic()
                            figures = measure(server, arguments.seconds)
                            others = (cpu_time(pids) - before) / (time.monotonic() - started)
                        if others <= arguments.others:
                            windows.append(figures)
    print("| binary | at once | beside | threads | windows | tokens/s | ratio | slept/s | lost/s | moved/s "
          "| waited % |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    nan = float("nan")
    middle = lambda windows, i: statistics.median([figures[i] for figures in windows] or [nan])
    for (at_once, beside, threads, binary), windows in found.items():
        rate, slept, lost, moved, waited = (middle(windows, i) for i in range(5))
        ratio = rate / middle(found.get((at_once, beside, 1, binary), []), 0)
        name = os.path.basename(binary)
        print(f"| {name} | {at_once} | {beside} | {threads} | {len(windows)} | {rate:.1f} | {ratio:.2f} "
              f"| {slept:.0f} | {lost:.0f} | {moved:.0f} | {100 * waited:.1f} |")


main()
