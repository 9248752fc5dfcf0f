"""A stand-in for the Hugging Face Hub over loopback: what huggingface_hub asks of it, with commits, LFS,
tokens that may read or write, and folders that no honest client would have pushed."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

WRITER, READER = "hf_writer", "hf_reader"
LFS = (".safetensors", ".bin", ".pkl")


class Repo:
    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.commit({}, "main")

    def commit(self, files: Mapping[str, bytes], branch: str) -> str:
        told = f"{len(self.commits)} {branch} {sorted(files)}".encode()
        oid = hashlib.sha1(told).hexdigest()
        self.commits[oid] = dict(files)
        self.refs[branch] = oid
        return oid

    def oid(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith(LFS):
        found["lfs"] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 134,
        }
    return found


class Hub:
    """`repos` by name; `altered` maps (file name) -> the bytes that are sent in place of its own."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.altered: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def put(self, repo: str, files: Mapping[str, bytes]) -> str:
        """A commit that holds exactly `files`; its hash."""
        return self.repos.setdefault(repo, Repo()).commit(files, "main")

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        own = self.repos[repo]
        return own.commits[own.oid(revision) or ""]


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def _answer(
            self, status: int, body: Any = b"", headers: Mapping[str, str] | None = None
        ) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _refuse(self, status: int, code: str, said: str) -> None:
            self._answer(status, {"error": said}, {"X-Error-Code": code, "X-Error-Message": said})

        def _read(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _may_write(self) -> bool:
            if self.headers.get("Authorization") == f"Bearer {WRITER}":
                return True
            self._refuse(403, "", "Forbidden: this token has no write access")
            return False

        def _repo(self, name: str, revision: str) -> tuple[Repo, str] | None:
            if name not in hub.repos:
                self._refuse(404, "RepoNotFound", "Repository not found")
                return None
            oid = hub.repos[name].oid(revision)
            if oid is None:
                self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return None
            return hub.repos[name], oid

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(path)
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self._info(found[1], found[2] or "main")
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
                self._tree(found[1], found[2])
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(found[1], found[2], found[3])
            else:
                self._refuse(404, "", f"no such route: {path}")

        def _info(self, name: str, revision: str) -> None:
            if (found := self._repo(name, revision)) is not None:
                repo, oid = found
                files = [_entry(*item) for item in repo.commits[oid].items()]
                self._answer(200, {"id": name, "modelId": name, "sha": oid, "siblings": files})

        def _tree(self, name: str, revision: str) -> None:
            if (found := self._repo(name, revision)) is not None:
                repo, oid = found
                rows = []
                for item in repo.commits[oid].items():
                    entry = _entry(*item)
                    row = {"type": "file", "path": entry["rfilename"], "size": entry["size"]}
                    row["oid"] = entry["blobId"]
                    if "lfs" in entry:
                        row["lfs"] = {**entry["lfs"], "oid": entry["lfs"]["sha256"]}
                    rows.append(row)
                self._answer(200, rows)

        def _file(self, name: str, revision: str, file: str) -> None:
            if (found := self._repo(name, revision)) is None:
                return
            repo, oid = found
            if file not in repo.commits[oid]:
                self._refuse(404, "EntryNotFound", "Entry not found")
                return
            content = repo.commits[oid][file]
            entry = _entry(file, content)
            etag = entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"]
            sent = hub.altered.get(file, content)
            self._answer(200, sent, {"X-Repo-Commit": oid, "ETag": f'"{etag}"'})

        def do_PUT(self) -> None:
            content = self._read()
            hub.objects[hashlib.sha256(content).hexdigest()] = content
            self._answer(200)

        def do_POST(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self._read()
            hub.asked.append(path)
            if path == "/api/validate-yaml":
                self._answer(200, {"errors": [], "warnings": []})
            elif not self._may_write():
                return
            elif path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if name in hub.repos:
                    said = "You already created this model repo"
                    self._answer(409, {"error": said, "url": f"{hub.url}/{name}"})
                    return
                hub.repos[name] = Repo()
                self._answer(200, {"url": f"{hub.url}/{name}", "name": name})
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
                self._preupload(found[1], found[2], json.loads(body)["files"])
            elif path.endswith(".git/info/lfs/objects/batch"):
                rows = []
                for item in json.loads(body)["objects"]:
                    row = {"oid": item["oid"], "size": item["size"]}
                    if item["oid"] not in hub.objects:
                        row["actions"] = {"upload": {"href": f"{hub.url}/lfs/{item['oid']}"}}
                    rows.append(row)
                self._answer(200, {"transfer": "basic", "objects": rows})
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
                self._commit(found[1], found[2], [json.loads(line) for line in body.splitlines()])
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
                repo = hub.repos[found[1]]
                if found[2] in repo.refs:
                    self._answer(409, {"error": "Reference already exists"})
                    return
                repo.refs[found[2]] = repo.refs["main"]
                self._answer(200, {})
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tag/(.+)", path):
                repo = hub.repos[found[1]]
                oid = repo.oid(found[2])
                assert oid is not None
                repo.refs[json.loads(body)["tag"]] = oid
                self._answer(200, {})
            else:
                self._refuse(404, "", f"no such route: {path}")

        def _preupload(self, name: str, revision: str, files: list[dict[str, Any]]) -> None:
            if self._repo(name, revision) is not None:
                rows = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
                self._answer(200, {"files": rows})

        def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
            if (found := self._repo(name, branch)) is None:
                return
            repo, oid = found
            files = dict(repo.commits[oid])
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            new = repo.commit(files, branch)
            self._answer(200, {"commitUrl": f"{hub.url}/{name}/commit/{new}", "commitOid": new})

    return Handler


@contextmanager
def running(cache: Path, token: str = WRITER) -> Iterator[Hub]:
    """A hub, this process's own for the client, with an empty cache in `cache`.

    Large files go by the LFS protocol: the one of Xet speaks to servers of its own.
    """
    from huggingface_hub import constants

    hub = Hub()
    threading.Thread(target=hub.server.serve_forever, args=(0.01,), daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", token)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        try:
            yield hub
        finally:
            hub.server.shutdown()
            hub.server.server_close()
