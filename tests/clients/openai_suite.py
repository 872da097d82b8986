"""The openai client's own tests of the calls that Arbora serves, against a server instead of their mock.

    python openai_suite.py --server target/release/arbora --folder target/ci/openai-suite
                                              (needs openai, pytest, pytest-asyncio, aiohttp, rich)

They come with the source package of the version that is installed. The model's name is written in them, so
each file gets a server that serves under its name, with a short context, since they set no max_tokens. Left
out: routes that are not served (stored chats, fine-tuned models) and requests with every field there is,
which hold `functions`, `audio` and `suffix`, refused by name (see parameters.py).
"""

import argparse
import os
import pathlib
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request

import openai

# File, model named in it, which of its tests, how many they are at least.
SUITES = [
    ("chat/test_completions.py", "gpt-6-astra", "create and not all_params", 30),
    ("test_completions.py", "gpt-3.5-turbo-instruct", "create and not all_params", 30),
    ("test_models.py", "gpt-6-astra", "not delete", 30),
]


def fetch(folder):
    """The folder of the source package."""
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / f"openai-{openai.__version__}"
    if not root.exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "openai",
                        f"openai=={openai.__version__}", "--dest", folder], check=True)
        with tarfile.open(f"{root}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return root


def serve(server, name):
    """A server and its address, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [server, "serve", "--port", port, "--served-model-name", name, "--context", "96", "--kv-memory", "64MiB",
         "--drain-timeout", "1", "--log", "error"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return process, f"http://127.0.0.1:{port}/v1"
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise AssertionError(f"the server for {name} did not start") from None
            time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    args = parser.parse_args()
    root = fetch(args.folder.resolve())
    for file, model, which, at_least in SUITES:
        process, base_url = serve(args.server, model)
        try:
            command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--no-header", "-o", "addopts=",
                       "-o", "log_level=WARNING", "-p", "no:cacheprovider", "-k", which, f"tests/api_resources/{file}"]
            run = subprocess.run(command, cwd=root, env={**os.environ, "TEST_API_BASE_URL": base_url},
                                 capture_output=True, text=True, timeout=120)
        finally:
            process.terminate()
            process.wait(60)
        last = (run.stdout.strip().splitlines() or [""])[-1]
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
        n_passed = int(last.replace("=", " ").split()[0])
        assert n_passed >= at_least, f"only {n_passed} tests of {file} ran: {last}"
        print(f"openai {openai.__version__}, {file}: {last.strip('= ')}")


main()
