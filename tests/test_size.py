"""Data at size: streams from a Hub, mixtures, and preparations that are stopped and go on.

The real client, our own Hub.
"""
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import prepare
import test_tokenizer
from conftest import ROOT, tree
from hub import REVISION, Hub
from lib import text
from test_prepare import check, everything, jsonl

# prepare.py with small batches and states in short turns; the client waits less between its
# tries. Several commands, separated by "and", run one after the other.
FAST = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import prepare
from lib import text
sleep, status = time.sleep, 0
time.sleep = lambda seconds: sleep(seconds / 200)
text.BATCH, prepare.SAVE_EVERY = 20_000, 0.05
for words in " ".join(sys.argv[1:]).split(" and "):
    sys.argv = ["prepare.py", *words.split()]
    try:
        prepare.run(prepare.main)
    except SystemExit as end:
        status = end.code or status
sys.exit(status)
"""


def fast(*args):
    return [sys.executable, "-c", FAST, *args]


def go(args, cwd, env):
    """Run a command to its end: (exit status, standard output, lines of standard error without
    progress bars)."""
    done = subprocess.run(args, cwd=cwd, env=os.environ | env, capture_output=True, text=True,
                          timeout=240)
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
    return done.returncode, done.stdout, [line for line in lines if "tokens/s" not in line]


@pytest.fixture(scope="module")
def hub(tmp_path_factory, docs):
    """A Hub with the docstrings in three parquet shards of several row groups, a synthetic second
    dataset in two, the docstrings as lines of JSON with a validation split, and a tokenizer."""
    folder = tmp_path_factory.mktemp("hub")
    for name in "fcj":
        (folder / name).mkdir()
    second = [f" Story {i}: {text[::-1]}" for i, text in enumerate(docs)]
    for name, texts, size in (("f", docs, 250), ("c", second, 400)):
        for i in range(0, len(texts), size):
            pq.write_table(pa.table({"text": texts[i:i + size]}),
                           folder / name / f"{name}{i // size}.parquet", row_group_size=64)
    for i in range(2):
        half = jsonl(docs[i * 300:i * 300 + 300], "body").encode()
        (folder / "j" / f"j{i}.jsonl.gz").write_bytes(gzip.compress(half))
    (folder / "j" / "validation.jsonl").write_text(jsonl(docs[:50], "body"))
    datasets = {text.HUB["fineweb-edu"]: folder / "f", text.HUB["cosmopedia"]: folder / "c",
                ("me/lines", "en"): folder / "j"}
    file = json.dumps(test_tokenizer.byte_level(docs)).encode()
    with Hub(datasets, {"me/model": {"tokenizer.json": file}, "me/other": {}}) as hub:
        hub.repos["me/program"] = {"README.md": b"# A program", "program.py": b"import datasets"}
        hub.environment = hub.env(tmp_path_factory.mktemp("home"))
        yield hub


JOB = ("fineweb-edu", "--name=x", "--tokens=30e3", "--val_tokens=2e3", "--tokenizer=bpe:400",
       "--mix=cosmopedia=0.3")


@pytest.fixture(scope="module")
def undisturbed(hub, tmp_path_factory):
    """data/x of JOB, from a Hub with a shard that answers 503 twice and connections that are
    cut, which the client tries again."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    hub.faults = {"f1.parquet": ["busy", "busy"], "c0.parquet": [None, "cut"]}
    status, _, errors = go(fast(*JOB), cwd, hub.environment)
    assert status == 0 and not any(hub.faults.values()), errors
    return cwd / "data" / "x"


def test_stream_and_mixture(undisturbed, docs):
    """The bins hold the documents in order, as many as asked for. At any point the mixture is
    within a document or two of its shares, counted in tokens of both splits."""
    meta, tok, found = check(undisturbed)
    assert 30e3 <= meta["tokens"]["train"] < 34e3 and 2e3 <= meta["tokens"]["val"] < 6e3
    assert all((prepare.place(text) < 2 / 32) == (split == "val")
               for split in found for text in found[split])
    ours = [text for text in found["train"] if text in set(docs)]
    wanted = [text for text in docs if prepare.place(text) >= 2 / 32]
    assert ours == wanted[:len(ours)] and len(ours) > 50
    assert meta["sources"]["fineweb-edu"]["position"]["revision"] == REVISION
    share = meta["sources"]["cosmopedia"]["tokens"] / sum(meta["tokens"].values())
    assert share == pytest.approx(0.3, abs=0.02)
    story = [text.startswith(" Story ") for text in found["train"]]
    assert 0 < np.mean(story[:40]) < 0.5 and 0 < np.mean(story[-40:]) < 0.5


def killed_at(job, cwd, size, **env):
    """Start the job, SIGKILL it once train.bin has more than `size` bytes."""
    process = subprocess.Popen(fast(*job), cwd=cwd, env=os.environ | env,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = cwd / "data" / "x.partial" / "train.bin"
    while not (path.exists() and path.stat().st_size > size):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not list((cwd / "data").rglob("meta.json"))


def test_stopped_and_continued(hub, undisturbed, tmp_path):
    """SIGKILL, a full disk (here: a limit on file sizes), a Hub that sends other bytes or falls
    silent: one line, and the same command goes on to the undisturbed run's bins, byte for byte.
    Another command of that name is refused and changes nothing."""
    kept = "is kept, the same command goes on from there"
    killed_at(JOB, tmp_path, 2_000, **hub.environment)
    partial = tmp_path / "data" / "x.partial"
    before = tree(tmp_path)
    status, said, errors = go(fast(*JOB[:-1]), tmp_path, hub.environment)
    assert "by another command" in errors[-1] and status == 2 and tree(tmp_path) == before
    with open(partial / "train.bin", "ab") as file:
        file.write(b"half a chunk")
    limited = ["bash", "-c", "ulimit -f 24; exec \"$@\"", "bash", *fast(*JOB)]  # in KiB
    status, said, errors = go(limited, tmp_path, hub.environment)
    assert status == 2 and kept in said and "File too large" in errors[-1]
    hub.faults = {name: ["garbage"] * 9 for name in ("f0.parquet", "f1.parquet", "f2.parquet")}
    status, said, errors = go(fast(*JOB), tmp_path, hub.environment)
    hub.faults.clear()
    assert status == 2 and kept in said and "not parquet" in errors[-1]
    hub.down = True
    status, said, errors = go(fast(*JOB), tmp_path, hub.environment)
    hub.down = False
    assert status == 2 and "error: cannot stream HuggingFace" in errors[-1]
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["x.partial"]
    status, said, errors = go(fast(*JOB), tmp_path, hub.environment)
    assert status == 0 and "going on with data/x.partial at" in said
    (meta, tok, _), (wanted, same, _) = check(tmp_path / "data" / "x"), check(undisturbed)
    assert meta["sha256"] == wanted["sha256"] and tok.state == same.state
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["x"]


def test_damaged_leftovers(tmp_path, call, refuse, docs):
    """What is damaged in data/NAME.partial, in use by another process, or was begun on a file that
    changed since, is refused in one line and not deleted; --overwrite starts over."""
    job = "text", "a.jsonl", "--name=x", "--tokenizer=bpe:300", "--val_fraction=0.1"
    (tmp_path / "a.jsonl").write_text(jsonl(docs))
    killed_at(job, tmp_path, 20_000)
    state, says = tmp_path / "data/x.partial/state.json", "is damaged; --overwrite starts over"
    raw = state.read_bytes()
    beyond = json.dumps(json.loads(raw) | {"tokens": {"train": 10**6, "val": 0}}).encode()
    for damaged in (raw[:-100], b"[]", beyond, raw.replace(b'"tokens": "', b'"tokens": "!')):
        state.write_bytes(damaged)
        assert says in refuse(prepare.main, *job, cwd=tmp_path)
    state.write_bytes(raw)
    with prepare.filelock.FileLock(state.with_name("lock")):
        assert "lock' could not be acquired" in refuse(prepare.main, *job, cwd=tmp_path)
    os.utime(tmp_path / "a.jsonl")
    assert says in refuse(prepare.main, *job, cwd=tmp_path)
    assert call(prepare.main, *job, "--overwrite", cwd=tmp_path) == 0
    assert everything(check(tmp_path / "data" / "x")[2]) == sorted(docs)


def test_any_dataset_of_the_hub(hub, tmp_path, docs):
    """`hub` streams lines of JSON too, whichever column and split, all of it unless --tokens says
    otherwise, also with a tokenizer of the Hub; killed, it goes on from its row."""
    job = "hub", "me/lines", "--column=body", "--tokenizer=bpe:300", "--name=x"
    killed_at(job, tmp_path, 90_000, **hub.environment)
    other = "hub", "me/lines", "--split=validation", "--column=body", "--tokenizer=bpe:270"
    third = ("hub", text.HUB["fineweb-edu"][0], "--tokens=5e3", "--tokenizer=me/model",
             "--val_tokens=1e6")
    status, said, errors = go(fast(*job, "and", *other, "and", *third), tmp_path, hub.environment)
    assert status == 0 and "going on with data/x.partial at" in said, errors
    _, _, found = check(tmp_path / "data" / "x")
    assert found["train"] == [text for text in docs[:600] if prepare.place(text) >= 0.02]
    assert found["val"] == [text for text in docs[:600] if prepare.place(text) < 0.02]
    assert everything(check(tmp_path / "data" / "lines")[2]) == sorted(docs[:50])
    meta, tok, _ = check(tmp_path / "data" / "fineweb-edu")
    assert meta["tokens"]["train"] < 6e3 and (tok.name, tok.vocab_size) == ("me/model", 901)
    assert f"the text ended after {meta['tokens']['val']:,} of 1,000,000 val tokens" in said


def test_what_the_hub_has_not(hub, tmp_path):
    """A column, split, configuration, dataset or tokenizer that is not there ends at once, in one
    line, with nothing written."""
    (tmp_path / "a.jsonl").write_text(jsonl(["one text", "another"]))
    job = "hub", "me/lines", "--tokenizer=bpe:300"
    cases = [(job, "no text in column 'text', but NoneType; choose with --column (body)"),
             ((*job, "--column=body", "--split=test"), "but train, validation; choose"),
             ((*job, "--config=fr"), "Available: ['en']"),
             ((*job, "--revision=none"), "404"), (("hub", "me/nothing"), "Not Found"),
             (("hub", "a/b/c"), "Repo id"),
             (("hub", "me/program"), "Dataset scripts are no longer supported")]
    for name in ("me/nothing", "me/other", "a/b/c"):
        cases.append((("text", "a.jsonl", "--name=x", f"--tokenizer={name}"), "tokenizer.json"))
    words = [word for argv, _ in cases for word in ("and", *argv)][1:]
    before = tree(tmp_path)
    status, _, errors = go(fast(*words), tmp_path, hub.environment)
    assert status == 2 and len(errors) == len(cases) and tree(tmp_path) == before
    for line, (_, says) in zip(errors, cases):
        assert line.startswith("error: ") and says in line
