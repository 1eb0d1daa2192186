"""The recipes of runs/: their arithmetic, and whole, from the prepared text to results/*.md, with
the same commands at toy size."""
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

import train
from conftest import ROOT, SHORT
from lib.results import read_run

# What somebody with a Mac runs: bash 3.2, and tools that are not GNU's.
EVERYWHERE = ("setup", "demo", "test", "tune", "tiny", "one_gpu")
NOT_EVERYWHERE = (r"\bmapfile\b", r"\breadarray\b", r"declare -A", r"local -A", r"\$\{\w+(,,|\^\^)",
                  r"\bnproc\b", r"sed (-\w*)?[ur]\b", r"sed -i", r"xargs (-\w+ )*-r", r"grep -\w*P",
                  r"readlink -f", r"\brealpath\b", r"\btimeout\b", r"\|&", r"date -I", r"stat -c",
                  r"head -n -", r"\bseq\b", r"\$\{\w+\[-1\]\}", r"sort -V")


@pytest.fixture
def clone(tmp_path):
    """The project's own files in another folder, with this environment."""
    if not (Path(sys.prefix) / "installed.txt").exists():
        pytest.skip("needs the .venv that runs/setup.sh makes")
    folder = tmp_path / "clone"
    skipped = shutil.ignore_patterns(".*", "__pycache__", "data", "out", "results")
    shutil.copytree(ROOT, folder, ignore=skipped)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def bash(folder, *args, status=0, **env):
    """What `bash ARGS` prints in a folder, standard error after standard output."""
    done = subprocess.run(["bash", *args], cwd=folder, timeout=1200, env=os.environ | env,
                          capture_output=True, text=True)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


# ---- what they say and where they run ----------------------------------------------------------

@pytest.mark.parametrize("path", sorted((ROOT / "runs").glob("*.sh")), ids=lambda path: path.stem)
def test_a_recipe_parses_and_keeps_to_what_macs_have(path):
    bash(ROOT, "-n", str(path))
    lines = path.read_text().splitlines()
    code = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    if path.stem in EVERYWHERE:
        assert not [pattern for pattern in NOT_EVERYWHERE if re.search(pattern, code)]


@pytest.mark.parametrize("size, gpus", [("4gb", ["GTX 1650"]), ("16gb", ["T4"]),
                                        ("24gb", ["RTX 4090", "RTX 3090"])])
def test_a_size_fits_its_gpu_in_the_hours_that_are_said(size, gpus, call, capsys, tmp_path):
    """--dry_run agrees: the micro-batch of the config fits with room for twice as many, and six
    arms with one seed take the hours that the recipe's header says."""
    header = (ROOT / "runs" / "one_gpu.sh").read_text()
    said, = re.findall(rf"^# {size} .*$", header, re.M)
    for gpu in gpus:
        argv = [f"configs/gpu_{size}.py", "configs/bpe_untied.py", f"--dry_run={gpu}"]
        assert call(train.main, *argv, cwd=tmp_path) == 0
        out = capsys.readouterr().out
        config = (ROOT / "configs" / f"gpu_{size}.py").read_text()
        micro = int(re.search(r"^batch_size = (\d+)", config, re.M)[1])
        most = int(re.search(r"fits; the largest micro-batch that does is (\d+)", out)[1])
        hours = float(re.search(r"four arms with three seeds ([\d.]+) hours", out)[1]) / 2
        assert most >= 2 * micro
        assert abs(hours - int(re.search(rf"{gpu}: (\d+) hours", said)[1])) <= 0.5
    tokens = re.search(r"= ([\d,]+) tokens", out)[1].replace(",", "")
    assert {"4gb": "131M", "16gb": "524M", "24gb": "1.0B"}[size] in said
    wanted = re.search(rf"^    {size}\) tokens=(\S+)", header, re.M)[1]
    assert int(tokens) <= float(wanted) < 1.02 * int(tokens)  # one pass over what is prepared


# ---- the GPU without a network ------------------------------------------------------------------

def brought_by(*names):
    """Distributions and all that they require, by name."""
    found, wanted = set(), [re.sub(r"[_.]", "-", name).lower() for name in names]
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        try:
            required = distribution(name).requires or []
        except ModuleNotFoundError:  # for another system, or an extra
            continue
        found.add(name)
        for line in required:
            if "extra ==" not in line:
                wanted.append(re.match(r"[\w.-]+", line)[0].replace("_", "-").lower())
    return found


@pytest.fixture
def only_what_the_gpu_machine_has(tmp_path):
    """A folder for PYTHONPATH with which whatever torch, numpy, tiktoken, tqdm, matplotlib and
    pytest do not bring cannot be imported."""
    there = brought_by("torch", "numpy", "tiktoken", "tqdm", "matplotlib", "pytest", "setuptools")
    absent = [module for module, owners in packages_distributions().items()
              if not there & {owner.replace("_", "-").lower() for owner in owners}]
    assert {"tokenizers", "datasets", "rustbpe", "huggingface_hub", "pandas"} <= set(absent)
    assert not {"torch", "numpy", "tiktoken", "filelock", "regex", "PIL"} & set(absent)
    folder = tmp_path / "absent"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"""
import sys
from importlib.machinery import PathFinder
class Rest(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {sorted(absent)!r} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Rest
""")
    return str(folder)


def test_the_gpu_machine_needs_nothing_more(only_what_the_gpu_machine_has):
    """All that gpu_check.sh starts can be imported there."""
    code = "import train, bench, tests.test_gpu; import tokenizers"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(
                              [only_what_the_gpu_machine_has, str(ROOT / "tests")])})
    last = done.stderr.splitlines()[-1]
    assert last == "ModuleNotFoundError: No module named 'tokenizers'", done.stderr


@pytest.mark.soak
def test_smoke_of_the_gpu_check(clone, only_what_the_gpu_machine_has, docstrings, tmp_path):
    """Its three calls, with nothing installed but what the GPU's machine has; runs that find no
    time are left out, and the next call makes them."""
    shutil.copytree(docstrings / "data", clone / "data")
    back = tmp_path / "back"

    def go(*args):
        return bash(clone, "runs/gpu_check.sh", *args, SMOKE="1", OUT=str(back),
                    PYTHONPATH=only_what_the_gpu_machine_has, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert " passed" in go("tests") and "failed" not in (back / "tests.txt").read_text()
    go("bench")
    table = (back / "bench.txt").read_text()
    assert table.count("| wide ") == 2 and "ratio to bpe_untied" in table
    assert set(json.loads((back / "step-compile=False.json").read_text())["result"]) == {
        "kron", "wide", "bpe_untied"}
    go("runs", "0")
    assert not list(back.glob("*/log.jsonl"))
    go("runs", "300")
    arms = ["bpe_tied_usual", "bpe_untied_fast", "bpe_untied_usual", "kron", "wide"]
    assert sorted(path.parent.name for path in back.glob("*/eval.npz")) == arms
    made = [read_run(back / arm) for arm in arms]
    assert [run["header"]["config"]["embed_lr_mult"] for run in made] == [1, 50, 1, 1, 1]


# ---- whole --------------------------------------------------------------------------------------

@pytest.mark.soak
@pytest.mark.parametrize("recipe, name, arms, probes", [
    ("gpt2_124m", "smoke-gpt2-124m", ["bpe_untied_usual", "kron"],
     ["robustness", "generation", "layers", "norms"]),
    ("binary_32l", "smoke-binary-32l", ["affine", "binary", "bpe_untied"], ["norms"]),
    ("one_gpu", "smoke-one-gpu-4gb", ["bpe_tied_usual", "bpe_untied_fast", "bpe_untied_usual",
                                      "kron", "kron_shuffled", "wide"],
     ["echo", "robustness", "tokens"])])
def test_smoke(clone, recipe, name, arms, probes):
    """SMOKE=1: two seeds, the table and the probes, with an option for train.py; the same command
    again finds everything finished."""
    def go():
        return bash(clone, f"runs/{recipe}.sh", "--weight_decay=0.2", SMOKE="1")
    assert "is finished" not in go()
    made = [read_run(folder) for folder in sorted((clone / "out").glob(f"{name}-*"))]
    assert sorted({run["header"]["arm"] for run in made}) == arms
    assert all(run["header"]["config"]["weight_decay"] == 0.2 for run in made)
    results = json.loads((clone / "results" / f"{name}.json").read_text())
    assert len(results["runs"]) == len(made) == 2 * len(arms)
    for stem in [name, *(f"probe-{probe}-{name}" for probe in probes)]:
        page, picture = (clone / "results" / f"{stem}.{ending}" for ending in ("md", "png"))
        assert page.stat().st_size > 500 and picture.stat().st_size > 10_000
    logs = {path: path.read_bytes() for path in clone.glob("out/*/log.jsonl")}
    assert go().count("is finished") == len(logs) == 2 * len(arms)
    assert all(path.read_bytes() == raw for path, raw in logs.items())


@pytest.mark.soak
def test_the_demo(clone):
    """runs/demo.sh, whole: it times a step and says what it chose; with two steps a run, four arms,
    a comparison, copying, what is next; the same command again trains nothing."""
    def go(**env):
        return bash(clone, "runs/demo.sh", *SHORT[:5], "--eval_tokens=1024", **env)
    said = go(STEPS="2")
    for text in ("== wide, seed 1", "bpe_untied_fast", "(the clean word)", "next:"):
        assert text in said
    assert (clone / "out" / "demo2.png").stat().st_size > 10_000
    assert go(STEPS="2").count("is finished") == 4
    timed = go(MINUTES="0")  # no time: as few steps as there are
    assert re.search(r"^\d+ ms a step here: 20 steps an arm", timed, re.M)
