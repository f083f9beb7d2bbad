"""The local Hub in a process of its own, and clients in another one, where `HF_ENDPOINT` was set from the beginning."""

import base64
import json
import multiprocessing
import os
import subprocess
import sys
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

SERVER = Path(__file__).with_name("hub_server.py")


class LocalHub:
    """A running Hub: add repositories and faults, read what was asked of it."""

    def __init__(self):
        command = [sys.executable, "-I", str(SERVER)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.endpoint = self.process.stdout.readline().strip()

    def control(self, action, **values):
        body = json.dumps({"action": action, **values}, default=str).encode()
        request = urllib.request.Request(f"{self.endpoint}/_control", body, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def add(self, repository, folder, **options):
        """Commit a folder to a repository, which is made if need be, and return the commit."""
        return self.control("add", repository=repository, folder=str(folder), **options)["commit"]

    def break_by(self, *rules):
        """Let the server misbehave; each rule is met by the first `times` requests that fit it."""
        self.control("faults", rules=list(rules))

    def clear(self):
        """Forget the log and the faults."""
        self.control("clear")

    @property
    def log(self):
        return self.control("log")

    @property
    def bytes_sent(self):
        """Content that was sent since `clear`, by both hosts."""
        return sum(entry["bytes"] for entry in self.log)

    def files(self, repository, revision="main"):
        """Return what a repository holds at a revision: bytes by path."""
        found = self.control("files", repository=repository, revision=revision)
        return {path: base64.b64decode(content) for path, content in found.items()}

    def environment(self, home, **more):
        """Return the environment of a client whose caches and login are in `home`."""
        hidden = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"}
        return {
            **{name: value for name, value in os.environ.items() if name not in hidden},
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            **more,
        }

    def stop(self):
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@contextmanager
def client_process(hub, home):
    """Yield a function that runs another one in a process that was started with `HF_ENDPOINT` set."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with mock.patch.dict(os.environ, hub.environment(home), clear=True):
            pool.submit(os.getpid).result(300)  # it starts now: a later test's environment is not its own
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result(300)
