"""Data at size: streams from a Hub, mixtures, and preparations that are killed, cut off and go on.

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
from conftest import ROOT, command, error_line, tree
from hub import REVISION, Hub
from lib import text
from test_prepare import check, documents, jsonl, load

# prepare.py with small batches, a state after each document and short waits: what takes minutes at
# size takes a second here. Several commands, separated by "and", run one after the other.
FAST = """
import sys, time
sys.path.insert(0, {root!r})
import prepare
from lib import text
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 200)
text.ROWS, text.BATCH, prepare.SAVE_EVERY = 20, 20_000, 0
commands, status = [[]], 0
for word in sys.argv[1:]:
    commands.append([]) if word == "and" else commands[-1].append(word)
for words in commands:
    sys.argv = ["prepare.py", *words]
    try:
        prepare.run(prepare.main)
    except SystemExit as end:
        status = end.code or status
sys.exit(status)
"""


def fast(*args):
    return [sys.executable, "-c", FAST.format(root=str(ROOT)), *map(str, args)]


def go(*args, cwd, status=0, **env):
    """Run FAST to its end."""
    done = subprocess.run(fast(*args), cwd=cwd, env=os.environ | env, capture_output=True,
                          text=True, timeout=240)
    said = f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == status, said
    return done


def lines_of(stderr):
    """The lines of standard error, progress bars aside."""
    assert "Traceback" not in stderr, stderr
    return [line for line in re.split(r"[\r\n]+", stderr) if line.strip() and "%|" not in line]


def last_line(stderr):
    """The error line that ends standard error; the client's own notes on what it tried again may
    stand before it."""
    last = lines_of(stderr)[-1]
    assert last.startswith("error: "), stderr
    return last


def both(folder):
    """The bytes of train.bin and val.bin."""
    return [(folder / f"{split}.bin").read_bytes() for split in ("train", "val")]


def left(folder):
    """Everything below a folder but locks, which say who held them last."""
    return {path: what for path, what in tree(folder).items() if not path.endswith(".lock")}


@pytest.fixture(scope="module")
def shards(tmp_path_factory, docs):
    """{(repo, config): folder}: the docstrings in three parquet shards of several row groups, a
    synthetic second dataset in two, and the docstrings as lines of JSON with a validation split."""
    folder = tmp_path_factory.mktemp("shards")
    second = [f" Story {i}: {text[::-1]}" for i, text in enumerate(docs)]
    for name, texts, parts in (("f", docs, 3), ("c", second, 2)):
        (folder / name).mkdir()
        for i in range(parts):
            part = texts[i * len(texts) // parts:(i + 1) * len(texts) // parts]
            table = pa.table({"id": range(len(part)), "text": part})
            pq.write_table(table, folder / name / f"{name}{i}.parquet", row_group_size=64)
    (folder / "j").mkdir()
    for i in range(2):
        half = jsonl(docs[i * 300:i * 300 + 300], "body").encode()
        (folder / "j" / f"j{i}.jsonl.gz").write_bytes(gzip.compress(half))
    (folder / "j" / "validation.jsonl").write_text(jsonl(docs[:50], "body"))
    return {text.HUB["fineweb-edu"]: folder / "f", text.HUB["cosmopedia"]: folder / "c",
            ("me/lines", "en"): folder / "j"}


@pytest.fixture(scope="module")
def hub(shards, tmp_path_factory, docs):
    file = json.dumps(test_tokenizer.byte_level(docs)).encode()
    with Hub(shards, {"me/model": {"tokenizer.json": file}, "me/other": {}}) as hub:
        hub.repos["me/program"] = {"README.md": b"# A program", "program.py": b"import datasets"}
        hub.environment = hub.env(tmp_path_factory.mktemp("home"))
        yield hub


JOB = ("fineweb-edu", "--name=x", "--tokens=30e3", "--val_tokens=2e3", "--tokenizer=bpe:400",
       "--mix=cosmopedia=0.3")


@pytest.fixture(scope="module")
def undisturbed(hub, tmp_path_factory):
    """data/x of JOB, from a Hub with a slow shard, a shard that answers 503 twice and a connection
    that is cut."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    hub.faults = {"f0.parquet": [0.3], "f1.parquet": ["busy", "busy"], "f2.parquet": ["cut"],
                  "c0.parquet": [None, "cut"]}
    go(*JOB, cwd=cwd, **hub.environment)
    assert not any(hub.faults.values())
    return cwd / "data" / "x"


def test_stream(undisturbed, docs):
    """Slow, failing and cut connections: the client tries again, and the bins hold the documents in
    order, as many as asked for."""
    meta, tok, found = check(undisturbed)
    assert 30e3 <= meta["tokens"]["train"] < 34e3 and 2e3 <= meta["tokens"]["val"] < 6e3
    assert not set(found["train"]) & set(found["val"])
    assert all(prepare.is_validation(text, 2 / 32) == (split == "val")
               for split in found for text in found[split])
    ours = [text for text in found["train"] if text in set(docs)]
    wanted = [text for text in docs if not prepare.is_validation(text, 2 / 32)]
    assert ours == wanted[:len(ours)] and len(ours) > 50
    assert meta["sources"]["fineweb-edu"]["position"]["revision"] == REVISION
    assert meta["sample"]["characters"] > 100_000 and tok.name == "bpe:400"


def test_mix_by_tokens(undisturbed):
    """At any point the mixture is within a document or two of its shares, counted in tokens of both
    splits."""
    meta, tok, _ = check(undisturbed)
    counts = {name: source["tokens"] for name, source in meta["sources"].items()}
    assert sum(counts.values()) == sum(meta["tokens"].values())
    assert counts["cosmopedia"] / sum(counts.values()) == pytest.approx(0.3, abs=0.02)
    train = documents(load(undisturbed)[2]["train"], tok)
    story = [text.startswith(" Story ") for text in train]
    assert 0 < np.mean(story[:40]) < 0.5 and 0 < np.mean(story[-40:]) < 0.5


def start(job, cwd, **env):
    """Start the job beside this process."""
    return subprocess.Popen(fast(*job), cwd=cwd, env=os.environ | env, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


def killed_at(job, cwd, size, **env):
    """Start the job, SIGKILL it once train.bin has more than `size` bytes; at once where that is
    already so."""
    process = start(job, cwd, **env)
    path = cwd / "data" / "x.partial" / "train.bin"
    while not (path.exists() and path.stat().st_size > size) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (path.parent / "meta.json").exists()


def test_killed_and_continued(hub, undisturbed, tmp_path):
    """SIGKILL twice, then the same command to its end: the undisturbed run's bins, byte for byte.
    What came after the state is cut."""
    for size in (2_000, 30_000):
        killed_at(JOB, tmp_path, size, **hub.environment)
    before = left(tmp_path)
    line = error_line(go(*JOB[:-1], cwd=tmp_path, status=2, **hub.environment).stderr)
    assert "--mix=cosmopedia=0.3" in line and "--overwrite" in line and left(tmp_path) == before
    with open(tmp_path / "data" / "x.partial" / "train.bin", "ab") as file:
        file.write(b"half a chunk")
    done = go(*JOB, cwd=tmp_path, **hub.environment)
    assert "going on with data/x.partial at" in done.stdout and "trained on" not in done.stdout
    assert both(tmp_path / "data" / "x") == both(undisturbed)
    assert check(tmp_path / "data" / "x")[1].state == check(undisturbed)[1].state


def test_damaged_leftovers(tmp_path, call, capsys, docs):
    """What is damaged in data/NAME.partial, or was begun on a file that changed since, is refused
    in one line and not deleted; --overwrite starts over. Files continue as a stream does."""
    job = "text", "a.jsonl", "--name=x", "--tokenizer=bpe:300", "--val_fraction=0.1"
    rows = jsonl(docs)
    (tmp_path / "a.jsonl").write_text(rows)
    killed_at(job, tmp_path, 20_000)
    assert call(prepare.main, *job, cwd=tmp_path) == 0
    whole = both(tmp_path / "data" / "x")
    killed_at((*job, "--overwrite"), tmp_path, 20_000)
    partial = tmp_path / "data" / "x.partial"

    def refused(*argv):
        before = left(tmp_path)
        capsys.readouterr()
        assert call(prepare.main, *argv, cwd=tmp_path) == 2
        assert left(tmp_path) == before
        return error_line(capsys.readouterr().err)
    assert "exists; --overwrite replaces it" in refused(*job)
    subprocess.run(["rm", "-r", tmp_path / "data" / "x"], check=True)
    state = (partial / "state.json").read_bytes()
    no_tokenizer = json.dumps(json.loads(state) | {"tokenizer": {}}).encode()
    for damaged in (state[:-100], b"[]", no_tokenizer):
        (partial / "state.json").write_bytes(damaged)
        assert "is damaged; --overwrite starts over" in refused(*job)
    (partial / "state.json").write_bytes(state)
    os.utime(tmp_path / "a.jsonl")
    assert "other options, text" in refused(*job)
    (partial / "train.bin").write_bytes(b"")
    assert "is damaged; --overwrite starts over" in refused(*job)
    assert call(prepare.main, *job, "--overwrite", cwd=tmp_path) == 0
    assert both(tmp_path / "data" / "x") == whole


# prepare.py that kills itself before its KILL-th operation on files; without KILL it says how many.
FRAGILE = """
import os, signal
count, limit = 0, int(os.environ.get("KILL", 10**9))
def fragile(name):
    work = getattr(os, name)
    def run(*args, **kwargs):
        global count
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*args, **kwargs)
    setattr(os, name, run)
for name in ("rename", "replace", "link", "unlink", "remove", "rmdir", "fsync"):
    fragile(name)
"""


@pytest.mark.soak
def test_kills_at_every_file_operation(tmp_path, docs):
    """SIGKILL before each rename, unlink and fsync of a preparation that replaces another: at any
    time there are the old or the new bins or a command that makes the new, byte for byte."""
    for name, texts in (("a", docs[:60]), ("b", docs[60:90])):
        (tmp_path / f"{name}.jsonl").write_text(jsonl(texts))
    old = command("prepare.py", "text", "a.jsonl", "--name=x", "--tokenizer=bpe:257")
    code = FRAGILE + FAST.format(root=str(ROOT)).replace("20_000, 0", "20_000, 5").replace(
        "sys.exit(status)", "print('operations', count); sys.exit(status)")
    new = [sys.executable, "-c", code, "text", "b.jsonl", "--name=x", "--tokenizer=bpe:257",
           "--overwrite"]

    def do(args, **env):
        done = subprocess.run(args, cwd=tmp_path, env=os.environ | env, capture_output=True,
                              text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done
    do(old)
    before = both(tmp_path / "data" / "x")
    operations = int(re.search(r"operations (\d+)", do(new).stdout)[1])
    after = both(tmp_path / "data" / "x")
    assert before != after and operations > 15
    for kill in range(1, operations + 1):
        subprocess.run(["rm", "-r", str(tmp_path / "data")], check=True)
        do(old)
        assert do(new, KILL=str(kill)).returncode == -signal.SIGKILL
        there = [path for path in (tmp_path / "data" / "x", tmp_path / "data" / "x.replaced")
                 if prepare.is_ours(path)]
        assert there and both(there[0]) in (before, after), kill
        assert do(new).returncode == 0, kill
        assert both(tmp_path / "data" / "x") == after, kill
        assert [p.name for p in (tmp_path / "data").iterdir()] == ["x"], kill
    print(f"killed before each of {operations} operations")


def test_network_gone(hub, undisturbed, tmp_path):
    """The Hub falls silent in the midst: after the waits, one line that says what is kept; once it
    is back, the same bins."""
    killed_at(JOB, tmp_path, 10_000, **hub.environment)
    elsewhere = *JOB[:-1], "--name=elsewhere"
    hub.down = True
    try:
        done = go(*JOB, "and", *elsewhere, cwd=tmp_path, status=2, **hub.environment)
    finally:
        hub.down = False
    line, other = [line for line in lines_of(done.stderr) if line.startswith("error: ")]
    assert "cannot stream HuggingFace" in line and "data/x.partial is kept" in line
    assert "cannot stream" in other and "kept" not in other
    tries = re.findall(r"trying again in (\d+) s", done.stderr)
    assert list(map(int, tries)) == 2 * [*text.WAITS]
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["x.partial"]
    go(*JOB, cwd=tmp_path, **hub.environment)
    assert both(tmp_path / "data" / "x") == both(undisturbed)


def test_disk_full(hub, undisturbed, tmp_path):
    """A write that fails (here: a limit on file sizes) ends in one line and keeps what was saved;
    with room again it ends alike."""
    script = FAST.format(root=str(ROOT))
    limited = f"ulimit -f 24; exec {sys.executable} -c \"$FAST\" \"$@\""  # in KiB
    limit, free = ["bash", "-c", limited, "bash"], [sys.executable, "-c", script]
    for status, begin in ((2, limit), (0, free)):
        done = subprocess.run([*begin, *JOB], cwd=tmp_path,
                              env=os.environ | hub.environment | {"FAST": script},
                              capture_output=True, text=True, timeout=240)
        assert done.returncode == status, done.stderr
        if status:
            assert "data/x.partial is kept" in last_line(done.stderr)
            assert (tmp_path / "data" / "x.partial" / "state.json").exists()
    assert both(tmp_path / "data" / "x") == both(undisturbed)


def test_short_stream(hub, tmp_path, docs):
    """More tokens than the stream has: one line says how many there were; --allow_short then keeps
    them, without reading the shards before the last again."""
    job = "fineweb-edu", "--name=x", "--tokens=1e9", "--val_tokens=1e6", "--tokenizer=bpe:300"
    line = last_line(go(*job, cwd=tmp_path, status=2, **hub.environment).stderr)
    had = re.search(r"the stream ended after ([\d,]+) of 1,000,000,000 train tokens", line)[1]
    assert "--allow_short" in line and not (tmp_path / "data" / "x").exists()
    hub.reads.clear()
    go(*job, "--allow_short", cwd=tmp_path, **hub.environment)
    meta, _, found = check(tmp_path / "data" / "x")
    assert meta["tokens"]["train"] == int(had.replace(",", ""))
    assert sorted(found["train"] + found["val"]) == sorted(docs)
    assert {name for name, *_ in hub.reads} <= {"f2.parquet"}, "shards that were done, read again"


def test_any_dataset_of_the_hub(hub, tmp_path, docs):
    """`hub` streams lines of JSON too, whichever column and split, all of it unless --tokens says
    otherwise; killed, it goes on from its row. Garbage in a footer, a page instead of a file and a
    page instead of an answer are tried again. A tokenizer of the Hub is fetched by its name."""
    job = "hub", "me/lines", "--column=body", "--tokenizer=bpe:300", "--name=x"
    killed_at(job, tmp_path, 90_000, **hub.environment)
    hub.faults = {"api": ["html"], "j1.jsonl.gz": ["html", "garbage", "cut"],
                  "f0.parquet": ["garbage", "html"]}
    other = "hub", "me/lines", "--split=validation", "--column=body", "--tokenizer=bpe:270"
    third = "hub", text.HUB["fineweb-edu"][0], "--tokens=5e3", "--tokenizer=me/model"
    done = go(*job, "and", *other, "and", *third, cwd=tmp_path, **hub.environment)
    assert not any(hub.faults.values()) and "error" not in done.stderr
    assert len(re.findall("trying again", done.stderr)) >= 5
    _, tok, found = check(tmp_path / "data" / "x")
    assert tok.vocab_size == 300 and "going on with data/x.partial at" in done.stdout
    for split in found:
        assert found[split] == [text for text in docs[:600]
                                if prepare.is_validation(text, 0.02) == (split == "val")]
    _, _, found = check(tmp_path / "data" / "lines")
    assert sorted(found["train"] + found["val"]) == sorted(docs[:50])
    meta, tok, _ = check(tmp_path / "data" / "fineweb-edu")
    assert meta["tokens"]["train"] < 6e3 and (tok.name, tok.vocab_size) == ("me/model", 901)


def test_what_the_hub_has_not(hub, tmp_path):
    """A column, split, configuration, dataset or tokenizer that is not there, no network by choice,
    an endpoint without a scheme: each ends at once, in one line, with nothing written."""
    job = "hub", "me/lines", "--tokenizer=bpe:300"
    cases = [(job, "no text in column 'text' (it has: body)"),
             ((*job, "--column=body", "--split=test"), "it has: train, validation"),
             ((*job, "--config=fr"), "Available: ['en']"),
             ((*job, "--revision=none"), "404"), (("hub", "me/nothing"), "Not Found"),
             (("hub", "a/b/c"), "Repo id"),
             (("hub", "me/program"), "--revision=refs/convert/parquet"),
             (("hub", text.HUB["cosmopedia"][0], "--column=body"), "it has: id, text")]
    words = [word for argv, _ in cases for word in ("and", *argv)][1:]
    (tmp_path / "a.txt").write_text("some text\n\n" * 10)
    before = tree(tmp_path)
    for name in ("me/nothing", "me/other", "a/b/c"):
        cases.append((("text", "a.txt", "--name=x", f"--tokenizer={name}"), "tokenizer.json"))
        words += ["and", *cases[-1][0]]
    found = lines_of(go(*words, cwd=tmp_path, status=2, **hub.environment).stderr)
    assert len(found) == len(cases)
    for line, (_, says) in zip(found, cases):
        assert line.startswith("error: ") and says in line
    for key, value in (("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "127.0.0.1:9")):
        done = go(*job, cwd=tmp_path, status=2, **hub.environment | {key: value})
        assert key in error_line(done.stderr)
    assert tree(tmp_path) == before


@pytest.mark.soak
def test_memory_is_bounded(tmp_path, docs):
    """A stream of 300 batches, 160 MB of text, takes less than 600 MB in all."""
    folder = tmp_path / "long"
    folder.mkdir()
    with pq.ParquetWriter(folder / "0.parquet", pa.schema([("text", pa.string())])) as writer:
        for i in range(600):  # 600 row groups of 1,000 different documents, 160 MB
            texts = [f"{i} {j} {docs[j % len(docs)]}" for j in range(1000)]
            writer.write_table(pa.table({"text": texts}))
    with Hub({text.HUB["fineweb-edu"]: folder}) as long:
        args = command("prepare.py", "fineweb-edu", "--name=x", "--tokens=20e6",
                       "--tokenizer=unicode", "--allow_short")
        process = subprocess.Popen(args, cwd=tmp_path, env=os.environ | long.env(tmp_path / "home"),
                                   stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    size = sum(map(len, both(tmp_path / "data" / "x")))
    print(f"peak {usage.ru_maxrss / 1024:,.0f} MB for {size / 1e6:,.0f} MB of ids")
    assert status == 0 and usage.ru_maxrss / 1024 < 600
