"""A GPT whose only knob of interest is the input embedding.

    model = GPT(GPTConfig(vocab_size=50257, code="kron", lift="linear", head="table"), token_bytes)
    logits, loss = model(ids), model(ids, targets)

Architecture and parameter names are nanoGPT's: its state dict of the same shape loads into a
`learned` model with strict=True.
"""
import inspect
import math
from collections import OrderedDict
from dataclasses import asdict, dataclass, make_dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F

from codes import CODES as PAPERS, TokenEmbedding, draw
from rivals import RIVALS

CODES = PAPERS | RIVALS
OPTIONS = {}  # the keys of all arms' own, each with its default; arms that share one agree on it


@dataclass
class Architecture:
    """What decides the model, but for OPTIONS. `train.py --help` prints the comments."""
    vocab_size: int = 50257
    block_size: int = 1024          # context, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768               # d, the model width
    dropout: float = 0.0
    bias: bool = False
    positions: str = "learned"      # or rotary
    code: str = "learned"           # the arm: a name in CODES; this key and those down to code_form
    lift: str = "none"              # one of the lifts that the code's class has
    head: str = "tied"              # table: V x d; tied: the input's rows; code: its own W
    head_bias: str = "none"         # a trained number per token, from zero or unigram (log p) on
    embed_std: float = 0.0          # rms of the input per coordinate at the start; 0: the default
    input_multiplier: float = 1.0   # the input times this; a tied head's rows are not
    input_norm: bool = False        # RMSNorm of the input before the first block
    code_form: str = "on_the_fly"   # or table: the same vectors
    seed: int = 1337                # decides the initial weights, the batches and the codes

    @property
    def padded_size(self):
        """The vocabulary rounded up to a multiple of 64, for matrix units: 50,304 for 50,257."""
        return -(-self.vocab_size // 64) * 64

    def check(self):
        """ValueError if there is no such model; an arm's class refuses values of its options."""
        def refuse(key, reason):
            raise ValueError(f"{key}={getattr(self, key)!r}: {reason}")
        for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, key) < 1:
                refuse(key, "must be at least 1")
        known = {"code": CODES, "positions": ("learned", "rotary"),
                 "head": ("table", "tied", "code"), "head_bias": ("none", "zero", "unigram")}
        for key, values in known.items():
            if getattr(self, key) not in values:
                refuse(key, f"must be one of {', '.join(values)}")
        kind = CODES[self.code]
        for key, values in (("lift", kind.lifts), ("code_form", kind.forms)):
            if getattr(self, key) not in values:
                refuse(key, f"code '{self.code}' takes {' or '.join(values)}")
        if self.head != "table" and self.lift not in kind.head_lifts:
            refuse("head", f"code '{self.code}' with lift '{self.lift}' cannot; set head='table'")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}")
        if self.positions == "rotary" and self.n_embd // self.n_head % 2:
            refuse("positions", "needs an even head width n_embd / n_head")


for name, kind in CODES.items():
    for key, default in kind.options.items():
        if hasattr(Architecture, key) or OPTIONS.setdefault(key, default) != default:
            raise TypeError(f"code '{name}': {key}={default!r} has another default elsewhere")

GPTConfig = make_dataclass("GPTConfig", bases=(Architecture,), fields=[
    (key, type(default), default) for key, default in OPTIONS.items()])


def make_embedding(config, token_bytes):
    """A config's input embedding. A code that reads bytes has a free slot past the vocabulary."""
    kind = CODES[config.code]
    if kind.__init__.__code__.co_flags & inspect.CO_VARKEYWORDS:  # would lose options silently
        raise ValueError(f"code='{config.code}': its constructor takes **kwargs: name them")
    known = asdict(config) | {"token_bytes": token_bytes, "form": config.code_form,
                              "std": config.embed_std or None}
    rows = max(config.padded_size, config.vocab_size + kind.reads_bytes)
    wanted = {name: known[name] for name in (*kind.arguments, *kind.options)}
    return kind(rows, config.n_embd, **wanted)


def rotate(x, cos, sin):
    """Rotary positions: turn each pair (x_i, x_{i + half}) by its position's angle.
    x (B, H, T, w), cos and sin (T, w/2)."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class CausalSelfAttention(nn.Module):
    """Multi-head causal attention, (B, T, d) -> (B, T, d); x follows what a cache holds."""

    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(self, x, rotary=None, cache=None, layer=None):
        B, T, d = x.shape
        q, k, v = (y.view(B, T, self.n_head, d // self.n_head).transpose(1, 2)
                   for y in self.c_attn(x).split(d, dim=2))  # (B, H, T, w)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        # a prompt attends causally; a single token after it attends to all that is cached
        dropout = self.dropout if self.training else 0.0
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and T > 1:
            # written out: the backward pass of torch's own leaves the matrix units idle
            future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
            scores = (q * q.size(-1)**-0.5) @ k.transpose(2, 3) + future  # (B, H, T, T)
            y = F.dropout(scores.softmax(-1), dropout) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=T > 1)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, d)))


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + MLP(norm(x)). (B, T, d) -> (B, T, d)."""

    def __init__(self, config):
        super().__init__()
        d = config.n_embd
        self.ln_1 = nn.LayerNorm(d, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(d, bias=config.bias)
        self.mlp = nn.Sequential(OrderedDict(
            c_fc=nn.Linear(d, 4 * d, bias=config.bias),
            gelu=nn.GELU(),
            c_proj=nn.Linear(4 * d, d, bias=config.bias),
            dropout=nn.Dropout(config.dropout)))

    def forward(self, x, rotary=None, cache=None, layer=None):
        x = x + self.attn(self.ln_1(x), rotary, cache, layer)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """ids (B, T), T <= block_size -> logits (B, T, rows of the head), or with targets the mean
    cross-entropy in nats. token_bytes: the bytes of every id. initialise: False if a checkpoint's
    weights come next. ValueError if there is no such model."""

    def __init__(self, config, token_bytes=None, initialise=True):
        super().__init__()
        config.check()
        self.config = config
        wte = make_embedding(config, token_bytes)
        table = isinstance(wte, nn.Embedding)
        self.transformer = nn.ModuleDict(dict(
            wte=wte,
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd, bias=config.bias)))
        if config.positions == "learned":
            self.transformer["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        else:
            half = config.n_embd // config.n_head // 2
            frequency = 10000.0 ** (-torch.arange(half) / half)
            angle = torch.arange(config.block_size).unsqueeze(1) * frequency  # (T, w/2)
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("sin", angle.sin(), persistent=False)
        if config.head == "table" or table:
            self.lm_head = nn.Linear(config.n_embd, config.padded_size, bias=False)
        if config.head == "tied" and table:
            wte.weight = self.lm_head.weight
        if config.head == "code":
            self.lm_head = make_embedding(replace(config, embed_std=0.0), token_bytes)
        if config.head_bias != "none":
            self.head_bias = nn.Parameter(torch.empty(config.padded_size))
        self.slot = None  # an id past the vocabulary that was given bytes, and can be said
        if initialise:
            self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """nanoGPT's initial distributions for the body; the input draws its own. Each value is a
        pure function of (seed, parameter name, shape), so all arms share one body."""
        coded = {f"{name}.": module for name, module in self.named_modules()
                 if isinstance(module, TokenEmbedding)}
        for prefix, module in coded.items():
            module.reset_parameters(self.config.seed, prefix)
        for name, p in self.named_parameters():
            if name.startswith(tuple(coded)):
                continue
            std = 0.02
            if name.endswith("c_proj.weight"):  # the residual stream sums 2 * n_layer of these
                std = 0.02 / math.sqrt(2 * self.config.n_layer)
            if p.dim() == 1:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                p.normal_(0.0, std, generator=draw(self.config.seed, name, p.shape))

    @torch.no_grad()
    def start_at_unigram(self, counts):
        """Set the head's bias to log p(token) of counts (V,), each raised by one."""
        raised = torch.ones(len(self.head_bias), dtype=torch.float64)
        raised[:len(counts)] += torch.from_numpy(counts)
        self.head_bias.copy_((raised / raised[:len(counts)].sum()).log())

    @property
    def device(self):
        return self.transformer.ln_f.weight.device

    def embed(self, ids):
        """What the body gets of ids (...), without positions: (..., d)."""
        e = self.config.input_multiplier * self.transformer.wte(ids)
        return F.rms_norm(e, e.shape[-1:]) if self.config.input_norm else e

    def hidden(self, ids, cache=None):
        """ids (B, T) -> the hidden states after the last norm, (B, T, d). With a cache, ids follow
        what it holds."""
        start = cache.length if cache is not None else 0
        end = start + ids.size(1)
        assert start == 0 or ids.size(1) == 1, "after the prompt, a cache takes one token at a time"
        x, rotary = self.embed(ids), None  # (B, T, d)
        if self.config.positions == "learned":
            x = x + self.transformer.wpe.weight[start:end]
        else:
            rotary = self.cos[start:end], self.sin[start:end]
        x = self.transformer.drop(x)
        for i, block in enumerate(self.transformer.h):
            x = block(x, rotary, cache, i)
        if cache is not None:
            cache.length = end
        return self.transformer.ln_f(x)

    @property
    def head_code(self):
        """The module whose vectors are the head's rows; None where the head is a table."""
        wte = self.transformer.wte
        if self.config.head == "table" or isinstance(wte, nn.Embedding):
            return None
        return wte if self.config.head == "tied" else self.lm_head

    def head_rows(self):
        """((rows, d) matrix, (rows,) float32 offset or None): logits are h @ matrix^T + offset.

        table: V x d of its own. tied: the input's rows, times alpha = 4 / (d rms(e)) if they are
        coded: at the start h is mostly the token's own e, which would take all the probability.
        code: a second module of the same code, scaled to the 0.02 of a table. An id past the
        vocabulary has no code: it gets -inf, except a slot that was given bytes."""
        c, code = self.config, self.head_code
        bias = self.head_bias if c.head_bias != "none" else None
        if code is None:
            return self.lm_head.weight, bias
        alpha = 0.02 / code.std if c.head == "code" else 4 / (c.n_embd * code.std)
        count = max(c.padded_size, (self.slot or 0) + 1)
        ids = torch.arange(count, device=self.device)
        matrix = alpha * code(ids)
        if torch.is_autocast_enabled(self.device.type):
            # one copy that all pieces of the loss share, as autocast itself keeps of a weight
            matrix = matrix.to(torch.get_autocast_dtype(self.device.type))
        no_code = (ids >= c.vocab_size) & (ids != (self.slot or -1))
        offset = torch.zeros(count, device=self.device).masked_fill(no_code, -math.inf)
        if bias is None:
            return matrix, offset
        slot = bias.min().expand(count - len(bias))  # past the padding it is as the rarest token
        return matrix, offset + torch.cat([bias, slot])

    def set_bytes(self, raw):
        """Give the free slot past the vocabulary these bytes; returns its id."""
        self.slot = self.config.vocab_size
        for module in filter(None, {self.transformer.wte, self.head_code}):  # tied: one module
            module.set_bytes(self.slot, raw)
        return self.slot

    def logits(self, h, head=None):
        """Hidden states (..., d) -> logits (..., rows). `head`: what `head_rows` gave."""
        matrix, offset = head or self.head_rows()
        logits = F.linear(h, matrix)
        # in float32: bfloat16 would round a log-probability of -8 by up to 0.03
        return logits if offset is None else logits.float() + offset

    def forward(self, ids, targets=None, per_token=False):
        """See the class; `per_token`: the nats of each target, (B, T), not their mean."""
        x, head = self.hidden(ids), self.head_rows()  # (B, T, d)
        if targets is None:
            return self.logits(x, head)
        x, targets = x.flatten(0, 1), targets.flatten()
        # On a CPU the loss is bound by memory: logits that stay in cache, 4 MB at a time, make it
        # three times as fast.
        rows = max(1, 2**20 // self.config.padded_size) if x.device.type == "cpu" else len(x)
        reduction = "none" if per_token else "sum"
        nats = [F.cross_entropy(self.logits(h, head).float(), t, reduction=reduction)
                for h, t in zip(x.split(rows), targets.split(rows))]
        if per_token:
            return torch.cat(nats).view_as(ids)
        return sum(nats) / (targets != -100).sum()  # cross_entropy leaves out targets of -100

    def num_params(self):
        """Trained parameters {"input", "body", "head", "total"}; shared ones count as input."""
        total, both, inputs = (sum(p.numel() for p in module.parameters() if p.requires_grad)
                               for module in (self, self.transformer, self.transformer.wte))
        return {"input": inputs, "body": both - inputs, "head": total - both, "total": total}

    def flops_per_token(self):
        """Of forward and backward: 6 per weight that multiplies, plus attention (PaLM, app. B)."""
        c = self.config
        weights = c.padded_size * c.n_embd + sum(p.numel() for p in self.transformer.h.parameters())
        return 6 * weights + 12 * c.n_layer * c.n_embd * c.block_size
