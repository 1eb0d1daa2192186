"""What README.md and runs/README.md say is so: files, numbers, commands, the diff that adds an
arm."""
import doctest
import glob
import os
import re
import shlex
import shutil

import pytest
import torch

import codes
import compare
import model
import probe
import rivals
import sample
import train
from conftest import ROOT, SHORT, script

README = (ROOT / "README.md").read_text()
PAGES = {name: (ROOT / name).read_text()
         for name in ("README.md", "runs/README.md", "results/faults.md")}
FOLDERS = "configs|lib|probes|prompts|runs|results|tests"


def blocks(page, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


def commands(page):
    """The command lines of the indented blocks, without their comments, continued lines joined."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    lines = re.findall(r"^    (\S.*)$", re.sub(r" *\\\n *", " ", page), re.M)
    return [re.sub(r" +# .*", "", line) for line in lines]


@pytest.mark.parametrize("name", PAGES)
def test_what_it_names_is_there(name):
    """Scripts, configs, results, pictures and tests that a page names or links to exist."""
    page = PAGES[name]
    named = set(re.findall(rf"\b(?:{FOLDERS})/[\w./-]+\.\w+", page)) - {"configs/bytes_anywhere.py"}
    named |= {f"{script}.py" for script in re.findall(r"\bpython (\w+)\.py", page)}
    missing = [path for path in named if not (ROOT / path).exists()]
    folder = (ROOT / name).parent
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page):
        if not (folder / link).exists():
            missing.append(link)
    assert len(named) >= 2 and not missing


def test_every_recipe_is_in_the_list():
    there = {path.name for path in (ROOT / "runs").glob("*.sh")}
    assert there == set(re.findall(r"(\w+\.sh)", PAGES["runs/README.md"]))


def test_the_lines_for_several_machines_give_a_stop_its_time():
    """Those for torchrun and those for Slurm set torchrun's time-out, to the seconds that Slurm's
    signal comes before the end; if the host of the rendezvous dies, it says what to do."""
    page = PAGES["runs/README.md"]
    several = [block for block in re.findall(r"(?:^    .*\n)+", page, re.M) if "--nnodes" in block]
    key = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    seconds = [re.search(rf"^    export .*\b{key}=(\d+)$", block, re.M)[1] for block in several]
    assert len(seconds) == 2 and int(seconds[0]) > 30
    assert set(seconds) == set(re.findall(r"--signal=TERM@(\d+)", page))
    assert "If FIRST_HOST dies, start the command on every machine again" in page
    assert "prints nothing waits for FIRST_HOST" in page


def test_every_promise_of_the_fault_table_is_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    cells = re.findall(r"^\| [^|]+\| [^|]+\| ((?:`\w+`(?:, )?)+) \|$", PAGES["results/faults.md"],
                       re.M)
    names = re.findall(r"\w+", " ".join(cells))
    assert len(cells) > 10 and not [name for name in names if name not in tests]


def test_the_worked_example_is_so():
    example = blocks(README, "python")[0]
    parsed = doctest.DocTestParser().get_doctest(example, {}, "README", "README.md", 0)
    result = doctest.DocTestRunner().run(parsed)
    assert result.attempted >= 5 and result.failed == 0


def test_its_answers_are_those_of_the_results():
    """results/answers.md, which compare.py writes, stands in it word for word."""
    answers = ROOT / "results" / "answers.md"
    if not answers.is_file():
        pytest.skip("nothing is answered yet: compare.py FOLDER --answers=results/answers.md")
    text = answers.read_text()
    assert text in README and len(text.splitlines()) <= 10


def test_the_diff_that_adds_an_arm(small_data, tmp_path, call, monkeypatch):
    """The lines that README adds are a whole arm: it trains on real text, and its vector is the sum
    of the rows of the token's bytes, wherever they stand."""
    diff, = blocks(README, "diff")
    rows = diff.splitlines()
    kept = [row[1:] for row in rows if row.startswith(" ") and not row.startswith(" #")]
    source = (ROOT / "rivals.py").read_text()
    assert kept and all(row in source for row in kept)  # where the diff says that it goes
    added = [row[1:] for row in rows if row.startswith("+")]
    config = [row for row in added if re.match(r"\w+ = ", row)]
    entry, = (row for row in added if row.startswith('    "bytes_anywhere"'))
    names = vars(rivals).copy()
    exec("\n".join(row for row in added if row not in [*config, entry]), names)
    name, kind = re.match(r' +"(\w+)": (\w+),', entry).groups()
    monkeypatch.setitem(model.CODES, name, names[kind])
    shutil.copytree(small_data / "data", tmp_path / "data")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / f"{name}.py").write_text("\n".join(config))
    argv = ["configs/tiny.py", f"configs/{name}.py", "--dataset=small", *SHORT, "--max_steps=2"]
    assert call(train.main, *argv, cwd=tmp_path) == 0
    run, = (tmp_path / "out").iterdir()
    (_, trained, tok), = sample.load_models([run], "cpu", quiet=True)[0]
    wte, a = trained.transformer.wte, tok.encode(" a")
    vector, = wte(torch.tensor(a))
    by_hand = wte.scale[2] * (wte.W[32] + wte.W[97]) + wte.shift[2] * wte.W.sum(0)
    assert wte.W.shape == (256, 96) and len(a) == 1
    torch.testing.assert_close(vector, by_hand)


MAINS = {"codes.py": codes.main, "train.py": train.main, "compare.py": compare.main,
         "probe.py": probe.main, "sample.py": sample.main}
# what makes a command small: those that begin so get these options too
SMALL = {"train.py configs/tiny.py": ["--dataset=small", *SHORT, "--max_steps=2"],
         "train.py configs/gpu_16gb.py": ["--dataset=small", "--vocab_size=0", *SHORT,
                                          "--max_steps=2"],
         "train.py configs/kron.py": ["--dry_run=1"], "sample.py": ["--max_new_tokens=3"]}
# what needs the Hub, GPUs or a cluster, or is this suite; the recipes are run by test_recipes.py
ELSEWHERE = ("git clone", "pip install", "source .venv", "export ", "srun ",
             "python prepare.py fineweb-edu", "python prepare.py text FOLDER", "bash runs/")


def test_every_command_runs(small_data, tmp_path, call, capsys):
    """In one folder, as written, but small; training comes first, since the others need runs."""
    shutil.copytree(small_data / "data", tmp_path / "data")
    lines = [line for page in PAGES.values() for line in commands(page)]
    lines = [line for line in lines if not line.startswith(ELSEWHERE) and "pytest" not in line]
    lines = [re.sub(r"^torchrun .*?(?=train.py)", "python ", line) for line in lines]
    assert len(lines) >= 8
    for line in sorted(lines, key=lambda line: "train.py" not in line):
        assert line.startswith("python "), line
        name, *argv = shlex.split(line.removeprefix("python "))
        for beginning, options in SMALL.items():
            if line.removeprefix("python ").startswith(beginning):
                argv += [option for option in options if "dry_run" not in line]
        os.chdir(tmp_path)
        argv = [path for arg in argv for path in (sorted(glob.glob(arg)) or [arg])]
        assert call(MAINS[name], *argv, cwd=tmp_path) == 0, line + capsys.readouterr().err
    assert (tmp_path / "out" / "probe-echo.md").is_file()


def test_a_fresh_clone_shows_the_echo(tmp_path):
    """Before anything is trained or prepared, from the checkpoints that the repository carries."""
    said = script("sample.py", "--max_new_tokens=5", cwd=tmp_path).stdout
    assert "come with the repository" in said and said.count("(the clean word)") == 4
    shown, = re.findall("^```\n( +lenght.*?)^```", README, re.M | re.S)
    assert shown in said
