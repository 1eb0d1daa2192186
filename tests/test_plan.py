"""runs/plan.py: a plan's lines are run side by side, finished ones skipped, stopped ones continued,
and a line that needs other runs waits for them."""
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from conftest import HEADER, ROOT, VAL
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
    header = HEADER | {"arm": "kron", "config": config, "params": {"input": 9, "total": 9}}
    records = [header, VAL | {"step": 0, "val_loss": 8.0}, VAL | {"step": 600, "val_loss": loss}]
    (folder / name).mkdir(parents=True)
    (folder / name / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_what_a_line_stands_for_once_the_lines_that_it_needs_are_done(tmp_path):
    """The best point's setting; a step beyond it where it lies at the end of an axis, with r held;
    the second best; the choice of the whole grid, by the mean of two seeds. Until then it waits. A
    step beyond is not run where the best lies inside."""
    lines = [  # name, arguments, the scale and multiplier that they become, final loss
        ("tuning/a", "--embed_std=1 --embed_lr_mult=0.25", (1, 0.25), 4.4),
        ("tuning/b", "--embed_std=1", (1, 1), 4.5),
        ("tuning/c", "--embed_std=0.3 --embed_lr_mult=0.3", (0.3, 0.3), 4.3),
        ("tuning/diverges", "{best} --learning_rate=8e-3", (0.3, 0.3), None),
        ("tuning/scale", "{beyond scale}", (0.09, 0.09), 4.6),
        ("tuning/r", "{beyond r}", (0.3, 1.2), 4.7),
        ("tuning/inside", "{beyond scale}", None, None),
        ("tuning/first", "{best} --seed=101", (0.3, 0.3), 4.5),
        ("tuning/second", "{second} --seed=101", (1, 0.25), 4.38),
        ("kron-s1", "{tuned} --seed=1", (1, 0.25), 4),  # 4.39 on two seeds, the first one 4.4
        ("sub/kron-s1", "{tuned} --seed=1", (1, 0.25), 4)]
    write_plan(tmp_path, *[("1", name, f"configs/kron.py {text}") for name, text, *_ in lines])
    plan = plans.Plan(tmp_path)
    for row, (name, _, setting, loss) in zip(plan.rows, lines):
        if not setting:
            assert plan.arguments(row) is plans.NOT_NEEDED and plan.ended(row)
            continue
        assert name.endswith("kron-s1") or plan.arguments(plan.rows[-1]) is plans.WAITS
        given = {"embed_lr_mult": 1.0, "learning_rate": 4e-3, "seed": 100}
        for option in plan.arguments(row)[1:]:
            key, value = option[2:].split("=")
            given[key] = float(value)
        assert (given["embed_std"], given["embed_lr_mult"]) == setting
        finish(tmp_path, name, loss, **given)


@pytest.mark.parametrize("rows, named", [
    ([("1", "a")], "row 1: no text in one of item, name, arguments"),
    ([("1", "a", "--seed=1")], "begin with a config"),
    ([("1", "a", "configs/kron.py {tuned}")], "no tuning/ runs of its config")])
def test_a_plan_that_is_none_is_one_line(tmp_path, refuse, rows, named):
    write_plan(tmp_path / "results" / "p", *rows)
    assert named in refuse(plans.main, "results/p", "--list", cwd=tmp_path)


def test_the_plan_of_round_two():
    """Every line names a config that is there, and has the grid that it needs."""
    plan = plans.Plan(ROOT / "results" / "tiny2")
    assert all((ROOT / row["arguments"].split()[0]).is_file() for row in plan.rows)
    assert all(plan.grid_of(row) for row in plan.rows if "{" in row["arguments"])


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
    first, end = start("--items", "1"), time.monotonic() + 120
    while not (kept / "tuned" / "log.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert (kept / "long").exists() or "stopping: the runs save first" in said
    second = start()
    assert "wrong: error: n_embd=36 is not divisible" in second.communicate(timeout=120)[0]
    assert second.returncode == 1 and not (kept / "wrong").exists()
    assert {path.name for path in (kept / "tuning" / "ends").iterdir()} == {"log.jsonl", "eval.npz"}
    assert {path.name for path in (kept / "diverges").iterdir()} == {"log.jsonl"}
    assert read_run(kept / "diverges")["diverged"] is not None
    assert read_run(kept / "long")["vals"][-1]["step"] == 200
    assert not list((folder / "out" / "p-tuning-ends").glob("*.pt"))
    assert list((folder / "out" / "p-long").glob("*.pt"))
    third = start("--items", "1")
    assert third.communicate(timeout=60)[0] == "" and third.returncode == 0
