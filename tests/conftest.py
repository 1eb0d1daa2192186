"""What the tests share: real text, real tokenizers, the real scripts."""
import ast
import asyncio
import email
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHARED_VOCABULARY = ROOT.parent / "shared" / "tiktoken"
if SHARED_VOCABULARY.is_dir():
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED_VOCABULARY))

# In the scripts too, which run side by side: two threads on two busy cores wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

from lib import plots, tokenizer  # noqa: E402
from lib.run_folder import build_model  # noqa: E402
from lib.errors import run  # noqa: E402
from lib.config import compose  # noqa: E402

ARMS = [arm for arm in plots.ARMS if (ROOT / "configs" / f"{arm}.py").is_file()]

# What a made-up log has in its header and in each validation, beside what a test is about.
HEADER = {"params": {}, "data": {}, "commit": "abc", "code_hash": "123", "hardware": "a machine",
          "epochs": 0.5, "tokens_per_step": 32}
VAL = {"val_bpb": 1.0, "input_rms": 1.0, "update_ratio": 0.01}

# A model of a second or so, whose width is a multiple of 12 bits.
SHORT = ["--n_layer=2", "--n_embd=96", "--n_head=3", "--block_size=64", "--batch_size=8",
         "--max_steps=60", "--warmup_steps=10", "--learning_rate=3e-3", "--eval_interval=60",
         "--eval_tokens=8192", "--log_interval=1", "--device=cpu", "--dtype=float32"]


def command(name, *args, ranks=0, options=("--standalone",)):
    """The command line that runs one of the project's scripts, with `ranks` under torchrun, which
    takes the options."""
    launcher = []
    if ranks:
        launcher = ["-m", "torch.distributed.run", *options, f"--nproc_per_node={ranks}"]
    return [sys.executable, *launcher, str(ROOT / name), *map(str, args)]


def script(name, *args, cwd, ranks=0, status=0, **env):
    """Run a script in its own process and check its exit status."""
    done = subprocess.run(command(name, *args, ranks=ranks), cwd=cwd, env=os.environ | env,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == status, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def error_line(stderr):
    """The one line that bad input leaves on standard error, progress bars aside."""
    lines = [line for line in re.split(r"[\r\n]+", stderr) if line.strip()
             and not re.search(r"%\||/s\]$", line)]
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    return lines[0]


def tree(folder):
    """Everything below a folder but locks: {path: time of change}, a folder's being None."""
    return {str(path): None if path.is_dir() else path.stat().st_mtime_ns
            for path in Path(folder).rglob("*") if not path.name.endswith("lock")}


@pytest.fixture
def call(monkeypatch):
    """call(main, *argv, cwd=...): a script's main in this process, as `python script.py argv` in
    `cwd`. Returns its exit status."""
    def call(main, *argv, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, argv)])
        try:
            run(main)
        except SystemExit as end:  # it does not outlive this line, nor what main held open
            return end.code or 0
    return call


@pytest.fixture
def refuse(call, capsys):
    """refuse(main, *argv, cwd=...): exit status 2, one line on standard error, nothing written.
    Returns the line."""
    def refuse(main, *argv, cwd):
        before = tree(cwd)
        capsys.readouterr()
        assert call(main, *argv, cwd=cwd) == 2
        assert tree(cwd) == before
        return error_line(capsys.readouterr().err)
    return refuse


@pytest.fixture(scope="session")
def docs():
    """The 600 docstrings of Python's email and asyncio packages: real text, 150 kB."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = []
    for package in (asyncio, email):
        for path in sorted(Path(package.__file__).parent.glob("*.py")):
            nodes = ast.walk(ast.parse(path.read_bytes()))
            texts += [ast.get_docstring(node) for node in nodes if isinstance(node, documented)]
    return list(dict.fromkeys(filter(None, texts)))


@pytest.fixture(scope="session")
def bpe(docs):
    """A byte-level BPE trained on those docstrings."""
    return tokenizer.train_bpe(docs, 2048)


@pytest.fixture(scope="session")
def gpt2():
    try:
        return tokenizer.gpt2()
    except OSError as error:
        pytest.skip(f"GPT-2's vocabulary is not here: {error}")


@pytest.fixture(params=["bpe", "gpt2"])
def tok(request):
    """Every claim about a tokenizer holds for a trained BPE and, where it is to be had, GPT-2's."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory, docs):
    """A folder with data/small, made by the real prepare.py from the small corpus."""
    folder = tmp_path_factory.mktemp("small")
    lines = [json.dumps({"text": text}) + "\n" for text in docs]
    (folder / "docs.jsonl").write_text("".join(lines))
    script("prepare.py", "text", "docs.jsonl", "--name=small", "--tokenizer=bpe:512",
           "--val_fraction=0.1", cwd=folder)
    return folder


@pytest.fixture(scope="session")
def docstrings(tmp_path_factory):
    """A folder in which `python prepare.py docstrings` was run, by the first xdist worker."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers
    folder /= "docstrings"
    with FileLock(f"{folder}.lock"):
        if not (folder / "data" / "docstrings").exists():
            folder.mkdir(exist_ok=True)
            script("prepare.py", "docstrings", cwd=folder)
    return folder


def records(run):
    """The lines of a run's log.jsonl."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def series(run, key):
    """{step: value} of one key of a run's log."""
    return {r["step"]: r[key] for r in records(run) if key in r}


def config_of(*argv):
    """The config that a command line makes."""
    return compose(list(argv))[0]


def build(arm, tok, *options):
    """A fresh model of an arm's config file: two layers, width 96, block 32, then `options`."""
    config = config_of(f"configs/{arm}.py", "--n_layer=2", "--n_head=3", "--n_embd=96",
                       "--block_size=32", *options)
    return build_model(vars(config), tok)
