"""train.py: real runs on real text, in one process and in two; bad input through its main, in this process."""
import hashlib
import json
import math
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import prepare
import train
from conftest import ARMS, LONG, build, error_line, records, script, series, tree
from model import load_model
from lib.tokenizer import from_state, token_bytes

TINY = ["--dataset=small", "--n_layer=1", "--n_head=2", "--n_embd=36", "--block_size=32", "--batch_size=4", "--max_steps=2",
        "--eval_tokens=128", "--gradient_accumulation_steps=1", "--device=cpu", "--dtype=float32"]


def config_of(*argv):
    return train.compose(list(argv))[0]


# ---- every arm learns --------------------------------------------------------------------------------------

@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_learns(runs, arm):
    """In 60 steps the validation loss falls from the uniform log V by more than a nat."""
    loss = series(runs[arm], "val_loss")
    assert loss[0] == pytest.approx(math.log(4096), abs=0.15)
    assert loss[max(loss)] < loss[0] - 1


def test_better_than_unigrams(runs, data_dir):
    """With a little more time even the slowest arm beats the unigram entropy of the validation text: it uses the context."""
    count = np.bincount(np.fromfile(data_dir / "val.bin", np.uint16))
    share = count[count > 0] / count.sum()
    assert series(runs["bpe_tied"], "val_loss")[LONG] < -(share * np.log(share)).sum() - 0.05


def test_equal_seeds_give_every_arm_the_same_batches(runs):
    """batch_crc, a checksum of the tokens of each step, is the same in all arms at every step,
    and differs from seed to seed and step to step."""
    crc = series(runs["kron"], "batch_crc")
    assert sorted(crc) == list(range(1, 61)) and len(set(crc.values())) == 60
    for arm in ARMS:
        assert crc.items() <= series(runs[arm], "batch_crc").items()
    assert not set(series(runs["seed2"], "batch_crc").values()) & set(crc.values())


def test_two_ranks_train_like_one(runs):
    """torchrun on two ranks with two micro-batches each: the same batches, validation numbers to 1e-5,
    and all but the same losses."""
    one, two = runs["kron"], runs["ranks2"]
    assert series(one, "batch_crc") == series(two, "batch_crc")
    assert series(two, "val_loss")[0] == pytest.approx(series(one, "val_loss")[0], abs=1e-5)
    for key in ("loss", "val_loss", "val_bpb"):
        assert series(two, key) == pytest.approx(series(one, key), abs=1e-4)


@pytest.mark.parametrize("arm", ARMS)
def test_validation_does_not_depend_on_the_batch_size(small_data, monkeypatch, arm):
    """The last batch may be short: the same loss and bits per byte whatever the batch size, and the data is left as it was."""
    monkeypatch.chdir(small_data)
    data, device = train.Data("small", 32), torch.device("cpu")
    model = build(arm, data.tokenizer)
    found = [train.validate(model, data, config_of(*TINY, f"--batch_size={n}", "--eval_tokens=256"), 0, 1, device, nullcontext())
             for n in (1, 3, 8, 16)]
    assert all(pair == pytest.approx(found[0], abs=1e-5) for pair in found)


def test_validation_is_what_it_says(runs, data_dir):
    """val_loss, perplexity and bits per byte, worked out anew from the checkpoint and val.bin:
    mean nats, and bits over the true bytes."""
    model, tok, checkpoint = load_model(runs["kron"])
    ids = np.fromfile(data_dir / "val.bin", np.uint16).astype(np.int64)
    blocks = (len(ids) - 1) // 64
    rows = torch.from_numpy(np.stack([ids[b * 64:b * 64 + 65] for b in (i * blocks // 128 for i in range(128))]))
    with torch.no_grad():
        nats = model(rows[:, :-1]).log_softmax(-1).gather(2, rows[:, 1:, None]).double().sum().item() * -1
    size = sum(len(raw) for raw in (token_bytes(tok)[i] for i in rows[:, 1:].flatten().tolist()) if raw != b"<|endoftext|>")
    last = records(runs["kron"])[-1]
    assert last["step"] == checkpoint["step"] == 60
    assert last["val_loss"] == pytest.approx(nats / rows[:, 1:].numel(), abs=1e-5)
    assert last["val_ppl"] == pytest.approx(math.exp(last["val_loss"]))
    assert last["val_bpb"] == pytest.approx(nats / math.log(2) / size, abs=1e-5)
    assert last["input_norm"] == pytest.approx(model.input_norm(), rel=1e-5)


def test_bits_per_byte_count_bytes(tmp_path, call, docs):
    """Bits per byte divide by the bytes of the UTF-8 text, not by its characters, and separators are no text."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text.replace("e", "é")}) + "\n" for text in docs))
    assert call(prepare.main, "text", "a.jsonl", "--name=a", "--tokenizer=bpe:512", "--val_fraction=0.2", cwd=tmp_path) == 0
    data = train.Data("a", 32)
    nats, bpb = train.validate(build("kron", data.tokenizer), data, config_of(*TINY, "--eval_tokens=1000000"), 0, 1,
                               torch.device("cpu"), nullcontext())
    ids = np.fromfile("data/a/val.bin", np.uint16)[1:data.blocks("val") * 32 + 1]
    size = len(data.tokenizer.decode_bytes(ids[ids != data.tokenizer.eot].tolist()))
    assert bpb == pytest.approx(nats * len(ids) / math.log(2) / size)


def test_what_a_run_leaves(runs):
    """log.jsonl with a header and each step once, loss.png, and a checkpoint of plain values
    that alone can encode, decode and continue."""
    for arm in ARMS:
        header, *lines = records(runs[arm])
        assert header["arm"] == arm and header["config"]["seed"] == 1337 and header["params"]["total"] > 0
        assert {"hardware", "torch", "commit", "command", "date", "data"} <= header.keys()
        steps = [r for r in lines if "loss" in r]
        last = LONG if arm == "bpe_tied" else 60
        assert [r["step"] for r in steps] == list(range(1, last + 1))
        assert all({"loss", "grad_norm", "lr", "ms", "tokens_per_s"} <= r.keys() for r in steps)
        assert [steps[i]["lr"] for i in (0, 10)] == pytest.approx([3e-3 / 11, 3e-3])
        assert [r["step"] for r in lines if "val_loss" in r] == sorted({0, *range(60, last, 60), last})
        assert (runs[arm] / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert {p.name for p in runs[arm].iterdir()} <= {"ckpt.pt", "best.pt", "log.jsonl", "loss.png", "lock"}
        saved = torch.load(runs[arm] / "ckpt.pt", weights_only=True)
        assert saved["step"] == last and {"model", "optimizer", "config", "tokenizer"} <= saved.keys()
        assert ("transformer.wte.A" in saved["model"]) == (arm == "affine")
        assert from_state(saved["tokenizer"]).encode("Return") != []
        assert header["params"]["input"] == load_model(runs[arm])[0].num_params()["input"]


# ---- the rules, one by one ---------------------------------------------------------------------------------

@pytest.mark.parametrize("blocks", [1, 7, 1000])
def test_every_block_once_an_epoch(blocks):
    """Sequences visit every block once an epoch, in another order each epoch and for each seed,
    however they are cut into batches."""
    three = train.sequence_blocks(blocks, 1, 0, 3 * blocks)
    epochs = [three[i * blocks:(i + 1) * blocks] for i in range(3)]
    assert all(sorted(epoch) == list(range(blocks)) for epoch in epochs)
    assert blocks == 1 or len({tuple(epoch) for epoch in epochs + [train.sequence_blocks(blocks, 2, 0, blocks)]}) == 4
    assert [b for first in range(0, 3 * blocks, 3) for b in train.sequence_blocks(blocks, 1, first, 3)] == three


def test_blocks_cover_every_token(small_data, monkeypatch):
    """The blocks' targets are the split's tokens from the second on, in order, each once;
    the inputs are the tokens before them."""
    monkeypatch.chdir(small_data)
    data, ids = train.Data("small", 32), np.fromfile("data/small/train.bin", np.uint16)
    rows = data.read("train", range(data.blocks("train")))
    assert len(ids) - 32 <= rows[:, 1:].size + 1 <= len(ids)
    assert (np.array_equal(rows[:, 1:].ravel(), ids[1:rows[:, 1:].size + 1])
            and np.array_equal(rows[:, :-1].ravel(), ids[:rows[:, 1:].size]))


def test_learning_rate():
    """Linear warmup, then half a cosine down to min_lr."""
    config = config_of("--learning_rate=1.0", "--min_lr=0.1", "--warmup_steps=10", "--max_steps=110")
    rates = [train.learning_rate(step, config) for step in range(111)]
    assert rates[:11] == pytest.approx([(i + 1) / 11 for i in range(11)])
    assert (rates[60] == pytest.approx(0.55) and rates[35] == pytest.approx(0.1 + 0.9 * (2 + 2**0.5) / 4)
            and rates[110] == pytest.approx(0.1))
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))


@pytest.mark.parametrize("arm", ARMS)
def test_weight_decay(bpe, arm):
    """A step without gradients shrinks every matrix by the factor 1 - lr * weight_decay, the faster input too, and no vector."""
    config = config_of(f"configs/{arm}.py", "--bias=True")
    model = build(arm, bpe, "--bias=True")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = train.make_optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["lr_mult"]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name] * (1 - 0.01 * 0.1 if p.dim() > 1 else 1), rtol=1e-6, atol=0), name


def test_the_input_has_its_own_learning_rate(bpe):
    """bpe_untied_lr: Adam's first step moves every weight by lr, the table by 64 lr."""
    model = build("bpe_untied_lr", bpe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = train.make_optimizer(model, config_of("configs/bpe_untied_lr.py", "--weight_decay=0"))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * group["lr_mult"]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        assert (before[name] - p).mean().item() == pytest.approx(64e-3 if "wte" in name else 1e-3, rel=1e-3), name


def test_configs_compose(tmp_path, monkeypatch):
    """Left to right, then --key=value; config/kron.py finds configs/kron.py; a run is named from what made it."""
    config, arm, flags = train.compose(["config/tiny.py", "config/kron.py", "--seed=2", "--max_steps=1e3", "--learning_rate=1"])
    assert ((config.run, arm, config.seed, config.n_embd, config.code, config.max_steps, config.learning_rate)
            == ("tiny-kron-s2", "kron", 2, 192, "kron", 1000, 1.0))
    (tmp_path / "mine.py").write_text('"""A comment."""\nn_embd = 96  # half\ncode = "random"\n')
    monkeypatch.chdir(tmp_path)
    config, arm, _ = train.compose(["config/tiny.py", "config/kron.py", "mine.py", "--run=here"])
    assert (config.n_embd, config.code, config.lift, arm, config.run) == (96, "random", "linear", "mine", "here")
    assert (config_of("config/gpt2_124m.py").max_steps == config_of().max_steps
            and config_of("config/gpt2_124m.py") == config_of("--run=gpt2_124m-s1337"))


# ---- bad input ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, says", [
    ("--learning_rat=1", "unknown key 'learning_rat', did you mean 'learning_rate'"), ("--n_embed=96", "did you mean 'n_embd'"),
    ("--zzz=1", "unknown key 'zzz'"), ("--max_steps=many", "max_steps='many' is not an int"),
    ("--max_steps=1.5", "is not an int"), ("--bias=1", "is not a bool"), ("--seed", "--key=value"),
    ("--seed=True", "is not an int"), ("--learning_rate=nan", "is not a float"), ("--learning_rate=1e999", "is not a float"),
    ("configs/kron.py --tie=True", "tie=True"), ("configs/kron.py --lift=tile", "'kron' takes linear"),
    ("--n_head=5", "n_embd=36 is not divisible by n_head=5"), ("--code=crown", "code='crown'"),
    ("--block_size=0", "block_size=0"), ("--block_size=100000000", "a block needs"), ("--max_steps=0", "must be positive"),
    ("--learning_rate=-1", "must be positive"), ("--seed=-1", "seed=-1"), ("--run=a/b", "plain folder name"),
    ("--dataset=absent", "data/ has: small"), ("--dtype=float8", "bfloat16, float32"), ("--device=tpu", "cuda, cpu"),
    ("--embed_lr_mult=2", "no weights of its own"), ("--resume", "no checkpoint"),
    ("configs/absent.py", "no such config (there are affine, binary"), ("code.py", "only assignments"),
    ("call.py", "not a config"), ("syntax.py", "not a config"), ("unknown.py", "did you mean 'n_layer'"),
    ("type.py", "n_layer='two' is not an int")])
def test_bad_options(small_data, tmp_path, refuse, options, says):
    """A key, value or combination that cannot be meant is one line that says what is near, before anything is written."""
    shutil.copytree(small_data / "data", tmp_path / "data")
    for name, text in (("code", "import os"), ("call", "n_layer = max(1, 2)"), ("syntax", "n_layer = = 2"),
                       ("unknown", "n_layers = 2"), ("type", "n_layer = 'two'")):
        (tmp_path / f"{name}.py").write_text(text + "\n")
    assert says in refuse(train.main, *TINY, *options.split(), cwd=tmp_path)


def sign(folder, meta):
    """Write a meta.json as prepare.py does, with its own hash."""
    meta.pop("checksum", None)
    (folder / "meta.json").write_text(json.dumps(meta | {"checksum": hashlib.sha256(json.dumps(meta).encode()).hexdigest()}))


def damage_missing(folder, meta):
    (folder / "val.bin").unlink()
    return "val.bin is missing"


def damage_no_meta(folder, meta):
    (folder / "meta.json").unlink()
    return "no prepared data"


def damage_truncated(folder, meta):
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-100])
    return "train.bin has"


def damage_changed(folder, meta):
    raw = bytearray((folder / "train.bin").read_bytes())
    raw[1000] ^= 1
    (folder / "train.bin").write_bytes(raw)
    return "train.bin does not have the hash"


def damage_ids(folder, meta):
    ids = np.fromfile(folder / "val.bin", np.uint16)
    ids[5] = 512
    ids.tofile(folder / "val.bin")
    meta["sha256"]["val"] = hashlib.sha256(ids.tobytes()).hexdigest()
    sign(folder, meta)
    return "val.bin holds ids beyond the vocabulary of 512"


def damage_cut_meta(folder, meta):
    (folder / "meta.json").write_text(json.dumps(meta)[:-100])
    return "meta.json is damaged"


def damage_edited_meta(folder, meta):
    meta["tokens"]["train"] -= 1000
    (folder / "meta.json").write_text(json.dumps(meta))
    return "meta.json is damaged"


def damage_tokenizer(folder, meta):
    sign(folder, meta | {"tokenizer": {"name": "bpe:512", "tokens": "AAAA"}})
    return "meta.json is damaged"


@pytest.mark.parametrize("damage", [f for name, f in sorted(globals().items()) if name.startswith("damage_")],
                         ids=lambda f: f.__name__[7:])
def test_damaged_data(small_data, tmp_path, refuse, damage):
    """Missing or truncated bins, other bytes, ids beyond the vocabulary, a meta.json that is none: one line, no out folder."""
    shutil.copytree(small_data / "data", tmp_path / "data")
    folder = tmp_path / "data" / "small"
    says = damage(folder, json.loads((folder / "meta.json").read_text()))
    assert says in refuse(train.main, *TINY, cwd=tmp_path)


@pytest.mark.parametrize("kind", ["text", "half", "other"])
def test_continuing_from_what_is_no_checkpoint(small_data, tmp_path, refuse, kind):
    """A file in the checkpoint's place that is none, or half of one, or another project's, is refused and kept."""
    shutil.copytree(small_data / "data", tmp_path / "data")
    path = tmp_path / "out" / "x" / "ckpt.pt"
    path.parent.mkdir(parents=True)
    torch.save({"model": {"w": torch.zeros(5000)}, "iter_num": 5}, path)
    if kind != "other":
        path.write_bytes(b"hello" if kind == "text" else path.read_bytes()[:9000])
    assert "not a checkpoint" in refuse(train.main, *TINY, "--run=x", cwd=tmp_path)


@pytest.mark.parametrize("path", ["out", "out/x"])
def test_a_folder_that_is_a_file(small_data, tmp_path, refuse, path):
    shutil.copytree(small_data / "data", tmp_path / "data")
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("mine")
    assert path in refuse(train.main, *TINY, "--run=x", cwd=tmp_path)


def test_real_process_ends_in_one_line(small_data, tmp_path):
    """As a command: exit status 2, one line and no traceback on standard error, nothing on standard output, nothing written."""
    done = script("train.py", "configs/tiny.py", "configs/kron.py", "--tie=True", cwd=small_data, status=2)
    assert error_line(done.stderr) == done.stderr.strip() and done.stdout == ""
    done = script("train.py", "config/kron.py", cwd=tmp_path, status=2)
    assert "prepare.py" in error_line(done.stderr) and not tree(tmp_path)
