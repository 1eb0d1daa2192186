"""train.py: real runs on real text, in one process and in two; every arm for a few steps in this
process; bad input through its main."""
import functools
import hashlib
import json
import math
import shutil
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import prepare
import train
from conftest import (ARMS, CPU, LONG, ROOT, SHORT, UNSCALED, build, config_of, error_line, records,
                      script, series, tree)
from lib import provenance
from lib.run_folder import build_model, load_checkpoint, load_model, save_checkpoint
from lib.config import compose
from lib.evaluate import input_norm
from lib.data import Data, sequence_blocks
from lib.plots import draw_loss
from lib.results import read_run
from lib.tokenizer import from_state, script_of, token_bytes

TINY = ["--dataset=small", "--n_layer=1", "--n_head=2", "--n_embd=36", "--block_size=32",
        "--batch_size=4", "--max_steps=2", "--eval_tokens=128", "--gradient_accumulation_steps=1",
        "--device=cpu", "--dtype=float32"]


# ---- real runs ---------------------------------------------------------------------------------

def test_better_than_unigrams(runs, data_dir):
    """With a little time even the slowest arm beats the unigram entropy of the validation text: it
    uses the context."""
    count = np.bincount(np.fromfile(data_dir / "val.bin", np.uint16))
    share = count[count > 0] / count.sum()
    entropy = -(share * np.log(share)).sum()
    assert series(runs["bpe_tied"], "val_loss")[LONG] < entropy - 0.05


def test_equal_seeds_give_equal_batches(runs):
    """batch_crc, a checksum of the tokens of each step, is the same in all runs of a seed at every
    step, and differs from seed to seed and step to step."""
    crc = series(runs["kron"], "batch_crc")
    assert sorted(crc) == list(range(1, 61)) and len(set(crc.values())) == 60
    for name in ("bpe_tied", "binary", "affine", "random"):
        assert crc.items() <= series(runs[name], "batch_crc").items()
    assert not set(series(runs["seed2"], "batch_crc").values()) & set(crc.values())


def test_two_ranks_train_like_one(runs):
    """`torchrun --standalone --nproc_per_node=2 train.py config/tiny.py config/kron.py ...
    --name=ranks2`, two micro-batches each: the same batches, validation numbers to 1e-5, and all
    but the same losses."""
    one, two = runs["kron"], runs["ranks2"]
    header = records(two)[0]
    assert header["config"]["name"] == "ranks2" and header["world_size"] == 2
    assert series(one, "batch_crc") == series(two, "batch_crc")
    assert series(two, "val_loss")[0] == pytest.approx(series(one, "val_loss")[0], abs=1e-5)
    for key in ("loss", "val_loss", "val_bpb"):
        assert series(two, key) == pytest.approx(series(one, key), abs=1e-4)


def test_validation_is_what_it_says(runs, data_dir):
    """val_loss, perplexity and bits per byte, worked out anew from the checkpoint and val.bin:
    mean nats, and bits over the true bytes."""
    model, tok, checkpoint = load_model(runs["kron"])
    ids = np.fromfile(data_dir / "val.bin", np.uint16).astype(np.int64)
    blocks = (len(ids) - 1) // 64
    scored = [i * blocks // 128 for i in range(128)]
    rows = torch.from_numpy(np.stack([ids[b * 64:b * 64 + 65] for b in scored]))
    targets = rows[:, 1:]
    with torch.no_grad():
        log_p = model(rows[:, :-1]).log_softmax(-1).gather(2, targets.unsqueeze(2))
    nats = -log_p.double().sum().item()
    spelled = token_bytes(tok)
    size = sum(len(spelled[i]) for i in targets.flatten().tolist() if i != tok.eot)
    last = records(runs["kron"])[-1]
    assert last["step"] == checkpoint["step"] == 60
    assert last["val_loss"] == pytest.approx(nats / targets.numel(), abs=1e-5)
    assert last["val_ppl"] == pytest.approx(math.exp(last["val_loss"]))
    assert last["val_bpb"] == pytest.approx(nats / math.log(2) / size, abs=1e-5)
    assert last["input_norm"] == pytest.approx(input_norm(model), rel=1e-5)


def test_the_whole_validation_split_is_scored(runs, data_dir):
    """eval.npz, worked out anew: each token but the first has one loss, given its block, the last
    block being the last 64 tokens; summed by document and by the input token's group."""
    model, tok, checkpoint = load_model(runs["kron"])
    train_ids, ids = (np.fromfile(data_dir / f"{split}.bin", np.uint16).astype(np.int64)
                      for split in ("train", "val"))
    starts = [*range(0, len(ids) - 64, 64), len(ids) - 65]
    x = torch.from_numpy(np.stack([ids[s:s + 64] for s in starts]))
    y = torch.from_numpy(np.stack([ids[s + 1:s + 65] for s in starts]))
    loss = {}  # of the token at each place
    with torch.no_grad():
        for s, rows, targets in zip(starts, x.split(1), y.split(1)):
            log_p = model(rows).log_softmax(-1).gather(2, targets.unsqueeze(2))
            for i, nats in enumerate((-log_p).flatten().tolist()):
                loss.setdefault(s + 1 + i, nats)
    assert len(loss) == len(ids) - 1

    spelled = token_bytes(tok)
    sharing = Counter(raw[:16] for raw in spelled)
    epochs = records(runs["kron"])[0]["epochs"]
    expected = np.bincount(train_ids, minlength=len(spelled)) * epochs
    groups, documents = defaultdict(lambda: [0.0, 0]), [[0.0, 0, 0]]
    for place, nats in loss.items():
        given, token = ids[place - 1], ids[place]
        documents[-1][0] += nats
        documents[-1][1] += 1
        documents[-1][2] += len(spelled[token]) * (token != tok.eot)
        if token == tok.eot:
            documents.append([0.0, 0, 0])
        text = spelled[given].decode(errors="replace")
        for name, group in (("seen", int(round(expected[given])).bit_length()),
                            ("length", len(spelled[given])), ("script", script_of(text)),
                            ("shared", int(given != tok.eot and sharing[spelled[given][:16]] > 1))):
            groups[name, group][0] += nats
            groups[name, group][1] += 1
    file = runs["kron"] / "eval.npz"
    found = np.load(file)
    documents = np.array([document for document in documents if document[1]])
    for column, name in enumerate(("nats", "tokens", "bytes")):
        assert found[f"doc_{name}"] == pytest.approx(documents[:, column], rel=1e-5)
    for (name, group), (nats, tokens) in groups.items():
        place = list(found["script_names"]).index(group) if name == "script" else group
        assert found[f"{name}_nats"][place] == pytest.approx(nats, rel=1e-5)
        assert found[f"{name}_tokens"][place] == tokens
    assert all(found[f"{name}_tokens"].sum() == len(loss) for name, _ in groups)
    assert len(ids) % 64 != 1 and len(documents) > 100  # the last block overlaps
    assert file.stat().st_size < 100_000


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


@pytest.mark.parametrize("arm", ["bpe_tied", "kron", "binary", "affine", "random"])
def test_what_a_run_leaves(runs, arm):
    """log.jsonl with a header and each step once, loss.png, and a checkpoint of plain values that
    alone can encode, decode and continue."""
    header, *lines = records(runs[arm])
    assert header["arm"] == arm and header["config"]["seed"] == 1337
    assert {"hardware", "torch", "commit", "command", "date", "data"} <= header.keys()
    steps = [r for r in lines if "loss" in r]
    last = LONG if arm == "bpe_tied" else 60
    assert [r["step"] for r in steps] == list(range(1, last + 1))
    assert all({"loss", "grad_norm", "lr", "ms", "tokens_per_s"} <= r.keys() for r in steps)
    assert [steps[i]["lr"] for i in (0, 10)] == pytest.approx([3e-3 / 11, 3e-3])
    validated = [r["step"] for r in lines if "val_loss" in r]
    assert validated == sorted({0, *range(60, last, 60), last})
    assert (runs[arm] / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    left = {path.name for path in runs[arm].iterdir()}
    assert {"ckpt.pt", "log.jsonl"} <= left <= {"ckpt.pt", "best.pt", "log.jsonl", "loss.png",
                                                "eval.npz", "lock"}
    saved = torch.load(runs[arm] / "ckpt.pt", weights_only=True)
    assert saved["step"] == last and {"model", "optimizer", "config", "tokenizer"} <= saved.keys()
    assert ("transformer.wte.A" in saved["model"]) == (arm == "affine")
    assert from_state(saved["tokenizer"]).encode("Return") != []
    counts = load_model(runs[arm])[0].num_params()
    assert {key: header["params"][key] for key in counts} == counts


def test_the_picture_of_a_run(runs):
    """Its axis shows what came after the fall from ln V, its last validation is written beside the
    curve, and the smoothed curve is a running mean."""
    lines = [r for r in records(runs["kron"]) if "step" in r]
    ax, = draw_loss(lines, "kron").axes
    first, last = ([r["val_loss"] for r in lines if "val_loss" in r][i] for i in (0, -1))
    bottom, top = ax.get_ylim()
    assert bottom < last < top < first
    assert [text.get_text() for text in ax.texts] == [f"{last:.3f}"]
    batch, smooth = ax.lines[0].get_ydata(), ax.lines[1].get_ydata()
    weight = 1 - 25 / len(batch)
    assert smooth[0] == batch[0]
    assert smooth[1] == pytest.approx((weight * batch[0] + batch[1]) / (weight + 1))
    assert np.abs(np.diff(smooth)).mean() < 0.8 * np.abs(np.diff(batch)).mean()
    assert draw_loss([{"step": 0, "val_loss": None}], "nothing yet").axes


def test_a_run_of_before_is_read_and_continued(docstrings, runs, call, capsys):
    """A checkpoint and a log with the keys `run` and `tie`, and a weight that is W today: the same
    model and, under the keys of today, the same config; and the same command knows it again."""
    folder = docstrings / "out" / "before"
    shutil.copytree(runs["kron"], folder)
    header, *lines = records(folder)
    config = {key: value for key, value in header["config"].items() if key not in ("name", "head")}
    config |= {"run": "before", "tie": False, "embed_std": 0.02}
    text = "".join(json.dumps(record) + "\n" for record in [header | {"config": config}, *lines])
    (folder / "log.jsonl").write_text(text)
    whole = load_checkpoint(folder)
    whole["model"]["transformer.wte.weight"] = whole["model"].pop("transformer.wte.W")
    save_checkpoint(folder / "ckpt.pt", whole | {
        "sha256": "of before", "config": config | {"arm": "kron", "data": header["data"]}})
    ids = torch.arange(64).unsqueeze(0)
    again, today = load_model(folder)[0], load_model(runs["kron"])[0]
    assert again.config == today.config and torch.equal(again(ids), today(ids))
    old, new = read_run(folder)["header"]["config"], read_run(runs["kron"])["header"]["config"]
    assert old == new | {"name": "before"}
    argv = ["config/tiny.py", "config/kron.py", *SHORT, "--name=before"]
    assert call(train.main, *argv, cwd=docstrings) == 0
    assert "is finished" in capsys.readouterr().out


# ---- every arm, for a few steps ----------------------------------------------------------------

STEPS = 60


@pytest.fixture(scope="module")
def short_run(small_data):
    """short_run(arm): STEPS steps in this process, made once. {model, config, data, losses
    (validation, before and after), crcs}."""
    @functools.cache
    def short_run(arm):
        config = config_of("config/tiny.py", f"config/{arm}.py", *SHORT, "--dataset=small",
                           "--n_layer=1", "--n_embd=48", "--n_head=2", "--block_size=32",
                           f"--max_steps={STEPS}", "--learning_rate=1e-2", "--eval_tokens=2048")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(small_data)
            data = Data("small", 32)
            model = build_model(vars(config), data.tokenizer)
            optimizer = train.make_optimizer(model, config)
            losses, crcs = [train.validate(model, data, config, CPU)[0]], []
            for step in range(STEPS):
                _, _, crc = train.train_step(step, model, model, optimizer, UNSCALED, data, config)
                crcs.append(crc)
            losses.append(train.validate(model, data, config, CPU)[0])
        return SimpleNamespace(model=model, config=config, data=data, losses=losses, crcs=crcs)
    return short_run


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_learns(short_run, arm):
    """In a few steps the validation loss falls from the uniform log V by 0.8 nats, on the
    batches that every arm sees."""
    before, after = short_run(arm).losses
    assert before == pytest.approx(math.log(512), abs=0.25)  # coded heads at d = 48; others 0.05
    assert after < before - 0.8
    assert short_run(arm).crcs == short_run(ARMS[0]).crcs


@pytest.mark.parametrize("arm", ["bpe_tied", "kron"])
def test_validation_does_not_depend_on_the_batch_size(small_data, monkeypatch, short_run, arm):
    """The last batch may be short: the same loss and bits per byte whatever the batch size, and the
    data is left as it was."""
    monkeypatch.chdir(small_data)
    run = short_run(arm)
    found = []
    for size in (3, 8):
        config = config_of(*TINY, f"--batch_size={size}", "--eval_tokens=256")
        found.append(train.validate(run.model, run.data, config, CPU))
    assert all(pair == pytest.approx(found[0], abs=1e-5) for pair in found)


@pytest.mark.parametrize("arm", ARMS)
def test_weight_decay(bpe, arm):
    """A step without gradients shrinks every matrix by the factor 1 - lr * weight_decay, the faster
    input too, and no vector."""
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
        factor = 1 - 0.01 * 0.1 if p.dim() > 1 else 1
        assert torch.allclose(p, before[name] * factor, rtol=1e-6, atol=0), name


def test_the_input_has_its_own_learning_rate(bpe):
    """bpe_untied_lr: Adam's first step moves every weight by lr, the table by 64 lr."""
    model = build("bpe_untied_lr", bpe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = config_of("configs/bpe_untied_lr.py", "--weight_decay=0")
    optimizer = train.make_optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * group["lr_mult"]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        moved = 64e-3 if "wte" in name else 1e-3
        assert (before[name] - p).mean().item() == pytest.approx(moved, rel=1e-3), name


# ---- the rules, one by one ---------------------------------------------------------------------

def test_bits_per_byte_count_bytes(tmp_path, call, docs):
    """Bits per byte divide by the bytes of the UTF-8 text, not by its characters, and separators
    are no text."""
    lines = [json.dumps({"text": text.replace("e", "é")}) + "\n" for text in docs]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    assert call(prepare.main, "text", "a.jsonl", "--name=a", "--tokenizer=bpe:512",
                "--val_fraction=0.2", cwd=tmp_path) == 0
    data = Data("a", 32)
    config = config_of(*TINY, "--eval_tokens=1000000")
    nats, bpb = train.validate(build("kron", data.tokenizer), data, config, CPU)
    ids = np.fromfile("data/a/val.bin", np.uint16)[1:data.blocks("val") * 32 + 1]
    size = len(data.tokenizer.decode_bytes(ids[ids != data.tokenizer.eot].tolist()))
    assert bpb == pytest.approx(nats * len(ids) / math.log(2) / size)


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
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))


def test_configs_compose(tmp_path, monkeypatch):
    """Left to right, then --key=value; config/kron.py finds configs/kron.py; a run is named from
    what made it; the keys of before mean what they meant."""
    config, arm, _ = compose(["config/tiny.py", "config/kron.py", "--seed=2", "--max_steps=1e3",
                              "--learning_rate=1"])
    assert (config.name, arm, config.seed) == ("tiny-kron-s2", "kron", 2)
    assert (config.n_embd, config.code, config.max_steps) == (192, "kron", 1000)
    assert config.learning_rate == 1.0
    (tmp_path / "mine.py").write_text('"""A comment."""\nn_embd = 96  # half\ncode = "random"\n')
    monkeypatch.chdir(tmp_path)
    config, arm, _ = compose(["config/tiny.py", "config/kron.py", "mine.py", "--name=here"])
    assert (config.n_embd, config.code, config.lift) == (96, "random", "linear")
    assert (arm, config.name) == ("mine", "here")
    (tmp_path / "before.py").write_text('code = "kron"\nlift = "linear"\ntie = False\nrun = "x"\n')
    config = config_of("before.py")
    assert (config.code, config.head, config.name) == ("kron", "table", "x")
    named = config_of("--name=gpt2_124m-s1337")
    assert config_of("config/gpt2_124m.py") == named


# ---- bad input ---------------------------------------------------------------------------------

@pytest.mark.parametrize("options, says", [
    ("--learning_rat=1", "unknown key 'learning_rat', did you mean 'learning_rate'"),
    ("--n_embed=96", "did you mean 'n_embd'"), ("--zzz=1", "unknown key 'zzz'"),
    ("--max_steps=many", "max_steps='many' is not an int"), ("--max_steps=1.5", "is not an int"),
    ("--bias=1", "is not a bool"), ("--seed", "--key=value"), ("--seed=True", "is not an int"),
    ("--learning_rate=nan", "is not a float"), ("--learning_rate=1e999", "is not a float"),
    ("configs/binary.py --head=tied", "head='tied'"), ("--head=own", "must be one of table"),
    ("configs/kron.py --lift=tile", "'kron' takes linear"),
    ("configs/bpe_untied.py --pos_dim=8", "'learned' does not read it; it is of kron, "),
    ("configs/qr.py --rows=64", "'qr' does not read it; it is of random, trigram, hash"),
    ("configs/qr.py --buckets=-1", "buckets=-1: must be 0"), ("--code_form=dense", "on_the_fly"),
    ("--n_head=5", "n_embd=36 is not divisible by n_head=5"),
    ("--code=crown", "code='crown': must be one of learned, binary"),
    ("--block_size=0", "block_size=0"), ("--block_size=100000000", "a block needs"),
    ("--max_steps=0", "must be positive"), ("--learning_rate=-1", "must be positive"),
    ("--seed=-1", "seed=-1"), ("--name=a/b", "plain folder name"),
    ("--dataset=absent", "data/ has: small"), ("--dtype=float8", "bfloat16, float16"),
    ("--device=tpu", "cuda, cpu"),
    ("configs/binary.py --embed_lr_mult=2", "this input has no weights"),
    ("configs/absent.py", "no such config (there are affine, binary"),
    ("code.py", "only assignments"), ("call.py", "not a config"), ("syntax.py", "not a config"),
    ("unknown.py", "did you mean 'n_layer'"), ("type.py", "n_layer='two' is not an int")])
def test_bad_options(small_data, tmp_path, refuse, options, says):
    """A key, value or combination that cannot be meant is one line that says what is near, before
    anything is written."""
    shutil.copytree(small_data / "data", tmp_path / "data")
    for name, text in (("code", "import os"), ("call", "n_layer = max(1, 2)"),
                       ("syntax", "n_layer = = 2"), ("unknown", "n_layers = 2"),
                       ("type", "n_layer = 'two'")):
        (tmp_path / f"{name}.py").write_text(text + "\n")
    assert says in refuse(train.main, *TINY, *options.split(), cwd=tmp_path)


def sign(folder, meta):
    """Write a meta.json as prepare.py does, with its own hash."""
    meta.pop("checksum", None)
    checksum = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta | {"checksum": checksum}))


def damage_missing(folder, meta):
    (folder / "val.bin").unlink()
    return "val.bin is missing"


def damage_no_meta(folder, meta):
    (folder / "meta.json").unlink()
    (folder / "train.bin").unlink()
    return "no prepared data there (data/ has: nothing); prepare.py makes it"


def damage_nanogpt(folder, meta):
    (folder / "meta.json").unlink()
    return "python prepare.py bins data/small --name=NAME adopts nanoGPT's files"


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


DAMAGES = [damage_missing, damage_no_meta, damage_nanogpt, damage_truncated, damage_changed,
           damage_ids, damage_cut_meta, damage_edited_meta, damage_tokenizer]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__[7:])
def test_damaged_data(small_data, tmp_path, refuse, damage):
    """Missing or truncated bins, other bytes, ids beyond the vocabulary, a meta.json that is none:
    one line, no out folder."""
    shutil.copytree(small_data / "data", tmp_path / "data")
    folder = tmp_path / "data" / "small"
    says = damage(folder, json.loads((folder / "meta.json").read_text()))
    assert says in refuse(train.main, *TINY, cwd=tmp_path)


@pytest.mark.parametrize("path", ["out", "out/x"])
def test_a_folder_that_is_a_file(small_data, tmp_path, refuse, path):
    shutil.copytree(small_data / "data", tmp_path / "data")
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("mine")
    assert path in refuse(train.main, *TINY, "--name=x", cwd=tmp_path)


def test_real_process_ends_in_one_line(small_data, tmp_path):
    """As a command: exit status 2, one line and no traceback on standard error, nothing on standard
    output, nothing written."""
    done = script("train.py", "configs/tiny.py", "configs/binary.py", "--head=tied",
                  cwd=small_data, status=2)
    assert error_line(done.stderr) == done.stderr.strip() and done.stdout == ""
    done = script("train.py", "config/kron.py", cwd=tmp_path, status=2)
    assert "prepare.py" in error_line(done.stderr) and not tree(tmp_path)
