"""bench.py: every measurement runs, alternates, and says what it measured."""
import json

import bench
import train
from lib.config import read_config
from model import CODES

SMALL = ["--dataset=small", "--rounds=2", "--n_layer=1", "--n_embd=48", "--n_head=2",
         "--block_size=32", "--batch_size=2", "--dtype=float32", "--device=cpu", "--compile=False"]


def test_every_code_is_measured_beside_a_table(small_data, call, capsys):
    """Each code of CODES that has a config, in both forms where it has two; kron's bytes take a
    fraction of what its table does."""
    assert call(bench.main, "codes", *SMALL, "--out=results/codes", cwd=small_data) == 0
    saved = json.loads((small_data / "results" / "codes.json").read_text())["result"]
    rows = list(saved)
    assert "\n| bpe_untied " in capsys.readouterr().out
    assert {"wide", "minimal", "kron_wide"} <= set(rows)
    assert rows[-1] == "bpe_untied"  # nn.Embedding
    codes = {read_config(f"configs/{row.split(',')[0]}.py")["code"] for row in rows}
    assert codes == set(CODES)
    kron, table, learned = (saved[row] for row in ("kron", "kron,code_form=table", "bpe_untied"))
    assert kron["weights MB"] == table["weights MB"] == 256 * 16 * 48 * 4 / 1e6
    assert learned["weights MB"] == 512 * 48 * 4 / 1e6
    assert 100 * kron["buffers MB"] < table["buffers MB"]


def test_a_step_is_train_pys_own(small_data, call, refuse, monkeypatch):
    """What is timed is train.train_step with its reading of batches, a step of each arm in turn,
    which may have keys of its own; ratios are to the last. It says how many steps fit."""
    seen = []

    def watched(step, forward, model, optimizer, scaler, data, config):
        crc = train.train_step(step, forward, model, optimizer, scaler, data, config)[2]
        seen.append((config.code_form, step, crc))
    monkeypatch.setattr(bench, "train_step", watched)
    argv = ["configs/tiny.py", "configs/kron.py,code_form=table", "configs/kron.py", *SMALL,
            "--gradient_accumulation_steps=3", "--out=results/step", "--minutes=8"]
    assert call(bench.main, "step", *argv, cwd=small_data) == 0
    assert [(form, step) for form, step, _ in seen] == [
        (form, step) for step in range(4) for form in ("table", "on_the_fly")]
    crcs = [crc for _, _, crc in seen]
    assert crcs[::2] == crcs[1::2] and len(set(crcs)) == 4  # equal batches, another each step
    saved = json.loads((small_data / "results" / "step.json").read_text())
    result = saved["result"]
    assert saved["steps"] > 1000
    for wrong, says in (("--minutes=8", "with step"), ("configs/qr.py,dataset=x", "dataset must")):
        assert says in refuse(bench.main, "codes", "configs/kron.py", wrong, *SMALL, cwd=small_data)
    assert list(result) == ["kron,code_form=table", "kron"]
    assert len(result["kron"]["ms"]) == 2 and result["kron"]["ratio"] == [1, 1]
