"""runs/plan.py: a plan's lines are run side by side, finished ones skipped, stopped ones continued,
and a line that needs other runs waits for them."""
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from conftest import ROOT
from lib.results import read_run
from runs import plan as plans

TOY = ("--dataset=small --n_layer=1 --n_head=2 --n_embd=36 --block_size=16 --batch_size=4 "
       "--warmup_steps=2 --eval_interval=3 --eval_tokens=64 --device=cpu --dtype=float32")


def write_plan(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["item\tname\targuments", *("\t".join(row) for row in rows)]
    (folder / "plan.tsv").write_text("\n".join(lines) + "\n")


def finish(folder, name, loss, **config):
    """A made-up run that ended with this loss; None: it diverged."""
    config = {"max_steps": 600, "seed": 100, "learning_rate": 4e-3, "min_lr": 4e-4,
              "log_interval": 999, "eval_interval": 999} | config
    header = {"arm": "kron", "config": config, "params": {"input": 9, "total": 9}, "data": {}}
    records = [header, {"step": 0, "val_loss": 8.0, "input_rms": 1.0},
               {"step": 600, "val_loss": loss, "input_rms": 1.0}]
    (folder / name).mkdir(parents=True)
    (folder / name / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_what_a_line_stands_for_once_the_lines_that_it_needs_are_done(tmp_path):
    """The best point's setting; a step beyond it where it lies at the end of an axis, with r held;
    the second best; the choice of the whole grid, by the mean of two seeds. Until then it waits."""
    grid = [("1", f"tuning/x{i}", f"configs/kron.py --embed_std={s} --embed_lr_mult={m}")
            for i, (s, m) in enumerate([(1, 0.25), (1, 1), (0.3, 0.3)])]
    write_plan(tmp_path, *grid, *[
        ("1", "tuning/lr8", "configs/kron.py {best} --learning_rate=8e-3"),
        ("1", "tuning/scale", "configs/kron.py {beyond scale}"),
        ("1", "tuning/r", "configs/kron.py {beyond speed r}"),
        ("1", "tuning/first", "configs/kron.py {best} --seed=101"),
        ("1", "tuning/second", "configs/kron.py {second} --seed=101"),
        ("1", "kron-s1", "configs/kron.py {tuned} --seed=1"),
        ("2", "sub/kron-s1", "configs/kron.py {tuned} --seed=1")])
    plan = plans.Plan(tmp_path)
    row = {row["name"]: row for row in plan.rows}
    assert plan.arguments(row["tuning/lr8"]) is plans.WAITS
    for i, (s, m, loss) in enumerate([(1.0, 0.25, 4.4), (1.0, 1.0, 4.5), (0.3, 0.3, 4.3)]):
        finish(tmp_path, f"tuning/x{i}", loss, embed_std=s, embed_lr_mult=m)
    best = ["--learning_rate=0.004", "--min_lr=0.0004", "--embed_lr_mult=0.3", "--embed_std=0.3"]
    assert plan.arguments(row["tuning/lr8"]) == ["configs/kron.py", *best, "--learning_rate=8e-3"]
    finish(tmp_path, "tuning/lr8", None, embed_std=0.3, embed_lr_mult=0.3, learning_rate=8e-3)
    assert plan.arguments(row["tuning/scale"])[3:] == ["--embed_lr_mult=0.09", "--embed_std=0.09"]
    finish(tmp_path, "tuning/scale", 4.6, embed_std=0.09, embed_lr_mult=0.09)
    assert plan.arguments(row["tuning/r"])[3:] == ["--embed_lr_mult=1.2", "--embed_std=0.3"]
    finish(tmp_path, "tuning/r", 4.7, embed_std=0.3, embed_lr_mult=1.2)
    assert plan.arguments(row["kron-s1"]) is plans.WAITS
    finish(tmp_path, "tuning/first", 4.5, embed_std=0.3, embed_lr_mult=0.3, seed=101)
    assert plan.arguments(row["tuning/second"])[3:] == ["--embed_lr_mult=0.25", "--embed_std=1",
                                                        "--seed=101"]
    finish(tmp_path, "tuning/second", 4.38, embed_std=1.0, embed_lr_mult=0.25, seed=101)
    for name in ("kron-s1", "sub/kron-s1"):  # 4.39 on two seeds, the first one 4.4
        assert plan.arguments(row[name])[3:5] == ["--embed_lr_mult=0.25", "--embed_std=1"]


def test_a_step_beyond_is_not_run_where_the_best_lies_inside(tmp_path):
    write_plan(tmp_path, *[("1", f"tuning/x{s}", "configs/wide.py") for s in (1, 2, 3)],
               ("1", "tuning/y", "configs/wide.py {beyond scale}"))
    for s, loss in ((1, 4.2), (2, 4.1), (3, 4.3)):
        finish(tmp_path, f"tuning/x{s}", loss, embed_std=float(s))
    plan = plans.Plan(tmp_path)
    assert plan.arguments(plan.rows[-1]) is plans.NOT_NEEDED and plan.settled(plan.rows[-1])


@pytest.mark.parametrize("rows, named", [
    ([("1", "a")], "a line is item, name, arguments"),
    ([("1", "a", "--seed=1")], "do not begin with a config"),
    ([("1", "a", "configs/kron.py")] * 2, "two runs of one name"),
    ([("1", "a", "configs/kron.py {tuned}")], "no tuning/ runs of its config")])
def test_a_plan_that_is_none_is_one_line(tmp_path, refuse, rows, named):
    write_plan(tmp_path / "results" / "p", *rows)
    assert named in refuse(plans.main, "results/p", "--list", cwd=tmp_path)


def test_the_plan_of_round_two(capsys, call):
    """Every line names a config that is there, and every contrast of contrasts.tsv has its arms."""
    folder = ROOT / "results" / "tiny2"
    plan = plans.Plan(folder)
    assert all((ROOT / row["arguments"].split()[0]).is_file() for row in plan.rows)
    assert all(plan.grid_of(row) for row in plan.rows if "{" in row["arguments"])
    arms = {row["name"].split("-s2")[0] for row in plan.rows}
    for line in (folder / "contrasts.tsv").read_text().splitlines()[1:]:
        question, arm, base, kind = line.split("\t")
        assert question.endswith("?") and kind in ("confirmatory", "exploratory")
        for name in (arm, base):
            assert re.sub(r",rows=|,head_bias=", "", name).replace("unigram", "-unigram") in arms


def test_runs_go_side_by_side_and_go_on(small_data, tmp_path):
    """The real train.py: what is kept of a finished run and of one that diverged; SIGTERM stops
    all, and the same command goes on; what is kept is not run again; a run that fails is said."""
    folder = tmp_path / "clone"
    skipped = shutil.ignore_patterns(".*", "__pycache__", "data", "out", "results", "tests")
    shutil.copytree(ROOT, folder, ignore=skipped)
    shutil.copytree(small_data / "data", folder / "data")
    write_plan(folder / "results" / "p", *[
        ("1", "long", f"configs/kron.py {TOY} --max_steps=200 --eval_interval=100"),
        ("1", "tuning/ends", f"configs/wide.py {TOY} --max_steps=3"),
        ("1", "diverges", f"configs/kron.py {TOY} --max_steps=9 --learning_rate=1e6 "
                          "--warmup_steps=0 --grad_clip=0"),
        ("1", "tuned", f"configs/wide.py {TOY} {{tuned}} --max_steps=3 --seed=2"),
        ("2", "wrong", f"configs/kron.py {TOY} --n_head=5")])
    kept, command = folder / "results" / "p", [sys.executable, "-m", "runs.plan", "results/p"]

    def start(*more):
        return subprocess.Popen([*command, "--jobs=2", *more], cwd=folder, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = start("--items", "1")
    end = time.monotonic() + 120
    while not (kept / "tuned" / "log.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    stopped_early = not (kept / "long").exists()
    second = start()
    said += second.communicate(timeout=120)[0]
    assert second.returncode == 1 and "wrong: error: n_embd=36 is not divisible" in said
    assert {path.name for path in (kept / "tuning" / "ends").iterdir()} == {"log.jsonl", "eval.npz"}
    assert {path.name for path in (kept / "diverges").iterdir()} == {"log.jsonl"}
    assert read_run(kept / "diverges")["diverged"] is not None
    long = read_run(kept / "long")
    assert long["vals"][-1]["step"] == 200 and np.isfinite(long["vals"][-1]["val_loss"])
    if stopped_early:
        assert "stopping: the runs save first" in said
    assert not list((folder / "out" / "p-tuning-ends").glob("*.pt"))
    assert list((folder / "out" / "p-long").glob("*.pt")) and not (kept / "wrong").exists()
    third = start("--items", "1")
    assert third.communicate(timeout=60)[0] == "" and third.returncode == 0
