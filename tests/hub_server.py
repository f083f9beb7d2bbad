"""
A Hub on this machine: the protocol that huggingface_hub and Transformers speak, from folders and from memory.

    python tests/hub_server.py FOLDER [--port 8471]

serves every folder below FOLDER as a repository (`FOLDER/me/student` is `me/student`) until its input ends; that of a
data set is called `datasets/me/texts`. Clients need `HF_ENDPOINT=http://127.0.0.1:8471` and `HF_HUB_DISABLE_XET=1`.
Large files are redirected to a second server on another host name and port, as the real Hub does, with locations that
are signed. Both servers are in this process and need nothing but Python. Tests add repositories and faults, and read
the log of requests, below `/_control`.
"""

import argparse
import base64
import binascii
import hashlib
import json
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

#: Tokens and the users they belong to; a user may write below their own name.
TOKENS = {"hf_writer": "me", "hf_reader": "reader", "hf_name": "my-name"}
_LFS = re.compile(r"\.(safetensors|bin|pt|png)$")
_PIECE = 2**18


@dataclass
class Blob:
    """A file's content, in memory or on disk, and what it is called by Git and by LFS."""

    size: int
    sha256: str
    oid: str
    lfs: bool
    content: bytes | None = None
    path: Path | None = None

    @classmethod
    def of(cls, name, content=None, path=None):
        size = len(content) if path is None else path.stat().st_size
        sha256, oid = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        for piece in pieces_of(content, path, 0, size):
            sha256.update(piece)
            if size < 10**8:
                oid.update(piece)
        lfs = bool(_LFS.search(name)) or size > 10**7
        return cls(size, sha256.hexdigest(), oid.hexdigest(), lfs, content, path)

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.oid

    def pieces(self, begin, end):
        return pieces_of(self.content, self.path, begin, end)

    def listed(self, path):
        entry = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 130}
        return entry


def pieces_of(content, path, begin, end):
    if path is None:
        yield content[begin:end]
        return
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end:
            piece = file.read(min(_PIECE, end - begin))
            if not piece:
                raise ConnectionResetError(f"{path} has become shorter than {end} bytes while it was served.")
            begin += len(piece)
            yield piece


@dataclass
class Repository:
    """Commits, each a mapping of paths to blobs, and the branches and tags that name them."""

    private: bool = False
    gated_for: list | None = None
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)

    def find(self, revision):
        revision = unquote(revision)
        named = self.branches.get(revision) or self.tags.get(revision) or revision
        return named if named in self.commits else None

    def commit(self, branch, files):
        name = hashlib.sha1(
            repr((sorted((path, blob.sha256) for path, blob in files.items()), len(self.commits))).encode(),
            usedforsecurity=False,
        ).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name


class Hub:
    """What both servers know: repositories, uploads, signed locations, faults and the log of requests."""

    def __init__(self):
        self.lock = threading.RLock()
        self.repositories, self.uploads, self.faults, self.log = {}, {}, [], []
        self.signed_from = self.signed = 0
        self.hub = self.storage = ""

    def location(self, key, verb="blobs"):
        with self.lock:
            self.signed += 1
            return f"{self.storage}/{verb}/{key}?Signature={self.signed}"

    def add(self, repository, files, branch="main", private=False, gated_for=None, keep=False):
        with self.lock:
            found = self.repositories.setdefault(repository, Repository(private, gated_for))
            found.private, found.gated_for = private, gated_for
            before = dict(found.commits.get(found.branches.get(branch), {})) if keep else {}
            return found.commit(branch, {**before, **files})

    def blob(self, sha256):
        with self.lock:
            for repository in self.repositories.values():
                for files in repository.commits.values():
                    for blob in files.values():
                        if blob.sha256 == sha256:
                            return blob
            return self.uploads.get(sha256)

    def fault(self, server, method, path):
        """Return the first fault that is meant for this request, and count it."""
        with self.lock:
            for rule in self.faults:
                meant = rule.get("server", server) == server and rule.get("method", method) == method
                if not meant or not re.search(rule.get("path", ""), path):
                    continue
                if rule.get("after", 0) > 0:
                    rule["after"] -= 1
                elif rule.get("times", 1) > 0:
                    rule["times"] = rule.get("times", 1) - 1
                    return rule
            return {}


class Refusal(Exception):
    """An answer other than success: its status, code and message."""

    def __init__(self, status, message, code=None, headers=None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


def read_range(text, size):
    """Return (begin, end) of a header `Range` with one range, or None if it is not one."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text or "")
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size
    begin, end = int(found[1]), int(found[2]) + 1 if found[2] else size
    if begin >= size or end <= begin:
        raise Refusal(416, "Requested Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return begin, min(end, size)


class Handler(BaseHTTPRequestHandler):
    """What both servers share: bodies, answers, faults and the log."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_kind = ""
    hub = None

    def handle_any(self):
        self.entry = {
            "server": self.server_kind,
            "method": self.command,
            "path": self.path,
            "range": self.headers.get("Range"),
            "authorization": self.headers.get("Authorization"),
            "bytes": 0,
            "status": None,
        }
        self.url = urlsplit(self.path)
        self.words = [unquote(word) for word in self.url.path.strip("/").split("/")]
        if self.words[0] != "_control":
            self.hub.log.append(self.entry)
            self.rule = self.hub.fault(self.server_kind, self.command, self.path)
        else:
            self.rule = {}
        try:
            self.before_answering()
            self.answer()
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message, **refusal.headers}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def before_answering(self):
        kind = self.rule.get("kind")
        if kind in {"status", "drop"}:
            self.body()
        if kind == "status":
            raise Refusal(self.rule["status"], "injected", headers=self.rule.get("headers"))
        if kind == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            raise BrokenPipeError
        if kind == "expire":
            self.hub.signed_from = self.hub.signed
        if kind == "commit":
            add_folder(self.hub, **self.rule["repository"])

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status, content=b"", headers=None):
        self.entry["status"] = status
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, values, status=200):
        self.send(status, json.dumps(values).encode())

    def send_blob(self, blob, headers):
        kind = self.rule.get("kind")
        asked = None if kind == "ignore_range" else read_range(self.headers.get("Range"), blob.size)
        begin, end = asked or (0, blob.size)
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked:
            shift = self.rule.get("shift", 0) if kind == "wrong_range" else 0
            begin, end = max(0, begin + shift), max(1, end + shift)
            total = blob.size + (self.rule.get("by", 1) if kind == "wrong_total" else 0)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{total}"
        if kind == "wrong_length":
            end = max(begin, end - self.rule.get("by", 1))
        headers["Content-Length"] = str(end - begin)
        self.send(206 if asked else 200, b"", headers)
        if self.command == "HEAD":
            return
        left = self.rule["bytes"] if kind == "cut" else end - begin
        for piece in blob.pieces(begin, end):
            piece = piece[:left]
            size = self.rule.get("bytes", _PIECE) if kind == "slow" else _PIECE
            for place in range(0, len(piece), size):
                self.wfile.write(piece[place : place + size])
                if kind == "slow":
                    time.sleep(self.rule["seconds"])
            self.entry["bytes"] += len(piece)
            left -= len(piece)
            if left <= 0:
                break
        if kind == "cut":
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, *_):
        """Say nothing: the log is kept, not printed."""


class StorageHandler(Handler):
    """The second host: content of large files, down and up, by signed locations."""

    server_kind = "storage"

    def answer(self):
        signature = int(parse_qs(self.url.query).get("Signature", ["0"])[0])
        if not self.hub.signed_from < signature <= self.hub.signed:
            self.body()
            raise Refusal(403, "Request has expired")
        verb, key = self.words
        if self.command == "PUT" and verb == "upload":
            content = self.body()
            if hashlib.sha256(content).hexdigest() != key:
                raise Refusal(400, "content does not have this hash")
            self.hub.uploads[key] = Blob.of("upload.bin", content)
            self.entry["bytes"] = len(content)
            self.send(200, b"", {"ETag": f'"{key}"'})
            return
        blob = self.hub.blob(key)
        if blob is None or self.command not in {"GET", "HEAD"}:
            raise Refusal(404, "no such content")
        self.send_blob(blob, {"ETag": f'"{blob.sha256}"'})


class HubHandler(Handler):
    """The Hub itself: files by revision, the API, and what tests control."""

    server_kind = "hub"

    def answer(self):
        text = self.url.path
        for pattern, name in ROUTES:
            found = re.fullmatch(pattern, text)
            if found:
                getattr(self, name)(**{key: unquote(value) for key, value in found.groupdict().items() if value})
                return
        raise Refusal(404, f"no such address: {text}")

    # Who asks, and for what

    def user(self):
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS.get(given)

    def writer(self, repository):
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if repository.split("/")[0] != user:
            raise Refusal(403, f"You don't have the rights to write to {repository}")
        return user

    def repository(self, name):
        user, found = self.user(), self.hub.repositories.get(name)
        if found is None or (found.private and user != name.split("/")[0]):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return found

    def commit(self, name, revision):
        repository = self.repository(name)
        commit = repository.find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, commit

    # Files

    def resolve(self, repo, revision, path):
        repository, commit = self.commit(repo, revision)
        headers = {"X-Repo-Commit": commit}
        if repository.gated_for is not None and self.user() not in repository.gated_for:
            status = 403 if self.user() else 401
            raise Refusal(status, f"Access to model {repo} is restricted.", "GatedRepo", headers)
        blob = repository.commits[commit].get(path)
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        headers["ETag"] = f'"{blob.etag}"'
        if not blob.lfs:
            self.send_blob(blob, headers)
            return
        linked = {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
        self.send(302, b"", {**headers, **linked, "Location": self.hub.location(blob.sha256)})

    # API

    def whoami(self):
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        self.send_json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def info(self, repo, revision="main"):
        repository, commit = self.commit(repo, revision)
        files = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        gated = "manual" if repository.gated_for is not None else False
        name = repo.removeprefix("datasets/")
        known = {"id": name, "modelId": name, "sha": commit, "private": repository.private, "gated": gated}
        self.send_json({**known, "siblings": files, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, repo, revision, path=""):
        repository, commit = self.commit(repo, revision)
        prefix = f"{path}/" if path else ""
        files = repository.commits[commit]
        found = [blob.listed(name) for name, blob in sorted(files.items()) if name.startswith(prefix)]
        if parse_qs(self.url.query).get("recursive", ["false"])[0].lower() != "true":
            below = {item["path"].removeprefix(prefix).partition("/")[0::2] for item in found}
            found = [item for item in found if "/" not in item["path"].removeprefix(prefix)]
            folders = sorted({name for name, rest in below if rest})
            found += [{"type": "directory", "path": prefix + name, "oid": "0" * 40, "size": 0} for name in folders]
        if prefix and not found:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        self.send_json(found)

    def paths_info(self, repo, revision):
        asked = parse_qs(self.body().decode()).get("paths", [])
        repository, commit = self.commit(repo, revision)
        files = repository.commits[commit]
        self.send_json([files[path].listed(path) for path in asked if path in files])

    def refs(self, repo):
        repository = self.repository(repo)

        def listed(kind, items):
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in items.items()
            ]

        branches, tags = listed("heads", repository.branches), listed("tags", repository.tags)
        self.send_json({"branches": branches, "tags": tags, "converts": []})

    def create(self):
        given = json.loads(self.body())
        user = self.user()
        name = f"{given.get('organization') or user}/{given['name']}"
        self.writer(name)
        url = {"url": f"{self.hub.hub}/{name}", "name": name}
        if name in self.hub.repositories:
            self.send_json({**url, "error": "You already created this model repo"}, 409)
            return
        private = given.get("private") is True or given.get("visibility") == "private"
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        self.hub.add(name, {".gitattributes": Blob.of(".gitattributes", attributes)}, private=private)
        self.send_json(url)

    def branch(self, repo, name):
        given = json.loads(self.body() or b"{}")
        self.writer(repo)
        repository, commit = self.commit(repo, given.get("startingPoint", "main"))
        if name in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[name] = commit
        self.send_json({})

    def tag(self, repo, revision):
        given = json.loads(self.body())
        self.writer(repo)
        repository, commit = self.commit(repo, revision)
        if given["tag"] in repository.tags:
            raise Refusal(409, "Tag reference exists already")
        repository.tags[given["tag"]] = commit
        self.send_json({})

    # Uploads

    def validate_yaml(self):
        import yaml

        found = re.match(r"---\n(.*?)\n---\n", json.loads(self.body())["content"], re.DOTALL)
        errors, warnings = [], []
        try:
            metadata = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError as error:
            metadata, errors = {}, [{"message": str(error)}]
        if not metadata and not errors:
            warnings.append({"message": "empty or missing yaml metadata in repo card"})
        for name in ("license", "library_name", "pipeline_tag"):
            if not isinstance((metadata or {}).get(name, ""), str):
                errors.append({"message": f'"{name}" must be a string'})
        self.send_json({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def preupload(self, repo, revision):
        given = json.loads(self.body())
        self.writer(repo)
        repository, commit = self.commit(repo, revision)
        answers = []
        for file in given["files"]:
            lfs = bool(_LFS.search(file["path"])) or file["size"] > 10**7
            known = repository.commits[commit].get(file["path"])
            answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            answers.append({**answer, **({"oid": known.etag} if known else {})})
        self.send_json({"files": answers})

    def lfs_batch(self, repo):
        given = json.loads(self.body())
        self.writer(repo)
        objects = []
        for item in given["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if self.hub.blob(item["oid"]) is None:
                verify = {"href": f"{self.hub.hub}/{repo}.git/info/lfs/objects/verify"}
                upload = {"href": self.hub.location(item["oid"], "upload")}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        self.send_json({"transfer": "basic", "objects": objects})

    def lfs_verify(self, repo):
        given = json.loads(self.body())
        blob = self.hub.blob(given["oid"])
        if blob is None or blob.size != given["size"]:
            raise Refusal(422, "the upload is not whole")
        self.send_json({})

    def make_commit(self, repo, revision):
        lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
        self.writer(repo)
        with self.hub.lock:
            repository, parent = self.commit(repo, revision)
            if revision not in repository.branches:
                raise Refusal(400, "commits go to branches")
            expected = lines[0]["value"].get("parentCommit")
            if expected and expected != parent:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repository.commits[parent])
            for line in lines[1:]:
                self.apply(files, line["key"], line["value"])
            commit = repository.commit(revision, files)
        url = f"{self.hub.hub}/{repo}/commit/{commit}"
        self.send_json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def apply(self, files, key, value):
        path = value["path"]
        if key == "file":
            files[path] = Blob.of(path, base64.b64decode(value["content"]))
        elif key == "lfsFile":
            blob = self.hub.blob(value["oid"])
            if blob is None:
                raise Refusal(400, f"LFS object {value['oid']} was not uploaded")
            files[path] = blob
        elif key == "deletedFile":
            files.pop(path, None)
        else:
            raise Refusal(400, f"unknown operation {key}")

    # What tests control

    def control(self):
        given = json.loads(self.body())
        action = given.pop("action")
        if action == "add":
            self.send_json({"commit": add_folder(self.hub, **given)})
        elif action == "faults":
            self.hub.faults = given["rules"]
            self.send_json({})
        elif action == "clear":
            self.hub.log.clear()
            self.hub.faults = []
            self.send_json({})
        elif action == "log":
            self.send_json(list(self.hub.log))
        elif action == "files":
            repository = self.hub.repositories[given["repository"]]
            files = repository.commits[repository.find(given.get("revision", "main"))]
            content = {path: b"".join(blob.pieces(0, blob.size)) for path, blob in files.items()}
            self.send_json({path: binascii.b2a_base64(item).decode() for path, item in content.items()})


_REPO = r"(?P<repo>(?:datasets/)?[\w.-]+(?:/[\w.-]+)?)"
_MODEL = rf"/api/(?:models/|(?=datasets/)){_REPO}"
ROUTES = (
    (r"/_control", "control"),
    (r"/api/whoami-v2", "whoami"),
    (r"/api/repos/create", "create"),
    (r"/api/validate-yaml", "validate_yaml"),
    (rf"{_MODEL}/revision/(?P<revision>[^/]+)", "info"),
    (rf"{_MODEL}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    (rf"{_MODEL}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    (rf"{_MODEL}/refs", "refs"),
    (rf"{_MODEL}/branch/(?P<name>[^/]+)", "branch"),
    (rf"{_MODEL}/tag/(?P<revision>[^/]+)", "tag"),
    (rf"{_MODEL}/preupload/(?P<revision>[^/]+)", "preupload"),
    (rf"{_MODEL}/commit/(?P<revision>[^/]+)", "make_commit"),
    (_MODEL, "info"),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    (rf"/{_REPO}\.git/info/lfs/objects/verify", "lfs_verify"),
    (rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)


def add_folder(hub, repository, folder, **options):
    """Commit a folder's files to a repository, which is made if it is not there."""
    files = {
        path.relative_to(folder).as_posix(): Blob.of(path.name, path=path)
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
    return hub.add(repository, files, **options)


class Server(ThreadingHTTPServer):
    """One of the two servers; connections that break are no news."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve(port=0):
    """Start both servers in threads of this process; returns what they know."""
    hub = Hub()
    for kind, host, number in ((HubHandler, "127.0.0.1", port), (StorageHandler, "localhost", 0)):
        server = Server(("127.0.0.1", number), type(kind.__name__, (kind,), {"hub": hub}))
        address = f"http://{host}:{server.server_address[1]}"
        setattr(hub, kind.server_kind, address)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub


def main():
    parser = argparse.ArgumentParser(description="Serve folders as a Hub.")
    parser.add_argument("folder", nargs="?", help="Folder whose subfolders (owner/name, or name) are repositories.")
    parser.add_argument("--port", type=int, default=0, help="Port on 127.0.0.1 (default: a free one).")
    options = parser.parse_args()
    hub = serve(options.port)
    for config in sorted(Path(options.folder).rglob("config.json")) if options.folder else []:
        add_folder(hub, config.parent.relative_to(options.folder).as_posix(), config.parent)
    sys.stdout.write(hub.hub + "\n")
    sys.stdout.flush()
    sys.stdin.read()  # until whoever started it is gone


if __name__ == "__main__":
    main()
