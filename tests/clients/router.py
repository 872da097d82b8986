"""The SGLang router in front of two servers: it takes them as workers, balances, and does without one that is gone.

Needs `sglang-router` and a binary: python tests/clients/router.py --server target/release/arbora
"""

import argparse
import concurrent.futures
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

HOST = "127.0.0.1"
TOPICS = ["rivers", "bread", "bees", "tea", "glass", "maps", "salt", "clocks"]


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def fetch(url, body=None, timeout=60):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return response.read().decode()


def wait_for(what, check, seconds=60):
    for _ in range(seconds * 5):
        try:
            if check():
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{what} after {seconds} s")


def ask(url, topic, **more):
    message = {"role": "user", "content": f"Tell me about {topic}. " * 20}
    body = {"model": "smollm2:135m", "messages": [message], "max_tokens": 8, "temperature": 0, **more}
    return fetch(f"{url}/v1/chat/completions", body)


def n_accepted(worker):
    return int(re.search(r"^arbora_requests_accepted_total\{[^}]*\} (\d+)", fetch(f"{worker}/metrics"), re.M).group(1))


def check(router, workers, processes):
    answer = json.loads(ask(router, "rivers"))
    assert answer["usage"]["completion_tokens"] == 8, answer
    again = json.loads(ask(router, "rivers"))
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == again["usage"]["prompt_tokens"] - 1, "the same prompt goes to the worker that knows it"
    streamed = ask(router, "rivers", stream=True)
    assert streamed.count("data: ") > 2 and streamed.rstrip().endswith("data: [DONE]"), streamed
    text = json.loads(fetch(f"{router}/generate", {"text": "Once", "sampling_params": {"max_new_tokens": 3}}))
    assert text["meta_info"]["completion_tokens"] == 3, text
    models = json.loads(fetch(f"{router}/v1/models"))
    assert [model["id"] for model in models["data"]] == ["smollm2:135m"], models
    # Far more at once than one worker gets before the router calls that unbalanced.
    with concurrent.futures.ThreadPoolExecutor(96) as pool:
        topics = [f"{topic} {n}" for n in range(24) for topic in TOPICS]
        answers = list(pool.map(lambda topic: json.loads(ask(router, topic, max_tokens=16)), topics))
    assert all(answer["usage"]["completion_tokens"] > 0 for answer in answers)
    shares = [n_accepted(worker) for worker in workers]
    assert min(shares) > 10, f"requests of the workers: {shares}"
    # One worker goes. Once the router has noticed, the other serves all that comes.
    processes[0].terminate()
    processes[0].wait()
    wait_for("requests are lost", lambda: all(ask(router, topic, max_tokens=1) for topic in TOPICS))
    before = n_accepted(workers[1])
    for topic in TOPICS:
        assert json.loads(ask(router, topic))["usage"]["completion_tokens"] == 8
    assert n_accepted(workers[1]) >= before + len(TOPICS)
    return shares


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    server = parser.parse_args().server
    ports = [free_port() for _ in range(4)]
    workers = [f"http://{HOST}:{port}" for port in ports[:2]]
    router = f"http://{HOST}:{ports[2]}"
    processes = [
        subprocess.Popen([server, "serve", "--port", str(port), "--threads", "1", "--log", "warn"])
        for port in ports[:2]
    ]
    try:
        for worker in workers:
            wait_for(f"{worker} is not ready", lambda: fetch(f"{worker}/ready"))
        command = [sys.executable, "-m", "sglang_router.launch_router", "--host", HOST, "--port", str(ports[2]),
                   "--prometheus-port", str(ports[3]), "--policy", "cache_aware",
                   "--balance-abs-threshold", "8", "--health-check-interval-secs", "2",
                   "--health-failure-threshold", "1", "--worker-urls", *workers]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_for("the router serves nobody", lambda: ask(router, "nothing", max_tokens=1))
        shares = check(router, workers, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    print(f"sglang-router balanced two workers, {shares[0]} and {shares[1]} requests, and did without one")


main()
