"""Drives the page at `/` of a running server in headless Chromium, at a desk's and at a phone's width: a streamed
answer, the tree, a second turn that finds the first in the cache, the keyboard, the table, stopping.

    python3 tests/browser/page.py --url http://127.0.0.1:8000 [--api-key KEY] [--screenshots FOLDER]

Speaks to Chromium through a pipe, so it needs Python and Chromium and nothing else.
"""

import argparse
import base64
import itertools
import json
import os
import pathlib
import re
import select
import subprocess
import sys
import tempfile
import time

PATIENCE_S = 90
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # Nothing but this machine has a name.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]


class Browser:
    """Chromium and one page of it, by the DevTools protocol: JSON messages that end with a zero byte."""

    def __init__(self, program, profile, flags=FLAGS):
        ours, to_chromium = os.pipe()
        from_chromium, theirs = os.pipe()

        def hand_over():
            # Chromium reads from 3 and writes to 4; both ends are moved out of the way first.
            reading, writing = os.dup(ours), os.dup(theirs)
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        self.process = subprocess.Popen(
            [program, *flags, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=hand_over,
        )
        os.close(ours)
        os.close(theirs)
        self.to, self.source = to_chromium, from_chromium
        self.buffer, self.ids = b"", itertools.count(1)
        self.session, self.events = None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"]:
            self.call(f"{domain}.enable")

    def close(self):
        self.process.kill()
        self.process.wait()

    def receive(self, deadline):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.source], [], [], max(0, deadline - time.monotonic()))
            more = os.read(self.source, 1 << 20) if ready else b""
            if not more:
                raise SystemExit("page: Chromium is silent or gone")
            self.buffer += more
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        number = next(self.ids)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data) :]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self.receive(deadline)
            if answer.get("id") == number:
                if "error" in answer:
                    raise SystemExit(f"page: {method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def run(self, script):
        """The value of a JavaScript expression, awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise SystemExit(f"page: {script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, script, what):
        deadline = time.monotonic() + PATIENCE_S
        while not (value := self.run(script)):
            check(time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}")
            time.sleep(0.02)
        return value

    def press(self, key, code):
        for kind in ["rawKeyDown", "keyUp"]:
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def type_in(self, field, text):
        self.run(f"document.getElementById('{field}').focus()")
        check(self.run("document.activeElement.id") == field, f"{field} takes no focus")
        self.call("Input.insertText", text=text)

    def size(self, width, height, scheme):
        is_phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if is_phone else 1,
            mobile=is_phone,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, folder, name, whole=False):
        if folder:
            picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
            (folder / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))


def check(holds, what):
    if not holds:
        raise SystemExit(f"page: {what}")


def open_page(browser, url, key):
    browser.call("Page.navigate", url=url + "/")
    if key:
        browser.wait("document.getElementById('problem')?.textContent.includes('API key')", "the wish for a key")
        browser.wait("document.activeElement.id === 'key'", "the focus on the key's field")
        browser.call("Input.insertText", text=key)
        browser.press("Tab", 9)
        browser.run("document.getElementById('settings').open = false")
    browser.wait("document.getElementById('model')?.textContent", "the model's name")


# Notes the lengths of the last answer as they change: a server may be done before it is asked twice from
# outside.
OBSERVE = """
(() => {
  window.seenLengths = new Set();
  const look = () => {
    const last = document.querySelector("#talk li:last-child .text");
    window.seenLengths.add(last?.textContent.length ?? 0);
  };
  const what = { childList: true, subtree: true, characterData: true };
  new MutationObserver(look).observe(document.getElementById("talk"), what);
})()
"""


def send(browser, message, max_tokens):
    """Sends a message with the Enter key; the lengths of the answer that were seen, and the line of its cost."""
    n_before = browser.run("document.querySelectorAll('.cost').length")
    browser.run(f"document.getElementById('max-tokens').value = {max_tokens}")
    browser.run(OBSERVE)
    browser.type_in("message", message)
    browser.press("Enter", 13)
    deadline = time.monotonic() + PATIENCE_S
    while browser.run("document.querySelectorAll('.cost').length") == n_before:
        problem = browser.run("document.getElementById('problem').textContent")
        check(not problem, f"the page says: {problem}")
        check(time.monotonic() < deadline, f"no answer within {PATIENCE_S} s")
    seen = set(browser.run("[...window.seenLengths]"))
    cost = browser.run("[...document.querySelectorAll('.cost summary')].at(-1).textContent")
    found = re.match(r"([\d,]+) prompt tokens?: ([\d,]+) cached, ([\d,]+) computed", cost)
    check(found, f"the cost reads {cost!r}")
    prompt, cached, computed = (int(number.replace(",", "")) for number in found.groups())
    check(prompt == cached + computed, cost)
    return seen, prompt, cached, cost


def check_width(browser, width):
    widths = browser.run("[document.documentElement.scrollWidth, innerWidth]")
    check(widths[0] <= widths[1] == width, f"at {width} px the page is {widths[0]} of {widths[1]} px wide")


def check_names(browser):
    """Everything that takes input has a name that a screen reader can say."""
    roles = {"button", "textbox", "spinbutton", "group", "list", "heading", "DisclosureTriangle"}
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node.get("ignored")]
    named = [node for node in shown if node["role"]["value"] in roles - {"group", "list"}]
    check(len(named) >= 10, f"only {len(named)} controls seen")
    for node in named:
        check(node.get("name", {}).get("value"), f"no name: {node['role']}, {node.get('properties')}")


# The contrast of an element's text to what it stands on, by the formula of WCAG 2.
CONTRAST = """
(() => {
  const light = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
    const linear = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ground = (one) => {
    const color = one ? getComputedStyle(one).backgroundColor : "rgb(255, 255, 255)";
    return /, 0\\)$/.test(color) ? ground(one.parentElement) : color;
  };
  const of = (one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.outerHTML.slice(0, 80)];
  };
  const shown = [...document.querySelectorAll(".key, .note, .text, .why *, dt, dd, summary, label, button, h2")];
  return shown.filter((one) => one.checkVisibility() && !one.disabled).map(of).sort((a, b) => a[0] - b[0]);
})()
"""


def check_contrast(browser):
    found = browser.run(CONTRAST)
    check(len(found) > 20, f"only {len(found)} texts seen")
    check(found[0][0] >= 4.5, f"a contrast of {found[0][0]:.2f}: {found[0][1]}")
    print(f"{len(found)} texts, the lowest contrast is {found[0][0]:.2f}")


def at_a_desk(browser, options):
    browser.size(1280, 860, "light")
    open_page(browser, options.url, options.api_key)
    browser.run("document.getElementById('temperature').value = 0")
    seen, first_prompt, _, cost = send(browser, "Name three rivers of Europe.", 48)
    check(len(seen - {0}) >= 3, f"the answer came at once, not as a stream: {sorted(seen)}")
    print(f"first turn: {cost}")
    browser.wait("document.querySelectorAll('#canvas rect').length > 1", "nodes of the tree")
    _, _, cached, cost = send(browser, "Which of them is the longest?", 32)
    check(cached >= first_prompt, f"the second turn found {cached} tokens, the first had {first_prompt}")
    print(f"second turn: {cost}")

    browser.run("[...document.querySelectorAll('.cost')].at(-1).open = true")
    why = browser.run("[...document.querySelectorAll('.cost .why')].at(-1)?.textContent ?? ''")
    check("tokens" in why and "namespace shared" in why, f"no explanation but {why!r}")

    browser.run("document.getElementById('canvas').focus()")
    for key, code in [("ArrowRight", 39), ("ArrowRight", 39)]:
        browser.press(key, code)
    told = browser.run("document.getElementById('node').textContent")
    check(told.startswith("Node "), f"the keyboard chose {told!r}")
    check(browser.run("document.querySelectorAll('#canvas g.chosen').length === 1"), "nothing is marked as chosen")

    browser.run("document.getElementById('as-table').open = true")
    browser.wait("document.querySelectorAll('#rows tr').length > 1", "the table")
    rows, blocks = browser.run("['#rows tr', '#canvas g'].map((q) => document.querySelectorAll(q).length)")
    check(rows == blocks, f"{rows} rows for {blocks} blocks")
    browser.run("document.getElementById('requests').open = true")
    browser.wait("document.querySelectorAll('#latest details').length >= 2", "the latest requests")
    check_names(browser)
    check_contrast(browser)
    browser.screenshot(options.screenshots, "desk-open")
    browser.run("for (const id of ['as-table', 'requests']) document.getElementById(id).open = false")
    check_width(browser, 1280)
    browser.screenshot(options.screenshots, "desk")
    stopping(browser, options)


# Answers go on to their last token: where a model ends them by itself depends on the instruction set.
ENDLESS = """(() => {
  const ask = window.fetch;
  window.fetch = (path, options) => {
    const body = options?.body && JSON.stringify({ ...JSON.parse(options.body), ignore_eos: true });
    return ask(path, body ? { ...options, body } : options);
  };
})()"""


def stopping(browser, options):
    browser.run(ENDLESS)
    browser.run("document.getElementById('max-tokens').value = 7000")
    browser.type_in("message", "Tell a very long story.")
    browser.press("Enter", 13)
    browser.wait("document.querySelector('#talk li:last-child.assistant .text')?.textContent.length > 20", "a story")
    browser.wait("document.querySelectorAll('#canvas .locked').length", "blocks in use")
    browser.screenshot(options.screenshots, "desk-streaming")
    browser.run("document.getElementById('stop').click()")
    browser.wait("!document.getElementById('send').disabled", "the end of the answer")
    told = browser.run("document.querySelector('#talk li:last-child .text').textContent")
    check(told.endswith("[stopped]"), f"it does not say that it was stopped: {told[-40:]!r}")
    browser.wait("document.getElementById('running').textContent === '0'", "the engine to stop")
    browser.wait("!document.querySelectorAll('#canvas .locked').length", "the blocks to be free")


def on_a_phone(browser, options):
    browser.size(390, 844, "dark")
    open_page(browser, options.url, None)
    check_width(browser, 390)
    browser.run("document.getElementById('temperature').value = 0")
    _, _, cached, cost = send(browser, "Name three rivers of Europe.", 24)
    check(cached > 0, f"asked before, not found: {cost}")
    print(f"on a phone: {cost}")
    browser.run("[...document.querySelectorAll('.cost')].at(-1).open = true")
    browser.wait("document.querySelectorAll('#canvas rect').length > 1", "nodes of the tree")
    check_width(browser, 390)
    check_contrast(browser)
    browser.run("scrollTo(0, 0)")
    browser.screenshot(options.screenshots, "phone-chat")
    browser.run("document.getElementById('cache').scrollIntoView()")
    browser.screenshot(options.screenshots, "phone-cache")


def check_events(browser, url):
    """Nothing failed on the page, and it asked nobody but its server."""
    for event in browser.events:
        params = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            raise SystemExit(f"page: {params['exceptionDetails']}")
        if event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            # A missing key is told by a 401, which Chromium logs.
            check("401" in params["entry"]["text"], f"{params['entry']['text']}")
        if event["method"] == "Network.requestWillBeSent":
            asked = params["request"]["url"]
            check(asked.startswith((url + "/", "data:")), f"the page asked {asked}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--api-key")
    parser.add_argument("--screenshots", type=pathlib.Path)
    parser.add_argument("--chromium", default="chromium")
    options = parser.parse_args()
    options.url = options.url.rstrip("/")
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(options.chromium, profile)
        try:
            at_a_desk(browser, options)
            on_a_phone(browser, options)
            check_events(browser, options.url)
        finally:
            browser.close()
    print(f"the page holds ({time.monotonic() - began:.1f} s)")


if __name__ == "__main__":
    sys.exit(main())
