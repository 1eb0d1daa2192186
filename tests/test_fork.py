"""A fork: an arm that no file of the project knows is a class, its name and a config. (README's own
example is run by test_readme.py.)"""
import shutil

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import compare
import model
import probe
import sample
import train
from codes import TokenEmbedding
from conftest import records
from lib.plots import ARMS, look

SHAPE = ["--dataset=small", "--n_layer=1", "--n_head=2", "--n_embd=36", "--block_size=32",
         "--batch_size=4", "--max_steps=2", "--eval_tokens=128", "--device=cpu", "--dtype=float32"]


class LengthEmbedding(TokenEmbedding):
    """e(t) = W[how many bytes t has] + R[t], R random and never trained."""
    arguments = ("token_bytes", "std")
    options = {"pos_dim": 16}

    def __init__(self, num_embeddings, embedding_dim, token_bytes, std=None, pos_dim=16):
        super().__init__(num_embeddings, embedding_dim, std)
        self.add_weight("W", (pos_dim + 1, embedding_dim), self.std)
        length = torch.tensor([min(len(raw), pos_dim) for raw in token_bytes])
        length = F.pad(length, (0, num_embeddings - len(length)))
        self.register_buffer("length", length, persistent=False)
        table = torch.randn(num_embeddings, embedding_dim, generator=torch.Generator())
        self.R = nn.Embedding.from_pretrained(table)

    def forward(self, ids):
        return F.embedding(self.length[ids], self.W) + self.R(ids)


class BigramEmbedding(LengthEmbedding):
    """What forks write first, and what cannot work: a vector of the token and the one before it."""

    def forward(self, ids):
        return super().forward(ids) + super().forward(F.pad(ids, (1, 0))[..., :-1])


class LooseEmbedding(LengthEmbedding):
    """An arm that would drop --pos_dim=8 without a word."""

    def __init__(self, num_embeddings, embedding_dim, token_bytes, **kw):
        super().__init__(num_embeddings, embedding_dim, token_bytes)


@pytest.fixture
def fork(small_data, tmp_path, monkeypatch):
    """A folder with prepared text and the arm's config, while the arm's class is registered."""
    monkeypatch.setitem(model.CODES, "length", LengthEmbedding)
    shutil.copytree(small_data / "data", tmp_path / "data")
    (tmp_path / "length.py").write_text('code = "length"\nlift = "linear"\nhead = "table"\n')
    return tmp_path


def test_an_arm_of_ones_own_trains_and_is_compared_probed_and_sampled(fork, call, capsys):
    """Two steps on real text, then every command, as for an arm of the project. What is frozen is
    not counted as trained."""
    for config in ("length.py", "config/bpe_untied.py"):
        assert call(train.main, "config/tiny.py", config, *SHAPE, cwd=fork) == 0
    runs = ["out/tiny-small-length-s1337", "out/tiny-small-bpe_untied-s1337"]
    counts, = (r["params"] for r in records(fork / runs[0]) if "params" in r)
    assert counts["input"] == counts["in_use"] == 17 * 36
    capsys.readouterr()
    assert call(compare.main, *runs, "--baseline=bpe_untied", "--out=results/a", cwd=fork) == 0
    assert "length" in capsys.readouterr().out
    assert call(probe.main, "norms", *runs, cwd=fork) == 0
    assert "length" in (fork / "out" / "probe-norms.md").read_text()
    capsys.readouterr()
    assert call(sample.main, runs[0], "--prompt=Return the", "--max_new_tokens=5", cwd=fork) == 0
    assert capsys.readouterr().out.startswith("Return the")


def test_an_arm_that_reads_its_neighbours_is_not_sampled(fork, refuse, call, monkeypatch):
    """It trains, but a token that is sampled alone has no neighbour: said in one line. In RIVALS it
    would fail test_a_vector_depends_on_its_id_alone."""
    monkeypatch.setitem(model.CODES, "length", BigramEmbedding)
    assert call(train.main, "config/tiny.py", "length.py", *SHAPE, cwd=fork) == 0
    line = refuse(sample.main, "out/tiny-small-length-s1337", "--prompt=Return the", cwd=fork)
    assert "reads more than each token's own id" in line


def test_an_arm_that_loses_options_is_not_trained(fork, refuse, monkeypatch):
    """A constructor with **kw takes whatever it is given: it has to name its arguments."""
    monkeypatch.setitem(model.CODES, "length", LooseEmbedding)
    line = refuse(train.main, "config/tiny.py", "length.py", *SHAPE, cwd=fork)
    assert "code='length': its constructor takes **kwargs" in line


def test_an_arm_without_a_row_has_a_look_of_its_own():
    """Not that of an arm of the project, nor that of another without a row."""
    mine = [f"{arm},embed_lr_mult={speed}" for arm in ARMS for speed in (0.25, 0.5, 2, 4)]
    looks = [look(arm) for arm in [*ARMS, "length", *mine]]
    assert len({str(style) for style in looks}) == len(looks)
    markers = {look(arm)["marker"] for arm in ARMS}
    assert not [arm for arm in mine if look(arm)["marker"] in markers]
