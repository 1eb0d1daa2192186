"""compare.py: the statistics agree with hand-computed values, and runs that do not match are refused."""
import json

import pytest

import compare
from conftest import SHORT, records, script

PARAMS = {"input": 1, "body": 2, "head": 3, "total": 6}


def made_up_run(folder, arm, seed, vals, max_steps=None, name=None, rate=1e-3, crc=7):
    """A log.jsonl as train.py writes it, with known validation losses {step: loss}."""
    run = folder / "out" / (name or f"{arm}-s{seed}")
    run.mkdir(parents=True)
    config = {"dataset": "d", "max_steps": max_steps or max(vals), "learning_rate": rate, "seed": seed, "run": run.name,
              "code": arm, "n_layer": 1, "n_embd": 8, "block_size": 4, "dtype": "float32"}
    lines = [{"config": config, "arm": arm, "params": PARAMS, "data": {"train": "0", "val": "1"},
              "tokens_per_step": 32, "epochs": 0.5}]
    lines.append({"step": 1, "loss": 3.0, "tokens_per_s": 100.0, "batch_crc": crc + seed})
    lines += [{"step": s, "val_loss": v, "val_ppl": 2.0, "val_bpb": 1.0, "input_norm": 1.0} for s, v in vals.items()]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def results(folders, baseline="bpe_tied"):
    runs = [compare.read_run(f) for f in folders]
    compare.refuse_unmatched(runs)
    return compare.compare([r for r in runs if compare.is_finished(r)], baseline)


@pytest.mark.parametrize("degrees, t", [(1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262), (30, 2.042)])
def test_student_quantile_is_that_of_the_printed_tables(degrees, t):
    assert compare.student_quantile(degrees) == pytest.approx(t, abs=5e-4)


def test_gap_and_interval_in_the_published_form(tmp_path):
    """Per-seed gaps of -0.076, -0.083, -0.090 are -0.083 +- 0.007, with a half-width of 4.303 * 0.007 / sqrt(3)."""
    folders = [made_up_run(tmp_path, "bpe_tied", s, {0: 8, 100: 3.3 + s / 100}) for s in (1, 2, 3)]
    folders += [made_up_run(tmp_path, "kron", s, {0: 8, 100: 3.3 + s / 100 - gap})
                for s, gap in ((1, 0.076), (2, 0.083), (3, 0.090))]
    against = results(folders)["arms"]["kron"]["against_baseline"]
    assert against["gap"]["mean"] == pytest.approx(-0.083) and against["gap"]["sd"] == pytest.approx(0.007)
    assert against["gap"]["interval"] == pytest.approx([-0.083 - 0.01739, -0.083 + 0.01739], abs=1e-5)
    assert against["percent"]["mean"] == pytest.approx((-7.6 / 3.31 - 8.3 / 3.32 - 9.0 / 3.33) / 3)
    assert against["ppl_ratio"]["mean"] == pytest.approx(0.9204, abs=1e-4) and against["verdict"] == "lower"
    loss = results(folders)["arms"]["bpe_tied"]["val_loss"]
    assert (loss["mean"], loss["sd"]) == (pytest.approx(3.32), pytest.approx(0.01))


@pytest.mark.parametrize("gaps, verdict", [((-0.1, -0.1, -0.11), "lower"), ((0.1, 0.1, 0.11), "higher"),
                                           ((-0.1, 0.1, -0.02), "not resolved at 3 seeds"), ((-0.1,), "one seed, no interval")])
def test_the_verdict_follows_from_the_interval(tmp_path, gaps, verdict):
    folders = [made_up_run(tmp_path, "bpe_tied", s, {0: 8, 100: 4}) for s in range(len(gaps))]
    folders += [made_up_run(tmp_path, "kron", s, {0: 8, 100: 4 + gap}) for s, gap in enumerate(gaps)]
    against = results(folders)["arms"]["kron"]["against_baseline"]
    assert against["verdict"] == verdict
    assert (against["gap"]["interval"] is None) == (len(gaps) == 1)


def test_an_arm_against_itself_is_exactly_zero(tmp_path):
    folders = [made_up_run(tmp_path, "bpe_tied", s, {0: 8, 50: 4 + s / 7, 100: 3 + s / 7}) for s in (1, 2, 3)]
    against = results(folders)["arms"]["bpe_tied"]["against_baseline"]
    assert against["gap"] == {"mean": 0, "sd": 0, "n": 3, "interval": [0, 0]}
    assert against["speedup"]["mean"] == 1.0


def test_steps_to_match_interpolates_between_validations():
    """8 -> 4 over steps 0..100: 5 is reached at step 75; 3.5 never."""
    vals = [{"step": 0, "val_loss": 8.0}, {"step": 100, "val_loss": 4.0}]
    assert compare.steps_to_match(vals, 5.0) == 75.0
    assert compare.steps_to_match(vals, 4.0) == 100.0
    assert compare.steps_to_match(vals, 3.5) is None


def test_steps_to_match_in_the_table(tmp_path):
    folders = [made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 5}), made_up_run(tmp_path, "kron", 1, {0: 8, 100: 4}),
               made_up_run(tmp_path, "binary", 1, {0: 8, 100: 6})]
    result = results(folders)
    assert result["arms"]["kron"]["against_baseline"]["speedup"]["mean"] == pytest.approx(100 / 75)
    assert "1.33x" in compare.tables(result) and "not reached" in compare.tables(result)


def test_contrasts_pair_the_controls(tmp_path):
    losses = {"bpe_tied": 5.0, "bpe_untied": 4.9, "bpe_untied_unit": 4.7, "bpe_untied_lr": 4.3, "random": 4.2, "kron": 3.4}
    result = results([made_up_run(tmp_path, arm, s, {0: 8, 100: loss}) for arm, loss in losses.items() for s in (1, 2)])
    assert ({c["what"]: round(c["gap"]["mean"], 6) for c in result["contrasts"]}
            == {"bytes": -0.8, "untying": -0.1, "input scale": -0.2, "input speed": -0.4})


def test_a_half_written_line_is_dropped_with_a_notice(tmp_path, capsys):
    run = made_up_run(tmp_path, "kron", 1, {0: 8, 100: 4})
    with open(run / "log.jsonl", "a") as file:
        file.write('[1]\n\n{"step": "x", "val_loss": 1}\n{"step": 100, "val_lo')
    assert compare.read_run(run)["vals"][-1]["val_loss"] == 4
    assert "4 unreadable lines dropped" in capsys.readouterr().err


def test_an_unfinished_run_is_listed_and_left_out(tmp_path, call, capsys):
    made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4})
    made_up_run(tmp_path, "bpe_tied", 2, {0: 8, 50: 7}, max_steps=100)
    assert call(compare.main, cwd=tmp_path) == 0
    out = capsys.readouterr().out
    assert "left out, unfinished: out/bpe_tied-s2" in out and "4.0000" in out and "5.5" not in out


@pytest.mark.parametrize("change, named", [(dict(rate=2e-3), "learning_rate is 0.001"), (dict(crc=8), "step 1 saw other batches"),
                                           (dict(arm="bpe_tied", name="copy"), "same arm and seed")])
def test_unfair_pairs_are_refused(tmp_path, refuse, change, named):
    """One thing changed in one run of a pair: the first difference is named and nothing is written."""
    made_up_run(tmp_path, "bpe_tied", 1, {0: 8, 100: 4})
    made_up_run(tmp_path, **{"arm": "kron", "seed": 1, "vals": {0: 8, 100: 4}, **change})
    assert named in refuse(compare.main, "out/bpe_tied-s1", f"out/{change.get('name', 'kron-s1')}",
                           "--out=results/x", cwd=tmp_path)


@pytest.mark.parametrize("content", ["", "{}\n", "garbage\n", '{"config": 1, "arm": 1, "params": 1, "data": 1}\n'])
def test_logs_that_are_none_are_refused(tmp_path, refuse, content):
    (tmp_path / "out" / "x").mkdir(parents=True)
    (tmp_path / "out" / "x" / "log.jsonl").write_text(content)
    assert "no header" in refuse(compare.main, "out/x", cwd=tmp_path)
    assert "no log.jsonl" in refuse(compare.main, "out/none", cwd=tmp_path)


def test_real_runs_compare(docstrings, runs, tmp_path):
    """The real script on real runs writes three files; real runs with another micro-batch or learning rate
    are refused by name."""
    folders = [runs[arm] for arm in ("binary", "affine", "kron", "random")]
    done = script("compare.py", *folders, "--baseline=binary", f"--out={tmp_path}/r/tiny", cwd=docstrings)
    saved = json.loads((tmp_path / "r" / "tiny.json").read_text())
    final = {arm: records(runs[arm])[-1]["val_loss"] for arm in ("binary", "kron")}
    assert saved["arms"]["kron"]["against_baseline"]["gap"]["mean"] == pytest.approx(final["kron"] - final["binary"])
    assert "kron - random" in done.stdout and "arXiv" not in done.stdout
    assert (tmp_path / "r" / "tiny.png").read_bytes()[:4] == b"\x89PNG"
    report = (tmp_path / "r" / "tiny.md").read_text()
    assert "-0.083 +- 0.007" in report and "--run=kron" in report and saved["runs"][0]["header"]["commit"] in report
    assert "batch_size is 8" in script("compare.py", runs["kron"], runs["ranks2"], cwd=docstrings, status=2).stderr
    script("train.py", "configs/tiny.py", "configs/affine.py", *SHORT, "--learning_rate=6e-3", "--max_steps=60",
           "--run=unfair", cwd=docstrings)
    done = script("compare.py", runs["affine"], docstrings / "out" / "unfair", "--baseline=affine", cwd=docstrings, status=2)
    assert "learning_rate is 0.003" in done.stderr and "0.006" in done.stderr
