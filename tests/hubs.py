"""A hub on this machine: the routes of the real one that models come and go by, and its cache."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Files = dict[str, bytes]


def fill_cache(cache: Path, repo: str, commit: str, folder: Path, *refs: str) -> None:
    """Lay a model folder into a cache as the hub's library does after downloading it."""
    place = cache / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    (place / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    for ref in refs:
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / ref).write_text(commit)


class Hub:
    """What the stand-in holds, and what was asked of it."""

    def __init__(self) -> None:
        self.commits: dict[str, Files] = {}  # by sha
        self.refs: dict[str, dict[str, str]] = {}  # repo -> branch or tag -> sha
        self.refuse: tuple[int, str, str] | None = None  # status, code and words of every answer
        self.asked: list[tuple[str, str, Any]] = []

    def commit(self, repo: str, revision: str, files: Files) -> str:
        """Put files on top of what a branch holds."""
        before = self.refs[repo].get(revision, "")
        sha = hashlib.sha1(repr((before, files)).encode()).hexdigest()
        self.commits[sha] = self.commits.get(before, {}) | files
        self.refs[repo][revision] = sha
        return sha

    def sha(self, repo: str, revision: str) -> str | None:
        """Find the commit of a branch, tag or commit."""
        return revision if revision in self.commits else self.refs[repo].get(revision)


@contextmanager
def serve() -> Iterator[tuple[str, Hub]]:
    """Serve a hub from a thread; gives its address and what it holds."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(lambda parts: self._post(parts, body))

    def _answer(self, route: Any) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        if self.hub.refuse:
            status, code, words = self.hub.refuse
            self._send({"error": words}, status, {"X-Error-Code": code, "X-Error-Message": words})
        else:
            route(parts)

    def _get(self, parts: list[str]) -> None:
        if parts[0] != "api":  # owner/name/resolve/sha/file
            content = self.hub.commits[parts[3]][parts[4]]
            etag = hashlib.sha256(content).hexdigest()
            self._send(content, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": parts[3]})
            return
        repo, what = "/".join(parts[2:4]), parts[4:5]
        if repo not in self.hub.refs:
            self._send({}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        sha = self.hub.sha(repo, parts[5] if what else "main")
        if sha is None:
            self._send({}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        files = self.hub.commits[sha]
        if what == ["tree"]:
            told = [("file", name, len(content)) for name, content in files.items()]
            self._send([{"type": t, "path": p, "size": s, "oid": p} for t, p, s in told])
        else:
            self._send({"id": repo, "sha": sha, "siblings": [{"rfilename": n} for n in files]})

    def _post(self, parts: list[str], body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        self.hub.asked.append((self.path, self.headers.get("Authorization", ""), lines))
        if parts == ["api", "repos", "create"]:
            asked = lines[0]
            repo = f"{asked['organization']}/{asked['name']}"
            self.hub.refs.setdefault(repo, {})
            self._send({"url": f"http://{self.headers['Host']}/{repo}"})
        elif parts[1] == "validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif parts[4] == "branch":
            self._send({})
        elif parts[4] == "preupload":
            names = [file["path"] for file in lines[0]["files"]]
            told = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            self._send({"files": told})
        else:
            assert parts[4] == "commit", self.path
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            repo = "/".join(parts[2:4])
            sha = self.hub.commit(repo, parts[5], files)
            url = f"http://{self.headers['Host']}/{repo}/commit/{sha}"
            self._send({"success": True, "commitUrl": url, "commitOid": sha})

    def _send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
