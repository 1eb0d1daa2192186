"""kron's input on a GPU in four forms, against a learned table: which one should be compiled?

    python -m runs.kron_forms --dataset=evidence --batch_size=32 --gradient_accumulation_steps=1
    python -m runs.kron_forms --dataset=docstrings --n_embd=96 --n_head=3 --device=cpu --rounds=2

Config files and train.py's --key=value say at which shape. All give sum_i W[row(i)], the sum of a
token's rows (codes.py), and differ in how:

    gather    what codes.py compiles: rows gathered and summed in one kernel. Its backward adds
              n P d floats atomically, absent positions' zeros to the rows of byte 0
    spread    the same, with these zeros dealt to all rows, so that none is hot
    dense     the code as 0 and 1 in bfloat16, (n, D), built per micro-batch, times W on the matrix
              units, forward and backward
    one_hot   gathered forward; backward, per position, a one-hot of the bytes (n, 256) times the
              gradient (n, d): P products on the matrix units, no atomics

First their vectors and gradients are compared, then they are timed alone, forward and backward, and
then in whole training steps. It is here and not in bench.py because it ends with the choice.
"""
import sys
from functools import partial
from dataclasses import asdict

import torch
import torch.nn as nn

import train
from bench import alternately, once, show
from codes import KroneckerEmbedding
from lib.run_folder import build_model
from lib.errors import InputError, Parser, run, whole_number
from lib.config import check, compose
from lib.data import Data, sequence_blocks, to_device
from lib.distributed import Place, autocast


class Gather(KroneckerEmbedding):
    """The branch of `KroneckerEmbedding.sum_rows` that is compiled."""

    def sum_rows(self, ids):
        return gathered(self.W, self.rows(ids), self.present(ids))


class Spread(KroneckerEmbedding):
    """Gather, with the zeros of absent positions dealt to all rows."""

    def sum_rows(self, ids):
        rows, present = self.rows(ids), self.present(ids)
        anywhere = torch.arange(rows.numel(), device=rows.device).view_as(rows) % self.code_width
        return gathered(self.W, torch.where(present, rows, anywhere), present)


class Dense(KroneckerEmbedding):
    """A row of zeros and ones per token, exact in bfloat16, times W."""

    def sum_rows(self, ids):
        rows, present = self.rows(ids), self.present(ids)  # rows of one token are distinct
        dtype = product_dtype(ids.device.type)
        kappa = torch.zeros(len(ids), self.code_width, dtype=dtype, device=ids.device)
        kappa = kappa.scatter(1, rows, present.to(dtype))
        return (kappa @ self.W.to(dtype)).float()


class OneHot(KroneckerEmbedding):
    """Gather forward, `BagOfBytes` backward."""

    def sum_rows(self, ids):
        dtype = product_dtype(ids.device.type)
        return BagOfBytes.apply(self.W, self.bytes[ids], self.present(ids), dtype)


class BagOfBytes(torch.autograd.Function):
    """sum_i W[byte_i P + i] over the positions that are present: W (256 P, d), bytes and present
    (n, P) -> (n, d). The gradient of W's rows of position i is onehot(byte_i)^T @ gradient."""

    @staticmethod
    def forward(ctx, weight, spelled, present, dtype):
        ctx.save_for_backward(spelled, present)
        ctx.dtype = dtype
        P = spelled.size(1)
        rows = spelled.long() * P + torch.arange(P, device=spelled.device)
        return gathered(weight, rows, present)

    @staticmethod
    def backward(ctx, gradient):
        spelled, present = ctx.saved_tensors
        byte = torch.arange(256, device=spelled.device)
        gradient = gradient.to(ctx.dtype)
        of_position = []
        for i in range(spelled.size(1)):
            here = (spelled[:, i:i + 1] == byte) & present[:, i:i + 1]  # (n, 256)
            of_position.append(here.to(ctx.dtype).T @ gradient)  # (256, d)
        of_weight = torch.stack(of_position, 1).flatten(0, 1)  # row byte * P + position
        return of_weight.float(), None, None, None


FORMS = {"gather": Gather, "spread": Spread, "dense": Dense, "one_hot": OneHot}


def gathered(weight, rows, present):
    """Rows (n, P) of W, summed where present: (n, d)."""
    return (weight[rows] * present.unsqueeze(-1)).sum(-2)


def product_dtype(device):
    """What autocast multiplies in; float32 outside of it."""
    enabled = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else torch.float32


def in_form(model, form):
    """A model whose kron input sums its rows in a form of FORMS; without one, as it is."""
    if form:
        model.transformer.wte.__class__ = FORMS[form]
    return model


def alone(module, config, batches, gradient):
    """Forward and backward of an input by itself, as a function of the round: round -> (vectors,
    gradient of its weights)."""
    forward = torch.compile(module, fullgraph=True) if config.compile == "True" else module
    weights, = module.parameters()

    def both(i):
        weights.grad = None
        with autocast(gradient.device, config.dtype):
            vectors = forward(batches[i % len(batches)])
        vectors.backward(gradient)
        return vectors.detach(), weights.grad
    return both


def whole_step(model, config, data, place):
    """train.py's step as a function of the round."""
    optimizer = train.make_optimizer(model, config)
    scaler = torch.amp.GradScaler(place.device.type, enabled=config.dtype == "float16")
    forward = torch.compile(model) if config.compile == "True" else model
    return lambda i: train.train_step(i, forward, model, optimizer, scaler, data, config, place)


def timed(works, rounds):
    """Seconds of each work, measured alternately."""
    return alternately({name: partial(once, work) for name, work in works.items()}, rounds)


def compare_forms(works, tolerance):
    """Print how far each form is from the first, vectors and gradients. InputError past
    `tolerance`."""
    wanted = works["gather"](0)
    for name, work in works.items():
        far = max(((a - b).norm() / b.norm()).item() for a, b in zip(work(0), wanted))
        print(f"{name}: vectors and gradients within {far:.1e} of gather's")
        if not far < tolerance:
            raise InputError(f"{name} gives something else than gather")


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("configs", nargs="*", help="config files and train.py's --key=value")
    parser.add_argument("--rounds", type=whole_number, default=9)
    args, options = parser.parse_known_args()
    configs = {arm: compose([*args.configs, f"configs/{arm}.py", *options])[0]
               for arm in ("bpe_untied", "kron")}
    for config in configs.values():
        check(config, 1)
    config = configs["kron"]
    data, place = Data(config.dataset, config.block_size), Place(0, 1, torch.device(config.device))
    torch.set_float32_matmul_precision("high")

    def model_of(arm, form=None):
        return in_form(build_model(asdict(configs[arm]), data.tokenizer), form).to(place.device)
    blocks = data.blocks("train")
    batches = [to_device(data.read("train", sequence_blocks(
        blocks, config.seed, i * config.batch_size, config.batch_size)), place.device)[0]
        for i in range(4)]
    gradient = torch.randn(*batches[0].shape, config.n_embd, device=place.device)
    print(f"{config.batch_size} x {config.block_size} tokens of {config.dataset}, V "
          f"{data.tokenizer.vocab_size:,}, d {config.n_embd}, P {config.pos_dim}, {config.dtype}, "
          f"compile={config.compile}, {place.device}\n")
    works = {form: alone(model_of("kron", form).transformer.wte, config, batches, gradient)
             for form in FORMS}
    compare_forms(works, 1e-5 if config.dtype == "float32" else 2e-2)
    table = nn.Embedding(*model_of("bpe_untied").transformer.wte.weight.shape, device=place.device)
    works = {"nn.Embedding": alone(table, config, batches, gradient)} | works
    print("\nThe input alone, forward and backward:\n")
    show(timed(works, args.rounds), "nn.Embedding")

    steps = {"bpe_untied": whole_step(model_of("bpe_untied"), configs["bpe_untied"], data, place)}
    for form in FORMS:
        steps[form] = whole_step(model_of("kron", form), config, data, place)
    sequences = config.batch_size * config.gradient_accumulation_steps
    print(f"\nWhole steps of {sequences} x {config.block_size} tokens:\n")
    show(timed(steps, args.rounds), "bpe_untied", "tokens", sequences * config.block_size)


if __name__ == "__main__":
    sys.exit(run(main))
