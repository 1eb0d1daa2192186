"""What the README says of the code."""
import re

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_lines_of_code():
    """The reading list names every script at the top, with its length to within five lines."""
    said = {name: int(lines) for name, lines in re.findall(r"^\| `(\w+\.py)` \| (\d+) \|", README, re.M)}
    there = {path.name: len(path.read_text().splitlines()) for path in ROOT.glob("*.py")}
    assert said.keys() == there.keys() and all(abs(said[name] - there[name]) <= 5 for name in there), there


def test_what_it_names_is_there():
    """Scripts, configs, results, pictures and tests that the README names exist."""
    named = set(re.findall(r"\b(?:configs|runs|results|tests)/[\w./-]+\.\w+", README)) - {"configs/yours.py"}
    assert len(named) > 10 and not [path for path in named if not (ROOT / path).exists()]
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    rows = re.findall(r"^\| [^|]+\| [^|]+\| ((?:`\w+`(?:, )?)+) \|$", README[README.index("## Faults"):], re.M)
    assert len(rows) > 10 and not [name for row in rows for name in re.findall(r"\w+", row) if name not in tests]
