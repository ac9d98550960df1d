"""A model hub on the loopback interface: folders served in as much of the Hub's protocol as its client asks for."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LoopbackHub:
    """Serves `{"owner/name": folder}` at `endpoint` within a `with` block; `requests` lists what was asked."""

    def __init__(self, repositories: dict[str, Path]):
        self.repositories = repositories
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
        status, headers, body = self._respond(path.strip("/").split("/"))
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


def git_blob_id(content: bytes) -> str:
    """What the Hub gives as ETag of a file that is not in LFS."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
