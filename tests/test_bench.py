"""bench.py: every measurement runs, alternates, and says what the targets need to be read off."""
import json

import bench
from conftest import script

SMALL = ["--dataset=small", "--rounds=2"]


def test_candidates_alternate():
    """A B A B ...: every round measures each candidate once, after the uncounted rounds."""
    order = []
    times = bench.alternately({"a": lambda i: order.append(f"a{i}"), "b": lambda i: order.append(f"b{i}")}, rounds=2, warmup=1)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"] and [len(t) for t in times.values()] == [2, 2]


def test_byte_buffer_against_the_table(tmp_path):
    """V = 131,072, P = 32: at most 4.5 MB of bytes for 2.15 GB of table."""
    script("bench.py", "memory", "--out=m", cwd=tmp_path)
    result = json.loads((tmp_path / "m.json").read_text())["result"]
    assert result["buffer_bytes"] <= 4.5e6 and result["table_bytes"] == 2**31


def test_codes_steps_and_preparation_are_measured(small_data, call, capsys):
    tiny = ["--n_layer=1", "--n_embd=48", "--n_head=2", "--block_size=32", "--batch_size=2", "--dtype=float32",
            "--device=cpu", "--compile=False"]
    assert call(bench.main, "codes", *SMALL, cwd=small_data) == 0
    assert {"kron", "affine", "nn.Embedding"} <= {line.split()[1] for line in capsys.readouterr().out.splitlines()
                                                  if line.startswith("| ")}
    assert call(bench.main, "prepare", *SMALL, cwd=small_data) == 0 and "prepare.py" in capsys.readouterr().out
    assert call(bench.main, "step", "configs/tiny.py", "configs/kron.py,code_form=table", "configs/bpe_tied.py", "--nanogpt",
                *SMALL, *tiny, cwd=small_data) == 0
    out = capsys.readouterr().out
    assert "kron,code_form=table" in out and "bpe_tied, nanoGPT's loop" in out
    assert call(bench.main, "sample", "configs/tiny.py", "configs/kron.py", "--tokens=40", *SMALL, *tiny, cwd=small_data) == 0
    assert "same text: True" in capsys.readouterr().out


def test_bad_input_is_one_line(refuse, small_data):
    for argv, named in [(["nothing"], "invalid choice"), (["codes", "--zzz=1"], "unknown option --zzz=1"),
                        (["step", "--n_lay=1"], "did you mean 'n_layer'"), (["codes", "--dataset=none"], "no prepared data"),
                        (["sample", "out/none"], "no checkpoint"), (["step", "--rounds=0"], "--rounds")]:
        assert named in refuse(bench.main, *argv, cwd=small_data)
