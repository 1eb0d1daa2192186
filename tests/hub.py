"""A small Hub on loopback: what the real clients ask for when they stream a dataset's files or
fetch a tokenizer, and faults on demand.

    with Hub({("HuggingFaceFW/fineweb-edu", "sample-10BT"): folder}) as hub:
        script("prepare.py", "fineweb-edu", ..., **hub.env(home))
        hub.reads  # [(shard, first byte, last byte, fault), ...] that were asked for

`hub.faults[shard]` is a list of what happens to the next requests for the bytes of that shard, one
each: "busy" is an answer 503, "cut" a connection that closes in the midst of it, "garbage" other
bytes, None nothing. `hub.down = True` closes every one unanswered.
"""
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REVISION = "5" * 40


class Hub(ThreadingHTTPServer):
    def __init__(self, datasets, models=None):
        """`datasets`: {(repo, config): folder of files}, whose names on the Hub are config/NAME; a
        name before the first dot that is a split's ("validation") goes there, others to train.
        `models`: {repo: {file: bytes}}."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.faults, self.reads, self.down = {}, {}, [], False
        for (repo, config), folder in datasets.items():
            files = {f"{config}/{p.name}": p.read_bytes() for p in sorted(folder.iterdir())}
            splits = {"train": [p for p in files if "/validation" not in p],
                      "validation": [p for p in files if "/validation" in p]}
            paths = [{"split": split, "path": some} for split, some in splits.items() if some]
            card = json.dumps({"configs": [{"config_name": config, "data_files": paths}]})
            self.repos[repo] = {"README.md": f"---\n{card}\n---\n".encode()} | files
        self.models = models or {}
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """Nothing is said of clients that were killed."""

    def env(self, home):
        """The environment in which the client asks this Hub and nobody else, with an own cache."""
        no_proxy = {key: "127.0.0.1" for key in ("NO_PROXY", "no_proxy")}
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
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

    def route(self):
        """(files of a repository, the rest of the path) for /api/datasets/REPO/...,
        /datasets/REPO/..., /api/models/REPO/... or /REPO/...; (None, "") for other paths."""
        path = re.sub("^(/api)?/(models/)?", "", unquote(urlsplit(self.path).path)) + "/"
        datasets = {f"datasets/{name}": files for name, files in self.server.repos.items()}
        for name, files in (datasets | self.server.models).items():
            if path.startswith(f"{name}/"):
                return files, path[len(name):-1]
        return None, ""

    def do_GET(self):
        files, rest = self.route()
        if self.server.down:
            self.close_connection = True
        elif files is None or rest == "/revision/none":
            missing = "RevisionNotFound" if rest else "RepoNotFound"
            self.answer(b"{}", 404, X_Error_Code=missing)
        elif rest == "" or rest.startswith("/revision/"):
            about = {"id": "x/y", "sha": REVISION, "siblings": [{"rfilename": p} for p in files]}
            self.answer(json.dumps(about).encode(), Content_Type="application/json")
        elif rest.startswith("/tree/"):
            entries = [{"type": "file", "path": path, "oid": path, "size": len(body)}
                       for path, body in files.items()]
            self.answer(json.dumps(entries).encode(), Content_Type="application/json")
        elif (found := re.fullmatch(r"/resolve/[^/]+/(.+)", rest)) and found[1] in files:
            self.send_file(files[found[1]], found[1])
        else:
            self.answer(b"{}", 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def send_file(self, body, path):
        """The bytes of a file or, with a Range header, some of them; a fault may come first."""
        name, total, fault, status = path.split("/")[-1], len(body), None, 200
        headers = {"ETag": f'"{name}"', "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last, status = int(asked[1]), min(int(asked[2]), total - 1), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
            body, faults = body[first:last + 1], self.server.faults.get(name)
            fault = faults.pop(0) if faults else None
            self.server.reads.append((name, first, last, fault))
        if fault == "busy":
            return self.answer(b"{}", 503)
        if fault == "garbage":
            body = b"\xff" * len(body)
        if fault == "cut":
            headers["Content-Length"] = len(body)
            body, self.close_connection = body[:len(body) // 2], True
        self.answer(body, status, **headers)
