"""Minutes of every kind of request on a small pool, a third of them abandoned, the log unread for a while.

    python3 tests/hostile/soak.py target/release/arbora --model FILE [--minutes 10] [--memory MIB]

The pool is so small that cached pages are evicted and running requests preempted. Checked is that every
request that is not abandoned ends, that a repeated request has the same output each time, that no page is
left behind, and that memory does not grow. With `--memory` the process may map no more than so many MiB
beside its files: then requests may be refused with a clear error, but the server goes on. With
`--clock LIBRARY` (libfaketime.so.1 of Debian's `faketime`) the wall clock jumps back by a day after a quarter
of the time and forward by two after three quarters. After three fifths of the time the model is loaded anew
beside the old one and takes its place.
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time

from serving import Server, post

sys.path.append(str(pathlib.Path(__file__).parent.parent / "golden"))
import outputs  # noqa: E402

# So many different requests, asked again and again.
N_REQUESTS = 160
# What must have happened.
SEEN = ("preemptions_total", "evicted_pages_total", "log_lines_dropped_total")
# Statuses of a request that is refused and may be tried again.
REFUSED = (429, 503)


def request(number):
    """Some outputs end early, as most do, and others do not: so the pool is filled more than it holds."""
    kind, path, body = outputs.request(number)
    if kind in ("greedy", "sampled", "logprobs"):
        body.update(max_tokens=150, stop=[" "])
    elif kind == "choices":
        body.update(max_tokens=100, ignore_eos=True)
    return path, body


class Soak:
    def __init__(self, server, clients):
        self.server, self.is_over = server, threading.Event()
        self.known, self.lock = {}, threading.Lock()
        self.counts = dict.fromkeys(["answered", "abandoned", "refused", "differ", "lost"], 0)
        self.failures = []
        self.threads = [threading.Thread(target=self.ask, args=(seed,)) for seed in range(clients)]
        self.threads.append(threading.Thread(target=self.probe))
        self.slowest_probe = 0.0

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def ask(self, seed):
        rng = random.Random(f"soak {seed}")
        while not self.is_over.is_set():
            number = rng.randrange(N_REQUESTS)
            try:
                self.abandon(rng, number) if rng.random() < 1 / 3 else self.compare(number)
            except (OSError, http.client.HTTPException) as error:
                self.count("lost")
                self.failures.append(f"{number}: {error!r}")

    def probe(self):
        """Asks for health all the time, which also fills the log."""
        while not self.is_over.is_set():
            start = time.monotonic()
            try:
                status = self.server.get("/health")[0]
            except (OSError, http.client.HTTPException) as error:
                status = repr(error)
            if status != 200:
                self.failures.append(f"/health: {status}")
                self.count("lost")
            self.slowest_probe = max(self.slowest_probe, time.monotonic() - start)
            time.sleep(0.001)

    def post(self, path, body):
        connection = self.server.connect()
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection

    def abandon(self, rng, number):
        """Leaves at once, in the middle of an answer, or before it."""
        _, path, body = outputs.request(number)
        body = {**body, "max_tokens": 200, "stream": rng.random() < 0.7}
        body.pop("echo", None)
        connection = self.post(path, body)
        connection.sock.settimeout(rng.choice([0.001, 0.1, 1.0]))
        try:
            connection.getresponse().read(rng.randrange(1, 2000))
        except (TimeoutError, OSError):
            pass
        connection.close()
        self.count("abandoned")

    def compare(self, number):
        path, body = request(number)
        connection = self.post(path, body)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        if response.status in REFUSED:
            assert b'"message"' in answer, answer
            self.count("refused")
            time.sleep(0.2)
            return
        if response.status != 200:
            self.count("lost")
            self.failures.append(f"{number}: {response.status} {answer[:200]!r}")
            return
        said = outputs.essence(json.loads(answer))
        with self.lock:
            is_same = self.known.setdefault(number, said) == said
        self.count("answered" if is_same else "differ")
        if not is_same:
            self.failures.append(f"{number}: {said} after {self.known[number]}")


class Clock:
    """The wall clock of the server, where `library` can move it. Monotonic time goes on as it is."""

    def __init__(self, library):
        self.file = tempfile.NamedTemporaryFile("w", prefix="clock") if library else None
        self.environment = dict(os.environ)
        if library:
            self.environment.update(LD_PRELOAD=library, FAKETIME_TIMESTAMP_FILE=self.file.name,
                                    FAKETIME_NO_CACHE="1", FAKETIME_DONT_FAKE_MONOTONIC="1", NO_FAKE_STAT="1")
            self.set(0)

    def set(self, days):
        if self.file:
            self.file.seek(0)
            self.file.write(f"{days:+d}d\n")
            self.file.truncate()
            self.file.flush()


def metric(server, name):
    text = server.get("/metrics")[1].decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+]+)$", text, re.M))


def rss(server):
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=8330)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--pages", type=int, default=40)
    parser.add_argument("--memory", type=int, help="most MiB of private memory (RLIMIT_DATA)")
    parser.add_argument("--clock", metavar="LIBRARY", help="libfaketime.so.1: the wall clock jumps")
    arguments = parser.parse_args()

    def limit():
        if arguments.memory:
            resource.setrlimit(resource.RLIMIT_DATA, (arguments.memory << 20,) * 2)

    options = ["--kv-pages", str(arguments.pages), "--context", str(16 * arguments.pages - 16)]
    clock = Clock(arguments.clock)
    # Every request leaves lines: a pipe that nobody reads is soon full.
    server = Server(arguments.binary, arguments.model, arguments.port, *options,
                    log="debug", stderr=subprocess.PIPE, preexec_fn=limit, env=clock.environment)
    with server:
        soak = Soak(server, arguments.clients)
        reads = threading.Event()
        threading.Thread(target=read_log, args=(server, reads), daemon=True).start()
        reads.set()
        for thread in soak.threads:
            thread.start()
        total, figures = 60 * arguments.minutes, []
        is_reloaded, seen = False, {}
        start = time.monotonic()
        while time.monotonic() - start < total:
            elapsed = time.monotonic() - start
            # Unread for a minute in the middle.
            reads.clear() if abs(elapsed - total / 2) < 30 else reads.set()
            clock.set(0 if elapsed < total / 4 else -1 if elapsed < 3 * total / 4 else 1)
            if elapsed > total * 3 / 5 and not is_reloaded:
                # Its engine counts from the beginning.
                seen, is_reloaded = {name: metric(server, f"arbora_{name}") for name in SEEN}, True
                reload(server, arguments.model)
            time.sleep(total / 20)
            figures.append(rss(server))
            print(f"{elapsed:5.0f} s  {soak.counts}  RSS {figures[-1]:.0f} MiB", flush=True)
        soak.is_over.set()
        for thread in soak.threads:
            thread.join(120)
        deadline = time.monotonic() + 30
        while metric(server, "arbora_running") and time.monotonic() < deadline:
            time.sleep(0.1)
        left = {name: metric(server, f"arbora_{name}") for name in
                ["running", "waiting", "pages_owned", "panics_total"]}
        seen = {name: max(seen.get(name, 0), metric(server, f"arbora_{name}")) for name in SEEN}
    print(f"slowest /health {soak.slowest_probe:.2f} s\nleft {left}\nseen {seen}\nRSS {figures[1]:.0f} to {figures[-1]:.0f} MiB, most {max(figures):.0f}")
    for failure in soak.failures[:10]:
        print(failure)
    bad = [name for name in ("differ", "lost") if soak.counts[name]] + [name for name, n in left.items() if n]
    bad += [name for name, n in seen.items() if not n]
    bad += ["RSS grew"] if max(figures[len(figures) // 2:]) > 1.2 * max(figures[:len(figures) // 2]) + 16 else []
    if bad or any(thread.is_alive() for thread in soak.threads):
        raise SystemExit(f"failed: {bad}")


def reload(server, source):
    models = json.loads(server.get("/v1/models")[1])["data"]
    status, answer = post(server, "/models/load", {"model": models[0]["id"], "source": source})
    print(f"loaded anew: {status} {answer.decode()}", flush=True)
    if status != 200:
        raise SystemExit("failed: the model could not be loaded anew")


def read_log(server, reads):
    while True:
        reads.wait()
        if not server.process.stderr.read1(1 << 16):
            return


main()
