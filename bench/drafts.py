"""What drafts of free text bring: two servers with and without them answer the same requests in turns.

    cargo build --release -p arbora && python3 bench/drafts.py target/release/arbora

Outputs must be equal. Prints output tokens per second of both, the median ratio of three rounds, and the
tokens drafted and accepted for each token of output.
"""

import concurrent.futures
import json
import statistics
import subprocess
import sys
import time
import urllib.request

TEXT = (
    "The Danube rises in the Black Forest of Germany and flows through ten countries to the Black Sea. It is "
    "2,850 km long. Its basin extends into nine more countries. The river was once a long-standing frontier of "
    "the Roman Empire. Today it is an important waterway, and four national capitals lie on its banks: Vienna, "
    "Bratislava, Budapest and Belgrade. "
)
TOPICS = ["rivers", "mountains", "bread", "bees", "steam engines", "the moon", "tea", "bicycles", "glass", "maps",
          "trees", "salt", "music", "clocks", "ships", "wool"]
PORTS = {"off": 8101, "auto": 8102}
ROUNDS = 3


def post(mode, path, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORTS[mode]}{path}",
        json.dumps(body).encode(),
        {"content-type": "application/json", "x-arbora-usage": "1"},
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def ask(mode, prompt, n_tokens, temperature, seed):
    answer = post(mode, "/v1/chat/completions", {
        "messages": [{"role": "user", "content": prompt}], "max_tokens": n_tokens, "temperature": temperature,
        "seed": seed, "ignore_eos": True,
    })
    return answer["choices"][0]["message"]["content"], answer["usage"]


def run(mode, prompts, n_tokens, temperature, n_streams):
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(n_streams) as pool:
        jobs = [pool.submit(ask, mode, prompt, n_tokens, temperature, seed)
                for seed, prompt in enumerate(prompts)]
        answers = [job.result() for job in jobs]
    seconds = time.monotonic() - began
    n_output = sum(usage["completion_tokens"] for _, usage in answers)
    drafted, accepted = (sum(usage["arbora"][name] for _, usage in answers) / n_output
                         for name in ("drafted_tokens", "accepted_tokens"))
    return n_output / seconds, [text for text, _ in answers], drafted, accepted


def about(n):
    return [f"Tell me about {TOPICS[i % len(TOPICS)]}, part {i}." for i in range(n)]


# name, prompts, output tokens, temperature, streams, whether the cache is emptied before
CASES = [
    ("word for word, 1 stream", ["Repeat this text word for word:\n" + TEXT], 200, 0, 1, True),
    ("summary of a context, 1", [TEXT * 3 + "\nSummarise this text."] * 2, 150, 0, 1, True),
    ("asked before, 1", about(4), 150, 0, 1, False),
    ("greedy, 1", about(4), 150, 0, 1, True),
    ("temperature 0.8, 1", about(4), 150, 0.8, 1, True),
    ("greedy, 8", about(16), 150, 0, 8, True),
    ("temperature 0.8, 8", about(16), 150, 0.8, 8, True),
    ("temperature 0.8, 32", about(64), 120, 0.8, 32, True),
]


def compare():
    print("| requests | off, tokens/s | auto, tokens/s | ratio | drafted | accepted |\n|---|---|---|---|---|---|")
    for name, prompts, n_tokens, temperature, n_streams, is_cold in CASES:
        rates = {"off": [], "auto": []}
        if not is_cold:
            for mode in PORTS:
                run(mode, prompts, n_tokens, temperature, n_streams)
        for _ in range(ROUNDS):
            texts = {}
            for mode in PORTS:
                if is_cold:
                    post(mode, "/flush_cache", {})
                rate, texts[mode], drafted, accepted = run(mode, prompts, n_tokens, temperature, n_streams)
                rates[mode].append(rate)
            assert texts["off"] == texts["auto"], f"{name}: drafts changed an output"
        ratio = statistics.median(auto / off for off, auto in zip(rates["off"], rates["auto"]))
        off, auto = (statistics.median(rates[mode]) for mode in PORTS)
        print(f"| {name} | {off:.0f} | {auto:.0f} | {ratio:.2f} | {drafted:.2f} | {accepted:.2f} |", flush=True)


def main():
    servers = []
    try:
        for mode, port in PORTS.items():
            servers.append(subprocess.Popen(
                [sys.argv[1], "serve", "--port", str(port), "--draft", mode, "--log", "warn"]))
        for port in PORTS.values():
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ready").read()
                    break
                except OSError:
                    time.sleep(0.1)
        compare()
    finally:
        for server in servers:
            server.terminate()
            server.wait()


main()
