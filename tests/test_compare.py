"""compare.py: gaps, verdicts and pages follow from the logs; what does not match is named."""
import json
import math
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import compare
from conftest import records, script
from lib import page, plots, results as found, stats, tuning
from lib.config import ARM_KEYS

PARAMS = {"input": 1000, "in_use": 600, "body": 2, "head": 3, "total": 1005}


def made_up_run(folder, arm, seed, vals, name=None, crc=7, header=(), documents=None, **config):
    """A run as train.py leaves it, with known validation losses {step: loss}; `documents`: the
    final loss of each of the documents of eval.npz, which have 10 tokens and 30 bytes each."""
    run = folder / "out" / (name or f"{arm}-s{seed}")
    run.mkdir(parents=True)
    config = {"dataset": "d", "max_steps": max(vals), "learning_rate": 1e-3, "min_lr": 1e-4,
              "seed": seed, "name": run.name, "code": arm.split(",")[0], "n_layer": 1, "n_embd": 8,
              "block_size": 4, "dtype": "float32"} | config
    lines = [{"config": config, "arm": arm, "params": PARAMS, "data": {"train": "0", "val": "1"},
              "tokens_per_step": 32, "epochs": 0.5, "commit": "abc", "code_hash": "123",
              "hardware": "a machine"} | dict(header),
             {"step": 1, "loss": 3.0, "tokens_per_s": 100.0, "batch_crc": crc + seed}]
    for step, loss in vals.items():
        lines.append({"step": step, "val_loss": loss, "val_bpb": 1.0, "input_rms": 0.02,
                      "input_speed": None if step == 0 else 0.01, "clipped": 0.25})
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if documents is not None:
        n = len(documents)
        np.savez(run / "eval.npz", doc_nats=10 * np.array(documents, np.float32),
                 doc_tokens=np.full(n, 10), doc_bytes=np.full(n, 30),
                 seen_nats=np.array([4.0, 40.0, 0, 90.0]), seen_tokens=np.array([1, 10, 0, 30]))
    return run


def edit(run, change):
    """Rewrite a log: change(list of its records) changes them in place."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    change(lines)
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def results(folders, baseline="bpe_tied"):
    """The comparison of these folders, as compare.py makes it."""
    horizons, baseline = found.select(found.finished_runs(folders, []), baseline, (), [])
    found.score([run for by_seed in horizons[0].values() for run in by_seed.values()])
    return compare.compare(horizons[0], baseline)


def pair_of(result, arm, base="bpe_tied"):
    """One pair of a comparison."""
    for c in [*result["planned"], *result["exploratory"]]:
        if (c["arm"], c["base"]) == (arm, base):
            return c


# ---- gaps and verdicts -------------------------------------------------------------------------

def test_gap_and_interval_in_the_published_form(tmp_path):
    """Per-seed gaps of -0.076, -0.083, -0.090 are -0.083 +- 0.007, half-width 0.0174."""
    folders = []
    for seed, gap in ((1, 0.076), (2, 0.083), (3, 0.090)):
        tied = 3.3 + seed / 100
        folders.append(made_up_run(tmp_path, "bpe_tied", seed, {0: 8, 100: tied}))
        folders.append(made_up_run(tmp_path, "kron", seed, {0: 8, 100: tied - gap}))
    result = results(folders)
    c = pair_of(result, "kron")
    assert (c["gap"]["mean"], c["gap"]["sd"]) == (pytest.approx(-0.083), pytest.approx(0.007))
    assert c["gap"]["interval"] == pytest.approx([-0.10039, -0.06561], abs=1e-5)
    assert c["pooled"] == pytest.approx(c["gap"]["interval"], abs=1e-6)  # as of any two arms
    assert c["percent"]["mean"] == pytest.approx((-7.6 / 3.31 - 8.3 / 3.32 - 9 / 3.33) / 3)
    assert c["ppl_ratio"]["mean"] == pytest.approx(0.9204, abs=1e-4)
    assert c["verdict"] == "lower (seeds, pooled deviation)"
    loss = result["arms"]["bpe_tied"]["loss"]
    assert (loss["mean"], loss["sd"]) == (pytest.approx(3.32), pytest.approx(0.01))


def test_more_arms_say_more_about_the_spread(tmp_path):
    """The pooled interval takes its deviation from all arms: narrower than three seeds' own, with
    (4-1)(3-1) degrees of freedom, and as computed by hand from the same losses."""
    losses, noise = {}, np.random.default_rng(1)
    for arm, mean in (("bpe_tied", 4.0), ("bpe_untied", 3.9), ("random", 3.8), ("kron", 3.7)):
        for seed in (1, 2, 3):
            losses[arm, seed] = mean + seed / 10 + noise.normal(0, 0.02)
    folders = [made_up_run(tmp_path, arm, seed, {0: 8, 100: loss})
               for (arm, seed), loss in losses.items()]
    result = results(folders)
    sd, degrees = stats.pooled_sd(losses)
    assert result["pooled"] == {"sd": pytest.approx(sd), "degrees": 6} and degrees == 6
    c = pair_of(result, "kron")
    half, mean = 2.447 * sd * math.sqrt(2 / 3), c["gap"]["mean"]
    assert c["pooled"] == pytest.approx([mean - half, mean + half], abs=1e-4)
    assert "pooled, 6 df" in compare.tables(result, [])


@pytest.mark.parametrize("gaps, verdict", [
    ((-0.1, -0.1, -0.11), "lower (seeds, pooled deviation)"),
    ((0.1, 0.1, 0.11), "higher (seeds, pooled deviation)"),
    ((-0.1, 0.1, -0.02), "not resolved (seeds, pooled deviation)"),
    ((-0.1,), "one seed, no interval")])
def test_the_verdict_names_the_interval_that_it_rests_on(tmp_path, gaps, verdict):
    folders = []
    for seed, gap in enumerate(gaps):
        folders.append(made_up_run(tmp_path, "bpe_tied", seed, {0: 8, 100: 4}))
        folders.append(made_up_run(tmp_path, "random", seed, {0: 8, 100: 4 + gap}))
    c = pair_of(results(folders), "random")
    assert c["verdict"] == verdict
    assert (c["interval"] is None) == (len(gaps) == 1)


def test_a_verdict_that_the_contrast_alone_does_not_share_says_so(tmp_path):
    """Two quiet arms make the pooled deviation small; the contrast's own three gaps hold 0."""
    folders = []
    for seed, gap in enumerate((-0.01, -0.09, -0.05)):
        for arm, loss in (("bpe_tied", 4), ("random", 4 + gap), ("qr", 4), ("hash", 4)):
            folders.append(made_up_run(tmp_path, arm, seed, {0: 8, 100: loss}))
    c = pair_of(results(folders), "random")
    assert c["gap"]["interval"][1] > 0 > c["pooled"][1]
    assert c["verdict"] == "lower (seeds, pooled deviation; its own Student interval holds 0)"


def test_an_arm_that_spreads_more_than_the_others_is_named(tmp_path, call, capsys):
    """The pooled interval takes equal deviations for granted. What all arms share of a seed is no
    deviation."""
    rng = np.random.default_rng(3)
    for arm, sd in (("bpe_tied", 0.2), ("bpe_untied", 0.01), ("kron", 0.01), ("random", 0.01)):
        for seed in (1, 2, 3):
            made_up_run(tmp_path, arm, seed, {0: 8, 100: 4 + seed / 3 + rng.normal(0, sd)})
    assert call(compare.main, cwd=tmp_path) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "unequal spread" in line]
    assert len(notes) == 1 and "unequal spread: bpe_tied's losses" in notes[0]


def test_one_seed_has_an_interval_over_documents_and_says_so(tmp_path):
    """One run an arm, 0.1 lower on every document but for noise of 0.2: +- 1.96 * 0.2 / sqrt(400).
    The loss is that of the whole split, not of the last validation."""
    rng = np.random.default_rng(0)
    tied = rng.uniform(3, 5, 400)
    random = tied - 0.1 + rng.normal(0, 0.2, 400)
    folders = [made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4}, documents=tied),
               made_up_run(tmp_path, "random", 1, {0: 8, 100: 4}, documents=random)]
    result = results(folders)
    c = pair_of(result, "random")
    assert c["gap"]["mean"] == pytest.approx((random - tied).mean(), abs=1e-6)
    half = 1.96 * (random - tied).std() / 20
    assert c["documents"] == pytest.approx([c["gap"]["mean"] - half, c["gap"]["mean"] + half],
                                           abs=0.002)
    assert c["verdict"] == "lower (documents, this one training run)" and c["pooled"] is None
    arm = result["arms"]["bpe_tied"]
    assert arm["loss"]["mean"] == pytest.approx(tied.mean(), abs=1e-6)
    assert arm["bpb"]["mean"] == pytest.approx(tied.mean() / math.log(2) / 3, abs=1e-6)


def test_with_seeds_documents_are_crossed_in(tmp_path):
    """Three seeds: the verdict rests on the pooled interval, the one over documents is wider."""
    rng, folders = np.random.default_rng(0), []
    of_document = rng.normal(0, 0.3, 200)
    for seed in (1, 2, 3):
        tied = rng.uniform(3, 5, 200)
        random = tied - 0.2 + of_document + rng.normal(0, 0.01)
        folders.append(made_up_run(tmp_path, "bpe_tied", seed, {0: 8, 9: 4}, documents=tied))
        folders.append(made_up_run(tmp_path, "random", seed, {0: 8, 9: 4}, documents=random))
    c = pair_of(results(folders), "random")
    assert c["interval"] == c["pooled"]
    assert c["documents"][0] < c["pooled"][0] - 0.01 and c["documents"][1] > c["pooled"][1] + 0.01


def test_holm_is_over_the_nine_planned_contrasts_and_no_others(tmp_path):
    """Contrasts that were not run count as planned; arms outside the plan do not."""
    folders, rng = [], np.random.default_rng(2)
    for arm in ("bpe_tied", "bpe_untied", "kron", "kron_shuffled", "random", "qr"):
        for seed in (1, 2, 3):
            loss = 4 + seed / 10 + rng.normal(0, 0.02)
            folders.append(made_up_run(tmp_path, arm, seed, {0: 8, 100: loss}))
    result = results(folders)
    made = [c for c in result["planned"] if c["gap"]]
    assert len(result["planned"]) == 9 and len(made) == 3
    smallest = min(made, key=lambda c: c["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 9 * smallest["p"]))
    assert all("p_holm" not in c for c in result["exploratory"])
    assert {c["arm"] for c in result["exploratory"]} == {"kron", "kron_shuffled", "random", "qr"}
    assert [c["answer"] for c in result["planned"] if not c["gap"]] == ["not run"] * 6


def test_without_a_grid_nothing_is_answered(tmp_path, call, capsys):
    for arm, loss in (("bpe_untied", 3.0), ("bpe_tied", 4.0)):
        for seed in (1, 2, 3):
            made_up_run(tmp_path, arm, seed, {0: 8, 100: loss + seed / 100})
    assert call(compare.main, cwd=tmp_path) == 0
    said = capsys.readouterr()
    assert "is an untied table, fully tuned" in said.out and "not known: not tuned" in said.out
    assert "not tuned" in said.err and "lower (seeds" in said.out


# ---- steps-to-match ----------------------------------------------------------------------------

def test_steps_to_match_interpolates_between_validations():
    """8 -> 4 over steps 0..100: 5 is reached at step 75; 3.5 never."""
    vals = [{"step": 0, "val_loss": 8.0}, {"step": 100, "val_loss": 4.0}]
    assert stats.steps_to_match(vals, 5.0) == 75.0
    assert stats.steps_to_match(vals, 4.0) == 100.0
    assert stats.steps_to_match(vals, 3.5) is None


def test_an_arm_that_never_matches_has_the_inverse_ratio(tmp_path):
    """Baseline 8 -> 5. At 4 an arm had 5 after 75 steps: 100 / 75. At 6 it never has 5; the
    baseline had 6 after 66.7 steps: 0.667. The mean is over all seeds, one of each."""
    folders = []
    for arm, finals in (("bpe_tied", (5, 5)), ("random", (4, 6)), ("binary", (6, 6))):
        for seed, final in enumerate(finals):
            folders.append(made_up_run(tmp_path, arm, seed, {0: 8, 100: final}))
    result = results(folders)
    assert pair_of(result, "binary")["speedup"]["mean"] == pytest.approx(2 / 3)
    assert pair_of(result, "random")["speedup"]["mean"] == pytest.approx((4 / 3 + 2 / 3) / 2)
    assert "0.67 ± 0.00x" in compare.tables(result, [])
    run = found.read_run(folders[0])
    assert stats.speedup(run, run) == 1.0


# ---- what is read ------------------------------------------------------------------------------

def test_a_half_written_line_is_dropped_with_a_notice(tmp_path, capsys):
    run = made_up_run(tmp_path, "kron", 1, {0: 8, 100: 4})
    with open(run / "log.jsonl", "a") as file:
        file.write('[1]\n\n{"step": "x", "val_loss": 1}\n{"step": 100, "val_lo')
    assert found.read_run(run)["vals"][-1]["val_loss"] == 4
    assert "4 unreadable lines dropped" in capsys.readouterr().err


@pytest.mark.parametrize("tie, head", [(False, "table"), (True, "tied")])
def test_logs_of_before_still_read(tmp_path, tie, head):
    """The keys `run` and `tie`; no params in use, no scale, speed or code hash: shown as -."""
    run = made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4})

    def as_before(lines):
        lines[0]["config"] |= {"run": lines[0]["config"].pop("name"), "tie": tie}
        lines[0]["params"] = {"input": 7, "body": 2, "head": 3, "total": 12}
        del lines[0]["code_hash"], lines[1]["tokens_per_s"]
        for line in lines[2:]:
            for key in ("input_rms", "input_speed", "clipped", "val_bpb"):
                del line[key]
    edit(run, as_before)
    config = found.read_run(run)["header"]["config"]
    assert config["head"] == head and config["name"] == run.name
    assert not {"run", "tie"} & config.keys()
    row = next(line for line in compare.tables(results([run]), []).splitlines() if "4.0000" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:7] == ["bpe_tied", "1", "7", "-", "3", "12", "4.0000"] and cells.count("-") == 6


def test_a_folder_of_runs_is_read_as_its_runs(tmp_path, call, capsys):
    """Committed logs: `results/NAME` is the same as `results/NAME/*`, and the default is `out`."""
    made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4}, documents=[4, 4])
    made_up_run(tmp_path, "kron", 1, {0: 8, 100: 4}, documents=[4, 4])
    (tmp_path / "results").mkdir()
    (tmp_path / "out").rename(tmp_path / "results" / "tiny")
    assert call(compare.main, "results/tiny", cwd=tmp_path) == 0
    said = capsys.readouterr().out
    assert call(compare.main, *sorted((tmp_path / "results" / "tiny").iterdir()), cwd=tmp_path) == 0
    assert capsys.readouterr().out == said and "kron - bpe_tied" in said


@pytest.mark.parametrize("content", ["", "{}\n", "garbage\n",
                                     '{"config": 1, "arm": 1, "params": 1, "data": 1}\n'])
def test_logs_that_are_none_are_refused(tmp_path, refuse, content):
    (tmp_path / "out" / "x").mkdir(parents=True)
    (tmp_path / "out" / "x" / "log.jsonl").write_text(content)
    assert "no header" in refuse(compare.main, "out/x", cwd=tmp_path)
    assert "no log.jsonl" in refuse(compare.main, "out/none", cwd=tmp_path)


@pytest.mark.parametrize("key", ["max_steps", "seed"])
def test_a_header_without_a_key_is_one_line(tmp_path, refuse, key):
    run = made_up_run(tmp_path, "kron", 1, {0: 8, 100: 4})
    edit(run, lambda lines: lines[0]["config"].pop(key))
    assert f"its header has no {key}" in refuse(compare.main, cwd=tmp_path)


def test_a_damaged_evaluation_is_one_line(tmp_path, refuse):
    run = made_up_run(tmp_path, "kron", 1, {0: 8, 100: 4}, documents=[4.0])
    (run / "eval.npz").write_bytes((run / "eval.npz").read_bytes()[:100])
    assert "eval.npz is damaged" in refuse(compare.main, cwd=tmp_path)


# ---- which runs are compared -------------------------------------------------------------------

def test_what_is_no_run_is_skipped_with_a_note(tmp_path, call, capsys):
    """`compare.py out/*` beside the demo's own files, pictures and half-made folders."""
    made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4})
    (tmp_path / "out" / "demo.json").write_text("{}")
    (tmp_path / "out" / "empty").mkdir()
    (tmp_path / "out" / "odd").mkdir()
    (tmp_path / "out" / "odd" / "log.jsonl").write_text("x\n")
    assert call(compare.main, *sorted((tmp_path / "out").iterdir()), cwd=tmp_path) == 0
    said = capsys.readouterr()
    assert said.err.count("skipped, no run:") == 3 and "4.0000" in said.out
    assert call(compare.main, cwd=tmp_path) == 0


def test_unfinished_and_diverged_runs_are_named_and_left_out(tmp_path, call, capsys):
    made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4})
    made_up_run(tmp_path, "bpe_tied", 2, {0: 8, 50: 7}, max_steps=100)
    made_up_run(tmp_path, "bpe_tied", 3, {0: 8, 50: 7, 100: math.nan})
    assert call(compare.main, cwd=tmp_path) == 0
    said = capsys.readouterr()
    assert "out/bpe_tied-s2: unfinished, step 50 of 100" in said.err
    assert "out/bpe_tied-s3: diverged" in said.err and "step 100" in said.err
    assert "4.0000" in said.out and "7.0" not in said.out


@pytest.mark.parametrize("change, named", [
    (dict(learning_rate=2e-3), "learning_rate is 0.001 in out/bpe_tied-s1 and 0.002 in out/"),
    (dict(crc=8), "step 1 saw other batches than in out/bpe_tied-s1"),
    (dict(arm="bpe_tied", name="copy"), "out/bpe_tied-s1 is the same arm and seed"),
    (dict(arm="bpe_tied", seed=2, rank=3), "rank is 0 in out/bpe_tied-s1 and 3"),
    (dict(n_layer=2), "n_layer is 1"), (dict(header={"data": {"train": "9"}}), "data is"),
    (dict(header={"extended": [[50, 100]]}), "extended is None in out/bpe_tied-s1 and")])
def test_unfair_pairs_are_never_compared(tmp_path, call, capsys, change, named):
    """One thing changed in one run of a pair: it is left out, and the first difference named."""
    made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4})
    made_up_run(tmp_path, **{"arm": "kron", "seed": 1, "vals": {0: 8, 100: 3}, **change})
    assert call(compare.main, cwd=tmp_path) == 0
    said = capsys.readouterr()
    assert named in said.err and "3.0000" not in said.out and "4.0000" in said.out
    every = found.finished_runs([tmp_path / "out"], [])
    with pytest.raises(Exception, match="same arm and seed|not comparable"):
        found.refuse_unmatched(every)


def test_the_largest_group_is_shown_and_the_rest_named(tmp_path, call, capsys):
    for seed in (1, 2):
        made_up_run(tmp_path, "bpe_tied", seed, {0: 8, 100: 4}, name=f"a{seed}", n_layer=2)
    for seed in (1, 2, 3):
        made_up_run(tmp_path, "kron", seed, {0: 8, 100: 3}, name=f"b{seed}")
    assert call(compare.main, cwd=tmp_path) == 0
    said = capsys.readouterr()
    assert "left out: out/a1 and 1 more: not comparable: n_layer is 1 in out/b1 and 2" in said.err
    assert "3.0000" in said.out and "4.0000" not in said.out
    assert call(compare.main, "--baseline=bpe_tied", cwd=tmp_path) == 0
    assert "4.0000" in capsys.readouterr().out


def test_a_baseline_that_nobody_ran_is_one_line(tmp_path, refuse):
    made_up_run(tmp_path, "kron", 1, {0: 8, 100: 4})
    assert "there are kron" in refuse(compare.main, "--baseline=qr", cwd=tmp_path)
    assert "nothing to compare" in refuse(compare.main, "out/none", cwd=tmp_path)


def test_other_horizons_stand_beside(tmp_path, call, capsys):
    """Runs of 100 and of 400 steps are one comparison at two horizons, over their common seed."""
    for steps, kron in ((100, 3.8), (400, 3.2)):
        for seed in (1, 2, 3) if steps == 100 else (1,):
            made_up_run(tmp_path, "bpe_tied", seed, {0: 8, steps: 4}, name=f"t{steps}-{seed}")
            made_up_run(tmp_path, "kron", seed, {0: 8, steps: kron + 0.1 * (seed == 1)},
                        name=f"k{steps}-{seed}")
    assert call(compare.main, "--out=r/x", cwd=tmp_path) == 0
    said = capsys.readouterr()
    row = next(line for line in said.out.splitlines() if "| 1     | -0.1000 -" in line)
    assert "kron - bpe_tied" in row and "-0.7000" in row
    assert "| 100 steps" in said.out and "| 400 steps" in said.out
    assert "left out" not in said.err
    saved = json.loads((tmp_path / "r" / "x.json").read_text())
    assert saved["steps"] == 100 and saved["horizons"][0]["steps"] == 400


def test_horizons_without_a_common_seed_are_no_table(tmp_path, call, capsys):
    for steps, seed in ((100, 1), (400, 2)):
        for arm in ("bpe_tied", "kron"):
            made_up_run(tmp_path, arm, seed, {0: 8, steps: 4}, name=f"{arm}-{steps}")
    assert call(compare.main, "--out=r/x", cwd=tmp_path) == 0
    assert "Horizons" not in capsys.readouterr().out


def test_a_planned_contrast_has_no_mirror_outside_the_correction(tmp_path):
    folders = [made_up_run(tmp_path, arm, seed, {0: 8, 100: 4 + seed / 10})
               for arm in ("bpe_tied", "bpe_untied", "kron") for seed in (1, 2, 3)]
    result = results(folders, "bpe_untied")
    assert [(c["arm"], c["base"]) for c in result["exploratory"]] == [("kron", "bpe_tied")]
    assert {(c["arm"], c["base"]) for c in result["planned"] if c["gap"]} == {
        ("bpe_untied", "bpe_tied"), ("kron", "bpe_untied")}


def test_what_makes_a_table_worth_less_stands_first(tmp_path, call, capsys):
    """Uncommitted code, two versions of the code, a run that went on elsewhere, unequal seeds, an
    arm without a common seed."""
    run = made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4}, header={"commit": "abc+changes"})
    edit(run, lambda lines: lines.insert(3, {"step": 5, "went_on_with": {"hardware": ["a", "b"]}}))
    for seed in (1, 2):
        made_up_run(tmp_path, "bpe_untied", seed, {0: 8, 100: 4}, header={"code_hash": f"v{seed}"})
    made_up_run(tmp_path, "random", 9, {0: 8, 100: 4})
    assert call(compare.main, "--out=r/x", cwd=tmp_path) == 0
    said = capsys.readouterr().err
    page = (tmp_path / "r" / "x.md").read_text()
    for line in ("no commit has (+changes): out/bpe_tied-s1", "123 (2 runs), v1 (1 runs)",
                 "out/bpe_tied-s1 went on after a stop with other hardware",
                 "unequal seeds: bpe_untied has 1, 2, bpe_tied has 1",
                 "no gap of random: it has no seed in common with bpe_tied (9 and 1)"):
        assert line in said and line in page
    assert page.index("Read this first") < page.index("## Arms")


# ---- tuned runs --------------------------------------------------------------------------------

def grid_run(folder, arm, loss, name, seed=100, **config):
    options = "".join(f",{key}={value}" for key, value in config.items() if key in ARM_KEYS)
    return made_up_run(folder, arm + options, seed, {0: 8, 60: loss}, name=f"grid/{name}", **config)


@pytest.fixture
def grid(tmp_path):
    """A grid as runs/tune.sh makes it, in out/grid: learning rates of bpe_tied, learning rates and
    then speeds of bpe_untied, speeds of kron and of lowrank at rank 32."""
    for rate, loss in ((1, 4.9), (2, 4.6), (4, 4.7)):
        rates = {"learning_rate": rate / 1e3, "min_lr": rate / 1e4}
        grid_run(tmp_path, "bpe_tied", loss, f"tied{rate}", **rates)
        grid_run(tmp_path, "bpe_untied", loss - 0.2, f"untied{rate}", **rates)
    rates = {"learning_rate": 2e-3, "min_lr": 2e-4}
    for speed, loss in ((0.25, 4.5), (4.0, 4.3), (16.0, 4.5)):
        grid_run(tmp_path, "bpe_untied", loss, f"untied-x{speed}", embed_lr_mult=speed, **rates)
    for speed, loss in ((0.25, 4.4), (1.0, 4.2), (4.0, 4.5)):
        grid_run(tmp_path, "kron", loss, f"kron-x{speed}", embed_lr_mult=speed, **rates)
        grid_run(tmp_path, "lowrank", loss, f"low-x{speed}", rank=32, embed_lr_mult=speed, **rates)
    return tmp_path / "out" / "grid"


def test_a_grid_chooses_each_arms_lowest_loss(tmp_path, grid, call, capsys):
    """Written as .json, .md and .png; the same table comes back; names lose the tuned keys."""
    argv = ("--tune", "out/grid", "--out=results/tuning", "--default=configs/tiny.py")
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
    assert "| bpe_untied | 6 " in page and page.count("chosen") >= 4
    assert (tmp_path / "results" / "tuning.png").read_bytes()[:4] == b"\x89PNG"


def point(loss, rate=1e-3, speed=1.0, scale=1.0, std=0.0):
    return {"learning_rate": rate, "min_lr": rate / 10, "embed_lr_mult": speed, "embed_std": std,
            "scale": scale, "r": speed / scale, "val_loss": loss}


@pytest.mark.parametrize("what, points, edges", [
    ("a single value has no edge", [point(4.0)], []),
    ("inside", [point(4.2, rate=1e-3), point(4.0, rate=2e-3), point(4.1, rate=4e-3)], []),
    ("the highest rate", [point(4.2, rate=1e-3), point(4.0, rate=2e-3)],
     ["learning rate 0.002 is the highest of 2"]),
    ("beyond it the run diverged", [point(4.2, rate=1e-3), point(4.0, rate=2e-3),
                                    point(None, rate=4e-3)], []),
    ("the slowest input", [point(4.0, speed=0.25), point(4.2), point(4.3, speed=4)],
     ["speed r 0.25 is the lowest of 3"]),
    ("a plateau of speed", [point(4.0, speed=0.25), point(4.009), point(4.3, speed=4)], []),
    ("the natural scale is no edge", [point(4.0), point(4.1, scale=0.5, std=0.5, speed=0.5)], []),
    ("another scale is", [point(4.2), point(4.0, scale=0.5, std=0.5, speed=0.5)],
     ["scale 0.5 is the lowest of 2"]),
    ("the same r at two scales", [point(4.2, speed=s, scale=s, std=s) for s in (0.1, 1)]
     + [point(4.0, speed=0.5, scale=0.5, std=0.5)], [])])
def test_an_optimum_at_an_edge_of_its_grid(what, points, edges):
    best = min((p for p in points if p["val_loss"]), key=lambda p: p["val_loss"])
    assert tuning.edges(points, best) == edges


@pytest.mark.parametrize("change, named", [
    (dict(seed=101, embed_std=3.0), "no point of the grid of seed 100"), (dict(n_layer=2), "not one grid: n_layer"),
    (dict(), "the same point of the grid of kron"), (dict(max_steps=90), "unfinished")])
def test_runs_that_are_no_grid_are_refused(tmp_path, grid, refuse, change, named):
    made_up_run(tmp_path, "kron", **{"seed": 100, "vals": {0: 8, 60: 4}, "name": "grid/z",
                                     "learning_rate": 2e-3, "min_lr": 2e-4} | change)
    assert named in refuse(compare.main, "--tune", "out/grid", "--out=results/x", cwd=tmp_path)


@pytest.fixture
def tuned(tmp_path, grid, call):
    """The grid's table, and three seeds of each arm at its choice, of bpe_untied at the default."""
    argv = ("--tune", "out/grid", "--out=tuning", "--default=configs/tiny.py")
    assert call(compare.main, *argv, cwd=tmp_path) == 0
    rng, rates = np.random.default_rng(4), {"learning_rate": 2e-3, "min_lr": 2e-4}
    for seed in (11, 12, 13):
        for arm, loss, options in (
                ("bpe_tied", 4.0, rates), ("bpe_untied", 4.3, {}), ("kron", 3.9, rates),
                ("bpe_untied,embed_lr_mult=4", 3.8, rates | {"embed_lr_mult": 4.0}),
                ("bpe_untied,learning_rate=0.002", 3.95, rates),
                ("lowrank,rank=32", 3.9, rates | {"rank": 32})):
            loss += rng.normal(0, 0.005)
            documents = rng.normal(0, 1, 50)
            documents += loss - documents.mean()
            made_up_run(tmp_path, arm, seed, {0: 8, 100: loss}, documents=documents,
                        **options)
    return tmp_path


def test_tuned_arms_are_compared_at_their_own_settings(tuned, call, capsys):
    """Rates that differ are allowed with the grid that chose them: arms keep their base names, the
    table shows each setting, questions are answered, one page and its aggregates are written."""
    argv = ("--tuned=tuning.json", "--out=results/tiny")
    assert call(compare.main, "out", *argv, cwd=tuned) == 0
    saved = json.loads((tuned / "results" / "tiny.json").read_text())
    arms = saved["arms"]
    assert list(arms) == ["bpe_tied", "bpe_untied", "bpe_untied_default", "bpe_untied_usual",
                          "lowrank", "kron"]
    assert arms["bpe_untied"]["setting"] == "0.002, speed × 4"
    assert [a["tuned"] for a in arms.values()] == ["tuned", "tuned", "default", "usual", "tuned",
                                                   "tuned"]
    answers = {(c["arm"], c["base"]): c["answer"] for c in saved["planned"]}
    assert answers["bpe_untied", "bpe_untied_default"] == "yes"
    assert answers["kron", "kron_shuffled"] == "not run"
    others = {(c["arm"], c["base"]): c["gap"]["mean"] for c in saved["exploratory"]}
    assert others["bpe_untied_usual", "bpe_tied"] == pytest.approx(-0.05, abs=0.01)  # the head
    assert others["lowrank", "kron"] == pytest.approx(0, abs=0.01)
    assert ("random", "kron") not in others  # not run
    assert saved["commit"] == ["abc"] and saved["hardware"] == ["a machine"] and saved["command"]
    assert "validations" not in (tuned / "results" / "tiny.json").read_text()
    page = (tuned / "results" / "tiny.md").read_text()
    order = [page.index(title) for title in ("# tiny", "## Questions", "](tiny.png)", "## Arms",
                                             "## Planned", "## Other", "## What made")]
    assert order == sorted(order) and "grid of 60 steps on seed 100, used here at 100" in page
    assert "| is a table better tuned than untuned? " in page
    assert (tuned / "results" / "tiny.png").read_bytes()[:4] == b"\x89PNG"


def test_without_the_grid_other_rates_are_not_compared(tuned, call, capsys):
    assert call(compare.main, "out", cwd=tuned) == 0
    assert "learning_rate is" in capsys.readouterr().err


def test_tuned_comparisons_leave_out_what_was_not_chosen(tuned, call, capsys):
    """The tuning seed, and a rate that is neither the grid's choice nor the default."""
    rates = {"learning_rate": 2e-3, "min_lr": 2e-4}
    made_up_run(tuned, "kron", 100, {0: 8, 100: 1.0}, **rates)
    made_up_run(tuned, "kron", 14, {0: 8, 100: 1.0}, learning_rate=4e-3, min_lr=4e-4)
    made_up_run(tuned, "qr", 11, {0: 8, 100: 3.0}, **rates)
    made_up_run(tuned, "kron,pos_dim=4", 11, {0: 8, 100: 3.1}, pos_dim=4, code="kron", **rates)
    assert call(compare.main, "--tuned=tuning.json", cwd=tuned) == 0
    said = capsys.readouterr()
    assert "out/kron-s100: seed 100 chose the settings" in said.err
    assert "out/kron-s14: 0.004 is not what the grid chose (0.002)" in said.err
    assert "not tuned, no grid has them: qr" in said.err
    assert "| 11, 12, 13 " in next(line for line in said.out.splitlines() if "| kron  " in line)
    assert "as kron" in next(line for line in said.out.splitlines() if "| kron,pos_dim=4 " in line)


def test_an_arm_that_is_not_tuned_answers_nothing(tuned, call, capsys):
    """kron_shuffled has no grid: its contrast is shown, its question is not answered."""
    for seed in (11, 12, 13):
        made_up_run(tuned, "kron_shuffled", seed, {0: 8, 100: 5.0}, documents=[5.0] * 50,
                    learning_rate=2e-3, min_lr=2e-4)
    assert call(compare.main, "--tuned=tuning.json", cwd=tuned) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "own spelling" in line)
    assert "kron - kron_shuffled" in row and "not known: kron_shuffled was not tuned" in row


def test_what_was_tuned_on_other_data_or_at_another_shape_says_so(tuned, call, capsys):
    """Its answers, its table and the first lines of the page."""
    table = json.loads((tuned / "tuning.json").read_text())
    for change in ({"data": {"train": "other"}}, {"n_layer": 9}):
        other = table | {"settings": table["settings"] | change}
        (tuned / "tuning.json").write_text(json.dumps(other))
        assert call(compare.main, "--tuned=tuning.json", cwd=tuned) == 0
        said = capsys.readouterr()
        assert said.err.count("note: at settings tuned elsewhere: ") == 1
        assert "| yes, at settings tuned elsewhere |" in said.out
        tried = len(table["arms"]["kron"]["grid"])
        cell = rf"at settings tuned elsewhere, best of {tried} "
        assert re.search(rf"^\| kron  .*\| {cell}", said.out, re.M)


def test_planned_runs_that_are_not_there_are_named(tuned, call, refuse, capsys):
    (tuned / "planned").write_text("bpe_tied-s11\nkron-s14\nqr-s11\n")
    assert call(compare.main, "--tuned=tuning.json", "--planned=planned", cwd=tuned) == 0
    assert "planned and not compared, 2 of 3: kron-s14, qr-s11\n" in capsys.readouterr().err
    assert "--planned=none: cannot be read" in refuse(compare.main, "--planned=none", cwd=tuned)


@pytest.mark.parametrize("answers, says", [
    (("yes", "no"), "It is not needed: kron did better."),
    (("no", "no, in this one training run"),
     "It is needed, among these arms: kron and lowrank did worse (in this one training run)."),
    (("no", "not known"), ""), (("no", "not run"), "")])
def test_the_answer_about_the_table_is_that_of_its_two_contrasts(answers, says):
    """As results/PLAN.md has it: not needed if one arm is better, needed if both are worse."""
    planned = [{"name": "table at all", "arm": arm, "answer": text}
               for arm, text in zip(("kron", "lowrank"), answers)]
    said = page.table_needed(planned)
    assert said.endswith(says) and bool(said) == bool(says)


def test_the_frontier_is_loss_against_parameters_in_use(tmp_path):
    """A point an arm from 0 parameters on, hollow without a table of its own at the head; a line a
    family, through its arms with such a table."""
    folders = []
    for arm, code, in_use, head, loss in (
            ("affine", "affine", 0, "table", 4.6), ("kron", "kron", 600, "table", 4.1),
            ("kron,pos_dim=4", "kron", 90, "table", 4.3), ("kron_tied", "kron", 700, "tied", 5.2)):
        run = made_up_run(tmp_path, arm, 1, {0: 8, 100: loss}, code=code, head=head,
                          header={"params": PARAMS | {"in_use": in_use}})
        folders.append(run)
    horizons, _ = found.select(found.finished_runs(folders, []), "kron", (), [])
    found.score([run for by_seed in horizons[0].values() for run in by_seed.values()])
    figure = Figure()
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    plots.draw_frontier(ax, horizons[0])
    points = [container.lines[0] for container in ax.containers]
    drawn = {(*map(float, point.get_xydata()[0]), point.get_markerfacecolor() == "none")
             for point in points}
    assert drawn == {(0, 4.6, False), (600, 4.1, False), (90, 4.3, False), (700, 5.2, True)}
    assert len({point.get_color() for point in points}) == 2
    lines = [line.get_xydata().tolist() for line in ax.lines if len(line.get_xdata()) > 1]
    assert lines == [[[90, 4.3], [600, 4.1]]]
    assert ax.get_xscale() == "symlog" and ax.get_xlim()[0] < 0
    assert {text.get_text() for text in ax.texts} == set(horizons[0])


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
    assert "on seed 101, and the lower mean is taken" in (tmp_path / "t.md").read_text()


def test_a_choice_at_the_grids_edge_is_said(tuned, refuse, call, capsys):
    table = json.loads((tuned / "tuning.json").read_text())
    table["arms"]["kron"]["edges"] = ["speed r 4 is the highest of 3"]
    (tuned / "tuning.json").write_text(json.dumps(table))
    assert call(compare.main, "--tuned=tuning.json", "--out=results/x", cwd=tuned) == 0
    assert "edge of its grid: speed r 4 is the highest of 3" in capsys.readouterr().err
    (tuned / "tuning.json").write_text("{}")
    assert "not a table of tuned" in refuse(compare.main, "--tuned=tuning.json", cwd=tuned)


def test_the_table_free_arm_is_the_one_that_tuning_chose():
    arms = {arm: {"best": {"val_loss": loss}} for arm, loss in (("kron_tied", 5.0),
                                                                ("kron_code_head", 4.9))}
    assert compare.table_free({"kron_tied": {}}, {"arms": arms}) == "kron_code_head"
    assert compare.table_free({"kron_tied": {}, "kron": {}}, None) == "kron_tied"
    assert compare.table_free({"kron_tied": {}, "kron_code_head": {}}, None) == "T"


def test_several_seeds_of_one_arm_are_a_table(tmp_path, call, capsys):
    for seed in (1, 2):
        made_up_run(tmp_path, "kron", seed, {0: 8, 100: 4 + seed / 10}, documents=[4.0] * 50)
    assert call(compare.main, cwd=tmp_path) == 0
    assert re.search(r"^\| kron \| 1, 2  ", capsys.readouterr().out, re.M)


def test_runs_of_two_dtypes_are_compared_with_a_note(tmp_path, call, capsys):
    for arm, dtype in (("kron", "float32"), ("bpe_tied", "bfloat16")):
        made_up_run(tmp_path, arm, 1, {0: 8, 100: 4}, documents=[4.0] * 50, dtype=dtype)
    assert call(compare.main, cwd=tmp_path) == 0
    said = capsys.readouterr()
    assert "dtype is not the same in all runs" in said.err and "kron - bpe_tied" in said.out


def test_a_folder_has_its_own_contrasts_and_plan(tmp_path, call, capsys):
    """contrasts.tsv in the place of part one's: Holm over its confirmatory lines, lower and higher
    for answers; plan.tsv names what is not there."""
    for seed in (1, 2, 3):
        for arm, loss in (("wide", 4.0), ("minimal", 4.5), ("kron", 4.001)):
            made_up_run(tmp_path, arm, seed, {0: 8, 100: loss + seed / 1000 + (arm < "l") * seed % 2},
                        documents=[loss] * 50)
    (tmp_path / "out" / "contrasts.tsv").write_text(
        "question\tarm\tbase\tkind\nIs it enough?\tminimal\twide\tconfirmatory\n"
        "Is it there?\twide\trandom\tconfirmatory\nAnd this?\tkron\twide\texploratory\n")
    (tmp_path / "out" / "plan.tsv").write_text(
        "item\tname\targuments\n1\ttuning/x\tconfigs/kron.py\n1\twide-s9\tconfigs/wide.py\n")
    assert call(compare.main, "out", "--baseline=wide", "--planned=out/plan.tsv", "--out=page",
                cwd=tmp_path) == 0
    saved = json.loads((tmp_path / "page.json").read_text())
    assert [(c["question"], c["answer"]) for c in saved["planned"]] == [
        ("Is it enough?", "higher"), ("Is it there?", "not run")]
    assert [(c["arm"], c["base"]) for c in saved["exploratory"]] == [("kron", "wide")]
    assert saved["planned"][0]["p_holm"] == pytest.approx(2 * saved["planned"][0]["p"], rel=1e-4)
    assert "planned and not compared, 1 of 1: wide-s9" in capsys.readouterr().err


# ---- real runs ---------------------------------------------------------------------------------

def test_real_runs_compare(docstrings, runs, tmp_path, call, capsys):
    """The real script on real runs writes three files; a run with another micro-batch is left out
    by name."""
    folders = [runs[arm] for arm in ("binary", "affine", "kron", "random")]
    done = script("compare.py", *folders, "--baseline=binary", f"--out={tmp_path}/r/tiny",
                  cwd=docstrings)
    saved = json.loads((tmp_path / "r" / "tiny.json").read_text())
    final = {arm: np.load(runs[arm] / "eval.npz")["doc_nats"].sum() for arm in ("binary", "kron")}
    tokens = np.load(runs["kron"] / "eval.npz")["doc_tokens"].sum()
    c = pair_of(saved, "kron", "binary")
    assert c["gap"]["mean"] == pytest.approx((final["kron"] - final["binary"]) / tokens, abs=1e-4)
    assert c["documents"][0] < c["gap"]["mean"] < c["documents"][1]
    assert records(runs["kron"])[-1]["val_loss"] == pytest.approx(
        saved["arms"]["kron"]["loss"]["mean"], abs=0.2)
    assert "arXiv" not in done.stdout
    assert (tmp_path / "r" / "tiny.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "r" / "tiny.md").read_text()
    assert "-0.083 +- 0.007" in page and "--name=kron" in page and saved["commit"][0] in page
    assert call(compare.main, runs["kron"], runs["ranks2"], cwd=docstrings) == 0
    assert "not comparable: batch_size is 8" in capsys.readouterr().err
