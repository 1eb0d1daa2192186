"""walkthrough.ipynb: its cells run in order, their output is stored, its answers are right."""
import ast
import json
import re
import sys

import matplotlib.pyplot as plt
import pytest

import model
import train
from conftest import ROOT
from runs.notebook import execute

BOOK = json.loads((ROOT / "walkthrough.ipynb").read_text())
CELLS = [cell for cell in BOOK["cells"] if cell["cell_type"] == "code"]
PAGES = "".join("".join(c["source"]) for c in BOOK["cells"] if c["cell_type"] == "markdown")
ANSWERS = re.findall(r"<details>.*?^```python\n(.*?)^```.*?</details>", PAGES, re.M | re.S)
FULL, SMALL = '150, ["configs/tiny.py"]', '3, ["configs/tiny.py", "configs/smoke.py"]'


def source(cell):
    return "".join(cell["source"])


def printed(cell):
    """What a cell's outputs have as text, without pictures."""
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def test_fifteen_cells_define_little_and_have_their_outputs():
    """No function of theirs is longer than five lines; no output has an absolute path."""
    defined = [node for cell in CELLS for node in ast.walk(ast.parse(source(cell)))
               if isinstance(node, ast.FunctionDef)]
    assert defined and all(node.end_lineno - node.lineno < 5 for node in defined)
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, 16))
    assert all(cell["outputs"] for cell in CELLS) and len(ANSWERS) == 3
    assert not re.search(r"(^|[\s\"'=(])(/\w+/|[A-Z]:\\)", "".join(map(printed, CELLS)))


@pytest.fixture
def folder(small_data, tmp_path, monkeypatch):
    """A clone with a small text in place of the docstrings."""
    for path in ROOT.iterdir():
        if path.name not in ("data", "out"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "docstrings").symlink_to(small_data / "data" / "small")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "loss_picture", None)  # which a cell replaces
    monkeypatch.setitem(model.CODES, "from_the_end", None)  # which an answer adds
    monkeypatch.setattr(sys, "argv", sys.argv)
    plt.switch_backend("agg")
    return tmp_path


def test_it_runs_from_top_to_bottom(folder):
    """At small size, the answers of the exercises after it. What does not train prints what is
    stored; the first answer's rows are those of the bytes counted from the end."""
    assert FULL in source(CELLS[11])
    cells = [{"source": source(cell).replace(FULL, SMALL)} for cell in CELLS]
    answers = [{"source": answer} for answer in ANSWERS]
    execute([*cells, *answers])
    same = [i for i in range(1, 15) if i not in (10, 11, 12)]
    assert [printed(cells[i]) for i in same] == [printed(CELLS[i]) for i in same]
    curve, = cells[12]["outputs"][1:]
    assert len(curve["data"]["image/png"]) > 10_000
    rows = ast.literal_eval(re.search(r"\[.*?\]", printed(answers[0]), re.S)[0])
    assert rows[:6] == [byte * 16 + 5 - i for i, byte in enumerate(b"nation")]
    assert rows[1:6] == rows[8:]  # of "ation"
    assert re.match(r"9 tokens share", printed(answers[1]))
    assert "| weight_decay=1.0 - weight_decay=0.1 | " in printed(answers[2])
