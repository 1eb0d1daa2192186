"""A small Hub on loopback: what the real clients ask for when they stream a dataset's files or
fetch a tokenizer, and faults on demand.

    with Hub({("HuggingFaceFW/fineweb-edu", "sample-10BT"): folder}) as hub:
        script("prepare.py", "fineweb-edu", ..., **hub.env(home))
        hub.reads  # [(shard, first byte, last byte, fault), ...] that were asked for

`hub.faults[shard]` is a list of what happens to the next requests for the bytes of that shard, one
each: "busy" is an answer 503, "cut" a connection that closes in the midst of it, "garbage" other
bytes, None nothing. `hub.down = True` closes every one unanswered.
"""
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "5" * 40


class Hub:
    def __init__(self, datasets, models=None):
        """`datasets`: {(repo, config): folder of files}, whose names on the Hub are config/NAME; a
        name before the first dot that is a split's ("validation") goes there, others to train.
        `models`: {repo: {file: bytes}}."""
        self.repos, self.faults, self.reads, self.down = {}, {}, [], False
        for (repo, config), folder in datasets.items():
            files = {f"{config}/{p.name}": p for p in sorted(Path(folder).iterdir())}
            splits = {"train": [p for p in files if "/validation" not in p],
                      "validation": [p for p in files if "/validation" in p]}
            paths = [{"split": split, "path": some} for split, some in splits.items() if some]
            card = json.dumps({"configs": [{"config_name": config, "data_files": paths}]})
            self.repos[repo] = {"README.md": f"---\n{card}\n---\n".encode()} | files
        self.models = models or {}

    def __enter__(self):
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients are killed in the midst
        serve = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        serve.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def env(self, home):
        """The environment in which the client asks this Hub and nobody else, with an own cache."""
        no_proxy = {key: "127.0.0.1" for key in ("NO_PROXY", "no_proxy")}
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
                "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)} | no_proxy


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body, status=200, **headers):
        """One answer with its length; to HEAD without the body."""
        self.send_response(status)
        headers = {"Content-Length": len(body), "X-Repo-Commit": REVISION} | headers
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def entries(self, files, paths):
        """What the Hub says of files and folders."""
        return json.dumps([{"type": "file", "path": p, "oid": oid(p), "size": size(files[p])}
                           if p in files else {"type": "directory", "path": p, "oid": REVISION}
                           for p in paths]).encode()

    def route(self):
        """(files of a repository, the rest of the path) for /api/datasets/REPO/...,
        /datasets/REPO/... or /MODEL/...; (None, "") for other paths."""
        path = unquote(urlsplit(self.path).path)
        for prefix, repos in (("datasets/", self.hub.repos), ("", self.hub.models)):
            for repo, files in repos.items():
                if found := re.fullmatch(rf"(?:/api)?/{prefix}{repo}(/.*)?", path):
                    return files, found[1] or ""
        return None, ""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        files, rest = self.route()
        if self.hub.down or not files:
            self.close_connection = True
            return
        asked = [p for p in parse_qs(body).get("paths", []) if p in files]
        self.answer(self.entries(files, asked), Content_Type="application/json")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        files, rest = self.route()
        if self.hub.down:
            self.close_connection = True
        elif files is None:
            self.answer(b"{}", 404, X_Error_Code="RepoNotFound")
        elif found := re.match(r"/tree/[^/]+/?(.*)", rest):
            folder = found[1] + "/" if found[1] else ""
            folders = sorted({p.rsplit("/", 1)[0] for p in files if "/" in p})
            inside = [p for p in [*folders, *files] if p.startswith(folder)]
            if "recursive=true" not in self.path.lower():
                inside = [p for p in inside if "/" not in p[len(folder):]]
            self.answer(self.entries(files, inside), Content_Type="application/json")
        elif rest == "/revision/none":
            self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
        elif rest == "" or rest.startswith("/revision/"):
            about = {"id": "x/y", "sha": REVISION, "siblings": [{"rfilename": p} for p in files]}
            self.answer(json.dumps(about).encode(), Content_Type="application/json")
        elif (found := re.fullmatch(r"/resolve/[^/]+/(.+)", rest)) and found[1] in files:
            self.send_file(files[found[1]], found[1])
        else:
            self.answer(b"{}", 404, X_Error_Code="EntryNotFound")

    def send_file(self, content, path):
        """The bytes of a file or, with a Range header, some of them; a fault may come first."""
        total = size(content)
        first, last, status = 0, total - 1, 200
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            status = 206
            if asked[1]:
                first, last = int(asked[1]), min(int(asked[2] or total), total - 1)
            else:
                first = total - int(asked[2])
        fault = None
        if isinstance(content, Path) and self.command == "GET":
            faults = self.hub.faults.get(content.name)
            fault = faults.pop(0) if faults else None
            self.hub.reads.append((content.name, first, last, fault))
        if fault == "busy":
            return self.answer(b"{}", 503)
        body = content.read_bytes() if isinstance(content, Path) else content
        body = body[first:last + 1]
        if fault == "garbage":
            body = b"\xff" * len(body)
        headers = {"ETag": f'"{oid(path)}"', "Accept-Ranges": "bytes"}
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        if fault == "cut":
            headers["Content-Length"] = len(body)
            body, self.close_connection = body[:len(body) // 2], True
        self.answer(body, status, **headers)


def size(content):
    """Of a file on disk or of bytes."""
    return content.stat().st_size if isinstance(content, Path) else len(content)


def oid(path):
    """A hash as the Hub names one."""
    return hashlib.sha1(path.encode()).hexdigest()
