"""A server under test and streams on it, for the measurements in this folder. Standard library only."""

import http.client
import json
import subprocess
import threading
import time


class Server:
    """Runs `arbora serve` until the end of a `with` block."""

    def __init__(self, binary, model, port, *options, log="warn", **process):
        self.port = port
        command = [binary, "serve", "--model", model, "--port", str(port), "--log", log, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **process)

    def __enter__(self):
        for _ in range(600):
            try:
                # With API keys, that it asks for one is an answer too.
                if self.get("/health")[0] in (200, 401):
                    return self
            except OSError:
                pass
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}")
            time.sleep(0.1)
        self.__exit__()
        raise SystemExit("the server did not start within a minute")

    def __exit__(self, *_):
        # What still runs is of no interest.
        self.process.kill()
        self.process.wait(60)

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def get(self, path):
        connection = self.connect()
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def headers(key):
    head = {"content-type": "application/json"}
    return head if key is None else {**head, "authorization": f"Bearer {key}"}


def post(server, path, body, key=None):
    """Status and body of one answer."""
    connection = server.connect()
    connection.request("POST", path, json.dumps(body), headers(key))
    response = connection.getresponse()
    return response.status, response.read()


class Stream(threading.Thread):
    """One streamed request. `times` has the arrival of each piece of text."""

    def __init__(self, server, path, body, key=None):
        super().__init__(daemon=True)
        self.server, self.path, self.key = server, path, key
        self.body = json.dumps({**body, "stream": True})
        self.times, self.status, self.error = [], None, None
        self.started = self.ended = None

    def run(self):
        self.started = time.monotonic()
        try:
            connection = self.server.connect()
            connection.request("POST", self.path, self.body, headers(self.key))
            response = connection.getresponse()
            self.status = response.status
            if self.status != 200:
                self.error = response.read().decode(errors="replace")
            for line in response if self.status == 200 else ():
                if line.startswith(b"data: {"):
                    self.times.append(time.monotonic())
                    if b'"error"' in line:
                        self.error = line.decode(errors="replace")
            connection.close()
        except OSError as error:
            self.error = repr(error)
        self.ended = time.monotonic()


def quantile(values, share):
    """The value below which `share` of them lie."""
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")
