#!/usr/bin/env python3
"""Resident memory of a server under the largest bodies that it takes.

100 connections send the largest allowed bodies at once, of each kind in turn and then of all kinds mixed. The
server must answer all of them, with a result or a 4xx, and its peak of resident memory must stay below the KV
pool, what it held before, and 256 MiB. Prints one line per kind: answers by status, seconds, peak over the
start in MiB. Usage: memory.py --server target/release/arbora [--model PATH] [--connections 100]
"""

import argparse
import collections
import gzip
import http.client
import json
import random
import subprocess
import sys
import threading
import time

BODY = 8 << 20
POOL = 64 << 20
SLACK = 256 << 20
PORT = 8399


def padded(head, tail, filler):
    """A body of exactly the limit, `filler` repeated between `head` and `tail`."""
    room = BODY - len(head) - len(tail)
    return (head + filler * (room // len(filler)) + tail).encode()


def members(head, tail, n):
    """A body with `n` different members."""
    return (head + "".join(f'"{i}": {i},' for i in range(n)) + tail).encode()


def bodies():
    """Name, route, headers and body of every kind."""
    chat = '{"max_tokens": 1, "messages": [{"role": "user", "content": "'
    text = '{"max_tokens": 1, "prompt": "'
    message = '{"role": "user", "content": "' + "word " * 800 + '"},'
    numbers = "1," * 2000
    call = f'{{"function": {{"name": "f", "arguments": "{{\\"a\\": [{numbers}1]}}"}}}}'
    call = f'{{"role": "assistant", "tool_calls": [{call}]}},'
    last = '{"role": "user", "content": ""}]}'
    messages = '{"max_tokens": 1, "messages": ['
    ignored = '{"max_tokens": 1, "prompt": "hi", "metadata": '
    asked = '{"max_tokens": 1, "prompt": "hi", '
    tool = '{"type": "function", "function": {"name": "f%d", "description": "%s"}}'
    tools = ",".join(tool % (i, "d" * 40_000) for i in range(120))
    schema = '{"enum": [' + ",".join(f'"{i:07d}"' for i in range(700_000)) + "]}"
    choices = ",".join(f'"{i:06d} {"x" * 1000}"' for i in range(7_000))
    stops = ",".join('"' + "s" * 1024 + '"' for _ in range(64))
    bias = ",".join(f'"{i}": 1' for i in range(1024))
    wishes = f'{{"max_tokens": 1, "stop": [{stops}], "logit_bias": {{{bias}}}, "prompt": "'
    for name, path, body in [
        ("blanks", "/v1/completions", padded(text, '"}', " ")),
        ("blanks in a chat", "/v1/chat/completions", padded(chat, '"}]}', " ")),
        ("prose", "/v1/completions", padded(text, '"}', "The quick brown fox. ")),
        ("one word", "/v1/completions", padded(text, '"}', "acgt")),
        ("a control token", "/v1/chat/completions", padded(chat, '"}]}', "<|im_end|>")),
        ("blanks to count", "/tokenize", padded('{"prompt": "', '"}', " ")),
        ("prose to count", "/tokenize", padded('{"prompt": "', '"}', "The quick brown fox. ")),
        ("many messages", "/v1/chat/completions", padded(messages, last, message)),
        ("earlier calls", "/v1/chat/completions", padded(messages, last, call)),
        ("numbers ignored", "/v1/completions", padded(ignored + "[", "1]}", "1,")),
        ("lists ignored", "/v1/completions", padded(ignored + "[", "[]]}", "[],")),
        ("members ignored", "/v1/completions", padded(ignored + "{", '"z": 1}}', '"a":1,')),
        ("many members", "/v1/completions", members(ignored + "{", '"z": 1}}', 200_000)),
        ("tokens", "/v1/completions", padded('{"max_tokens": 1, "prompt": [', "7]}", "7,")),
        ("tokens to spell", "/detokenize", padded('{"tokens": [', "7]}", "7,")),
        ("tools", "/v1/chat/completions", f'{chat}hi"}}], "tools": [{tools}]}}'.encode()),
        ("a schema", "/v1/completions", f'{asked}"guided_json": {schema}}}'.encode()),
        ("choices", "/v1/completions", f'{asked}"guided_choice": [{choices}]}}'.encode()),
        ("a regex", "/v1/completions", padded(asked + '"guided_regex": "', '"}', "(a|b)")),
        ("a grammar", "/v1/completions", padded(asked + '"grammar": "root ::= [a]', '"}', " | [b]")),
        ("stops and biases", "/v1/completions", padded(wishes, '"}', "word ")),
        ("a bomb of blanks", "/v1/completions", gzip.compress(padded(text, '"}', " "))),
        ("a bomb of numbers", "/v1/completions", gzip.compress(padded(ignored + "[", "1]}", "1,"))),
    ]:
        headers = {"content-type": "application/json"}
        if body[:2] == b"\x1f\x8b":
            headers["content-encoding"] = "gzip"
        assert len(body) <= BODY, (name, len(body))
        yield name, path, headers, body


def resident(pid, name):
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith(name))
    return int(line.split()[1]) << 10


def send(kind, statuses):
    name, path, headers, body = kind
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=300)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        answer.read()
        statuses[name, answer.status] += 1
    except (BrokenPipeError, ConnectionResetError):
        # Refused before all was sent: the answer may be lost with the connection.
        statuses[name, 0] += 1
    finally:
        connection.close()


def crowd(kinds):
    statuses = collections.Counter()
    threads = [threading.Thread(target=send, args=(kind, statuses)) for kind in kinds]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert not any(thread.is_alive() for thread in threads), "a request got no answer within 600 s"
    return statuses, time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", required=True)
    parser.add_argument("--model")
    parser.add_argument("--connections", type=int, default=100)
    options = parser.parse_args()
    command = [options.server, "serve", "--port", str(PORT), "--kv-memory", str(POOL), "--log", "warn"]
    if options.model:
        command += ["--model", options.model]
    server = subprocess.Popen(command)
    try:
        hello = b'{"prompt": "hi", "max_tokens": 8}'
        warm = ("warm", "/v1/completions", {"content-type": "application/json"}, hello)
        for _ in range(600):
            try:
                send(warm, collections.Counter())
                break
            except ConnectionRefusedError:
                time.sleep(0.2)
        start = resident(server.pid, "VmRSS")
        kinds = list(bodies())
        shuffled = random.Random(7).choices(kinds, k=options.connections)
        rounds = [(kind[0], [kind] * options.connections) for kind in kinds] + [("all kinds", shuffled)]
        worst = 0
        for name, crowded in rounds:
            with open(f"/proc/{server.pid}/clear_refs", "w") as clear:
                clear.write("5")
            statuses, seconds = crowd(crowded)
            peak = resident(server.pid, "VmHWM") - start
            worst = max(worst, peak)
            by_status = collections.Counter()
            for (_, status), n in statuses.items():
                by_status[status] += n
            told = dict(sorted(by_status.items()))
            print(f"{name:20} {told} {seconds:6.1f} s {peak >> 20:5} MiB", flush=True)
            assert sum(by_status.values()) == len(crowded), "every request is answered"
            assert all(status < 500 for status in by_status), "no body is the server's fault"
            assert server.poll() is None, "the server lives"
        after = resident(server.pid, "VmRSS") - start
        print(f"start {start >> 20} MiB, worst peak {worst >> 20} MiB above it, {after >> 20} MiB at the end")
        if worst > POOL + SLACK:
            sys.exit(f"the peak is more than the pool and {SLACK >> 20} MiB above the start")
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
