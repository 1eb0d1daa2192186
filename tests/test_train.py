"""train.py: a real run worked out anew, every arm for a few steps, the rules, bad input."""
import hashlib
import json
import math
import re
import shutil
import zlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import train
from conftest import (ARMS, ROOT, SHORT, build, config_of, error_line, records, script, series,
                      tree)
from lib import provenance
from lib.config import compose
from lib.data import Data, sequence_blocks
from lib.run_folder import build_model, load_model
from lib.tokenizer import from_state, script_of, token_bytes
from toy import TOY

# ---- a real run --------------------------------------------------------------------------------

T = 40  # its context
REAL = [*TOY, f"--block_size={T}", "--max_steps=8", "--eval_interval=4", "--eval_tokens=1240",
        "--warmup_steps=3", "--seed=7"]
NAME = "$\\frac$дом"  # which matplotlib takes for mathematics, and a terminal may not print


@pytest.fixture(scope="module")
def real(small_data):
    """The folder of a run of eight steps, made by the command; stdout.txt is what it printed."""
    done = script("train.py", *REAL, f"--name={NAME}", cwd=small_data, PYTHONIOENCODING="cp1252")
    (small_data / "stdout.txt").write_text(done.stdout)
    return small_data / "out" / NAME


def test_what_a_run_leaves(real):
    """log.jsonl with a header and each step once, loss.png, a checkpoint of plain values that alone
    can encode and decode."""
    header, *lines = records(real)
    assert header["arm"] == "kron" and header["config"]["seed"] == 7
    assert {"hardware", "torch", "commit", "command", "date", "data"} <= header.keys()
    steps = [r for r in lines if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 9))
    assert all({"loss", "grad_norm", "lr", "ms", "tokens_per_s"} <= r.keys() for r in steps)
    assert [r["step"] for r in lines if "val_loss" in r] == [0, 4, 8]
    assert (real / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert {path.name for path in real.iterdir()} == {"ckpt.pt", "best.pt", "log.jsonl", "loss.png",
                                                      "eval.npz"}
    saved = torch.load(real / "ckpt.pt", weights_only=True)
    assert saved["step"] == 8 and {"model", "optimizer", "config", "tokenizer"} <= saved.keys()
    assert from_state(saved["tokenizer"]).encode("Return") != []
    counts = load_model(real)[0].num_params()
    assert {key: header["params"][key] for key in counts} == counts


def test_what_a_run_prints(real):
    """The first step compiles: it counts no time left."""
    said = (real.parent.parent / "stdout.txt").read_text()
    assert r"out/$\frac$???: kron, " in said
    first, *_, last = (line for line in said.splitlines() if " | loss " in line)
    assert first.endswith("tokens/s")
    assert re.fullmatch(r"step 8/8 \| loss \d.* \d+ ms \| [\d,]+ tokens/s \| 0:00:00 left", last)


def test_two_ranks_train_like_one(small_data, real):
    """torchrun with two ranks, two micro-batches each: the same batches, all but the same losses.
    """
    script("train.py", *REAL, "--name=ranks", "--batch_size=1", "--gradient_accumulation_steps=4",
           ranks=2, cwd=small_data)
    two = small_data / "out" / "ranks"
    assert records(two)[0]["world_size"] == 2
    assert series(real, "batch_crc") == series(two, "batch_crc")
    for key in ("loss", "val_loss", "val_bpb"):
        assert series(two, key) == pytest.approx(series(real, key), abs=1e-5)


@pytest.fixture(scope="module")
def scored(real, small_data):
    """The validation text worked out anew: ids, and the nats of each token but the first, given its
    block of T tokens, the last block being the last T."""
    model, tok, _ = load_model(real)
    ids = np.fromfile(small_data / "data" / "small" / "val.bin", np.uint16).astype(np.int64)
    nats = np.zeros(len(ids))
    for start in [len(ids) - T - 1, *range(0, len(ids) - T, T)]:  # the last two overlap
        x, y = (torch.from_numpy(ids[first:first + T]) for first in (start, start + 1))
        with torch.no_grad():
            log_p = model(x.unsqueeze(0))[0].log_softmax(-1).gather(1, y.unsqueeze(1))
        nats[start + 1:start + T + 1] = -log_p.flatten()
    return SimpleNamespace(ids=ids, nats=nats, eot=tok.eot, raw=token_bytes(tok))


def test_validation_is_what_it_says(real, scored):
    """val_loss is the mean nats of evenly spread blocks, val_bpb bits over their true bytes."""
    blocks = (len(scored.ids) - 1) // T
    starts = [i * blocks // 31 * T for i in range(31)]  # 31: not a multiple of the batch size
    places = np.concatenate([np.arange(start + 1, start + T + 1) for start in starts])
    size = sum(len(scored.raw[i]) for i in scored.ids[places] if i != scored.eot)
    nats, last = scored.nats[places], records(real)[-1]
    assert last["step"] == 8 and last["val_loss"] == pytest.approx(nats.mean(), abs=1e-5)
    assert last["val_ppl"] == pytest.approx(math.exp(last["val_loss"]))
    assert last["val_bpb"] == pytest.approx(nats.sum() / math.log(2) / size, abs=1e-5)


def test_the_whole_validation_split_is_scored(real, scored, small_data):
    """eval.npz: summed by document and by the input token's group."""
    found, raw, V = np.load(real / "eval.npz"), scored.raw, len(scored.raw)
    given, token, nats = scored.ids[:-1], scored.ids[1:], pd.Series(scored.nats[1:])
    train_ids = np.fromfile(small_data / "data" / "small" / "train.bin", np.uint16)
    seen = np.bincount(train_ids, minlength=V) * records(real)[0]["epochs"]
    sharing = Counter(token[:16] for token in raw)
    groups = {"doc": np.cumsum(token == scored.eot) - (token == scored.eot),
              "seen": [round(seen[i]).bit_length() for i in given],
              "length": [len(raw[i]) for i in given],
              "script": [script_of(raw[i].decode(errors="replace")) for i in given],
              "shared": [int(i != scored.eot and sharing[raw[i][:16]] > 1) for i in given]}
    for name, group in groups.items():
        sums = nats.groupby(group).agg(["sum", "count"])
        at = found["script_names"].searchsorted(sums.index) if name == "script" else sums.index
        assert found[f"{name}_nats"][at] == pytest.approx(sums["sum"].values, rel=1e-5)
        assert found[f"{name}_tokens"][at].tolist() == sums["count"].tolist()
        assert found[f"{name}_tokens"].sum() == len(token)
    size = pd.Series([len(raw[i]) * (i != scored.eot) for i in token]).groupby(groups["doc"]).sum()
    assert found["doc_bytes"].tolist() == size.tolist()
    assert len(scored.ids) % T != 1  # the last block overlaps


def test_the_code_hash_is_of_statements(tmp_path, monkeypatch):
    """A statement of each file that decides numbers changes it; comments and docstrings do not."""
    for name in provenance.DECISIVE:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    whole = provenance.code_hash()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    for name in provenance.DECISIVE:
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace('"""', '"""Other words. ', 1) + "\n# a comment\n")
        assert provenance.code_hash() == whole
        (tmp_path / name).write_text(text + "\nx = 1\n")
        assert provenance.code_hash() != whole
        (tmp_path / name).write_text(text)


def test_a_commit_is_marked_where_code_and_not_pages_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "code_hash", lambda: "123")
    (tmp_path / "results").mkdir()
    for name in ("train.py", "results/tiny.md"):
        (tmp_path / name).write_text("before")
    provenance.git("init", "-q")
    provenance.git("add", "-A")
    provenance.git("-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "all")
    for name, marked in (("results/tiny.md", False), ("train.py", True)):
        (tmp_path / name).write_text("after")
        made = provenance.describe_machine(torch.device("cpu"), 1)
        assert made["commit"].endswith("+changes") == marked and len(made["commit"]) >= 12


# ---- every arm, for a few steps ----------------------------------------------------------------

@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_learns(small_data, monkeypatch, arm):
    """In 60 steps the validation loss falls from the uniform log V by 0.8 nats, on the batches that
    seed and step alone decide."""
    monkeypatch.chdir(small_data)
    config = config_of("configs/tiny.py", f"configs/{arm}.py", *SHORT, "--n_layer=1",
                       "--n_embd=48", "--n_head=2", "--block_size=32", "--learning_rate=1e-2")
    data = Data("small", 32)
    model = build_model(vars(config), data.tokenizer)
    optimizer = train.make_optimizer(model, config)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    before, _ = train.validate(model, data, range(64), config, model.device)
    for step in range(60):
        _, _, crc = train.train_step(step, model, model, optimizer, scaler, data, config)
        blocks = sequence_blocks(data.blocks("train"), config.seed, step * 8, 8)
        assert crc == sum(map(zlib.crc32, data.read("train", blocks)))
    after, _ = train.validate(model, data, range(64), config, model.device)
    assert before == pytest.approx(math.log(512), abs=0.25)  # coded heads at d = 48; others 0.05
    assert after < before - 0.8


@pytest.mark.parametrize("arm", ARMS)
def test_learning_rate_and_weight_decay_of_each_parameter(bpe, arm):
    """All that is trained is in the optimizer: the input learns embed_lr_mult times as fast, and
    a step shrinks every matrix by lr * 0.1, no vector."""
    config, model = config_of(f"configs/{arm}.py"), build(arm, bpe, "--bias=True")
    groups = {id(p): group for group in train.make_optimizer(model, config).param_groups
              for p in group["params"]}
    assert groups.keys() == {id(p) for p in model.parameters() if p.requires_grad}
    for name, p in model.named_parameters():
        mult = config.embed_lr_mult if name.startswith("transformer.wte.") else 1
        group = groups[id(p)]
        assert group["lr_mult"] == mult
        assert group["weight_decay"] * mult == pytest.approx(0.1 if p.dim() > 1 else 0)


# ---- the rules, one by one ---------------------------------------------------------------------

@pytest.mark.parametrize("blocks", [1, 7, 1000])
def test_every_block_once_an_epoch(blocks):
    """Sequences visit every block once an epoch, in another order each epoch and for each seed,
    however they are cut into batches."""
    three = sequence_blocks(blocks, 1, 0, 3 * blocks)
    epochs = [three[i * blocks:(i + 1) * blocks] for i in range(3)]
    assert all(sorted(epoch) == list(range(blocks)) for epoch in epochs)
    orders = {tuple(epoch) for epoch in [*epochs, sequence_blocks(blocks, 2, 0, blocks)]}
    assert len(orders) == (1 if blocks == 1 else 4)
    cut = [sequence_blocks(blocks, 1, first, 3) for first in range(0, 3 * blocks, 3)]
    assert sum(cut, []) == three


def test_blocks_cover_every_token(small_data, monkeypatch):
    """The blocks' targets are the split's tokens from the second on, in order, each once; the
    inputs are the tokens before them."""
    monkeypatch.chdir(small_data)
    data, ids = Data("small", 32), np.fromfile("data/small/train.bin", np.uint16)
    rows = data.read("train", range(data.blocks("train")))
    inputs, targets = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    assert len(ids) - 32 <= len(targets) + 1 <= len(ids)
    assert np.array_equal(targets, ids[1:len(targets) + 1])
    assert np.array_equal(inputs, ids[:len(inputs)])


def test_learning_rate():
    """Linear warmup, then half a cosine down to min_lr."""
    config = config_of("--learning_rate=1.0", "--min_lr=0.1", "--warmup_steps=10",
                       "--max_steps=110")
    rates = [train.learning_rate(step, config) for step in range(111)]
    assert rates[:11] == pytest.approx([(i + 1) / 11 for i in range(11)])
    assert rates[35] == pytest.approx(0.1 + 0.9 * (2 + 2**0.5) / 4)
    assert rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)


def test_what_limits_a_run_is_said(small_data, tmp_path, call, capsys):
    """Of data whose tokenizer loses text, bits per byte are of the kept text; steps that all lie
    inside the warm-up are said to."""
    shutil.copytree(small_data / "data", tmp_path / "data")
    path = tmp_path / "data" / "small" / "meta.json"
    meta = json.loads(path.read_text()) | {"kept": 0.99}
    del meta["checksum"]
    checksum = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    path.write_text(json.dumps(meta | {"checksum": checksum}))
    assert call(train.main, *TOY, "--warmup_steps=100", cwd=tmp_path) == 0
    said = capsys.readouterr().out
    assert "6 steps all lie inside the 100 warm-up steps; " in said and "--warmup_steps=N" in said
    assert len(re.findall(r"bits/byte of the kept text$", said, re.M)) == 3


def test_configs_compose(tmp_path, monkeypatch):
    """Left to right, then --key=value; config/kron.py finds configs/kron.py."""
    config, arm, _ = compose(["config/tiny.py", "config/kron.py", "--seed=2", "--max_steps=1e3",
                              "--learning_rate=1"])
    assert (arm, config.seed, config.n_embd, config.code) == ("kron", 2, 192, "kron")
    assert (config.max_steps, config.learning_rate) == (1000, 1.0)
    (tmp_path / "mine.py").write_text('"""A comment."""\nn_embd = 96  # half\ncode = "random"\n')
    monkeypatch.chdir(tmp_path)
    config, arm, _ = compose(["config/tiny.py", "config/kron.py", "mine.py", "--pos_dim=8"])
    assert (config.n_embd, config.code, config.lift, arm) == (96, "random", "linear",
                                                              "mine,pos_dim=8")
    assert config_of("config/gpt2_124m.py") == config_of("--name=gpt2_124m-s1337")


@pytest.mark.parametrize("options, name", [
    ("configs/tiny.py configs/kron.py --seed=2", "tiny-kron-s2"), ("", "default-s1337"),
    ("configs/tiny.py configs/kron.py --dataset=docstrings --n_layer=1", "tiny-kron-s1337"),
    ("configs/tiny.py configs/kron.py --dataset=mine --seed=2", "tiny-mine-kron-s2"),
    ("configs/kron.py --dataset=mine", "mine-kron-s1337"), ("configs/kron.py --name=x", "x")])
def test_a_run_is_named_from_what_made_it(options, name):
    """Its configs and seed, and its dataset where that is not the size's own."""
    assert config_of(*options.split()).name == name


# ---- bad input ---------------------------------------------------------------------------------

@pytest.mark.parametrize("options, says", [
    ("--learning_rat=1", "unknown key 'learning_rat', did you mean 'learning_rate'"),
    ("--overwrite=no", "--overwrite has no value"), ("--seed", "--key=value"),
    ("--max_steps=many", "max_steps='many' is not of type int"),
    ("--max_steps=1.5", "not of type int"), ("--seed=True", "not of type int"),
    ("--bias=1", "not of type bool"), ("--learning_rate=1e999", "not of type float"),
    ("configs/binary.py --head=tied", "head='tied'"), ("--code=crown", "must be one of learned"),
    ("configs/bpe_untied.py --pos_dim=16", "'learned' does not read it; it is of kron, "),
    ("--n_head=5", "n_embd=36 is not divisible by n_head=5"),
    ("--block_size=100000000", "a block needs 100,000,001: --block_size="),
    ("--max_steps=0", "must be at least 1"), ("--learning_rate=-1", "must be at least 1e-30"),
    ("--seed=-1", "from 0 to 4,294,967,295"), ("--beta1=1", "beta1=1.0"),
    ("--embed_std=1e300", "from 0 to 1,000,000"), ("--name=a/b", "plain folder name"),
    ("--name=a\0b", "plain folder name"), ("--name=" + 201 * "a", "plain folder name"),
    ("--dataset=absent", "(data/ has: small); python prepare.py docstrings makes"),
    ("--vocab_size=600", "the data has 512"),
    ("configs/binary.py --embed_lr_mult=2", "this input has no weights"),
    ("configs/absent.py", "no such config (there are affine, binary")])
def test_bad_options(small_data, refuse, options, says):
    """A key, value or combination that cannot be meant is one line that says what is near, before
    anything is written."""
    assert says in refuse(train.main, *TOY, *options.split(), cwd=small_data)


@pytest.mark.parametrize("text, says", [
    ("import os", "line 1: only key = value is read"), ("x.y = 3", "only key = value"),
    ("n_layer = __import__('os').getpid()", "not a config"), ("n_layer = (", "not a config"),
    ("\0", "not a config"), ("n_layer = " + "(" * 5000, "not a config"),
    ("n_layers = 2", "did you mean 'n_layer'"), ("n_layer = 'two'", "'two' is not of type int")])
def test_config_files_are_read_never_run(tmp_path, refuse, text, says):
    (tmp_path / "c.py").write_text(text)
    line = refuse(train.main, "c.py", cwd=tmp_path)
    assert says in line and "c.py" in line


def test_a_real_process_ends_in_one_line(tmp_path):
    """As a command: exit status 2, one line and no traceback on standard error, nothing written."""
    done = script("train.py", "config/kron.py", cwd=tmp_path, status=2)
    assert error_line(done.stderr) == done.stderr.strip() and done.stdout == ""
    assert "prepare.py" in done.stderr and not tree(tmp_path)
