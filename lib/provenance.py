"""What a result is quoted with: hardware, versions, commit, code hash."""
import ast
import hashlib
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

from lib.config import ROOT
from lib.errors import this_command

DECISIVE = ("codes.py", "rivals.py", "model.py", "train.py", "lib/config.py", "lib/data.py",
            "lib/evaluate.py", "lib/tokenizer.py")


def cpu_name():
    """The processor's model, as /proc/cpuinfo gives it where there is one."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:(.*)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def git(*args):
    """What `git ARGS` prints in the project's folder. OSError or CalledProcessError if it fails."""
    return subprocess.check_output(["git", "-C", str(ROOT), *args], text=True,
                                   stderr=subprocess.DEVNULL).strip()


def is_aside(statement):
    """Whether a statement is a docstring or the `if __name__ == "__main__"` of a script."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def code_hash():
    """A hash of the statements that decide a run's numbers, 12 hex digits: comments, docstrings,
    layout and a script's `if __name__` do not count."""
    digest = hashlib.sha256()
    for name in DECISIVE:
        tree = ast.parse((ROOT / name).read_bytes())
        for node in ast.walk(tree):
            if isinstance(getattr(node, "body", None), list):
                node.body = [statement for statement in node.body if not is_aside(statement)]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:12]


def describe_machine(device, world):
    """Hardware, versions, commit, code, command and date: a dict."""
    hardware = f"{cpu_name()}, {world} x {torch.get_num_threads()} threads"
    if device.type == "cuda":
        hardware = f"{world} x {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        hardware = f"the GPU of {cpu_name()}"
    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!results")  # pages aside
        commit += "+changes" if changed else ""
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"hardware": hardware, "python": platform.python_version(), "torch": torch.__version__,
            "commit": commit, "code_hash": code_hash(), "command": this_command(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
