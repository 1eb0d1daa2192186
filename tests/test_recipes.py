"""The recipes of runs/: their arithmetic, what they keep, and whole, from the prepared text to
results/*.md, with the same commands at toy size."""
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

import train
from conftest import ROOT, error_line
from lib.results import read_run
from runs import kron_forms

# What somebody with a Mac runs: bash 3.2, and tools that are not GNU's.
EVERYWHERE = ("setup", "kept", "demo", "test", "tune", "tiny", "one_gpu")
NOT_EVERYWHERE = (r"\bmapfile\b", r"\breadarray\b", r"declare -A", r"local -A", r"\$\{\w+(,,|\^\^)",
                  r"\bnproc\b", r"sed (-\w*)?[ur]\b", r"sed -i", r"xargs (-\w+ )*-r", r"grep -\w*P",
                  r"readlink -f", r"\brealpath\b", r"\btimeout\b", r"\|&", r"date -I", r"stat -c",
                  r"head -n -", r"\bseq\b", r"\$\{\w+\[-1\]\}", r"sort -V")
TOY = ("--n_layer=2", "--n_embd=48", "--n_head=3", "--block_size=32", "--batch_size=2",
       "--dataset=small", "--device=cpu", "--eval_tokens=256")


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
    """--dry_run agrees: the micro-batch of the config fits with room for twice as many, and four
    arms take the hours that the recipe's header says."""
    header = (ROOT / "runs" / "one_gpu.sh").read_text()
    said, = re.findall(rf"^# {size} .*$", header, re.M)
    for gpu in gpus:
        argv = [f"configs/gpu_{size}.py", "configs/bpe_untied.py", f"--dry_run={gpu}"]
        assert call(train.main, *argv, cwd=tmp_path) == 0
        out = capsys.readouterr().out
        config = (ROOT / "configs" / f"gpu_{size}.py").read_text()
        micro = int(re.search(r"^batch_size = (\d+)", config, re.M)[1])
        most = int(re.search(r"fits; the largest micro-batch that does is (\d+)", out)[1])
        hours = float(re.search(r"four arms with three seeds ([\d.]+) hours", out)[1]) / 3
        assert most >= 2 * micro
        assert abs(hours - int(re.search(rf"{gpu}: (\d+) hours", said)[1])) <= 0.5
    tokens = re.search(r"= ([\d,]+) tokens", out)[1].replace(",", "")
    assert {"4gb": "131M", "16gb": "524M", "24gb": "1.0B"}[size] in said
    wanted = re.search(rf"^    {size}\) tokens=(\S+)", header, re.M)[1]
    assert int(tokens) <= float(wanted) < 1.02 * int(tokens)  # one pass over what is prepared


# ---- the GPU without a network -----------------------------------------------------------------

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
    """All that gpu_evidence.sh starts can be imported there."""
    code = "import train, compare, probe, bench, runs.kron_forms, tests.test_gpu; import tokenizers"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(
                              [only_what_the_gpu_machine_has, str(ROOT / "tests")])})
    last = done.stderr.splitlines()[-1]
    assert last == "ModuleNotFoundError: No module named 'tokenizers'", done.stderr


def forms(call, cwd):
    argv = [*TOY, "--gradient_accumulation_steps=1", "--dtype=float32", "--rounds=1"]
    return call(kron_forms.main, *argv, cwd=cwd)


def test_the_forms_of_kron_are_the_same(small_data, call, capsys, monkeypatch):
    """Gathered, dense or by one-hot products: the same vectors and gradients to 1e-5 in float32; a
    form that adds what is past a token's length is found out."""
    assert forms(call, small_data) == 0
    out = capsys.readouterr().out
    for form in kron_forms.FORMS:
        assert f"{form}: vectors and gradients within" in out
        assert len(re.findall(rf"^\| {form} ", out, re.M)) == 2  # alone, and in whole steps

    class Wrong(kron_forms.KroneckerEmbedding):
        def sum_rows(self, ids):
            return self.W[self.rows(ids)].sum(-2)
    monkeypatch.setitem(kron_forms.FORMS, "wrong", Wrong)
    assert forms(call, small_data) == 2
    assert "wrong gives something else" in error_line(capsys.readouterr().err)


# ---- whole -------------------------------------------------------------------------------------

@pytest.mark.soak
@pytest.mark.parametrize("recipe, name, arms, probes", [
    ("gpt2_124m", "smoke-gpt2-124m", ["bpe_tied", "kron"],
     ["robustness", "generation", "layers", "norms"]),
    ("binary_32l", "smoke-binary-32l", ["affine", "binary", "bpe_untied"], ["norms"]),
    ("one_gpu", "smoke-one-gpu-4gb", ["bpe_tied", "bpe_untied", "kron", "kron_shuffled"],
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
def test_smoke_of_the_gpu_evidence(clone, only_what_the_gpu_machine_has, tmp_path):
    """In pieces, with nothing installed but what the GPU's machine has: a call whose time is up
    says so, the next ones go on, also in another clone that has only what came back."""
    shutil.copytree(ROOT / "data" / "docstrings", clone / "data" / "docstrings")
    (clone / "results" / "tiny").mkdir(parents=True)
    best = {"learning_rate": 4e-3, "min_lr": 4e-4, "embed_lr_mult": 0.25, "embed_std": 0}
    tuning = {"arms": {"kron": {"best": best}, "bpe_untied": {"best": best}}}
    (clone / "results" / "tiny" / "tuning.json").write_text(json.dumps(tuning))
    back = tmp_path / "back"
    back.mkdir()

    def go(folder, **env):
        return bash(folder, "runs/gpu_evidence.sh", SMOKE="1", OUT=str(back),
                    PYTHONPATH=only_what_the_gpu_machine_has, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
                    **env)  # pytest would load the plugins of absent packages
    assert "time is up" in go(clone, LIMIT="45")
    assert "all done" in go(clone, LIMIT="1100")
    keep = clone / "results" / "smoke-gpu"
    done = {path.stem for path in keep.glob("*.txt")}
    assert {"checks", "probe-echo", "probe-robustness", "probe-tokens", "bench-step", "bench-codes",
            "kron-forms"} <= done
    order = [path.stem[4:] for path in sorted(keep.glob("run-*.txt"), key=os.path.getmtime)]
    first = ["bpe_untied", "kron", "kron_shuffled", "bpe_tied"]
    assert order == [*(f"{arm}-s1" for arm in first), *(f"{arm}-s2" for arm in first),
                     "random-s1", "random-s2"]
    speeds = {name: read_run(keep / name)["header"]["config"]["embed_lr_mult"] for name in order}
    assert speeds["kron-s1"] == speeds["bpe_untied-s2"] == 0.25 and speeds["kron_shuffled-s1"] == 1
    page = (clone / "results" / "smoke-gpu.md").read_text()
    assert "not tuned at this shape" in page and "one_hot" in page
    results = json.loads((clone / "results" / "smoke-gpu.json").read_text())
    assert results["planned"][0]["gap"] and len(results["runs"]) == len(order)

    shutil.rmtree(clone / "results")
    shutil.rmtree(clone / "out")
    with tarfile.open(back / "evidence.tar.gz") as tar:
        tar.extractall(clone, filter="data")
        assert sum(member.size for member in tar) < 16 * 2**20
    said = go(clone)
    assert "all done" in said and " s: " not in said and not list((clone / "out").glob("*/ckpt.pt"))
