"""The same load on Arbora and on llama-server, in turns, both on the same machine at the same time.

    cargo build --release -p arbora -p arbora-bench
    python3 bench/peers.py --llama-server PATH --model FILE.gguf [--threads 2] [--rounds 3]

Each round sends every workload first to one server, then to the other, with prompts that no round before
had; the load comes from `arbora-bench serve`, whose requests ask for a fixed number of tokens at temperature
0. The figures are medians over the rounds, the ratios those of one round's two runs. llama-server reads its
weights into memory (`--load-mode none`): on some hosts a mapping is reclaimed under it, which costs half its
speed.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time
import urllib.request

PORTS = {"arbora": 8111, "llama-server": 8112}
N_SLOTS = 8
CONTEXT = 2048
WORKLOADS = {
    "prompts of 256 tokens, 64 more, 1 at a time":
        "--dataset-name random --num-prompts 10 --random-input-len 256 --random-output-len 64 "
        "--random-range-ratio 1 --max-concurrency 1",
    "the same, 8 at a time":
        "--dataset-name random --num-prompts 40 --random-input-len 256 --random-output-len 64 "
        "--random-range-ratio 1 --max-concurrency 8",
    "4 contexts of 512 tokens, 12 questions each, 32 more, 8 at a time":
        "--dataset-name generated-shared-prefix --gsp-num-groups 4 --gsp-prompts-per-group 12 "
        "--gsp-system-prompt-len 512 --gsp-question-len 32 --gsp-output-len 32 --max-concurrency 8",
}
# What is told, by its name in the line of JSON; for the first more is better.
FIGURES = {"output_throughput": "tokens/s", "mean_ttft_ms": "TTFT ms", "mean_tpot_ms": "TPOT ms"}


def start(given):
    port = {name: str(port) for name, port in PORTS.items()}
    threads = str(given.threads)
    commands = {
        "arbora": [given.arbora, "serve", "--model", given.model, "--port", port["arbora"], "--threads", threads,
                   "--context", str(CONTEXT), "--max-running", str(N_SLOTS), "--log", "error"],
        "llama-server": [given.llama_server, "--model", given.model, "--port", port["llama-server"], "--threads",
                         threads, "--threads-batch", threads, "--ctx-size", str(CONTEXT * N_SLOTS), "--parallel",
                         str(N_SLOTS), "--no-webui", "--load-mode", "none"],
    }
    return [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL) for command in commands.values()]


def wait_until_ready(servers):
    for server, port in zip(servers, PORTS.values()):
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, f"{server.args[0]} ended at once"
                assert time.monotonic() < until, f"nothing answers at port {port}"
                time.sleep(0.2)


def run(given, name, workload, seed, folder):
    file = pathlib.Path(folder) / "figures.jsonl"
    file.unlink(missing_ok=True)
    command = [given.bench, "serve", "--backend", name, "--port", str(PORTS[name]), "--seed", str(seed),
               "--output-file", file, *workload.split()]
    if given.tokenizer:
        command += ["--tokenizer", given.tokenizer]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    figures = json.loads(file.read_text())
    assert figures["failed"] == 0, figures
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arbora", default="target/release/arbora")
    parser.add_argument("--bench", default="target/release/arbora-bench")
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", help="a tokenizer.json, for prompts of exact lengths")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    servers = start(given)
    try:
        wait_until_ready(servers)
        print("| load | figure | arbora | llama-server | ratio |\n|---|---|---|---|---|", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for title, workload in WORKLOADS.items():
                rounds = [{name: run(given, name, workload, 100 + seed, folder) for name in PORTS}
                          for seed in range(given.rounds)]
                for figure, unit in FIGURES.items():
                    ours, theirs = ([one[name][figure] for one in rounds] for name in PORTS)
                    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
                    a, b = statistics.median(ours), statistics.median(theirs)
                    print(f"| {title} | {unit} | {a:,.1f} | {b:,.1f} | {ratio:.2f} |", flush=True)
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(timeout=60)


if __name__ == "__main__":
    main()
