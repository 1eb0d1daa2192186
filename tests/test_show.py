"""What a newcomer sees: the codes of some words as text and picture, and the echo demo."""
import doctest
import itertools
import json
import math
import re
import sys

import matplotlib.image
import pytest
import torch

import train
from codes import KroneckerEmbedding
from conftest import SHORT, build, script
from lib import show, tokenizer
from lib.run_folder import load_model, save_checkpoint
from codes import affine_decode, draw_affine, ids_of
from lib.generation import one_line_sample
from lib.errors import run
from probes.echo import echo_nats
from runs.carry import carry


@pytest.fixture
def words_of(tmp_path, bpe):
    """A folder with a prepared tokenizer and nothing else."""
    folder = tmp_path / "data" / "docstrings"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"tokenizer": bpe.state}))
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_carried(monkeypatch, tmp_path):
    """No checkpoints that come with the repository, unless a test makes some."""
    monkeypatch.setattr(show, "CARRIED", tmp_path / "carried")


# ---- the codes ---------------------------------------------------------------------------------

def test_the_worked_example_is_so():
    assert doctest.testmod(show).attempted >= 5 and doctest.testmod(show).failed == 0


def test_printed_bits_are_the_ids(call, words_of, bpe, capsys):
    """Each token's binary digits read back as its id, and so do the affine ones through A^-1."""
    call(show.main, "get", "Sent", cwd=words_of)
    rows = re.findall(r'^  (".*") +(\d+)  ([01]+)  ([01]+)$', capsys.readouterr().out, re.M)
    shown = [int(id) for _, id, _, _ in rows]
    assert shown == bpe.encode(" get") + bpe.encode(" Sent")
    A, b = draw_affine(len(rows[0][2]), show.SEED)
    for text, id, binary, affine in rows:
        assert text == show.spelled(tokenizer.token_bytes(bpe)[int(id)])
        x, c = (torch.tensor([float(digit) for digit in bits]) for bits in (binary, affine))
        assert ids_of(x) == ids_of(affine_decode(c, A, b)) == int(id)


def test_printed_rows_and_cosines_are_krons(call, words_of, capsys):
    """Rows are those that the module sums, cosines those of its dense codes, with the space."""
    call(show.main, "run", "runs", "RUN", cwd=words_of)
    said = capsys.readouterr().out
    raw = [b" run", b" runs", b" RUN"]
    kron = KroneckerEmbedding(3, 1, raw, 16)
    z = torch.nn.functional.normalize(kron.code(torch.arange(3)))
    rows = kron.rows(torch.arange(3))
    lines = re.findall(r"rows  ([\d ]+)\n", said)
    shown = [[int(row) for row in line.split()] for line in lines]
    assert shown == [rows[i, :len(raw[i])].tolist() for i in range(3)]
    cosines = [float(x) for x in re.findall(r'^  " \w+", " \w+" +(\S+)', said, re.M)]
    expected = [(z[i] @ z[j]).item() for i, j in itertools.combinations(range(3), 2)]
    assert cosines == pytest.approx(expected, abs=6e-4) and cosines[0] == 0.894


def test_a_long_word_is_cut_and_says_so(call, words_of, capsys):
    call(show.main, "internationalisation", "कार्य", cwd=words_of)
    said = capsys.readouterr().out
    assert "cut: 21 bytes, kron reads 16" in said and "0xe0" in said


def test_the_picture(call, words_of):
    """Drawn for the default words and for six long ones, wide enough to be sharp in the README."""
    call(show.main, "--out=codes.png", cwd=words_of)
    long = [f"internationali{letter}ation{'s' * i}" for i, letter in enumerate("szyxwv")]
    call(show.main, *long, "--out=long.png", cwd=words_of)
    for name in ("codes.png", "long.png"):
        height, width, _ = matplotlib.image.imread(words_of / name).shape
        assert width == 1800 and 600 < height < 4000


def test_the_tokenizer_of_a_carried_checkpoint_comes_first(call, words_of, bpe, capsys):
    show.CARRIED.mkdir()
    carried = bpe.state | {"name": "carried"}
    save_checkpoint(show.CARRIED / "kron.pt", {"tokenizer": carried})
    call(show.main, cwd=words_of)
    assert "the tokenizer carried in results/demo" in capsys.readouterr().out


def test_codes_py_is_the_command(words_of):
    assert "cosines" in script("codes.py", "run", "ran", cwd=words_of).stdout


def test_bad_input_is_one_line(words_of, tmp_path_factory, refuse):
    for argv, named in [([""], "empty word"), (["\udcff"], "not UTF-8"),
                        (["--out=x.jpg"], "a picture is a .png file"),
                        ([*"abcdefg", "--out=x.png"], "room for 6 words, not for 7")]:
        assert named in refuse(show.main, *argv, cwd=words_of)
    assert "prepare.py docstrings" in refuse(show.main, cwd=tmp_path_factory.mktemp("none"))
    (words_of / "data" / "docstrings" / "meta.json").write_text('{"tokenizer": 1}')
    assert "meta.json is damaged" in refuse(show.main, cwd=words_of)


# ---- the demo ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pair(small_data):
    """A folder with short real runs, the last of another number of steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small_data)
        for arm, steps in [("kron", 2), ("bpe_untied", 2), ("kron_shuffled", 2), ("bpe_tied", 1)]:
            argv = ["train.py", "configs/tiny.py", f"configs/{arm}.py", "--dataset=small", *SHORT,
                    f"--max_steps={steps}", "--eval_tokens=512", f"--name=show-{arm}-{steps}"]
            patch.setattr(sys, "argv", argv)
            with pytest.raises(SystemExit) as end:
                run(train.main)
            assert not end.value.code
    return small_data


@pytest.fixture
def models(pair, monkeypatch, capsys):
    monkeypatch.chdir(pair)
    models, _ = show.load_models(show.demo_runs(), "cpu")
    capsys.readouterr()
    return models


def test_the_newest_pair_is_of_one_kind(pair, monkeypatch, capsys):
    """kron and bpe_untied of equal steps, though newer runs of other arms are there; which and at
    what step is said."""
    monkeypatch.chdir(pair)
    models, loss = show.load_models(show.demo_runs(), "cpu")
    assert [name for name, *_ in models] == ["show-kron-2", "show-bpe_untied-2"]
    assert 5 < loss < 8
    said = capsys.readouterr().out
    assert "show-kron-2: kron, step 2 of 2 on small, perplexity" in said


def test_without_runs_the_carried_checkpoints_are_shown(pair, tmp_path, monkeypatch, capsys):
    """Weights alone, in bfloat16: their vectors are those of the run, rounded."""
    for arm in ("kron", "bpe_untied"):
        whole, carried = pair / "out" / f"show-{arm}-2", show.CARRIED / f"{arm}.pt"
        carry(whole, carried)
        assert carried.stat().st_size < 0.25 * (whole / "ckpt.pt").stat().st_size
    monkeypatch.chdir(tmp_path)
    models, _ = show.load_models(show.demo_runs(), "cpu")
    said = capsys.readouterr().out
    assert "come with the repository" in said and "kron: kron, step 2 of 2" in said
    ids, whole = torch.arange(100), load_model(pair / "out" / "show-kron-2")[0]
    torch.testing.assert_close(models[0][1].transformer.wte(ids), whole.transformer.wte(ids),
                               rtol=0.02, atol=0.02)


def test_neither_runs_nor_carried_is_one_line(tmp_path, refuse):
    assert "bash runs/demo.sh" in refuse(show.demo_runs, cwd=tmp_path)


def test_the_bars_are_the_probes_numbers(models, capsys):
    """Under each prompt and for each model: exp of `echo_nats` of the odd and of the clean word."""
    show.echo_demo(models, {"max_new_tokens": 3}, loss=9.0)
    said = capsys.readouterr().out
    template = "Return the {} of the sequence. The {}"
    for name, model, tok in models:
        odd = echo_nats(model, tok, template, "lenght", "length")
        clean = echo_nats(model, tok, template, "length", "lenght")
        row = re.search(rf"^  {name} .*$", said[said.index("lenght of"):], re.M)[0]
        assert re.findall(r"\S+x", row) == [show.times(odd), show.times(clean)]
    assert "left out" in said and " | " not in said  # no text at such a loss


def test_a_bar_grows_with_the_nats():
    lengths = [show.bar(nats).count("#") for nats in (-1, 0, 0.5, 1, 2, 100)]
    assert lengths == [0, 0, 3, 6, 12, 24]
    assert {len(show.bar(nats)) for nats in (-1, 0, 1, 100)} == {24}
    assert (show.times(math.log(2.5)), show.times(math.log(2500))) == ("2.5x", "2,500x")


def test_text_that_reads_well_is_shown_side_by_side(models, capsys):
    show.echo_demo(models, {"max_new_tokens": 3}, loss=3.0)
    said = capsys.readouterr().out
    assert said.count("show-kron-2 ") >= 8 and said.count(" | ") >= 8 and "left out" not in said


def test_neighbours_are_those_of_the_input(bpe):
    """A table in which two tokens are alike and all others drawn: each is the other's nearest."""
    model = build("bpe_untied", bpe)
    one, other = bpe.encode(" list")[0], bpe.encode(" time")[0]
    with torch.no_grad():
        model.transformer.wte.weight[one] = model.transformer.wte.weight[other] * 1.5
    (text, cosine), *_ = show.neighbours(model, bpe, " list", 3)
    assert text == " time" and cosine > 0.99


def test_a_line_at_a_validation_disturbs_nothing(bpe):
    """The same line each time, on one line; the mode and the random numbers of training stay."""
    model = build("kron", bpe, "--dropout=0.1").train()
    before = torch.get_rng_state()
    lines = [one_line_sample(model, bpe) for _ in range(2)]
    assert lines[0] == lines[1] and lines[0].startswith("sample: ") and "\n" not in lines[0]
    assert model.training and torch.equal(torch.get_rng_state(), before)


def test_own_prompts(models, monkeypatch, capsys):
    """A plain prompt is continued, {odd|usual} is measured too, one past the context is refused
    and the next is read."""
    lines = iter(["Return the length", "word " * 80, "The {lenght|length} of it. The",
                  "odd {} {a|b}"])

    def typed(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None
    monkeypatch.setattr("builtins.input", typed)
    show.interactive(models, {"max_new_tokens": 3})
    said = capsys.readouterr().out
    assert said.count("show-kron-2 ") == 3 + 1 and said.count("length (the clean word)") == 1
    assert "the context is 64 tokens" in said
