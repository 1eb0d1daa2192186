"""compare.py: gaps, verdicts and pages follow from the logs; what does not match is named."""
import json
import math
import re
import shutil

import numpy as np
import pytest

import compare
import train
from conftest import records
from lib import plots, results as found, stats, tuning
from lib.config import ARM_KEYS

PARAMS = {"input": 1000, "in_use": 600, "body": 2, "head": 3, "total": 1005}


def made_up_run(folder, arm, seed, vals, name=None, crc=7, header=(), documents=None, **config):
    """A run as train.py leaves it, with known validation losses {step: loss}; `documents`: the
    final loss of each of the documents of eval.npz, which have 10 tokens and 30 bytes each. Half of
    the tokens came 2^7 to 2^8 times in training, with a loss of 1, a quarter 2^8 to 2^9 times."""
    run, base = folder / "out" / (name or f"{arm}-s{seed}"), arm.split(",")[0]
    run.mkdir(parents=True)
    config = {"dataset": "d", "max_steps": max(vals), "learning_rate": 1e-3, "min_lr": 1e-4,
              "seed": seed, "name": run.name, "n_layer": 1, "n_embd": 8, "block_size": 4,
              "code": "learned" if base.startswith("bpe_") else base, "dtype": "float32",
              "head": "tied" if "_tied" in base else "table", "log_interval": 1000,
              "eval_interval": 1000} | config
    lines = [{"config": config, "arm": arm, "params": PARAMS, "data": {"train": "0", "val": "1"},
              "tokens_per_step": 32, "epochs": 0.5, "commit": "abc", "code_hash": "123",
              "hardware": "a machine"} | dict(header),
             {"step": 1, "loss": 3.0, "tokens_per_s": 100.0, "batch_crc": crc + seed}]
    lines += [{"step": step, "val_loss": loss, "val_bpb": 1.0, "input_rms": 0.02, "clipped": 0.25,
               "input_speed": 0.01 if step else None} for step, loss in vals.items()]
    edit(run, lambda _: lines, [])
    if documents is not None:
        n = len(documents)
        nats, seen = 10 * np.array(documents, np.float32), np.bincount([8] * 2 + [9] + [13])
        np.savez(run / "eval.npz", doc_nats=nats, doc_tokens=np.full(n, 10), seen_tokens=seen * n,
                 doc_bytes=np.full(n, 30), seen_nats=np.where(seen == 1, nats.mean(), seen) * n)
    return run


def edit(run, change, lines=None):
    """Rewrite a log: change(list of its records) gives the new ones, or changes them in place."""
    lines = records(run) if lines is None else lines
    lines = change(lines) or lines
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def results(folder, baseline="bpe_tied", contrasts=()):
    """The comparison of the runs in a folder's out/, as compare.py makes it, and its notes."""
    notes = []
    runs = found.finished_runs([folder / "out"], notes)
    (table, *_), baseline = found.select(runs, baseline, (), notes)
    return compare.compare(table, baseline, contrasts), notes


def pair_of(result, arm, base="bpe_tied"):
    """One pair of a comparison."""
    pairs = [*result["planned"], *result["exploratory"]]
    return next(c for c in pairs if (c["arm"], c["base"]) == (arm, base))


def planned(*pairs):
    return [{"question": "?", "arm": arm, "base": base, "kind": "confirmatory"}
            for arm, base in pairs]


# ---- gaps and verdicts -------------------------------------------------------------------------

def test_gap_and_interval_in_the_published_form(tmp_path):
    """Per-seed gaps of -0.076, -0.083, -0.090 are -0.083 +- 0.007, half-width 0.0174; with these
    two arms alone the pooled interval is the same, although they are of two kinds."""
    for seed, gap in ((1, 0.076), (2, 0.083), (3, 0.090)):
        tied = 3.3 + seed / 100
        made_up_run(tmp_path, "bpe_tied", seed, {0: 8, 100: tied})
        made_up_run(tmp_path, "kron", seed, {0: 8, 100: tied - gap})
    result, _ = results(tmp_path)
    c = pair_of(result, "kron")
    assert (c["gap"]["mean"], c["gap"]["sd"]) == (pytest.approx(-0.083), pytest.approx(0.007))
    assert c["gap"]["interval"] == pytest.approx([-0.10039, -0.06561], abs=1e-5)
    assert c["pooled"] == c["interval"] == pytest.approx(c["gap"]["interval"], abs=1e-6)
    assert c["percent"]["mean"] == pytest.approx((-7.6 / 3.31 - 8.3 / 3.32 - 9 / 3.33) / 3)
    assert c["ppl_ratio"]["mean"] == pytest.approx(0.9204, abs=1e-4)
    assert (c["verdict"], c["rests_on"]) == (["lower"], "seeds")
    loss = result["arms"]["bpe_tied"]["loss"]
    assert (loss["mean"], loss["sd"]) == (pytest.approx(3.32), pytest.approx(0.01))


@pytest.mark.parametrize("interval, p, gap, says", [
    ([-0.3, -0.1], 0.01, -0.2, ["lower"]), ([0.1, 0.3], 0.01, 0.2, ["higher"]),
    ([-0.04, 0.02], 0.4, -0.01, ["level"]), ([-0.04, -0.01], 0.02, -0.03, ["lower", "level"]),
    ([-0.04, 0.06], 0.4, 0.01, ["not known"]), ([-0.3, -0.1], 0.06, -0.2, ["not known"]),
    (None, None, -0.2, ["not known"])])
def test_a_verdict_is_lower_higher_level_or_not_known(interval, p, gap, says):
    """At 5 %; level within 0.05 of 0. Holm's correction can take a verdict from an interval that
    leaves out 0."""
    assert compare.verdict({"interval": interval, "gap": {"mean": gap}}, p) == says


def test_arms_of_each_kind_of_head_have_a_deviation(tmp_path):
    """Tied and coded heads spread ten times as much: gaps among the others do not pay for it."""
    rng = np.random.default_rng(1)
    for arm, sd in (("bpe_tied", 0.1), ("kron_tied", 0.1), ("bpe_untied", 0.01), ("kron", 0.01),
                    ("random", 0.01), ("qr", 0.01)):
        for seed in (1, 2, 3):
            made_up_run(tmp_path, arm, seed, {0: 8, 100: 4 + seed / 3 + rng.normal(0, sd)})
    result, _ = results(tmp_path, contrasts=planned(("kron", "bpe_untied")))
    mixed, own = pair_of(result, "kron"), pair_of(result, "kron", "bpe_untied")
    assert mixed["pooled"][1] - mixed["pooled"][0] > 5 * (own["pooled"][1] - own["pooled"][0])
    assert mixed["degrees"] < own["degrees"]


def test_one_seed_alone_has_an_interval_over_documents(tmp_path):
    """One run an arm, 0.1 lower on every document but for noise of 0.2: +- 1.96 * 0.2 / sqrt(400).
    The loss is that of the whole split, not of the last validation."""
    rng = np.random.default_rng(0)
    tied = rng.uniform(3, 5, 400)
    random = tied - 0.1 + rng.normal(0, 0.2, 400)
    made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4}, documents=tied)
    made_up_run(tmp_path, "random", 1, {0: 8, 100: 4}, documents=random)
    result, _ = results(tmp_path)
    c = pair_of(result, "random")
    assert c["gap"]["mean"] == pytest.approx((random - tied).mean(), abs=1e-6)
    half = 1.96 * (random - tied).std() / 20
    assert c["interval"] == pytest.approx([c["gap"]["mean"] - half, c["gap"]["mean"] + half],
                                          abs=0.002)
    assert (c["verdict"], c["rests_on"], c["pooled"]) == (["lower"], "documents", None)
    arm = result["arms"]["bpe_tied"]
    assert arm["loss"]["mean"] == pytest.approx(tied.mean(), abs=1e-6)
    assert arm["bpb"]["mean"] == pytest.approx(tied.mean() / math.log(2) / 3, abs=1e-6)


def test_one_seed_is_never_narrower_than_three(tmp_path):
    """Documents that all agree, seeds that do not: the row of one seed shows what one seed of its
    kind has, and with three seeds documents are crossed in."""
    rng = np.random.default_rng(0)
    for arm in ("bpe_untied", "kron", "qr"):
        for seed in (1, 2, 3) if arm != "qr" else (1,):
            documents = 4 + rng.normal(0, 0.05) + np.linspace(-1, 1, 50)
            made_up_run(tmp_path, arm, seed, {0: 8, 9: 4}, documents=documents)
    result, _ = results(tmp_path, "bpe_untied")
    three, one = pair_of(result, "kron", "bpe_untied"), pair_of(result, "qr", "bpe_untied")
    assert one["documents"][1] - one["documents"][0] < 0.01  # those alone would say "known"
    width = three["interval"][1] - three["interval"][0]
    assert one["interval"][1] - one["interval"][0] == pytest.approx(math.sqrt(3) * width)
    assert one["rests_on"] == "seeds"
    assert three["documents"][0] < three["gap"]["mean"] < three["documents"][1]


def test_holm_is_over_the_planned_contrasts_and_no_others(tmp_path):
    """Contrasts that were not run count as planned; arms outside the plan do not, and a planned
    contrast has no mirror outside of the correction."""
    rng = np.random.default_rng(2)
    for arm in ("bpe_tied", "bpe_untied", "kron", "random"):
        for seed in (1, 2, 3):
            loss = 4 + seed / 10 + rng.normal(0, 0.02) - 0.05 * (arm == "kron")
            made_up_run(tmp_path, arm, seed, {0: 8, 100: loss})
    plan = planned(("kron", "bpe_untied"), ("bpe_tied", "bpe_untied"), ("kron", "wide"))
    result, _ = results(tmp_path, "bpe_untied", plan)
    made = [c for c in result["planned"] if c["gap"]]
    smallest = min(made, key=lambda c: c["p"])
    assert len(made) == 2 and smallest["p_holm"] == pytest.approx(min(1, 3 * smallest["p"]))
    assert result["planned"][2]["verdict"] == ["not run"]
    assert [(c["arm"], "p_holm" in c) for c in result["exploratory"]] == [("random", False)]


# ---- steps-to-match ----------------------------------------------------------------------------

def test_steps_to_match():
    """Of an arm that reaches the base's loss, interpolated: 8 -> 4 over 100 steps has 5 at step 75.
    Of one that never does, the share of its steps that the base needed: 8 -> 5 had 6 after 66.7."""
    base, better, worse = ({"vals": [{"step": 0, "val_loss": 8.0}, {"step": 100, "val_loss": loss}]}
                           for loss in (5.0, 4.0, 6.0))
    assert stats.steps_to_match(base["vals"], 4.9) is None
    assert stats.speedup(better, base) == pytest.approx(4 / 3)
    assert stats.speedup(worse, base) == pytest.approx(2 / 3) and stats.speedup(base, base) == 1


# ---- what is read ------------------------------------------------------------------------------

def test_a_half_written_line_is_dropped_with_a_notice(tmp_path, capsys):
    run = made_up_run(tmp_path, "kron", 1, {0: 8, 100: 4})
    with open(run / "log.jsonl", "a") as file:
        file.write('[1]\n\n{"step": "x", "val_loss": 1}\n{"step": 100, "val_lo')
    assert found.read_run(run)["vals"][-1]["val_loss"] == 4
    assert "unreadable lines dropped: 4" in capsys.readouterr().err


def test_runs_without_a_whole_log_to_the_end_are_named_and_left_out(tmp_path, call, capsys):
    """Unfinished, diverged, and a line of training or validation missing that the intervals ask
    for; a run that went on with other intervals is not judged by them."""
    for seed, lost in ((1, "no"), (2, "val_loss"), (3, "loss"), (4, "no"), (5, "no")):
        run = made_up_run(tmp_path, "kron", seed, {0: 8, 40: 5, 80: 4 + seed / 9},
                          log_interval=40, eval_interval=40, max_steps=90 if seed == 4 else 80)
        edit(run, lambda lines: [*lines, *({"step": step, "loss": 3.0} for step in (40, 80))])
        edit(run, lambda lines: [r for r in lines if not (r.get("step") == 40 and lost in r)])
    edit(run, lambda lines: lines[4].update(val_loss=math.nan))
    assert call(compare.main, cwd=tmp_path) == 0
    said = capsys.readouterr()
    for seed, why in ((2, "its log is not whole: nothing of step 40"), (5, "diverged: its"),
                      (3, "its log is not whole: nothing of step 40"), (4, "unfinished, step 80")):
        assert f"left out: out/kron-s{seed}: {why}" in said.err
    assert said.err.count("left out") == 4 and "| kron | 1 " in said.out
    run = tmp_path / "out" / "kron-s2"
    edit(run, lambda lines: lines[-1].update(went_on_with={"eval_interval": [40, 80]}))
    assert found.read_run(run)["missing"] is None


@pytest.mark.parametrize("content, named", [
    ("", "no header"), ("garbage\n", "no header"),
    ('{"config": {"seed": 1}, "arm": "x", "params": {}, "data": {}}\n', "no header")])
def test_files_that_are_none_are_refused(tmp_path, refuse, content, named):
    (tmp_path / "out" / "x").mkdir(parents=True)
    (tmp_path / "out" / "x" / "log.jsonl").write_text(content)
    assert named in refuse(compare.main, "out/x", cwd=tmp_path)
    assert "no log.jsonl" in refuse(compare.main, "out/none", cwd=tmp_path)
    run = made_up_run(tmp_path, "kron", 1, {0: 8, 100: 4}, documents=[4.0])
    (run / "eval.npz").write_bytes((run / "eval.npz").read_bytes()[:100])
    assert "eval.npz is damaged" in refuse(compare.main, cwd=tmp_path)


# ---- which runs are compared -------------------------------------------------------------------

def test_what_is_no_run_is_skipped_with_a_note(tmp_path, call, capsys):
    """`compare.py out/*` beside files, half-made folders and what --overwrite put aside."""
    made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4})
    made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 3}, name="bpe_tied-s1.old")
    (tmp_path / "out" / "demo.json").write_text("{}")
    (tmp_path / "out" / "odd").mkdir()
    (tmp_path / "out" / "odd" / "log.jsonl").write_text("x\n")
    assert call(compare.main, *sorted((tmp_path / "out").iterdir()), cwd=tmp_path) == 0
    said = capsys.readouterr()
    assert said.err.count("skipped, no run:") == 3 and "4.0000" in said.out
    assert "bpe_tied-s1.old: a run that --overwrite put aside" in said.err
    assert call(compare.main, cwd=tmp_path) == 0
    assert "3.0000" not in said.out + capsys.readouterr().out


@pytest.mark.parametrize("change, named", [
    (dict(learning_rate=2e-3), "learning_rate is 0.001 in out/bpe_tied-s1 and 0.002 in out/"),
    (dict(crc=8), "it saw other batches than out/bpe_tied-s1"),
    (dict(arm="bpe_tied", name="copy"), "out/bpe_tied-s1 is the same arm and seed"),
    (dict(arm="bpe_tied", name="other", code_form="table", dtype="bfloat16"),
     "out/bpe_tied-s1 is the same arm and seed"),
    (dict(arm="bpe_tied,code_form=table", name="form"), "out/bpe_tied-s1 is the same arm and seed"),
    (dict(arm="mine", seed=2, code="learned", head="tied"), "it is the arm of out/bpe_tied-s1"),
    (dict(arm="bpe_tied", seed=2, rank=3), "its arm has other keys in out/bpe_tied-s1"),
    (dict(n_layer=2), "n_layer is 1"), (dict(header={"data": {"train": "9"}}), "data is"),
    (dict(header={"extended": [[50, 100]]}), "extended is None in out/bpe_tied-s1 and")])
def test_unfair_pairs_are_never_compared(tmp_path, call, capsys, change, named):
    """One thing changed in one run of a pair: it is left out, and the first difference named. What
    differs in bits alone, or in name alone, is the same arm."""
    made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4})
    made_up_run(tmp_path, **{"arm": "kron", "seed": 1, "vals": {0: 8, 100: 3}, **change})
    assert call(compare.main, cwd=tmp_path) == 0
    said = capsys.readouterr()
    assert named in said.err and "3.0000" not in said.out and "4.0000" in said.out
    every = found.finished_runs([tmp_path / "out"], [])
    with pytest.raises(Exception, match="same arm and seed|not comparable|another name"):
        found.refuse_unmatched(every)


def test_a_copy_under_another_name_narrows_nothing(tmp_path):
    """Equal final losses to six digits: named, left out, and every interval as without it."""
    rng = np.random.default_rng(3)
    losses = {(arm, seed): 4 + rng.normal(0, 0.05)
              for arm in ("bpe_tied", "kron") for seed in (1, 2)}
    for (arm, seed), loss in losses.items():
        made_up_run(tmp_path, arm, seed, {0: 8, 100: loss})
    before, _ = results(tmp_path)
    for seed in (1, 2):
        made_up_run(tmp_path, "copy", seed, {0: 8, 100: losses["kron", seed] + 1e-8})
    after, notes = results(tmp_path)
    assert after == before
    assert sum("to six digits, one run under two names" in note for note in notes) == 2


def test_the_largest_group_is_shown_and_the_rest_named(tmp_path, call, capsys):
    for seed in (1, 2, 3):
        made_up_run(tmp_path, "kron", seed, {0: 8, 100: 3 + seed / 1e5}, name=f"b{seed}")
        if seed < 3:
            made_up_run(tmp_path, "bpe_tied", seed, {0: 8, 100: 4 + seed / 1e5}, name=f"a{seed}",
                        n_layer=2)
    assert call(compare.main, cwd=tmp_path) == 0
    said = capsys.readouterr()
    assert "left out: out/a1 and 1 more: not comparable: n_layer is 1 in out/b1 and 2" in said.err
    assert "3.0000" in said.out and "4.0000" not in said.out
    assert call(compare.main, "--baseline=bpe_tied", cwd=tmp_path) == 0
    assert "4.0000" in capsys.readouterr().out
    assert call(compare.main, "--baseline=qr", cwd=tmp_path) == 2
    assert "no finished run of that arm (there are bpe_tied, kron)" in capsys.readouterr().err


def test_other_horizons_stand_beside(tmp_path, call, capsys):
    """Runs of 100 and of 400 steps are one comparison at two horizons, over their common seed; the
    row of one seed at the second has the deviation of the first."""
    for steps, kron in ((100, 3.8), (400, 3.2)):
        for seed in (1, 2, 3) if steps == 100 else (1,):
            made_up_run(tmp_path, "bpe_tied", seed, {0: 8, steps: 4}, name=f"t{steps}-{seed}")
            made_up_run(tmp_path, "kron", seed, {0: 8, steps: kron + 0.1 * (seed == 1)},
                        name=f"k{steps}-{seed}")
    made_up_run(tmp_path, "qr", 9, {0: 8, 400: 4}, name="no common seed")
    assert call(compare.main, "--out=r/x", cwd=tmp_path) == 0
    said = capsys.readouterr()
    row = next(line for line in said.out.splitlines() if "| 1     | -0.1000 [" in line)
    assert "kron - bpe_tied" in row and "-0.7000 [" in row and "qr -" not in said.out
    assert "| 100 steps" in said.out and "| 400 steps" in said.out
    assert "left out" not in said.err
    saved = json.loads((tmp_path / "r" / "x.json").read_text())
    assert saved["steps"] == 100 and saved["horizons"][0]["steps"] == 400
    widths = [high - low for low, high in (c["interval"] for c in saved["equal_seeds"])]
    assert widths[0] == pytest.approx(widths[1], abs=1e-4)


def test_what_makes_a_table_worth_less_stands_first(tmp_path, call, capsys, monkeypatch):
    """Uncommitted code, two versions of the code, two dtypes, a run that went on elsewhere. Hashes
    that are known to be equal bit for bit are one."""
    run = made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4}, header={"commit": "abc+changes"})
    edit(run, lambda lines: lines.insert(3, {"step": 5, "went_on_with": {"hardware": ["a", "b"]}}))
    for seed in (1, 2):
        made_up_run(tmp_path, "kron", seed, {0: 8, 100: 4.1}, header={"code_hash": f"v{seed}"},
                    dtype="bfloat16" if seed == 1 else "float32")
    monkeypatch.setitem(found.SAME_CODE, "v2", ("123", "measured"))
    assert call(compare.main, "--out=r/x", cwd=tmp_path) == 0
    said = capsys.readouterr()
    page = (tmp_path / "r" / "x.md").read_text()
    for line in ("no commit has (+changes): out/bpe_tied-s1", "123 (2 runs), v1 (1 runs)",
                 "out/bpe_tied-s1 went on after a stop with other hardware", "not tuned: every arm",
                 "dtype is not the same in all", "bfloat16 (1 runs)"):
        assert line in said.err and line in page
    assert page.index("Read this first") < page.index("## Arms") and "kron - bpe_tied" in said.out


# ---- one key -----------------------------------------------------------------------------------

@pytest.fixture
def rates(tmp_path):
    """kron at three learning rates, min_lr in proportion, over three seeds; 2e-3 in its command."""
    for seed in (1, 2, 3):
        for rate, loss in ((1e-3, 4.3), (1e-2, 4.1), (2e-3, 4.2)):
            command = "python train.py results/tiny/default.py configs/kron.py --learning_rate=2e-3"
            made_up_run(tmp_path, "kron", seed, {0: 8, 100: loss + seed / 10 + 1e-3 * seed * rate},
                        name=f"{rate}-{seed}", learning_rate=rate, min_lr=rate / 10,
                        header={"command": command})
    made_up_run(tmp_path, "qr", 1, {0: 8, 100: 3.0})
    return tmp_path


def test_by_a_key_its_values_are_the_arms(rates, call, capsys):
    """The base is what the config files say, here 1e-3; paired by seed, Holm over values; one
    picture; another arm is named and left out."""
    assert call(compare.main, "--by=learning_rate", "--out=r", cwd=rates) == 0
    saved = json.loads((rates / "r.json").read_text())
    assert list(saved["arms"]) == [f"learning_rate={rate}" for rate in (0.001, 0.002, 0.01)]
    c = saved["planned"]
    assert [(x["arm"], x["base"]) for x in c] == [
        (f"learning_rate={rate}", "learning_rate=0.001") for rate in (0.002, 0.01)]
    assert c[0]["gap"]["mean"] == pytest.approx(-0.1, abs=1e-4) and c[0]["verdict"] == ["lower"]
    assert max(x["p_holm"] for x in c) >= min(2 * min(x["p"] for x in c), 1) > 0
    assert not saved["exploratory"] and (rates / "r.png").read_bytes()[:4] == b"\x89PNG"
    assert "left out: out/qr-s1: differs from" in capsys.readouterr().err
    assert call(compare.main, "--by=learning_rate", "--base=1e-2", cwd=rates) == 0
    assert "learning_rate=0.001 - learning_rate=0.01 " in capsys.readouterr().out


def test_by_a_key_that_changes_bits_or_batches(tmp_path, call, capsys):
    for seed in (1, 2):
        for dtype, size in (("float32", 8), ("bfloat16", 8), ("float32", 16)):
            made_up_run(tmp_path, "kron", seed, {0: 8, 100: 4 + size / 100 + len(dtype) / 1e3},
                        name=f"{dtype}{size}{seed}", dtype=dtype, batch_size=size, crc=size)
    assert call(compare.main, "--by=dtype", "--base=float32", cwd=tmp_path) == 0
    assert re.search(r"dtype=bfloat16 - dtype=float32 .*\+0.0010", capsys.readouterr().out)
    assert call(compare.main, "--by=batch_size", "--base=8", cwd=tmp_path) == 0
    assert re.search(r"batch_size=16 - batch_size=8 .*\+0.0", capsys.readouterr().out)


@pytest.mark.parametrize("options, named", [
    (["--by=seed"], "--by=seed: not a key"),
    (["--by=n_head"], "no two runs differ in n_head alone"),
    (["--by=learning_rate", "--base=5"], "another of 0.001, 0.002, 0.01")])
def test_by_what_cannot_be(rates, refuse, options, named):
    assert named in refuse(compare.main, *options, cwd=rates)


# ---- tuned runs --------------------------------------------------------------------------------

def grid_run(folder, arm, loss, name, seed=100, **config):
    options = "".join(f",{key}={value}" for key, value in config.items() if key in ARM_KEYS)
    return made_up_run(folder, arm + options, seed, {0: 8, 60: loss}, name=f"grid/{name}", **config)


@pytest.fixture
def grid(tmp_path):
    """A grid in out/grid: learning rates of bpe_tied, learning rates and then input rates of
    bpe_untied, input rates of kron and of lowrank at rank 32."""
    for rate, loss in ((1, 4.9), (2, 4.6), (4, 4.7)):
        rates = {"learning_rate": rate / 1e3, "min_lr": rate / 1e4}
        grid_run(tmp_path, "bpe_tied", loss, f"tied{rate}", **rates)
        grid_run(tmp_path, "bpe_untied", loss - 0.2, f"untied{rate}", **rates)
    for arm, points, more in (("bpe_untied", ((0.25, 4.5), (4, 4.3), (16, 4.5)), {}),
                              ("kron", ((0.25, 4.4), (1, 4.2), (4, 4.5)), {}),
                              ("lowrank", ((0.25, 4.4), (1, 4.2), (4, 4.5)), {"rank": 32})):
        for mult, loss in points:
            grid_run(tmp_path, arm, loss, f"{arm}-x{mult}", embed_lr_mult=float(mult),
                     learning_rate=2e-3, min_lr=2e-4, **more)
    return tmp_path / "out" / "grid"


def test_a_grid_chooses_each_arms_lowest_loss(tmp_path, grid, call, capsys):
    """Written as .json and .md; the same table comes back; names lose the tuned keys."""
    argv = ("--tune", "out/grid", "--out=results/tuning", "--default=results/tiny/default.py")
    assert call(compare.main, *argv, cwd=tmp_path) == 0
    table = tuning.read_tuning(tmp_path / "results" / "tuning.json")
    best = {arm: (row["best"]["learning_rate"], row["best"]["embed_lr_mult"], row["edges"])
            for arm, row in table["arms"].items()}
    assert best == {"bpe_tied": (2e-3, 1, []), "bpe_untied": (2e-3, 4, []), "kron": (2e-3, 1, []),
                    "lowrank": (2e-3, 1, [])}
    assert table["arms"]["lowrank"]["arm"] == "lowrank,rank=32" and table["seeds"] == [100]
    assert [point["r"] for point in table["arms"]["kron"]["grid"]] == [12.5, 50, 200]
    assert table["default"] == {"learning_rate": 1e-3, "min_lr": 1e-4, "embed_lr_mult": 1.0,
                                "embed_std": 0.0, "input_multiplier": 1.0}
    page = (tmp_path / "results" / "tuning.md").read_text()
    assert "**chosen** of 6" in page and page.count("chosen") == 4


def point(loss, rate=1e-3, speed=1.0, scale=1.0, std=0.0):
    return {"learning_rate": rate, "min_lr": rate / 10, "embed_lr_mult": speed, "embed_std": std,
            "input_multiplier": 1.0, "scale": scale, "r": speed / scale, "val_loss": loss}


@pytest.mark.parametrize("points, edges", [
    ([point(4.0)], ""),  # a single value has no edge
    ([point(4.2, rate=1e-3), point(4.0, rate=2e-3)], "learning rate 0.002 is the highest of 2"),
    ([point(4.2, rate=1e-3), point(4.0, rate=2e-3), point(None, rate=4e-3)], ""),  # diverged there
    ([point(4.0, speed=0.25), point(4.2), point(4.3, speed=4)], "speed r 0.25 is the lowest of 3"),
    ([point(4.0, speed=0.25), point(4.009), point(4.3, speed=4)], ""),  # a plateau
    ([point(4.0), point(4.1, scale=0.5, std=0.5, speed=0.5)], ""),  # the default scale
    ([point(4.2), point(4.0, scale=0.5, std=0.5, speed=0.5)], "scale 0.5 is the lowest of 2")])
def test_an_optimum_at_an_edge_of_its_grid(points, edges):
    best = min((p for p in points if p["val_loss"]), key=lambda p: p["val_loss"])
    assert tuning.describe_edges(tuning.edges(points, best)) == edges


@pytest.mark.parametrize("change, named", [
    (dict(seed=101, embed_std=3.0), "no point of the grid of seed 100"),
    (dict(n_layer=2), "not one grid: n_layer"),
    (dict(), "are the same point of a grid"), (dict(max_steps=90), "unfinished")])
def test_runs_that_are_no_grid_are_refused(tmp_path, grid, refuse, change, named):
    made_up_run(tmp_path, "kron", **{"seed": 100, "vals": {0: 8, 60: 4}, "name": "grid/z",
                                     "learning_rate": 2e-3, "min_lr": 2e-4} | change)
    assert named in refuse(compare.main, "--tune", "out/grid", "--out=results/x", cwd=tmp_path)


@pytest.fixture
def tuned(tmp_path, grid):
    """The grid's table in results/a, and three seeds of each arm at its choice, of bpe_untied at
    the default; two contrasts beside the table."""
    default = {"learning_rate": 1e-3, "min_lr": 1e-4} | tuning.UNTUNED
    table = tuning.choose(found.find_runs([grid], []), default)
    (tmp_path / "results" / "a").mkdir(parents=True)
    (tmp_path / "results" / "a" / "tuning.json").write_text(json.dumps(table))
    (tmp_path / "results" / "a" / "contrasts.tsv").write_text(
        "question\tarm\tbase\tkind\nIs it better tuned?\tbpe_untied\tbpe_untied_default\t"
        "confirmatory\nDoes spelling help?\tkron\tkron_shuffled\tconfirmatory\n"
        "And low rank?\tlowrank,rank=32\tkron\texploratory\n")
    rng, rates = np.random.default_rng(4), {"learning_rate": 2e-3, "min_lr": 2e-4}
    for seed in (11, 12, 13):
        for arm, loss, options in (
                ("bpe_tied", 4.0, rates), ("bpe_untied", 4.3, {}), ("kron", 3.9, rates),
                ("bpe_untied,embed_lr_mult=4", 3.8, rates | {"embed_lr_mult": 4.0}),
                ("bpe_untied,learning_rate=0.002", 3.95, rates),
                ("lowrank,rank=32", 3.9, rates | {"rank": 32})):
            made_up_run(tmp_path, arm, seed, {0: 8, 100: loss + rng.normal(0, 0.005)}, **options)
    return tmp_path


def test_tuned_arms_are_compared_at_their_own_settings(tuned, call, capsys):
    """The table that the runs match is found, and the contrasts beside it: arms keep their base
    names, the table shows each setting, a page and the answers are written."""
    made_up_run(tuned, "kron", 100, {0: 8, 100: 1.0}, learning_rate=2e-3, min_lr=2e-4)
    made_up_run(tuned, "kron", 14, {0: 8, 100: 1.0}, learning_rate=4e-3, min_lr=4e-4)
    made_up_run(tuned, "qr", 11, {0: 8, 100: 3.0}, learning_rate=2e-3, min_lr=2e-4)
    made_up_run(tuned, "kron,pos_dim=4", 11, {0: 8, 100: 3.1}, pos_dim=4, learning_rate=2e-3,
                min_lr=2e-4)
    table = json.loads((tuned / "results" / "a" / "tuning.json").read_text())
    other = table | {"settings": table["settings"] | {"n_layer": 9}}
    (tuned / "results" / "b").mkdir()
    (tuned / "results" / "b" / "tuning.json").write_text(json.dumps(other))  # of another shape
    (tuned / "out" / "plan.tsv").write_text(
        "item\tname\targuments\n1\ttuning/x\t-\n1\tkron-s11\t-\n1\tqr-s12\t-\n")
    assert call(compare.main, "--out=results/tiny", "--answers=a.md", cwd=tuned) == 0
    said = capsys.readouterr().err
    for line in ("out/kron-s100: seed 100 chose the settings", "no grid has them: qr",
                 "out/kron-s14: 0.004 is not what the grid chose (0.002)",
                 "planned and not compared: 1 of 2 runs\n"):
        assert line in said
    saved = json.loads((tuned / "results" / "tiny.json").read_text())
    assert saved["tuned"] == "results/a/tuning.json"
    arms = {arm: a["tuned"] for arm, a in saved["arms"].items()}
    assert arms == {"bpe_tied": "tuned", "bpe_untied": "tuned", "bpe_untied_default": "default",
                    "bpe_untied_usual": "usual", "lowrank": "tuned", "qr": "not tuned",
                    "kron": "tuned", "kron,pos_dim=4": "as kron"}
    assert saved["arms"]["bpe_untied"]["setting"] == "0.002, input rate × 4"
    assert saved["arms"]["kron"]["seeds"] == [11, 12, 13]
    assert [(c["question"], c["verdict"]) for c in saved["planned"]] == [
        ("Is it better tuned?", ["lower"]), ("Does spelling help?", ["not run"])]
    assert pair_of(saved, "lowrank", "kron")["gap"]["mean"] == pytest.approx(0, abs=0.01)
    page = (tuned / "results" / "tiny.md").read_text()
    assert "grid of 60 steps on seed 100, and is used here at 100" in page
    title, better, *_ = (tuned / "a.md").read_text().splitlines()
    assert title.startswith("**No: bpe_untied (trained input parameters: 600) ends 0.")
    assert re.fullmatch(r"- Is it better tuned\? bpe_untied - bpe_untied_default -0.(49|50)\d "
                        r"\[-0.\d+, -0.\d+\] \(lower\)\.", better)


def test_a_table_of_other_data_or_a_damaged_one_is_not_used(tuned, call, capsys):
    """Then other rates are not compared; a choice at an edge of its grid is said."""
    path = tuned / "results" / "a" / "tuning.json"
    table = json.loads(path.read_text())
    table["arms"]["kron"]["edges"] = [{"axis": "scale", "value": 4.0, "end": "highest", "of": 3}]
    other = table | {"settings": table["settings"] | {"data": {"train": "other"}}}
    for text, said in ((json.dumps(table), "edge of its grid: scale 4 is the highest of 3"),
                       (json.dumps(other), "not comparable: learning_rate is"),
                       ('{"arms": 3', "left out: results/a/tuning.json: not a table of tuned")):
        path.write_text(text)
        assert call(compare.main, cwd=tuned) == 0
        printed = capsys.readouterr()
        assert said in printed.err and ("Is it better tuned?" in printed.out) == ("edge" in said)


def test_points_run_again_are_judged_by_their_mean(tmp_path, grid, call):
    """Of kron's two points that are run on a second seed the lower mean is taken, not the lower on
    the first; the other arms keep their choice."""
    for speed, loss in ((0.25, 4.1), (1.0, 4.5)):  # 4.4 and 4.2 on the first seed
        grid_run(tmp_path, "kron", loss, f"again-x{speed}", embed_lr_mult=speed, seed=101,
                 learning_rate=2e-3, min_lr=2e-4)
    assert call(compare.main, "--tune", "out/grid", "--out=t", cwd=tmp_path) == 0
    table = tuning.read_tuning(tmp_path / "t.json")
    assert table["seeds"] == [100, 101] and table["arms"]["kron"]["best"]["embed_lr_mult"] == 0.25
    assert table["arms"]["bpe_untied"]["best"]["embed_lr_mult"] == 4
    assert re.search(r"4.4000, 4.1000 +\| \*\*chosen", (tmp_path / "t.md").read_text())


@pytest.mark.parametrize("line", ["a\tb\tc", "a\tb\tc\tperhaps"])
def test_contrasts_that_are_none_are_one_line(tmp_path, refuse, line):
    made_up_run(tmp_path, "kron", 1, {0: 8, 100: 4})
    (tmp_path / "out" / "contrasts.tsv").write_text(f"question\tarm\tbase\tkind\n{line}\n")
    assert "contrasts.tsv: a" in refuse(compare.main, cwd=tmp_path)


# ---- the page of a plan ------------------------------------------------------------------------

@pytest.fixture
def planned_runs(tmp_path):
    """Five arms over two seeds in out/, two of them at a second horizon, one in out/float32; half
    of a plan is not run. Losses of every document by arm; seeds shift all arms alike."""
    losses = {"bpe_tied_usual": 4.6, "bpe_untied_usual": 4.4, "bpe_untied": 4.1, "kron": 4.21,
              "wide": 4.2}
    for arm, loss in losses.items():
        for seed in (21, 22):
            keys = {"code": "affine", "code_width": -1} if arm == "wide" else {
                "embed_std": 0.02 if "usual" in arm else 1.0}
            for steps in (100, 400) if arm in ("kron", "bpe_untied") else (100,):
                documents = loss + seed / 100 + 0.001 * len(arm) * np.cos(seed) + np.zeros(9)
                made_up_run(tmp_path, arm, seed, {0: 8, steps: 4}, documents=documents,
                            name=f"{arm}-{steps}-s{seed}", **keys,
                            header={"params": PARAMS | {"in_use": 600 * (arm != "wide")}})
            if arm == "bpe_untied":
                made_up_run(tmp_path, arm, seed, {0: 8, 100: 4}, name=f"float32/{arm}-s{seed}",
                            documents=documents + 0.01, **keys)
    rows = [("q1?", "wide", "bpe_untied", "confirmatory"), ("q1?", "wide", "qr", "confirmatory"),
            ("q2?", "kron", "bpe_untied_usual", "confirmatory"),
            ("q2?", "kron", "bpe_untied", "confirmatory"),
            ("q2?", "bpe_untied", "bpe_untied_usual", "confirmatory"),
            ("q3?", "bpe_untied_usual", "bpe_tied_usual", "exploratory"),
            ("published?", "kron", "bpe_tied_usual", "exploratory")]
    (tmp_path / "out" / "contrasts.tsv").write_text("".join(
        "\t".join(row) + "\n" for row in [("question", "arm", "base", "kind"), *rows]))
    (tmp_path / "out" / "plan.tsv").write_text(
        "item\tname\targuments\n1\tkron-100-s21\t-\n2\tqr-s21\t-\n2\tqr-s22\t-\n")
    return tmp_path


def test_the_page_of_a_plan(planned_runs, call):
    """A table for each question; the published contrast as sums that add up; gaps by how often
    training saw the token; horizons; what was not reached, by item; two pictures."""
    assert call(compare.main, "out", "--baseline=bpe_untied", "--out=p", cwd=planned_runs) == 0
    page = (planned_runs / "p.md").read_text()
    places = [page.index(title) for title in (
        "# p: 5 arms", "Read this first", "](p.png)", "## q1?", "## The published contrast",
        "## By how", "## Horizons", "## Arms", "## Other", "## In float32", "## Planned and not",
        "## What made")]
    assert places == sorted(places)
    whole, first, second, third = re.search(
        r"kron - bpe_tied_usual: (\S+) = (\S+) \(kron - bpe_untied\) (\S+) \(bpe_untied - "
        r"bpe_untied_usual\) (\S+) \(bpe_untied_usual - bpe_tied_usual\)", page).groups()
    assert float(whole) == pytest.approx(float(first) + float(second) + float(third), abs=2e-3)
    assert float(whole) == pytest.approx(4.21 - 4.6, abs=0.02)
    seen = page[page.index("By how often training"):page.index("## Horizons")]
    assert "under 256 times (50 % of tokens) | 256 to 1,023 times (25 %" in seen
    row = next(line for line in seen.splitlines() if line.startswith("| kron - bpe_untied "))
    assert row.split("|")[3].strip() == "+0.000 ± 0.000" and "+1.1" in row.split("|")[4]
    assert "Not run: wide - qr." in page and "| 100 steps" in page and "| 400 steps" in page
    assert "| 2    | 2 of 2 | qr (seed 21, 22) |" in page and "2 of 3 runs" in page
    assert re.search(r"bpe_untied - bpe_untied in float32 .*-0.01", page)
    figure = plots.answer_picture(*picture_of(planned_runs))
    for ax in figure.axes:
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in ax.texts]
        assert {"kron", "bpe_untied"} <= {text.get_text() for text in ax.texts}
        assert not [1 for i, box in enumerate(boxes) if box.count_overlaps(boxes[i + 1:])]


def picture_of(folder):
    """The runs of a folder, as the two pictures take them."""
    tables, baseline = found.select(found.finished_runs([folder / "out"], []), "bpe_untied", (), [])
    return tables, [], baseline


def test_answers_and_records(planned_runs, call, refuse):
    """The answer to the title comes first, from the verdicts; the best arm of each class with its
    lead over the next; a class without an arm is empty."""
    assert call(compare.main, "out", "--baseline=bpe_untied", "--answers=a.md", "--records=r.md",
                cwd=planned_runs) == 0
    title, *questions, limits = (planned_runs / "a.md").read_text().splitlines()
    assert title.startswith("**Yes, for the lowest loss: wide (trained input parameters: 0) ends")
    assert "not yet set beside qr** (0M parameters, d, 100 steps, seeds 21, 22)" in title
    assert "wide - qr (not run)" in questions[0] and len(questions) == 2
    assert "seeds 21, 22, 95 % intervals" in limits
    rows = [[cell.strip() for cell in line.split("|")[1:-1]]
            for line in (planned_runs / "r.md").read_text().splitlines() if line.startswith("| ")]
    assert [row[1] for row in rows[1:]] == ["wide", "bpe_untied", "bpe_untied", "bpe_untied", "-"]
    assert rows[1][4:] == ["-", "-"] and rows[2][4] == "wide" and rows[2][5].startswith("-0.1")
    (planned_runs / "out" / "contrasts.tsv").write_text("question\tarm\tbase\tkind\n")
    assert "contrasts.tsv has" in refuse(compare.main, "out", "--answers=b", cwd=planned_runs)


# ---- pictures, real runs -----------------------------------------------------------------------

def test_text_in_a_picture_is_text(tmp_path):
    """A run that is called like a formula is drawn under its name."""
    figure = plots.draw_loss([{"step": 1, "val_loss": 4.0}], r"$\frac$")
    figure.savefig(tmp_path / "x.png")
    assert figure.axes[0].get_title() == r"$\frac$"


def test_real_runs_compare(small_data, tmp_path, call, capsys):
    """train.py's own logs and evaluations: the gap is that of all documents, and a run with another
    micro-batch is left out by name."""
    shutil.copytree(small_data / "data", tmp_path / "data")
    toy = ["configs/tiny.py", "--dataset=small", "--n_layer=1", "--n_head=2", "--n_embd=36",
           "--block_size=32", "--batch_size=4", "--max_steps=2", "--eval_tokens=128",
           "--device=cpu", "--dtype=float32", "--seed=1"]
    for name, *options in (("binary",), ("kron",), ("kron", "--batch_size=2", "--name=other")):
        assert call(train.main, f"configs/{name}.py", *toy, *options, cwd=tmp_path) == 0
    assert call(compare.main, "--baseline=binary", "--out=r/tiny", cwd=tmp_path) == 0
    assert "left out: out/other: not comparable: batch_size is 4" in capsys.readouterr().err
    saved = json.loads((tmp_path / "r" / "tiny.json").read_text())
    binary, kron = (np.load(tmp_path / "out" / f"{arm}-tiny-small-s1" / "eval.npz")
                    for arm in ("binary", "kron"))
    gap = (kron["doc_nats"].sum() - binary["doc_nats"].sum()) / kron["doc_tokens"].sum()
    c = pair_of(saved, "kron", "binary")
    assert c["gap"]["mean"] == pytest.approx(gap, abs=1e-4)
    assert c["documents"][0] < gap < c["documents"][1]
    page = (tmp_path / "r" / "tiny.md").read_text()
    assert "-0.083 +- 0.007" in page and saved["commit"][0] in page
