"""The recipes of runs/, whole: from the prepared text to results/*.md, with the same commands at toy size."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT


@pytest.mark.soak
@pytest.mark.parametrize("recipe, arms, probes", [
    ("gpt2_124m", ["bpe_tied", "kron"], ["robustness", "generation", "layers", "norms"]),
    ("binary_32l", ["bpe_untied", "binary", "affine"], ["norms"])])
def test_smoke(tmp_path, recipe, arms, probes):
    """SMOKE=1: two gloo processes a run, two seeds, the table and the probes;
    the same command again finds everything finished."""
    if not (Path(sys.prefix) / "installed.txt").exists():
        pytest.skip("needs the .venv that runs/setup.sh makes")
    for name in ("configs", "prompts", "runs", "requirements.txt", *(p.name for p in ROOT.glob("*.py"))):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)

    def go():
        done = subprocess.run(["bash", f"runs/{recipe}.sh"], cwd=tmp_path, env=os.environ | {"SMOKE": "1"},
                              capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout
    assert "is finished" not in go()
    name = f"smoke-{recipe.replace('_', '-')}"
    results = json.loads((tmp_path / "results" / f"{name}.json").read_text())
    assert sorted({run["header"]["arm"] for run in results["runs"]}) == sorted(arms) and len(results["runs"]) == 2 * len(arms)
    for stem in [name, *(f"probe-{probe}-{name}" for probe in probes)]:
        assert ((tmp_path / "results" / f"{stem}.md").stat().st_size > 500
                and (tmp_path / "results" / f"{stem}.png").stat().st_size > 10_000)
    logs = {path: path.read_bytes() for path in tmp_path.glob("out/*/log.jsonl")}
    assert go().count("is finished") == len(logs) == 2 * len(arms) and all(path.read_bytes() == raw for path, raw in logs.items())
