"""Data at size: streams from a Hub, mixtures, and preparations that are killed, cut off and go on.

The real client, our own Hub.
"""
import json
import os
import random
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
from conftest import ROOT, command, error_line, tree
from hub import REVISION, Hub
from lib import bins, sources
from test_prepare import check, documents, load

# prepare.py with small batches, a state after each and short waits: what takes minutes at size takes a second here.
FAST = """
import sys, time
sys.path.insert(0, {root!r})
import prepare
from lib import bins, sources
sys.argv[0], sleep = "prepare.py", time.sleep
time.sleep = lambda seconds: sleep(seconds / 200)
sources.ROWS, sources.BATCH, bins.SAVE_EVERY = 20, 20_000, 0
prepare.run(prepare.main)
"""


def fast(*args):
    return [sys.executable, "-c", FAST.format(root=str(ROOT)), *map(str, args)]


def go(*args, cwd, status=0, **env):
    """Run FAST to its end."""
    done = subprocess.run(fast(*args), cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=240)
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def last_line(stderr):
    """The error line that ends standard error; the client's own notes on what it tried again may stand before it."""
    lines = [line for line in re.split(r"[\r\n]+", stderr) if line.strip()]
    assert lines[-1].startswith("error: ") and "Traceback" not in stderr, stderr
    return lines[-1]


def both(folder):
    return [(folder / f"{split}.bin").read_bytes() for split in ("train", "val")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory, docs):
    """{(repo, config): folder}: the docstrings in three parquet shards of several row groups,
    and a synthetic second dataset in two."""
    folder = tmp_path_factory.mktemp("shards")
    second = [f" Story {i}: {text[::-1]}" for i, text in enumerate(docs)]
    for name, texts, parts in (("f", docs, 3), ("c", second, 2)):
        (folder / name).mkdir()
        for i in range(parts):
            part = texts[i * len(texts) // parts:(i + 1) * len(texts) // parts]
            pq.write_table(pa.table({"id": range(len(part)), "text": part}), folder / name / f"{name}{i}.parquet",
                           row_group_size=64)
    return {sources.HUB["fineweb-edu"]: folder / "f", sources.HUB["cosmopedia"]: folder / "c"}


@pytest.fixture(scope="module")
def hub(shards, tmp_path_factory):
    with Hub(shards) as hub:
        hub.environment = hub.env(tmp_path_factory.mktemp("home"))
        yield hub


JOB = "fineweb-edu", "--name=x", "--tokens=30e3", "--val_tokens=2e3", "--tokenizer=bpe:400", "--mix=cosmopedia=0.3"


@pytest.fixture(scope="module")
def undisturbed(hub, tmp_path_factory):
    """data/x of JOB, from a Hub with a slow shard, a shard that answers 503 twice and a connection that is cut."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    hub.faults = {"f0.parquet": [0.3], "f1.parquet": ["busy", "busy"], "f2.parquet": ["cut"], "c0.parquet": [None, "cut"]}
    go(*JOB, cwd=cwd, **hub.environment)
    assert not any(hub.faults.values())
    return cwd / "data" / "x"


def test_stream(undisturbed, docs):
    """Slow, failing and cut connections: the client tries again, and the bins hold the documents in order,
    as many as asked for."""
    meta, tok, found = check(undisturbed)
    assert 30e3 <= meta["tokens"]["train"] < 34e3 and 2e3 <= meta["tokens"]["val"] < 6e3
    assert not set(found["train"]) & set(found["val"])
    assert all(bins.is_validation(text, 2 / 32) == (split == "val") for split in found for text in found[split])
    ours = [text for text in found["train"] if text in set(docs)]
    wanted = [text for text in docs if not bins.is_validation(text, 2 / 32)]
    assert ours == wanted[:len(ours)] and len(ours) > 50
    assert meta["sources"]["fineweb-edu"]["position"]["revision"] == REVISION
    assert meta["sample"]["characters"] > 100_000 and tok.name == "bpe:400"


def test_mix_by_tokens(undisturbed):
    """At any point the mixture is within a document or two of its shares, counted in tokens of both splits."""
    meta, tok, _ = check(undisturbed)
    counts = {name: source["tokens"] for name, source in meta["sources"].items()}
    assert sum(counts.values()) == sum(meta["tokens"].values())
    assert counts["cosmopedia"] / sum(counts.values()) == pytest.approx(0.3, abs=0.02)
    story = [text.startswith(" Story ") for text in documents(load(undisturbed)[2]["train"], tok)]
    assert 0.1 < np.mean(story[:40]) < 0.5 and 0.1 < np.mean(story[-40:]) < 0.5


def killed(job, cwd, wait, **env):
    """Start the job, SIGKILL it after `wait` seconds. Whether it was still running."""
    process = subprocess.Popen(fast(*job), cwd=cwd, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(wait)
    process.kill()
    return process.wait() == -signal.SIGKILL


def killed_at(job, cwd, size, **env):
    """Start the job, SIGKILL it once train.bin has more than `size` bytes; at once where that is already so."""
    process = subprocess.Popen(fast(*job), cwd=cwd, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = cwd / "data" / "x.partial" / "train.bin"
    while not (path.exists() and path.stat().st_size > size) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not list(cwd.rglob("meta.json"))


def test_killed_and_continued(hub, undisturbed, tmp_path):
    """SIGKILL twice, then the same command to its end: the undisturbed run's bins, byte for byte.
    What came after the state is cut."""
    for size in (2_000, 30_000):
        killed_at(JOB, tmp_path, size, **hub.environment)
    before = tree(tmp_path)
    line = error_line(go(*JOB[:-1], cwd=tmp_path, status=2, **hub.environment).stderr)
    assert "--mix=cosmopedia=0.3" in line and "--overwrite" in line and tree(tmp_path) == before
    with open(tmp_path / "data" / "x.partial" / "train.bin", "ab") as file:
        file.write(b"half a chunk")
    done = go(*JOB, cwd=tmp_path, **hub.environment)
    assert "going on with data/x.partial at" in done.stdout and "trained on" not in done.stdout
    assert both(tmp_path / "data" / "x") == both(undisturbed)
    assert check(tmp_path / "data" / "x")[1].state == check(undisturbed)[1].state


DAMAGE = {
    "a count": lambda state, bins: state["tokens"].update(train=state["tokens"]["train"] - 1),
    "a position": lambda state, bins: state["sources"]["text"].update(used=state["sources"]["text"]["used"] + 1),
    "a key": lambda state, bins: state.pop("sources"),
    "the tokenizer": lambda state, bins: state["tokenizer"].update(tokens=state["tokenizer"]["tokens"][:-9]),
    "the hash": lambda state, bins: state.update(checksum=None),
    "a byte of the tokens": lambda state, bins: bins.write_bytes(bins.read_bytes()[:100] + b"\1" + bins.read_bytes()[101:]),
    "half of the tokens": lambda state, bins: bins.write_bytes(bins.read_bytes()[:1000]),
    "the tokens": lambda state, bins: bins.unlink()}


def test_damaged_leftovers(tmp_path, docs):
    """Whatever is changed in data/NAME.partial, going on is refused in one line and nothing is deleted;
    --overwrite starts over."""
    job = "text", "a.jsonl", "--name=x", "--tokenizer=bpe:300", "--val_fraction=0.1"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in docs))
    killed_at(job, tmp_path, 20_000)
    partial = tmp_path / "data" / "x.partial"
    whole = {path: path.read_bytes() for path in partial.iterdir()}
    for what, damage in DAMAGE.items():
        for path, raw in whole.items():
            path.write_bytes(raw)
        state = json.loads(whole[partial / "state.json"])
        damage(state, partial / "train.bin")
        (partial / "state.json").write_text(json.dumps(state))
        before = tree(tmp_path)
        assert "is damaged; --overwrite starts over" in error_line(go(*job, cwd=tmp_path, status=2).stderr), what
        assert tree(tmp_path) == before
    go(*job, "--overwrite", cwd=tmp_path)
    check(tmp_path / "data" / "x")


@pytest.mark.soak
def test_twenty_random_kills(hub, undisturbed, tmp_path):
    """Killed at 20 random moments while it works, the job gives the same bytes; reported: at how many tokens it stood."""
    rng, stood, data = random.Random(7), [], tmp_path / "data"
    while len(stood) < 20:
        was_running = killed(JOB, tmp_path, 1 + rng.random() * 3, **hub.environment)
        if (data / "x").exists():  # it came to its end, or died on its way out
            assert both(data / "x") == both(undisturbed)
            subprocess.run(["rm", "-r", str(data)], check=True)
            continue
        assert was_running
        state = data / "x.partial" / "state.json"
        stood.append(sum(json.loads(state.read_bytes())["tokens"].values()) if state.exists() else 0)
        if stood[-1] > 29_000:  # done but for the end: begin anew, the kills shall fall on work
            subprocess.run(["rm", "-r", str(data)], check=True)
    print("killed at", stood, "tokens")
    go(*JOB, cwd=tmp_path, **hub.environment)
    assert both(tmp_path / "data" / "x") == both(undisturbed)


def test_network_gone(hub, undisturbed, tmp_path):
    """The Hub falls silent in the midst: after the waits, one line that says what is kept; once it is back, the same bins."""
    killed_at(JOB, tmp_path, 10_000, **hub.environment)
    hub.down = True
    try:
        done = go(*JOB, cwd=tmp_path, status=2, **hub.environment)
        line = last_line(done.stderr)
        assert "cannot stream HuggingFace" in line and "data/x.partial is kept" in line
        assert len(re.findall(r"trying again in (\d+) s", done.stderr)) == len(sources.WAITS)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        assert "cannot stream" in last_line(go(*JOB, cwd=elsewhere, status=2, **hub.environment).stderr) and not tree(elsewhere)
    finally:
        hub.down = False
    go(*JOB, cwd=tmp_path, **hub.environment)
    assert both(tmp_path / "data" / "x") == both(undisturbed)


def test_disk_full(hub, undisturbed, tmp_path):
    """A write that fails (here: a limit on file sizes) ends in one line and keeps what was saved;
    with room again it ends alike."""
    limited = f"ulimit -f 24; exec {sys.executable} -c \"$FAST\" \"$@\""  # 24 KiB; bash counts in KiB
    for status, begin in ((2, ["bash", "-c", limited, "bash"]), (0, [sys.executable, "-c", FAST.format(root=str(ROOT))])):
        done = subprocess.run([*begin, *JOB], cwd=tmp_path,
                              env=os.environ | hub.environment | {"FAST": FAST.format(root=str(ROOT))},
                              capture_output=True, text=True, timeout=240)
        assert done.returncode == status, done.stderr
        if status:
            assert ("data/x.partial is kept" in last_line(done.stderr)
                    and (tmp_path / "data" / "x.partial" / "state.json").exists())
    assert both(tmp_path / "data" / "x") == both(undisturbed)


def test_short_stream(hub, tmp_path, docs):
    """More tokens than the stream has: one line says how many there were; --allow_short then keeps them,
    without reading the shards before the last again."""
    job = "fineweb-edu", "--name=x", "--tokens=1e9", "--val_tokens=1e6", "--tokenizer=unicode"
    line = last_line(go(*job, cwd=tmp_path, status=2, **hub.environment).stderr)
    had = int(re.search(r"the stream ended after ([\d,]+) of 1,000,000,000 train tokens", line)[1].replace(",", ""))
    assert "--allow_short" in line and not (tmp_path / "data" / "x").exists()
    hub.reads.clear()
    go(*job, "--allow_short", cwd=tmp_path, **hub.environment)
    meta, tok, found = check(tmp_path / "data" / "x")
    assert meta["tokens"]["train"] == had and sorted(found["train"] + found["val"]) == sorted(docs)
    assert (meta["dtype"], tok.name, tok.vocab_size) == ("uint16", "unicode", 65536)
    assert {name for name, *_ in hub.reads} <= {"f2.parquet"}, "shards that were done are read again"


def test_local_text_continues_too(tmp_path, docs):
    """The same writer for files: killed and continued; a file that changed in between is another job."""
    job = "text", "a.jsonl", "--name=x", "--tokenizer=bpe:300", "--val_fraction=0.1"
    rows = "".join(json.dumps({"text": text}) + "\n" for text in docs)
    (tmp_path / "a.jsonl").write_text(rows)
    killed_at(job, tmp_path, 20_000)
    go(*job, cwd=tmp_path)
    once = both(tmp_path / "data" / "x")
    go(*job, "--overwrite", cwd=tmp_path)
    assert both(tmp_path / "data" / "x") == once
    subprocess.run(["rm", "-r", str(tmp_path / "data")], check=True)
    killed_at(job, tmp_path, 20_000)
    (tmp_path / "a.jsonl").write_text(rows[:-1])
    assert "--overwrite" in error_line(go(*job, cwd=tmp_path, status=2).stderr)


def test_positions(hub, docs, monkeypatch):
    """A source read on from any of its positions gives exactly what follows, across shards and row groups."""
    monkeypatch.setattr(sources, "BATCH", 20_000)
    source = sources.local("x", None, lambda: ((text, 0.0) for text in docs))
    whole = list(source.read(None))
    assert len(whole) > 5 and [text for texts, _, _ in whole for text in texts] == docs
    for i, (_, _, position) in enumerate(whole):
        assert [batch[0] for batch in source.read(position)] == [batch[0] for batch in whole[i + 1:]]


@pytest.mark.parametrize("options, says", [
    ("--mix=cosmopedia", "--mix"), ("--mix=wikipedia=0.2", "--mix"), ("--mix=cosmopedia=1", "--mix"),
    ("--mix=fineweb-edu=0.5", "--mix"), ("--mix=cosmopedia=0.2 --mix=cosmopedia=0.3", "--mix"),
    ("--val_tokens=0", "--val_tokens"), ("--val_fraction=0.1", "val_fraction")])
def test_bad_options(tmp_path, refuse, options, says):
    assert says in refuse(prepare.main, "fineweb-edu", *options.split(), cwd=tmp_path)


@pytest.mark.soak
def test_memory_is_bounded(hub, tmp_path, tmp_path_factory, docs):
    """A stream of 300 batches, 160 MB of text, takes less than 1 GB in all."""
    folder = tmp_path / "long"
    folder.mkdir()
    with pq.ParquetWriter(folder / "0.parquet", pa.schema([("text", pa.string())])) as writer:
        for i in range(600):  # 600 row groups of 1,000 different documents, 160 MB
            writer.write_table(pa.table({"text": [f"{i} {j} {docs[j % len(docs)]}" for j in range(1000)]}))
    with Hub({sources.HUB["fineweb-edu"]: folder}) as long:
        args = command("prepare.py", "fineweb-edu", "--name=x", "--tokens=20e6", "--tokenizer=unicode", "--allow_short")
        process = subprocess.Popen(args, cwd=tmp_path, env=os.environ | long.env(tmp_path / "home"), stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    print(f"peak {usage.ru_maxrss / 1024:,.0f} MB for {sum(map(len, both(tmp_path / 'data' / 'x'))) / 1e6:,.0f} MB of ids")
    assert status == 0 and usage.ru_maxrss / 1024 < 1000
