"""A small dataset Hub on loopback: what the real `datasets` client asks for when it streams parquet files, and faults on demand.

    with Hub({("HuggingFaceFW/fineweb-edu", "sample-10BT"): folder}) as hub:  # folder: *.parquet
        script("prepare.py", "fineweb-edu", ..., **hub.env(home))
        hub.reads  # [(shard, first byte, last byte, fault), ...] that were asked for

`hub.faults[shard]` is a list of what happens to the next requests for the bytes of that shard, one each: a number is a delay in
seconds, "busy" an answer 503, "cut" a connection that closes in the midst of it. `hub.down = True` closes every one unanswered.
"""
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "5" * 40


class Hub:
    def __init__(self, datasets):
        """`datasets`: {(repo, config): folder of parquet files}; their names on the Hub are config/NAME."""
        self.repos, self.faults, self.reads, self.down = {}, {}, [], False
        for (repo, config), folder in datasets.items():
            card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}/*\n---\n"
            self.repos[repo] = {"README.md": card.encode()} | {f"{config}/{p.name}": p
                                                               for p in sorted(Path(folder).glob("*.parquet"))}

    def __enter__(self):
        hub = self
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
        self.server.daemon_threads, self.server.handle_error = True, lambda *_: None  # clients are killed in the midst
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def env(self, home):
        """The environment in which the client asks this Hub and nobody else, with an own cache."""
        no_proxy = {key: "127.0.0.1" for key in ("NO_PROXY", "no_proxy")}
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}", "HF_HUB_DISABLE_XET": "1",
                "HF_HOME": str(home)} | no_proxy


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args):
        pass

    def answer(self, body, status=200, **headers):
        """One answer with its length; to HEAD without the body."""
        self.send_response(status)
        for key, value in ({"Content-Length": len(body), "X-Repo-Commit": REVISION} | headers).items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def entries(self, files, paths):
        """What the Hub says of files and folders."""
        return [{"type": "file", "path": p, "oid": hashlib.sha1(p.encode()).hexdigest(), "size": size(files[p])}
                if p in files else {"type": "directory", "path": p, "oid": REVISION, "size": 0} for p in paths]

    def route(self):
        """(files of the dataset, the rest of the path) for /api/datasets/REPO/... or /datasets/REPO/...;
        (None, "") for other paths."""
        path = unquote(urlsplit(self.path).path)
        for repo, files in self.hub.repos.items():
            if found := re.fullmatch(rf"(?:/api)?/datasets/{repo}(/.*)?", path):
                return files, found[1] or ""
        return None, ""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        files, rest = self.route()
        if self.hub.down or not files:
            self.close_connection = True
            return
        is_json = "json" in self.headers.get("Content-Type", "")
        asked = json.loads(body)["paths"] if is_json else parse_qs(body).get("paths", [])
        self.answer(json.dumps(self.entries(files, [p for p in asked if p in files])).encode(), Content_Type="application/json")

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
            self.answer(json.dumps(self.entries(files, inside)).encode(), Content_Type="application/json")
        elif rest == "" or rest.startswith("/revision/"):
            about = {"_id": "1", "id": "x/y", "sha": REVISION, "private": False, "gated": False, "disabled": False, "tags": [],
                     "downloads": 0, "likes": 0,
                     "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
                     "siblings": [{"rfilename": p} for p in files]}
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
            first, last = ((int(asked[1]), min(int(asked[2] or total), total - 1)) if asked[1] else
                           (total - int(asked[2]), total - 1))
        fault = None
        if isinstance(content, Path) and self.command == "GET":
            if self.hub.faults.get(content.name):
                fault = self.hub.faults[content.name].pop(0)
            self.hub.reads.append((content.name, first, last, fault))
        if fault == "busy":
            return self.answer(b"{}", 503)
        if isinstance(fault, (int, float)):
            time.sleep(fault)
        if isinstance(content, Path):
            with open(content, "rb") as file:
                file.seek(first)
                body = file.read(last - first + 1)
        else:
            body = content[first:last + 1]
        headers = {"ETag": f'"{hashlib.sha1(path.encode()).hexdigest()}"', "Accept-Ranges": "bytes"}
        headers |= {"Content-Range": f"bytes {first}-{last}/{total}"} if status == 206 else {}
        if fault == "cut":
            self.send_response(status)
            for key, value in (headers | {"Content-Length": len(body)}).items():
                self.send_header(key, str(value))
            self.end_headers()
            self.wfile.write(body[:len(body) // 2])
            self.close_connection = True
            return
        self.answer(body, status, **headers)


def size(content):
    """Of a file on disk or of bytes."""
    return content.stat().st_size if isinstance(content, Path) else len(content)
