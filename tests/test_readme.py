"""What README.md, runs/README.md and the notebook say is so: files, numbers, commands, the diff
that adds an arm."""
import doctest
import glob
import json
import os
import re
import shlex
import shutil

import pytest
import torch

import compare
import model
import probe
import rivals
import sample
import train
from conftest import ROOT, SHORT, script
from lib.run_folder import load_model

README = (ROOT / "README.md").read_text()
NOTEBOOK = json.loads((ROOT / "walkthrough.ipynb").read_text())
PAGES = {name: (ROOT / name).read_text()
         for name in ("README.md", "runs/README.md", "results/README.md", "results/faults.md")}
PAGES["walkthrough.ipynb"] = "\n\n".join(
    "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")
FOLDERS = "configs|lib|probes|prompts|runs|results|tests"


def blocks(page, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


def commands(page):
    """What a page says to run with Python, torchrun or tar, in indented blocks (also with a
    notebook's "!") and in the text; continued lines joined, without comments."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    page = re.sub(r" *\\\n *", " ", page)
    programs = r"(?:python \w+\.py|torchrun .*train\.py|tar )"
    lines = re.findall(rf"(?:^    !?|`)({programs}[^`\n]+)", page, re.M)
    return [re.sub(r" +# .*", "", line) for line in lines]


@pytest.mark.parametrize("name", PAGES)
def test_what_it_names_is_there(name):
    """Scripts, configs, results, pictures and tests that a page names or links to exist."""
    page = PAGES[name]
    named = set(re.findall(rf"\b(?:{FOLDERS})/[\w./-]+\.\w+", page))
    named -= {"configs/bytes_anywhere.py", "configs/from_the_end.py",
              "configs/mine.py"}  # which a reader writes
    named |= {f"{script}.py" for script in re.findall(r"\bpython (\w+)\.py", page)}
    missing = [path for path in named if not (ROOT / path).exists()]
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page)
    missing += [link for link in links if not ((ROOT / name).parent / link).exists()]
    assert len(named) >= 2 and not missing


def test_readme_is_read_in_five_minutes():
    """1,000 words at most, without tables and code."""
    prose = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
    prose = re.sub(r"^    .*$|^\|.*$|!\[.*?\]\(.*?\)", "", prose, flags=re.M)
    prose = re.sub(r"\]\(.*?\)", "]", prose)
    assert 500 < len(prose.split()) <= 1000


def test_every_recipe_is_in_the_list():
    there = {path.name for path in (ROOT / "runs").glob("*.sh")}
    assert there == set(re.findall(r"(\w+\.sh)", PAGES["runs/README.md"]))


def test_every_promise_of_the_fault_table_is_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    cells = re.findall(r"\| (`[`\w, ]+`) \|$", PAGES["results/faults.md"], re.M)
    names = re.findall(r"\w+", " ".join(cells))
    assert len(cells) > 10 and not [name for name in names if name not in tests]


def test_the_worked_example_is_so():
    example = blocks(README, "python")[0]
    parsed = doctest.DocTestParser().get_doctest(example, {}, "README", "README.md", 0)
    result = doctest.DocTestRunner().run(parsed)
    assert result.attempted >= 5 and result.failed == 0


def test_its_answers_are_those_of_the_results():
    """results/answers.md, which compare.py writes, stands in it line by line: the answer on the
    first screen, the rest below."""
    answer, *others = (ROOT / "results" / "answers.md").read_text().split("\n\n")
    assert answer in README[:2000] and all(part.strip() in README for part in others)
    assert len(answer.splitlines()) == 1 and 6 <= len("".join(others).splitlines()) <= 9


def test_the_diff_that_adds_an_arm(small_data, tmp_path, call, monkeypatch):
    """The lines that README adds are a whole arm: it trains on real text, and its vector is the sum
    of the rows of the token's bytes, wherever they stand."""
    diff, = blocks(README, "diff")
    rows = diff.splitlines()
    kept = [row[1:] for row in rows if row.startswith(" ") and not row.startswith(" #")]
    source = (ROOT / "rivals.py").read_text()
    assert kept and all(row in source for row in kept)  # where the diff says that it goes
    added = "\n".join(row[1:] for row in rows if row.startswith("+"))
    source, kind, config = re.split(r'^    "bytes_anywhere": (\w+),$', added, flags=re.M)
    names = vars(rivals).copy()
    exec(source, names)
    monkeypatch.setitem(model.CODES, "bytes_anywhere", names[kind])
    shutil.copytree(small_data / "data" / "small", tmp_path / "data" / "docstrings")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "bytes_anywhere.py").write_text(config)
    argv = ["configs/tiny.py", "configs/bytes_anywhere.py", *SHORT, "--max_steps=2"]
    assert call(train.main, *argv, cwd=tmp_path) == 0
    trained, tok, _ = load_model(tmp_path / "out" / "tiny-bytes_anywhere-s1337")
    wte, a = trained.transformer.wte, tok.encode(" a")
    vector, = wte(torch.tensor(a))
    by_hand = wte.scale[2] * (wte.W[32] + wte.W[97]) + wte.shift[2] * wte.W.sum(0)
    assert wte.W.shape == (256, 96) and len(a) == 1
    torch.testing.assert_close(vector, by_hand)


MAINS = {module.__name__: module.main for module in (train, compare, probe, sample)}
# what makes a command small: those that begin so get these options too
SMALL = {"train.py configs/": ["--vocab_size=0", "--max_steps=2",
                               *(option for option in SHORT if "learning_rate" not in option)],
         "sample.py": ["--max_new_tokens=3"]}
# what needs the Hub, takes a minute, is a form or is run by other tests
ELSEWHERE = ("python prepare.py", "python codes.py WORD",
             "python train.py configs/tiny.py configs/bytes_anywhere.py",
             "python compare.py results/tiny2 out/tiny-mine")


def test_every_command_runs(small_data, tmp_path, call, capsys):
    """In one folder, as written, but small; training comes first, since the others need runs."""
    work = tmp_path / "clone"
    for dataset in ("docstrings", "fineweb-edu", "fineweb-edu-16gb"):
        shutil.copytree(small_data / "data" / "small", work / "data" / dataset)
    (work / "results").symlink_to(ROOT / "results")
    lines = dict.fromkeys(line for page in PAGES.values() for line in commands(page))
    lines = [line for line in lines if not line.startswith(ELSEWHERE)]
    lines = [re.sub(r"^torchrun .*?(?=train.py)", "python ", line) for line in lines]
    assert len(lines) >= 12
    for line in sorted(lines, key=lambda line: ("train.py" not in line, line)):
        os.chdir(work)
        if line.startswith("tar "):
            assert os.system(line) == 0
            continue
        name, *argv = shlex.split(line.removeprefix("python "))
        for beginning, options in SMALL.items():
            if line.removeprefix("python ").startswith(beginning) and "dry_run" not in line:
                argv += options
        argv = [path for arg in argv for path in (sorted(glob.glob(arg)) or [arg])]
        status = call(MAINS[name.removesuffix(".py")], *argv, cwd=work)
        assert status == 0, line + capsys.readouterr().err
    assert (work / "out" / "probe-echo.md").is_file() and (tmp_path / "kept.tar").is_file()


def test_a_fresh_clone_shows_the_echo(tmp_path):
    """Before anything is trained or prepared, from the checkpoints that the repository carries."""
    said = script("sample.py", "--max_new_tokens=5", cwd=tmp_path).stdout
    assert "come with the repository" in said and said.count("(the clean word)") == 4
    shown, = re.findall("^```\n( +lenght.*?)^```", README, re.M | re.S)
    assert shown in said
