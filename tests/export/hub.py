"""A local server that speaks what huggingface_hub needs for an upload: repositories, branches, LFS and commits."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_token_of_the_test"


class Hub:
    """What the server has received."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.repositories: dict[str, dict[str, Any]] = {}
        self.branches: list[str] = []
        self.cards: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.read_only = False

    def answer(self, method: str, path: str, body: bytes, authorization: str) -> tuple[int, Any]:
        """The status and the content of a response."""
        if path.startswith("/objects/"):  # the storage's own address, which needs no token
            self.objects[path.removeprefix("/objects/")] = body
            return 200, {}
        if authorization != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if self.read_only and path != "/api/whoami-v2":
            return 403, {"error": "Forbidden"}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me", "orgs": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", "url": f"{self.endpoint}/{name}"}
            self.repositories[name] = asked
            return 200, {"url": f"{self.endpoint}/{name}", "id": name}
        if (name := path.removeprefix("/api/models/")) in self.repositories:
            private = self.repositories[name].get("visibility") == "private"
            return 200, {"id": name, "private": private, "tags": [], "downloads": 0, "likes": 0}
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return 200, {"errors": [], "warnings": []}
        if match := re.fullmatch(r"/api/models/(.+)/branch/(.+)", path):
            self.branches.append(match[2])
            return 200, {}
        if re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(".safetensors") else "regular" for name in files]
            found = [
                {"path": name, "uploadMode": mode, "shouldIgnore": False}
                for name, mode in zip(files, modes, strict=True)
            ]
            return 200, {"files": found}
        if path.endswith(".git/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            actions = [
                {**one, "actions": {"upload": {"href": f"{self.endpoint}/objects/{one['oid']}"}}} for one in wanted
            ]
            return 200, {"transfer": "basic", "objects": actions}
        if match := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            self.commits.append((match[2], self._files(body)))
            url = f"{self.endpoint}/{match[1]}/commit/{'0' * 40}"
            return 200, {"commitUrl": url, "commitOid": "0" * 40, "success": True}
        return 404, {"error": f"{method} {path} is unknown here"}

    def _files(self, body: bytes) -> dict[str, bytes]:
        """The files of a commit, by name."""
        files = {}
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
        return files


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?")[0]
            status, content = hub.answer(self.command, path, body, self.headers.get("Authorization", ""))
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = respond  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
