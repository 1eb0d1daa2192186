"""compare.py: gaps, verdicts and pages follow from the logs; what does not match is named."""
import json
import math
import re

import numpy as np
import pytest

import compare
from conftest import HEADER, VAL, records
from lib import plots, results as found, stats, tuning
from lib.errors import InputError

PARAMS = {"input": 1000, "in_use": 600, "body": 2, "head": 3, "total": 1005}


def made_up_run(folder, arm, seed, loss, name=None, header=(), documents=None, crc=0, **config):
    """A run as train.py leaves it, with a known final loss, or that of each of some `documents`, of
    10 tokens and 30 bytes each; training saw half of the tokens 2^7 to 2^8 times, with a loss of 1,
    a quarter 2^8 to 2^9 times."""
    run, base = folder / "out" / (name or f"{arm}-s{seed}"), arm.split(",")[0]
    run.mkdir(parents=True)
    config = {"dataset": "d", "max_steps": 100, "learning_rate": 1e-3, "min_lr": 1e-4,
              "seed": seed, "name": run.name, "n_layer": 1, "n_embd": 8, "block_size": 4,
              "code": "learned" if base.startswith("bpe_") else base, "dtype": "float32",
              "head": "tied" if "_tied" in base else "table", "log_interval": 1000,
              "eval_interval": 1000} | config
    own = {"config": config, "arm": arm, "params": PARAMS, "data": {"train": "0", "val": "1"}}
    write(run, HEADER | own | dict(header), VAL | {"step": 0, "val_loss": 8.0, "input_rms": 0.02},
          {"step": 1, "loss": 3.0, "tokens_per_s": 100.0, "batch_crc": seed + crc},
          {"step": config["max_steps"], "val_loss": loss} | VAL)
    if documents is not None:
        n = len(documents)
        nats, seen = 10 * np.array(documents, np.float32), np.bincount([8] * 2 + [9] + [13])
        np.savez(run / "eval.npz", doc_nats=nats, doc_tokens=np.full(n, 10), seen_tokens=seen * n,
                 doc_bytes=np.full(n, 30), seen_nats=np.where(seen == 1, nats.mean(), seen) * n)
    return run


def made_up_runs(folder, **losses):
    """Runs of some arms, each with its losses on seeds 1, 2, ..."""
    for arm, values in losses.items():
        for seed, loss in enumerate(values, 1):
            made_up_run(folder, arm, seed, loss)


def write(run, *lines):
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_tsv(path, *rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


CONTRAST = ["question", "arm", "base", "kind", "through"]


def results(folder, baseline="bpe_tied", pairs=()):
    """The comparison of the runs in a folder's out/, as compare.py makes it, and its notes; `pairs`
    are planned."""
    notes = []
    contrasts = [dict(zip(CONTRAST, ("?", *pair, "confirmatory"))) for pair in pairs]
    runs = found.finished_runs([folder / "out"], notes)
    (table, *_), baseline = found.select(runs, baseline, (), notes)
    return compare.compare(table, baseline, contrasts), notes


def pair_of(result, arm, base="bpe_tied"):
    """One pair of a comparison."""
    pairs = [*result["planned"], *result["exploratory"]]
    return next(c for c in pairs if (c["arm"], c["base"]) == (arm, base))


# ---- gaps and verdicts -------------------------------------------------------------------------

def test_gap_and_interval_in_the_published_form(tmp_path):
    """Per-seed gaps of -0.076, -0.083, -0.090 are -0.083 +- 0.007, half-width 0.0174; with these
    two arms alone the pooled interval is the same, although they are of two kinds."""
    made_up_runs(tmp_path, bpe_tied=[3.31, 3.32, 3.33], kron=[3.234, 3.237, 3.24])
    result, _ = results(tmp_path)
    c, arms = pair_of(result, "kron"), result["arms"]
    assert (c["gap"]["mean"], c["gap"]["sd"]) == (pytest.approx(-0.083), pytest.approx(0.007))
    assert c["gap"]["interval"] == pytest.approx([-0.10039, -0.06561], abs=1e-5)
    assert c["pooled"] == c["interval"] == pytest.approx(c["gap"]["interval"], abs=1e-6)
    assert c["percent"]["mean"] == pytest.approx((-7.6 / 3.31 - 8.3 / 3.32 - 9 / 3.33) / 3)
    assert (c["verdict"], c["rests_on"]) == (["lower"], "seeds")
    assert (arms["bpe_tied"]["kind"], arms["kron"]["kind"]) == ("input's head", "own head")
    assert arms["bpe_tied"]["loss"]["mean"] == pytest.approx(3.32)


@pytest.mark.parametrize("interval, p, n, says", [
    ([-0.3, -0.1], 0.01, 3, ["lower"]), ([0.1, 0.3], 0.01, 3, ["higher"]),
    ([-0.04, 0.02], 0.4, 3, ["level"]), ([-0.04, -0.01], 0.02, 3, ["lower", "level"]),
    ([-0.04, 0.06], 0.4, 3, ["not known"]), ([-0.3, -0.1], 0.06, 3, ["not known"]),
    (None, None, 1, ["not known"]), ([-0.3, -0.1], 0.01, 1, ["not known"])])
def test_a_verdict_is_lower_higher_level_or_not_known(interval, p, n, says):
    """At 5 %; level within 0.05 of 0. Holm's correction can take a verdict from an interval that
    leaves out 0; one seed of three that were planned is not known."""
    pair = {"interval": interval, "gap": {"mean": sum(interval or [0]), "n": n}, "asked": 3}
    assert compare.verdict(pair, p) == says


def test_one_seed_alone_has_an_interval_over_documents(tmp_path):
    """One run an arm, 0.1 lower on every document but for noise of 0.2: +- 1.96 * 0.2 / sqrt(400).
    The loss is that of the whole split, not of the last validation."""
    rng = np.random.default_rng(0)
    tied, noise = rng.uniform(3, 5, 400), rng.normal(0, 0.2, 400)
    made_up_run(tmp_path, "bpe_tied", 1, 4, documents=tied)
    made_up_run(tmp_path, "random", 1, 4, documents=tied - 0.1 + noise)
    result, _ = results(tmp_path)
    c, arm = pair_of(result, "random"), result["arms"]["bpe_tied"]
    middle, half = noise.mean() - 0.1, 1.96 * noise.std() / 20
    assert c["gap"]["mean"] == pytest.approx(middle, abs=1e-6)
    assert c["interval"] == pytest.approx([middle - half, middle + half], abs=0.002)
    assert (c["verdict"], c["rests_on"], c["pooled"]) == (["lower"], "documents", None)
    assert arm["loss"]["mean"] == pytest.approx(tied.mean(), abs=1e-6)
    assert arm["bpb"]["mean"] == pytest.approx(tied.mean() / math.log(2) / 3, abs=1e-6)


def test_one_seed_is_never_narrower_than_three(tmp_path):
    """Documents that all agree, seeds that do not: the row of one seed shows what one seed of its
    kind has, and with three seeds documents are crossed in."""
    losses = {"bpe_untied": (4.01, 3.99, 4.07), "kron": (4.0, 4.1, 4.05), "qr": (4.02,)}
    for arm, seed in ((arm, seed) for arm in losses for seed in range(len(losses[arm]))):
        documents = losses[arm][seed] + np.linspace(-1, 1, 50)
        made_up_run(tmp_path, arm, seed, 4, documents=documents)
    result, _ = results(tmp_path, "bpe_untied")
    three, one = pair_of(result, "kron", "bpe_untied"), pair_of(result, "qr", "bpe_untied")
    assert np.ptp(one["documents"]) < 0.01  # those alone would say "known"
    assert np.ptp(one["interval"]) == pytest.approx(math.sqrt(3) * np.ptp(three["interval"]))
    assert one["rests_on"] == "seeds"
    assert three["documents"][0] < three["gap"]["mean"] < three["documents"][1]


def test_holm_is_over_the_planned_contrasts_and_no_others(tmp_path):
    """Contrasts that were not run count as planned; arms outside the plan do not, and a planned
    contrast has no mirror outside of the correction."""
    made_up_runs(tmp_path, bpe_tied=[4.1, 4.21, 4.29], bpe_untied=[4.12, 4.2, 4.31],
                 kron=[4.05, 4.16, 4.26], random=[4.11, 4.2, 4.3])
    pairs = [("kron", "bpe_untied"), ("bpe_tied", "bpe_untied"), ("kron", "wide")]
    result, _ = results(tmp_path, "bpe_untied", pairs)
    made = [c for c in result["planned"] if c["gap"]]
    smallest = min(made, key=lambda c: c["p"])
    assert len(made) == 2 and smallest["p_holm"] == pytest.approx(min(1, 3 * smallest["p"]))
    assert result["planned"][2]["verdict"] == ["not run"]
    assert [(c["arm"], "p_holm" in c) for c in result["exploratory"]] == [("random", False)]


def test_steps_to_match():
    """Of an arm that reaches the base's loss, interpolated: 8 -> 4 over 100 steps has 5 at step 75.
    Of one that never does, the share of its steps that the base needed: 8 -> 5 had 6 after 66.7."""
    base, better, worse = ({"vals": [{"step": 0, "val_loss": 8.0}, {"step": 100, "val_loss": loss}]}
                           for loss in (5.0, 4.0, 6.0))
    assert stats.reached_at(base["vals"], 4.9) is None
    assert stats.steps_to_match(better, base) == pytest.approx(4 / 3)
    assert stats.steps_to_match(worse, base) == pytest.approx(2 / 3)
    assert stats.steps_to_match(base, base) == 1


# ---- which runs are compared -------------------------------------------------------------------

def test_what_is_no_whole_run_is_named_and_left_out(tmp_path, call, capsys):
    """Unfinished, diverged, a line missing that the intervals ask for, what --overwrite put aside,
    a log without a header; half a line is dropped. A run resumed with other intervals is not
    judged by them, and one that is given twice is one run."""
    whole = [{"step": 0, "val_loss": 8.0}, {"step": 40, "loss": 3.0}, {"step": 40, "val_loss": 5.0},
             {"step": 80, "loss": 3.0}, {"step": 80, "val_loss": 4.5}]
    for seed, left, last in ((1, whole, 4.0), (3, whole[:1] + whole[2:], 4.0), (4, whole, None),
                             (5, whole, math.nan), (2, whole[:2] + whole[3:], 4.0)):
        run = made_up_run(tmp_path, "kron", seed, 4, log_interval=40, eval_interval=40)
        end = {"step": 100 if last else 90, "val_loss": last or 5.0}
        write(run, records(run)[0], *(VAL | line for line in (*left, end)))
    made_up_run(tmp_path, "kron", 1, 3, name="kron-s1.old")
    old = made_up_run(tmp_path, "kron", 6, 3)
    write(old, *records(old), {"step": 100, "val_loss": 3.0})
    (tmp_path / "out" / "odd").mkdir()
    (tmp_path / "out" / "odd" / "log.jsonl").write_text("garbage\n")
    with open(tmp_path / "out" / "kron-s1" / "log.jsonl", "a") as file:
        file.write('[1]\n\n{"step": "x", "val_loss": 1}\n{"step": 80, "val_lo')
    assert call(compare.main, "out", "out/../out/kron-s1", cwd=tmp_path) == 0
    said = capsys.readouterr()
    for seed, why in ((2, "its log is not whole: nothing of step 40"), (5, "diverged: its"),
                      (3, "its log is not whole: nothing of step 40"), (4, "unfinished, step 90")):
        assert f"left out: out/kron-s{seed}: {why}" in said.err
    assert "a log of other code (no input_rms, update_ratio, val_bpb)" in said.err
    assert "no header" in said.err and "out/kron-s1.old: a run that --overwrite" in said.err
    assert said.err.count("left out") == 4 and "| kron | 1 " in said.out
    write(run, *records(run), {"step": 100, "resumed_with": {"eval_interval": [40, 80]}})
    assert found.read_run(run)["missing"] is None


def test_files_that_are_none_are_refused(tmp_path, refuse):
    assert "no log.jsonl" in refuse(compare.main, "out/none", cwd=tmp_path)
    run = made_up_run(tmp_path, "kron", 1, 4, documents=[4.0])
    (run / "eval.npz").write_bytes((run / "eval.npz").read_bytes()[:100])
    assert "eval.npz is damaged" in refuse(compare.main, cwd=tmp_path)
    np.savez(run / "eval.npz", doc_nats=[math.nan], doc_tokens=[1])
    assert "a loss in it is not finite" in refuse(compare.main, cwd=tmp_path)
    write_tsv(tmp_path / "out" / "contrasts.tsv", CONTRAST, ["q?", "kron", "qr", "confirmatroy"])
    assert "kind is confirmatory or exp" in refuse(compare.main, cwd=tmp_path)


@pytest.mark.parametrize("change, named", [
    (dict(learning_rate=2e-3), "learning_rate is 0.001 in out/bpe_tied-s1 and 0.002 in out/"),
    (dict(crc=8), "it saw other batches than out/bpe_tied-s1"),
    (dict(arm="bpe_tied", name="other", code_form="table", dtype="bfloat16"),
     "out/bpe_tied-s1 is the same arm and seed"),
    (dict(arm="bpe_tied,code_form=table", name="form"), "out/bpe_tied-s1 is the same arm and seed"),
    (dict(arm="bpe_tied", seed=2, rank=3), "its arm has other keys in out/bpe_tied-s1"),
    (dict(header={"data": {"train": "9"}}), "data is {'train': '0', 'val': '1'} in out/bpe_tied")])
def test_unfair_pairs_are_never_compared(tmp_path, call, capsys, change, named):
    """One thing changed in one run of a pair: it is left out, and the first difference named. What
    differs in bits alone, or in name alone, is the same arm."""
    made_up_run(tmp_path, "bpe_tied", 1, 4)
    made_up_run(tmp_path, **{"arm": "kron", "seed": 1, "loss": 3} | change)
    assert call(compare.main, cwd=tmp_path) == 0
    said = capsys.readouterr()
    assert named in said.err and "3.0000" not in said.out and "4.0000" in said.out
    with pytest.raises(InputError, match="same arm and seed|not comparable"):
        found.refuse_unmatched(found.finished_runs([tmp_path / "out"], []))


def test_a_copy_under_another_name_narrows_nothing(tmp_path):
    """Equal final losses to six digits: named, left out, and every interval as without it."""
    made_up_runs(tmp_path, bpe_tied=[4.01, 4.02], kron=[4.05, 3.95])
    before, _ = results(tmp_path)
    made_up_runs(tmp_path, copy=[4.05 + 1e-8, 3.95 + 1e-8])
    after, notes = results(tmp_path)
    assert after == before
    assert sum("to six digits, which counts once" in note for note in notes) == 2


def test_an_arm_of_uneven_spread_is_named(tmp_path):
    """Three times that of the others of its kind: one deviation suits neither."""
    made_up_runs(tmp_path, qr=[4.0, 4.1], kron=[4.2, 4.3], random=[4.4, 4.69], lowrank=[3.5, 3.81])
    (table,), _ = found.select(found.finished_runs([tmp_path / "out"], []), "kron", (), [])
    assert [note.split()[0] for note in compare.uneven(table)] == ["lowrank"]


def test_the_largest_group_is_shown_and_the_rest_named(tmp_path, call, capsys):
    for arm, seeds, layers in (("kron", (1, 2, 3), 1), ("bpe_tied", (1, 2), 2)):
        for seed in seeds:
            made_up_run(tmp_path, arm, seed, 2 + layers + seed / 1e5, n_layer=layers)
    for options, says in (((), "3.0000"), (("--baseline=bpe_tied",), "4.0000")):
        assert call(compare.main, *options, cwd=tmp_path) == 0
        said = capsys.readouterr()
        assert re.findall(r"[34]\.0000", said.out) == [says]
        assert "more: not comparable: n_layer is" in said.err
    assert call(compare.main, "--baseline=qr", cwd=tmp_path) == 2
    assert "no finished run of that arm (there are bpe_tied, kron)" in capsys.readouterr().err


def test_what_makes_a_table_worth_less_stands_first(tmp_path, call, capsys, monkeypatch):
    """Uncommitted code, two versions of the code, two dtypes, a run resumed elsewhere. Hashes
    that are known to be equal bit for bit are one."""
    run = made_up_run(tmp_path, "bpe_tied", 1, 4, header={"commit": "abc+changes"})
    write(run, *records(run), {"step": 5, "resumed_with": {"hardware": ["a", "b"]}})
    for seed, dtype in ((1, "bfloat16"), (2, "float32")):
        made_up_run(tmp_path, "kron", seed, 4.1, header={"code_hash": f"v{seed}"}, dtype=dtype)
    monkeypatch.setitem(found.SAME_CODE, "v2", "123")
    assert call(compare.main, "--out=r/x", cwd=tmp_path) == 0
    said, page = capsys.readouterr().err, (tmp_path / "r" / "x.md").read_text()
    for line in ("no commit has (+changes): out/bpe_tied-s1", "123 (2 runs), v1 (1 runs)",
                 "out/bpe_tied-s1 was resumed with other hardware", "bfloat16 (1 runs)",
                 "dtype is not the same in all", "no grid has them: bpe_tied, kron"):
        assert line in said and line in page[:page.index("## Arms")]


# ---- one key -----------------------------------------------------------------------------------

@pytest.fixture
def rates(tmp_path):
    """kron at three learning rates, min_lr in proportion, over three seeds; 2e-3 in its command."""
    command = "python train.py default.py configs/kron.py --learning_rate=2e-3"
    (tmp_path / "default.py").write_text("learning_rate = 1e-3")
    losses = {1e-3: (4.4, 4.5, 4.6), 1e-2: (4.21, 4.3, 4.4), 2e-3: (4.3, 4.4, 4.51)}
    for rate in losses:
        for seed, loss in enumerate(losses[rate]):
            made_up_run(tmp_path, "kron", seed, loss, f"{rate}-{seed}", {"command": command},
                        learning_rate=rate, min_lr=rate / 10)
    made_up_run(tmp_path, "qr", 1, 3.0)
    return tmp_path


def test_by_a_key_its_values_are_the_arms(rates, call, capsys):
    """The base is what the config files say, here 1e-3; paired by seed, Holm over values; one
    picture; another arm is named and left out."""
    assert call(compare.main, "--by=learning_rate", "--out=r", cwd=rates) == 0
    saved = json.loads((rates / "r.json").read_text())
    c = saved["planned"]
    assert list(saved["arms"]) == [f"learning_rate={rate}" for rate in (0.001, 0.002, 0.01)]
    assert len(c) == 2 and {x["base"] for x in c} == {"learning_rate=0.001"}
    assert c[0]["gap"]["mean"] == pytest.approx(-0.0967, abs=1e-4) and c[0]["verdict"] == ["lower"]
    assert max(x["p_holm"] for x in c) >= min(2 * min(x["p"] for x in c), 1) > 0
    assert not saved["exploratory"] and (rates / "r.png").read_bytes()[:4] == b"\x89PNG"
    assert "left out: out/qr-s1: differs from" in capsys.readouterr().err
    assert call(compare.main, "--by=learning_rate", "--base=1e-2", cwd=rates) == 0
    assert "learning_rate=0.001 - learning_rate=0.01 " in capsys.readouterr().out


@pytest.mark.parametrize("key, a, b", [("dtype", "bfloat16", "float32"), ("batch_size", 8, 16)])
def test_by_a_key_that_changes_bits_or_batches(tmp_path, call, capsys, key, a, b):
    made_up_run(tmp_path, "kron", 1, 4, "a", **{key: a})
    made_up_run(tmp_path, "kron", 1, 4.001, "b", crc=int(key == "batch_size"), **{key: b})
    assert call(compare.main, f"--by={key}", f"--base={a}", cwd=tmp_path) == 0
    assert re.search(rf"{key}={b} - {key}={a} .*\+0.0010", capsys.readouterr().out)


@pytest.mark.parametrize("options, named", [
    (["--by=seed"], "--by=seed: not a key"),
    (["--by=n_head"], "no two runs differ in n_head alone"),
    (["--by=learning_rate", "--base=5"], "another of 0.001, 0.002, 0.01"),
    (["--base=5"], "--base goes with --by"), (["--out=."], "is a folder"),
    (["--by=n_head", "--answers=x"], "--by with --base and --out alone"),
    (["--tune", "--answers=x"], "--tune with --out alone"),
    (["--records=out/qr-s1/log.jsonl/x"], "log.jsonl is a file, not a folder")])
def test_by_and_options_that_cannot_be(rates, refuse, options, named):
    assert named in refuse(compare.main, *options, cwd=rates)


# ---- tuned runs --------------------------------------------------------------------------------

RATES = {"learning_rate": 2e-3, "min_lr": 2e-4}


@pytest.fixture
def grid(tmp_path):
    """A grid in out/grid: input rates of bpe_untied, of kron, and of lowrank at rank 32. Two points
    of kron are run again on a second seed."""
    losses = {("bpe_untied", 100): (4.5, 4.4, 4.3, 4.5), ("kron", 100): (4.4, 4.2, 4.5),
              ("lowrank,rank=32", 100): (4.4, 4.2, 4.5), ("kron", 101): (4.1, 4.5)}
    for arm, seed in losses:
        for mult, loss in zip((0.25, 1.0, 4.0, 16.0), losses[arm, seed]):
            keys = RATES | {"embed_lr_mult": mult, "rank": 32 * ("rank" in arm)}
            made_up_run(tmp_path, f"{arm},embed_lr_mult={mult}", seed, loss,
                        f"grid/{arm}-{mult}-{seed}", max_steps=60, **keys)
    return tmp_path / "out" / "grid"


@pytest.fixture
def tuned(tmp_path, grid, call):
    """The grid's table in results/a, and three seeds of each arm at its choice and of the usual
    table; three contrasts beside the table."""
    argv = ("--tune", "out/grid", "--out=results/a/tuning")
    assert call(compare.main, *argv, cwd=tmp_path) == 0
    write_tsv(tmp_path / "results" / "a" / "contrasts.tsv", CONTRAST,
              ["Is it better tuned?", "bpe_untied_fast", "bpe_untied_usual", "confirmatory"],
              ["Does spelling help?", "kron", "kron_shuffled", "confirmatory"],
              ["And low rank?", "lowrank,rank=32", "kron", "exploratory", "bpe_untied_fast"])
    for arm, loss, options in (
            ("bpe_untied_usual", 4.3, {}), ("kron", 3.9, RATES | {"embed_lr_mult": 0.25}),
            ("bpe_untied_fast", 3.8, RATES | {"embed_lr_mult": 4.0}),
            ("lowrank,rank=32", 3.91, RATES | {"rank": 32})):
        for seed in (11, 12, 13):
            made_up_run(tmp_path, arm, seed, loss + 0.005 * math.cos(seed * loss), **options)
    return tmp_path


def test_a_grid_chooses_each_arms_lowest_loss(tuned):
    """The lower mean of the points that were run on both seeds, else the lowest loss. Written as
    .json and .md; names lose the tuned keys."""
    table = tuning.read_tuning(tuned / "results" / "a" / "tuning.json")
    arms, page = table["arms"], (tuned / "results" / "a" / "tuning.md").read_text()
    best = {arm: row["best"]["embed_lr_mult"] for arm, row in arms.items()}
    assert best == {"bpe_untied": 4, "kron": 0.25, "lowrank": 1}
    assert (arms["lowrank"]["arm"], arms["lowrank"]["edges"]) == ("lowrank,rank=32", [])
    assert [point["r"] for point in arms["kron"]["grid"]] == [12.5, 50, 200]
    assert "**chosen** of 4" in page and page.count("chosen") == 3
    assert re.search(r"4.4000, 4.1000 +\| \*\*chosen", page)


def point(loss, rate=1e-3, speed=1.0, scale=1.0, std=0.0):
    return {"learning_rate": rate, "min_lr": rate / 10, "embed_lr_mult": speed, "embed_std": std,
            "input_multiplier": 1.0, "scale": scale, "r": speed / scale, "val_loss": loss}


@pytest.mark.parametrize("points, edges", [
    ([point(4.2, rate=1e-3), point(4.0, rate=2e-3)], "learning rate 0.002 is the highest of 2"),
    ([point(4.2, rate=1e-3), point(4.0, rate=2e-3), point(None, rate=4e-3)], ""),  # diverged there
    ([point(4.0, speed=0.25), point(4.2), point(4.3, speed=4)], "r 0.25 is the lowest of 3"),
    ([point(4.0, speed=0.25), point(4.009), point(4.3, speed=4)], ""),  # a plateau
    ([point(4.0), point(4.1, scale=0.5, std=0.5, speed=0.5)], ""),  # the default scale
    ([point(4.2), point(4.0, scale=0.5, std=0.5, speed=0.5)], "scale 0.5 is the lowest of 2")])
def test_an_optimum_at_an_edge_of_its_grid(points, edges):
    best = min((p for p in points if p["val_loss"]), key=lambda p: p["val_loss"])
    assert tuning.describe_edges(tuning.edges(points, best)) == edges


@pytest.mark.parametrize("change, named", [
    (dict(seed=101, embed_std=3.0), "no point of the grid of seed 100"),
    (dict(n_layer=2), "not one grid: n_layer"), (dict(), "are the same point of a grid")])
def test_runs_that_are_no_grid_are_refused(tmp_path, grid, refuse, change, named):
    made_up_run(tmp_path, "kron", **{"seed": 100, "loss": 4, "name": "grid/z", "max_steps": 60}
                | RATES | change)
    assert named in refuse(compare.main, "--tune", "out/grid", "--out=results/x", cwd=tmp_path)


def test_tuned_arms_are_compared_at_their_own_settings(tuned, call, capsys):
    """The table that the runs match is found, and the contrasts beside it: arms keep their base
    names, also where a config of another name has the tuned setting; the page shows each setting.
    """
    path, kron = tuned / "results" / "a" / "tuning.json", RATES | {"embed_lr_mult": 0.25}
    table = json.loads(path.read_text())
    for row in table["arms"].values():
        del row["keys"]["rows"]  # as if its arm had come after the grid
    path.write_text(json.dumps(table))
    made_up_run(tuned, "kron", 100, 1.0, **kron)
    made_up_run(tuned, "kron", 14, 1.0, learning_rate=4e-3, min_lr=4e-4)
    made_up_run(tuned, "bpe_untied", 14, 3.0, rank=5)
    made_up_run(tuned, "kron,pos_dim=4", 11, 3.1, pos_dim=4, **kron)
    assert call(compare.main, "--out=results/tiny", "--answers=a.md", cwd=tuned) == 0
    said = capsys.readouterr().err
    for line in ("out/kron-s100: seed 100 chose the settings", "has them: bpe_untied_usual\n",
                 "out/kron-s14: 0.004 is not what the grid chose (0.002, input rate × 0.25)",
                 "bpe_untied-s14: not comparable: its arm has other keys in out/bpe_untied_f"):
        assert line in said
    saved = json.loads((tuned / "results" / "tiny.json").read_text())
    assert saved["tuned"] == "results/a/tuning.json"
    assert {arm: a["tuned"] for arm, a in saved["arms"].items()} == {
        "bpe_untied": "tuned", "bpe_untied_usual": "not tuned", "lowrank": "tuned",
        "kron": "tuned", "kron,pos_dim=4": "as kron"}
    assert saved["arms"]["bpe_untied"]["setting"] == "0.002, input rate × 4"
    assert [(c["question"], c["verdict"]) for c in saved["planned"]] == [
        ("Is it better tuned?", ["lower"])]  # the question that these runs can answer
    assert pair_of(saved, "lowrank", "kron")["gap"]["mean"] == pytest.approx(0.01, abs=0.01)
    page = (tuned / "results" / "tiny.md").read_text()
    assert re.search(r"lowrank - kron: .* \(lowrank - bpe_untied\) .* \(bpe_untied - kron\)", page)
    assert "grid of 60 steps (seed 100, 101). It is used here at 100" in page
    assert re.match(r"\*\*No\. With 600 trained input parameters, bpe_untied ends 0.(49|50)",
                    (tuned / "a.md").read_text())


@pytest.mark.parametrize("change, status, says", [
    ({}, 0, "edge of its grid: scale 4 is the highest of 3"),
    ({"settings": {"n_layer": 9}}, 0, "not comparable: learning_rate is"),  # of other runs
    ({"arms": 3}, 2, "error: results/a/tuning.json: not a table")])
def test_a_table_of_other_runs_or_a_damaged_one_is_not_used(tuned, call, capsys, change, status,
                                                            says):
    """Then other rates are not compared; a choice at an edge of its grid is said."""
    path = tuned / "results" / "a" / "tuning.json"
    table = json.loads(path.read_text())
    table["arms"]["kron"]["edges"] = [{"axis": "scale", "value": 4.0, "end": "highest", "of": 3}]
    path.write_text(json.dumps(table | change))
    assert call(compare.main, cwd=tuned) == status
    said = capsys.readouterr()
    assert says in said.err and ("Is it better tuned?" in said.out) == (not change)


# ---- the page of a plan ------------------------------------------------------------------------

@pytest.fixture
def planned_runs(tmp_path):
    """Five arms over two seeds in out/, two of them at a second horizon with one seed, one in
    out/float32; half of a plan is not run. Seeds shift all arms alike."""
    losses = {"bpe_tied_usual": 4.6, "bpe_untied_usual": 4.4, "bpe_untied": 4.1, "kron": 4.21,
              "wide": 4.2}
    more = [("kron", 21, "", 400), ("bpe_untied", 21, "", 400), ("bpe_untied", 21, "float32/", 100)]
    for arm, seed, folder, steps in [*((a, s, "", 100) for a in losses for s in (21, 22)), *more]:
        keys = {"code": "affine", "code_width": -1} if arm == "wide" else {
            "embed_std": 0.02 if "usual" in arm else 1.0}
        documents = np.full(9, losses[arm] + seed / 100 + 0.001 * len(arm) * np.cos(seed))
        made_up_run(tmp_path, arm, seed, 4, f"{folder}{arm}-{steps}-s{seed}",
                    {"params": PARAMS | {"in_use": 600 * (arm != "wide")}},
                    documents + 0.01 * bool(folder), max_steps=steps, **keys)
    write_tsv(tmp_path / "out" / "contrasts.tsv", CONTRAST,
              ["q1?", "wide", "bpe_untied", "confirmatory"], ["q1?", "wide", "qr", "confirmatory"],
              ["q2?", "kron", "bpe_untied_usual", "confirmatory"],
              ["q2?", "kron", "bpe_untied", "confirmatory"],
              ["q2?", "bpe_untied", "bpe_untied_usual", "confirmatory"],
              ["q3?", "bpe_untied_usual", "bpe_tied_usual", "exploratory"],
              ["sum?", "kron", "bpe_tied_usual", "exploratory", "bpe_untied bpe_untied_usual"])
    plan = [["2", f"{arm}-s{seed}", "-"] for arm in ("qr", "wide-100", "bpe_untied-100")
            for seed in (21, 22, 23)]
    write_tsv(tmp_path / "out" / "plan.tsv", ["item", "name", "arguments"],
              ["1", "kron-100-s21", "-"], ["1", "tuning/x", "-"], *plan)
    return tmp_path


def test_the_page_of_a_plan(planned_runs, call):
    """A table for each question; the published contrast as a sum that adds up; gaps by how often
    training saw the token; horizons over their common seed, where one has the deviation of the
    other; what was not reached; two pictures."""
    assert call(compare.main, "out", "--baseline=bpe_untied", "--out=p", cwd=planned_runs) == 0
    page = (planned_runs / "p.md").read_text()
    places = [page.index(title) for title in (
        "# p: 5 arms", "Read this first", "](p.png)", "## q1?", "## The published contrast",
        "## By how", "## Horizons", "## Arms", "## Other", "## In float32", "## What made")]
    assert places == sorted(places)
    whole, *terms = map(float, re.search(
        r"kron - bpe_tied_usual: (\S+) = (\S+) \(kron - bpe_untied\) (\S+) \(bpe_untied - "
        r"bpe_untied_usual\) (\S+) \(bpe_untied_usual - bpe_tied_usual\)", page).groups())
    assert whole == pytest.approx(sum(terms), abs=2e-3) == pytest.approx(4.21 - 4.6, abs=0.02)
    seen = page[page.index("By how often training"):page.index("## Horizons")]
    assert "under 256 times (50 % of tokens) | 256 to 1,023 times (25 %" in seen
    row = next(line for line in seen.splitlines() if line.startswith("| kron - bpe_untied "))
    assert row.split("|")[3].strip() == "+0.000 ± 0.000" and "+1.1" in row.split("|")[4]
    assert "Not run: wide - qr." in page
    assert re.search(r"kron - bpe_untied +\| 21 +\| (\+0\.1\S+ \[.*\]) +\| \1", page)
    assert re.search(r"\(Student, Holm\) are .*kron - bpe_untied_usual lower \(p 0.0", page)
    assert ("planned and not compared: 5 of 10 runs, qr-s21, qr-s22, qr-s23, wide-100-s23, "
            "bpe_untied-100-s23\n") in page
    assert re.search(r"bpe_untied - bpe_untied in float32 .*-0.01", page)


def test_no_name_in_the_pictures_lies_on_another(planned_runs):
    runs = found.finished_runs([planned_runs / "out"], [])
    tables, baseline = found.select(runs, "bpe_untied", (), [])
    figure = plots.answer_picture(tables, [], baseline)
    figure.draw_without_rendering()
    for ax in figure.axes:
        boxes = [text.get_window_extent() for text in ax.texts]
        assert {"kron", "bpe_untied"} <= {text.get_text() for text in ax.texts}
        assert not [1 for i, box in enumerate(boxes) if box.count_overlaps(boxes[i + 1:])]


def test_answers_and_records(planned_runs, call, refuse):
    """The answer to the title comes first, from the verdicts, and is not decided while a contrast
    has fewer seeds than were planned; the best arm of each class with its lead over the next; a
    class without an arm is empty."""
    argv = ("out", "--baseline=bpe_untied", "--answers=a.md", "--records=r.md")
    assert call(compare.main, *argv, cwd=planned_runs) == 0
    title, _, _, _, first, _ = (planned_runs / "a.md").read_text().splitlines()
    assert re.match(r"\*\*Not decided\. With no trained input parameters, wide ends 0\.\d+ nats "
                    r"above bpe_untied\*\* \(at most 0.0M parameters, d, 100 steps, 0.5 epochs, .* "
                    r"It ends without a run of qr", title)
    assert re.search(r"higher, \S+ \[.*\]; so far, 2 of 3 seeds<br>not run", first)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]]
            for line in (planned_runs / "r.md").read_text().splitlines() if line.startswith("| ")]
    assert [row[1] for row in rows[1:6]] == ["wide", *3 * ["bpe_untied"], "-"]
    assert rows[1][4:] == ["-", "-"] and rows[2][4] == "wide" and rows[2][5].startswith("-0.1")
    assert [row[0] for row in rows[7:]] == ["bpe_untied", "wide", "kron", "bpe_untied_usual",
                                            "bpe_tied_usual"]
    assert rows[9][3] == "bpe_untied" and rows[9][4].startswith("+0.11")
    write_tsv(planned_runs / "out" / "contrasts.tsv", CONTRAST,
              ["q1?", "kron", "bpe_untied", "confirmatory"])
    assert call(compare.main, *argv, cwd=planned_runs) == 0
    assert (planned_runs / "a.md").read_text().startswith("**Yes, for the lowest loss among these")
    write_tsv(planned_runs / "out" / "contrasts.tsv", CONTRAST,
              ["q1?", "kron", "wide", "exploratory"])
    assert "contrasts.tsv needs" in refuse(compare.main, "out", "--answers=b", cwd=planned_runs)


def test_text_in_a_picture_is_text(tmp_path):
    """A run that is called like a formula, which matplotlib cannot parse, is drawn."""
    plots.loss_picture([{"step": 1, "val_loss": 4.0}], r"$\frac$", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
