"""Pages of other origins in headless Chromium: they read nothing of a server and change nothing, neither by
their own name nor by one that is bound to the server's address; pages of an allowed origin do both.

    python3 tests/browser/strangers.py --server target/release/arbora

Starts the servers itself. Needs Chromium and nothing else.
"""

import argparse
import contextlib
import http.server
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import page

HOST = "127.0.0.1"
PATIENCE_S = 90
PROMPT = "Once upon a time there was a page that wanted to know everything"
# What a page can send to another origin without asking first.
UNASKED = {
    "a text": "fetch(target, {method: 'POST', mode: 'no-cors', body: text})",
    "bytes of no type": "fetch(target, {method: 'POST', mode: 'no-cors', body: new Blob([text])})",
    "a form": "fetch(target, {method: 'POST', mode: 'no-cors', body: new URLSearchParams(text)})",
    "a beacon": "navigator.sendBeacon(target, text)",
}
FLUSHES = {
    "a POST": "fetch(target, {method: 'POST', mode: 'no-cors'}).catch(() => null)",
    "a GET": "fetch(target, {mode: 'no-cors'}).catch(() => null)",
    "a picture": "new Promise(done => { const i = new Image(); i.onload = i.onerror = done; i.src = target })",
}


class Blank(http.server.BaseHTTPRequestHandler):
    """An empty page at every path."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, *_):
        pass


def check(holds, what):
    if not holds:
        raise SystemExit(f"strangers: {what}")


def fetch(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return answer.read().decode()


def n_cached(url):
    """Tokens of the prompt that the cache held."""
    answer = json.loads(fetch(f"{url}/v1/completions", {"prompt": PROMPT, "max_tokens": 1}))
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def n_accepted(url):
    lines = fetch(f"{url}/metrics").splitlines()
    return next(int(line.split()[-1]) for line in lines if line.startswith("arbora_requests_accepted_total{"))


@contextlib.contextmanager
def serving(binary, *options):
    """The URL of a server that is ready."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [binary, "serve", "--port", str(port), "--kv-memory", "64MiB", "--log", "warn", *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    url = f"http://{HOST}:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                fetch(f"{url}/ready")
                break
            except OSError:
                check(process.poll() is None and time.monotonic() < deadline, "the server does not start")
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def is_flushed(url, act):
    """Whether `act` emptied the cache that held the prompt."""
    n_cached(url)
    check(n_cached(url) > 0, "the cache holds nothing")
    act()
    return n_cached(url) == 0


def strangers(browser, url, origin):
    """Pages of `origin` against a server that allows none."""
    browser.call("Page.navigate", url=origin)
    browser.wait(f"location.origin === '{origin}' && document.readyState === 'complete'", "the page")
    text = json.dumps(json.dumps({"prompt": "x", "max_tokens": 1}))
    for path in ["/v1/models", "/metrics", "/cache/tree", "/health"]:
        seen = browser.run(f"fetch('{url}{path}').then(a => a.text(), () => null)")
        check(seen is None, f"{origin} reads {path}: {seen}")
    asked = "{method: 'POST', headers: {'content-type': 'application/json'}, body: text}"
    seen = browser.run(f"(text => fetch('{url}/v1/completions', {asked}).then(a => a.text(), () => null))({text})")
    check(seen is None, f"{origin} reads a completion: {seen}")
    before = n_accepted(url)
    for what, script in UNASKED.items():
        browser.run(f"((target, text) => Promise.resolve({script}).then(() => 1))('{url}/v1/completions', {text})")
        check(n_accepted(url) == before, f"{origin} runs a completion by {what}")
    for what, script in FLUSHES.items():
        act = f"(target => {script}.then(() => 1))('{url}/flush_cache')"
        check(not is_flushed(url, lambda act=act: browser.run(act)), f"{origin} empties the cache by {what}")


def rebound(browser, url):
    """A name of somebody else's that leads to the server: the same origin, for all that a browser knows."""
    port = url.rsplit(":", 1)[1]
    foreign = f"http://pages.example:{port}"
    browser.call("Page.navigate", url=f"{foreign}/v1/models")
    browser.wait(f"location.origin === '{foreign}' && document.readyState === 'complete'", "the other name")
    shown = browser.run("document.body.innerText")
    check("host_not_allowed" in shown, f"by another name: {shown}")
    for path in ["/", "/v1/models", "/cache/tree"]:
        status = browser.run(f"fetch('{path}').then(a => a.status)")
        check(status == 403, f"by another name, {path} is {status}")


def guests(browser, url, origin):
    """Pages of `origin` against a server that allows it."""
    browser.call("Page.navigate", url=origin)
    browser.wait(f"location.origin === '{origin}' && document.readyState === 'complete'", "the page")
    headers = "{'content-type': 'application/json', 'authorization': 'Bearer x', 'x-stainless-lang': 'js'}"
    ask = (
        f"(body => fetch('{url}/v1/completions', {{method: 'POST', headers: {headers}, body}})"
        ".then(async a => [a.status, a.headers.get('x-request-id'), await a.text()]))"
    )
    for body, status in [({"prompt": "x", "max_tokens": 1}, 200), ({"prompt": 1}, 400)]:
        got = browser.run(f"{ask}({json.dumps(json.dumps(body))})")
        check(got[0] == status and got[1] and json.loads(got[2]), f"{origin} is allowed and gets {got}")
    act = f"fetch('{url}/flush_cache', {{method: 'POST'}}).then(a => a.status)"
    check(is_flushed(url, lambda: browser.run(act)), f"{origin} is allowed and cannot empty the cache")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", required=True)
    parser.add_argument("--model", help="the default model where missing")
    parser.add_argument("--chromium", default="chromium")
    given = parser.parse_args()
    model = ["--model", given.model] if given.model else []
    pages = http.server.ThreadingHTTPServer((HOST, 0), Blank)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    port = pages.server_address[1]
    names = ["--host-resolver-rules=MAP pages.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
    flags = [flag for flag in page.FLAGS if not flag.startswith("--host-resolver-rules")] + names
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = page.Browser(given.chromium, pathlib.Path(profile), flags)
        try:
            with serving(given.server, *model) as url:
                for name in [HOST, "localhost", "pages.example"]:
                    strangers(browser, url, f"http://{name}:{port}")
                rebound(browser, url)
            with serving(given.server, *model, "--allow-origin", f"http://localhost:{port}") as url:
                guests(browser, url, f"http://localhost:{port}")
                strangers(browser, url, f"http://{HOST}:{port}")
        finally:
            browser.close()
    print("strangers stay strangers, and guests are let in")


if __name__ == "__main__":
    sys.exit(main())
