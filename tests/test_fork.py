"""A fork: an arm that no file of the project knows is a class, its name and a config."""
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
from codes import draw
from conftest import ARMS as OF_THE_PROJECT, build
from lib.plots import ARMS, look
from lib.generation import refuse_context

SHAPE = ["--dataset=small", "--n_layer=1", "--n_head=2", "--n_embd=36", "--block_size=32",
         "--batch_size=4", "--max_steps=2", "--eval_tokens=128", "--device=cpu", "--dtype=float32"]


class LengthEmbedding(nn.Module):
    """e(t) = W[how many bytes t has]: what the length of a token alone is worth."""
    lifts, head_lifts, reads_bytes, default_std = ("linear",), (), False, 0.02
    arguments, options = ("token_bytes", "std"), {}

    def __init__(self, num_embeddings, embedding_dim, token_bytes, std=None):
        super().__init__()
        self.std = std or self.default_std
        self.weight = nn.Parameter(torch.empty(256, embedding_dim))
        length = torch.tensor([min(len(raw), 255) for raw in token_bytes])
        length = F.pad(length, (0, num_embeddings - len(length)))
        self.register_buffer("length", length, persistent=False)

    def reset_parameters(self, seed, name):
        generator = draw(seed, f"{name}weight", self.weight.shape)
        nn.init.normal_(self.weight, 0, self.std, generator=generator)

    def forward(self, ids):
        return F.embedding(self.length[ids], self.weight)

    def params_in_use(self, vocab_size):
        return len(self.length[:vocab_size].unique()) * self.weight.size(1)


@pytest.fixture
def fork(small_data, tmp_path, monkeypatch):
    """A folder with prepared text and the arm's config, while the arm's class is registered."""
    monkeypatch.setitem(model.CODES, "length", LengthEmbedding)
    shutil.copytree(small_data / "data", tmp_path / "data")
    (tmp_path / "length.py").write_text('code = "length"\nlift = "linear"\nhead = "table"\n')
    return tmp_path


def test_an_arm_of_ones_own_trains_and_is_compared_probed_and_sampled(fork, call, capsys):
    """Two steps on real text, then every command, as for an arm of the project."""
    for config in ("length.py", "config/bpe_untied.py"):
        assert call(train.main, "config/tiny.py", config, *SHAPE, cwd=fork) == 0
    runs = ["out/tiny-length-s1337", "out/tiny-bpe_untied-s1337"]
    capsys.readouterr()
    assert call(compare.main, *runs, "--baseline=bpe_untied", "--out=results/a", cwd=fork) == 0
    assert "length" in capsys.readouterr().out
    assert call(probe.main, "norms", *runs, cwd=fork) == 0
    assert "length" in (fork / "out" / "probe-norms.md").read_text()
    capsys.readouterr()
    assert call(sample.main, runs[0], "--prompt=Return the", "--max_new_tokens=5", cwd=fork) == 0
    assert capsys.readouterr().out.startswith("Return the")


class BigramEmbedding(LengthEmbedding):
    """What forks write first, and what cannot work: a vector of the token and the one before it."""

    def forward(self, ids):
        before = F.pad(ids, (1, 0))[..., :-1]
        return F.embedding((ids + 31 * before) % 256, self.weight)


def test_an_arm_that_reads_its_neighbours_is_not_sampled(fork, refuse, call, monkeypatch):
    """It trains, but a token that is sampled alone has no neighbour: said in one line."""
    monkeypatch.setitem(model.CODES, "length", BigramEmbedding)
    assert call(train.main, "config/tiny.py", "length.py", *SHAPE, cwd=fork) == 0
    line = refuse(sample.main, "out/tiny-length-s1337", "--prompt=Return the", cwd=fork)
    assert "reads more than each token's own id" in line


def test_no_arm_of_the_project_reads_its_neighbours(bpe):
    for arm in OF_THE_PROJECT:
        refuse_context(build(arm, bpe).eval(), arm)


def test_an_unknown_code_is_an_error(fork, refuse, monkeypatch):
    """A name that is not registered is never some other code."""
    monkeypatch.delitem(model.CODES, "length")
    line = refuse(train.main, "config/tiny.py", "length.py", *SHAPE, cwd=fork)
    assert "code='length': must be one of learned, binary, affine, kron" in line


def test_an_arm_without_a_row_has_a_look_of_its_own():
    """Not that of an arm of the project, nor that of another without a row."""
    mine = [f"{arm},embed_lr_mult={speed}" for arm in ARMS for speed in (0.25, 0.5, 2, 4)]
    looks = [look(arm) for arm in [*ARMS, "length", *mine]]
    assert len({str(style) for style in looks}) == len(looks)
    markers = {look(arm)["marker"] for arm in ARMS}
    assert not [arm for arm in mine if look(arm)["marker"] in markers]
