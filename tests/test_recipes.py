"""The recipes of runs/: their arithmetic, and whole, from the prepared text to results/*.md, with
the same commands at toy size."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train
from conftest import ROOT, SHORT, config_of
from lib.results import read_run
from bench import steps_for

# What bash 3.2 and tools that are not GNU's lack.
LACKING = re.compile(
    r"\b(mapfile|readarray|nproc|realpath|timeout|seq)\b|(declare|local) -A|\$\{\w+(,,|\^\^|\[-1\])"
    r"|sed -(i|\w*[ur]\b)|xargs .*-r|grep -\w*P|readlink -f|\|&|date -I|stat -c|head -n -|sort -V")
# What the GPU's machine of runs/gpu_check.sh has not.
ABSENT = ["tokenizers", "datasets", "rustbpe", "huggingface_hub", "pandas", "scipy", "xdist"]
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"  # importing them fails


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


def bash(folder, *args, **env):
    """`bash ARGS` in a folder: (exit status, what it prints, standard error last)."""
    done = subprocess.run(["bash", *args], cwd=folder, timeout=1200, env=os.environ | env,
                          capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "runs").glob("*.sh")), ids=lambda path: path.stem)
def test_a_recipe_parses_and_keeps_to_what_macs_have(path):
    assert bash(ROOT, "-n", str(path)) == (0, "")
    code = re.sub(r"^ *#.*", "", path.read_text(), flags=re.M)
    assert path.stem == "gpu_check" or not LACKING.search(code)


@pytest.mark.parametrize("size, gpu, said", [("4gb", "1650", "131M"), ("16gb", "T4", "524M"),
                                             ("24gb", "4090", "1.0B"), ("24gb", "3090", "1.0B")])
def test_a_size_fits_its_gpu(size, gpu, said, call, capsys, tmp_path):
    """--dry_run agrees: the micro-batch of the config fits with room for twice as many, and the
    recipe prepares text for one pass over the tokens that its header says."""
    header = (ROOT / "runs" / "one_gpu.sh").read_text()
    argv = [f"configs/gpu_{size}.py", "configs/bpe_untied.py", f"--dry_run={gpu}"]
    assert call(train.main, *argv, cwd=tmp_path) == 0
    out = capsys.readouterr().out
    most = re.search(r"fits \(at most --batch_size=(\d+)", out)[1]
    assert int(most) >= 2 * config_of(argv[0]).batch_size
    tokens = int(re.search(r"= ([\d,]+) tokens", out)[1].replace(",", ""))
    wanted = re.search(rf"^    {size}\) tokens=(\S+)", header, re.M)[1]
    assert tokens <= float(wanted) < 1.02 * tokens
    assert f"{tokens / 1e6:.0f}M" == said or f"{tokens / 1e9:.1f}B" == said
    hours = re.search(r", ([\d.]+) to ([\d.]+) hours", out).groups()
    low, high = (f"{6 * float(number):.0f}" for number in hours)  # of six arms
    line, = re.findall(rf"^# {size} .* {re.escape(said)} .*$", header, re.M)
    assert f"{gpu}: {low} to {high}" in line


def test_the_demo_chooses_steps_that_fill_its_minutes():
    """At 430 ms a step four arms have 200 steps each in 8 minutes; arms may differ in speed."""
    assert steps_for([430] * 4, 8) == 200 and steps_for([145] * 4, 8) == 660
    assert steps_for([100, 300], 8) == steps_for([200, 200], 8)
    assert steps_for([430] * 4, 0) == 20


def test_the_gpu_machine_needs_nothing_more():
    """All that gpu_check.sh starts can be imported there."""
    code = f"{WITHOUT}; import train, bench, tests.test_gpu"
    assert not subprocess.run([sys.executable, "-c", code], cwd=ROOT,
                              env=os.environ | {"PYTHONPATH": "tests"}).returncode


@pytest.mark.soak
@pytest.mark.parametrize("call, made", [
    ("tests", "tests.txt"), ("bench", "step-compile=False.json"), ("runs", "kron/eval.npz")])
def test_smoke_of_the_gpu_check(clone, docstrings, tmp_path, call, made):
    """Its three calls, with nothing installed but what the GPU's machine has."""
    (clone / "data").symlink_to(docstrings / "data")
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    status, said = bash(clone, "runs/gpu_check.sh", call, SMOKE="1", OUT=str(tmp_path),
                        PYTHONPATH=str(tmp_path), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert status == 0 and " failed" not in said, said
    assert (tmp_path / made).stat().st_size > 0


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
    status, said = bash(clone, f"runs/{recipe}.sh", "--weight_decay=0.2", SMOKE="1")
    assert status == 0 and "is finished" not in said, said
    made = [read_run(folder) for folder in sorted((clone / "out").glob(f"{name}-*"))]
    assert sorted({run["header"]["arm"] for run in made}) == arms and len(made) == 2 * len(arms)
    assert all(run["header"]["config"]["weight_decay"] == 0.2 for run in made)
    pages = [f"{name}.md", f"{name}.png", *(f"probe-{probe}-{name}.md" for probe in probes)]
    assert all((clone / "results" / page).stat().st_size > 500 for page in pages)
    _, said = bash(clone, f"runs/{recipe}.sh", "--weight_decay=0.2", SMOKE="1")
    assert said.count("is finished") == len(made)


@pytest.mark.soak
def test_the_demo(clone):
    """runs/demo.sh, whole: it times a step and says what it chose; four arms, an answer to each
    question, copying, what is next; the same command again trains nothing, and compare.py alone
    has the same answers."""
    _, said = bash(clone, "runs/demo.sh", *SHORT[:5], "--eval_tokens=1024", MINUTES="0")
    assert re.search(r"^\d+ ms a step here: 20 steps an arm", said, re.M)
    answers = re.findall(r"^\| .*\? +\| (\w+ - \w+): [\w ]+, (\S+) \[", said, re.M)
    assert len(answers) == 3 and "That is at 20 steps" in said
    assert "(the clean word)" in said and "next:" in said
    assert (clone / "out" / "demo20.png").stat().st_size > 10_000
    _, again = bash(clone, "runs/demo.sh", *SHORT[:5], "--eval_tokens=1024", MINUTES="0")
    assert again.count("is finished") == 4
    _, plain = bash(clone, "-c", ".venv/bin/python compare.py")
    rows = re.findall(r"\| (\w+ - \w+) +\|[^+\n-]+([+-]\d\.\d+)", plain)
    gaps = dict(reversed(rows))  # the first table with a contrast
    assert all(f"{float(gaps[pair]):+.3f}" == gap for pair, gap in answers)
