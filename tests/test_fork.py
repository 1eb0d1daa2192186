"""A fork: an arm that no file of the project knows is a class, its name and a config. (README's own
example is run by test_readme.py.)"""
import runpy
import shutil

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import compare
import model
import probe
import rivals
import sample
import train
from codes import TokenEmbedding
from conftest import records
from lib.plots import ARMS, arm_style

SHAPE = ["--dataset=small", "--n_layer=1", "--n_head=2", "--n_embd=36", "--block_size=32",
         "--batch_size=4", "--max_steps=2", "--eval_tokens=128", "--device=cpu", "--dtype=float32"]


class LengthEmbedding(TokenEmbedding):
    """e(t) = W[how many bytes t has] + R[t], R random and never trained."""
    arguments, options = ("token_bytes", "std"), {"pos_dim": 16}

    def __init__(self, num_embeddings, embedding_dim, token_bytes, std=None, pos_dim=16):
        super().__init__(num_embeddings, embedding_dim, std)
        self.add_weight("W", (pos_dim + 1, embedding_dim), self.std)
        length = torch.tensor([min(len(raw), pos_dim) for raw in token_bytes])
        length = F.pad(length, (0, num_embeddings - len(length)))
        self.register_buffer("length", length, persistent=False)
        self.R = nn.Embedding.from_pretrained(torch.randn(num_embeddings, embedding_dim))

    def forward(self, ids):
        return F.embedding(self.length[ids], self.W) + self.R(ids)


class BigramEmbedding(LengthEmbedding):
    """What forks write first, and what cannot work: a vector of the token and the one before it."""

    def forward(self, ids):
        return super().forward(ids) + super().forward(F.pad(ids, (1, 0))[..., :-1])


@pytest.fixture
def fork(small_data, tmp_path, monkeypatch):
    """A folder with prepared text and the arm's config, while the arm's class is registered."""
    monkeypatch.setitem(model.CODES, "length", LengthEmbedding)
    shutil.copytree(small_data / "data", tmp_path / "data")
    (tmp_path / "length.py").write_text('code = "length"\nlift = "linear"\nhead = "table"\n')
    return tmp_path


def test_an_arm_of_ones_own_trains_and_is_compared_probed_and_sampled(fork, call, capsys):
    """Two steps on real text, then every command. What is frozen is not counted as trained."""
    for config in ("length.py", "config/bpe_untied.py"):
        assert call(train.main, "config/tiny.py", config, *SHAPE, cwd=fork) == 0
    runs = ["out/tiny-small-length-s1337", "out/tiny-small-bpe_untied-s1337"]
    counts, = (r["params"] for r in records(fork / runs[0]) if "params" in r)
    assert counts["input"] == counts["in_use"] == 17 * 36
    assert call(compare.main, *runs, "--baseline=bpe_untied", "--out=results/a", cwd=fork) == 0
    assert "length" in (fork / "results" / "a.md").read_text()
    assert call(probe.main, "norms", *runs, cwd=fork) == 0
    assert "length" in (fork / "out" / "probe-norms.md").read_text()
    capsys.readouterr()
    assert call(sample.main, runs[0], "--prompt=Return the", "--max_new_tokens=5", cwd=fork) == 0
    assert capsys.readouterr().out.startswith("Return the")


def test_an_arm_that_reads_its_neighbours_is_not_trained(fork, refuse, monkeypatch):
    """It would train, but a token that is sampled alone has no neighbour: said in one line."""
    monkeypatch.setitem(model.CODES, "length", BigramEmbedding)
    line = refuse(train.main, "config/tiny.py", "length.py", *SHAPE, cwd=fork)
    assert "code 'length': its input reads more than each token's own id" in line
    assert not (fork / "out" / "tiny-small-length-s1337").exists()


def test_an_arm_that_loses_options_is_not_trained(fork, refuse, monkeypatch):
    """A constructor with **kw would drop --pos_dim=8 without a word."""
    monkeypatch.setattr(LengthEmbedding, "__init__", lambda self, V, d, token_bytes, **kw: None)
    line = refuse(train.main, "config/tiny.py", "length.py", *SHAPE, cwd=fork)
    assert "code='length': its constructor takes **kwargs" in line


@pytest.mark.parametrize("options", [{"pos_dim": 8}, {"n_head": 8}])
def test_an_option_with_two_defaults_is_refused(monkeypatch, options):
    """It would change the default of other arms."""
    monkeypatch.setattr(LengthEmbedding, "options", options)
    monkeypatch.setitem(rivals.RIVALS, "length", LengthEmbedding)
    with pytest.raises(TypeError, match="has another default elsewhere"):
        runpy.run_path(model.__file__)


def test_an_arm_without_a_row_has_a_look_of_its_own():
    mine = [f"{arm},embed_lr_mult={speed}" for arm in ARMS for speed in (0.25, 0.5, 2, 4)]
    looks = {str(arm_style(arm)) for arm in [*ARMS, "length", *mine]}
    assert len(looks) == len(ARMS) + 1 + len(mine)
