"""Schemathesis on the server's own OpenAPI document: thousands of requests, random and at every bound.

    python openapi_fuzz.py --server target/release/arbora [--examples 30]            (needs schemathesis)

A server of its own with a short context and an API key takes them. Every answer must have a status, a type
and a shape that the document names, none may be a failure, and no key must mean no answer. In the end nothing
may be running, waiting or holding pages.
"""

import argparse
import json
import pathlib
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent


def get(url, key):
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def wait_for(what, seconds, is_so):
    until = time.monotonic() + seconds
    while True:
        try:
            if is_so():
                return
        except OSError:
            pass
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--examples", type=int, default=30)
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, key = f"http://127.0.0.1:{port}", secrets.token_hex(16)
    server = subprocess.Popen(
        [given.server, "serve", "--port", str(port), "--api-key", key, "--context", "96", "--kv-memory", "64MiB",
         "--drain-timeout", "1", "--log", "error"], stdin=subprocess.DEVNULL)
    try:
        wait_for("the server", 60, lambda: get(f"{url}/ready", key))
        command = [pathlib.Path(sys.executable).absolute().parent / "schemathesis",
                   "--config-file", HERE / "schemathesis.toml", "run", f"{url}/openapi.json",
                   "--header", f"Authorization: Bearer {key}", "--max-examples", str(given.examples)]
        with tempfile.TemporaryDirectory() as folder:
            # It leaves a folder of its own where it runs.
            subprocess.run(command, cwd=folder, check=True)
        assert server.poll() is None, "the server ended"
        # Clients that went away are noticed within a step.
        wait_for("an idle server", 10, lambda: get(f"{url}/get_load", key)[0]["num_reqs"] == 0)
        load = get(f"{url}/get_load", key)[0]
        assert load["num_tokens"] == 0, f"pages are held: {load}"
    finally:
        server.terminate()
        server.wait(timeout=30)
    print("the document holds")


if __name__ == "__main__":
    main()
