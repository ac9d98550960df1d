"""
A model hub on the loopback interface: folders served, and written, in as much of the Hub's protocol as its client asks
for.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LoopbackHub:
    """
    Serves `{"owner/name": folder}` at `endpoint` within a `with` block; `requests` lists what was asked. With
    `new_repositories`, a folder, the user `lab` can make repositories there and push to all, without LFS and Xet.
    """

    def __init__(self, repositories: dict[str, Path], new_repositories: Path | None = None):
        self.repositories = repositories
        self.new_repositories = new_repositories
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                hub._answer(self, send_body=True)

            def do_HEAD(self):
                hub._answer(self, send_body=False)

            def do_POST(self):
                hub._answer(self, send_body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, send_body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append(f"{request.command} {path}")
        parts = path.strip("/").split("/")
        if request.command == "POST" and self.new_repositories is not None:
            content = request.rfile.read(int(request.headers["Content-Length"]))
            status, reply = self._write(parts, [json.loads(line) for line in content.splitlines()])
            headers, body = {"Content-Type": "application/json"}, json.dumps(reply).encode()
        else:
            status, headers, body = self._respond(parts)
        request.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if send_body:
            request.wfile.write(body)

    def _respond(self, parts: list[str]) -> tuple[int, dict[str, str], bytes]:
        is_api = parts[:2] == ["api", "models"]
        repository, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4 if is_api else 2 :]
        folder = self.repositories.get(repository)
        if folder is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
        if is_api and rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": git_blob_id(file.read_bytes())}
                for name, file in files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
        if is_api:
            info = {"id": repository, "modelId": repository, "sha": COMMIT, "private": False, "tags": []}
            info["siblings"] = [{"rfilename": name} for name in files]
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if rest[:1] == ["resolve"] and "/".join(rest[2:]) in files:
            body = files["/".join(rest[2:])].read_bytes()
            return 200, {"ETag": f'"{git_blob_id(body)}"', "Content-Type": "application/octet-stream"}, body
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"

    def _write(self, parts: list[str], items: list[dict]) -> tuple[int, dict]:
        if parts == ["api", "validate-yaml"]:
            return 200, {}
        if parts == ["api", "repos", "create"]:
            repository = f"{items[0]['organization'] or 'lab'}/{items[0]['name']}"
            existed = repository in self.repositories
            folder = self.repositories.setdefault(repository, self.new_repositories / repository)
            folder.mkdir(parents=True, exist_ok=True)
            return 409 if existed else 200, {"url": f"{self.endpoint}/{repository}"}
        folder, action = self.repositories["/".join(parts[2:4])], parts[4]
        if action == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": file["path"], **modes} for file in items[0]["files"]]}
        assert action == "commit", parts
        for item in items:
            if item["key"] == "file":
                file = folder / item["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(item["value"]["content"]))
        return 200, {"commitUrl": f"{self.endpoint}/{'/'.join(parts[2:4])}/commit/{COMMIT}", "commitOid": COMMIT}


def git_blob_id(content: bytes) -> str:
    """What the Hub gives as ETag of a file that is not in LFS."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
