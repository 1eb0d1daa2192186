"""What a run measures besides its loss: at each validation the scale of its input and the update
ratio; at the last step the nats of the whole validation split, summed by groups: eval.npz.

    doc_nats, doc_tokens, doc_bytes (N,)   of each document (of neighbouring ones, past 5,000),
                                           the <|endoftext|> that ends it being one of its tokens
    seen_nats, seen_tokens                 by how often training will have seen the input token: its
                                           count in the text times the epochs, rounded; bin 0 never,
                                           bin k 2^(k-1) <= times < 2^k
    length_nats, length_tokens             by the input token's length in bytes
    script_names, script_nats, script_tokens    by its script
    shared_nats, shared_tokens (2,)        by whether its first P bytes are another token's as well
"""
import numpy as np
import torch

from lib import tokenizer
from lib.data import to_device
from lib.distributed import autocast, rank, sum_ranks, world_size


@torch.no_grad()
def input_norm(model):
    """Mean norm of the input table's rows, or of the rows of the projection as d x D; None where
    the input has no such weights."""
    wte = model.transformer.wte
    if isinstance(wte, torch.nn.Embedding):
        return wte.weight[:model.config.vocab_size].norm(dim=1).mean().item()
    W = getattr(wte, "W", None)
    return None if W is None else W.norm(dim=0).mean().item()


class InputWatch:
    """The input's vectors over the tokens of some validation blocks, each as often as it stands
    there: how large they are, and how far a step moves them."""

    def __init__(self, model, data, blocks):
        ids = data.read("val", blocks)[:, :-1]
        distinct, count = np.unique(ids, return_counts=True)  # torch's miscounts on MPS
        self.ids = torch.from_numpy(distinct.astype(np.int64)).to(model.device)
        self.share = torch.from_numpy(count / ids.size).float().to(model.device)
        self.model, self.embed, self.before = model, torch.no_grad()(model.embed), None

    def rms(self, vectors):
        """Root mean square per coordinate of vectors (n, d), one for each distinct id."""
        return (self.share @ vectors.square().mean(1)).sqrt().item()

    def remember(self):
        """Keep the vectors as they are before a step."""
        self.before = self.embed(self.ids)

    def measure(self):
        """{"input_norm", "input_rms": rms(e), "update_ratio"}. The last is the update ratio since
        `remember`, rms(delta e) / rms(e), or None where that was not called."""
        now, ratio = self.embed(self.ids), None
        if self.before is not None:
            ratio = self.rms(now - self.before) / max(self.rms(self.before), 1e-30)
        self.before = None
        return {"input_norm": input_norm(self.model), "input_rms": self.rms(now),
                "update_ratio": ratio}


@torch.no_grad()
def score_validation(model, data, config):
    """Nats of every token of the validation split but the first, given what stands before it in its
    block: (nats (n,), tokens (n + 1,)). Blocks are dealt to the ranks; all get the whole."""
    tokens, T = np.array(data.map("val")), config.block_size
    n = len(tokens) - 1
    # the last block ends with the text; what it shares with the one before is scored there
    starts = [*range(0, n - T + 1, T)] + ([n - T] if n % T else [])
    nats = torch.zeros(n, dtype=torch.float64)
    mine = starts[rank()::world_size()]
    together = max(config.batch_size, 4096 // T)
    model.eval()
    for i in range(0, len(mine), together):
        some = mine[i:i + together]
        x, y = to_device(np.stack([tokens[s:s + T + 1] for s in some]), model.device)
        with autocast(model.device, config.dtype):
            scored = model(x, y, per_token=True).cpu().double()  # (B, T)
        for start, row in zip(some, scored):
            first = start if start % T == 0 else n - n % T
            nats[first:start + T] = row[first - start:]
    model.train()
    return sum_ranks(nats).numpy(), tokens


def evaluate(model, data, config, epochs):
    """Score the validation split; returns the arrays of eval.npz (see above)."""
    nats, tokens = score_validation(model, data, config)
    tok = data.tokenizer
    raw, V = tokenizer.token_bytes(tok), tok.vocab_size
    given = tokens[:-1]  # the input token that stood before each scored one
    token_nats, token_count = np.bincount(given, nats, V), np.bincount(given, minlength=V)

    seen = np.frexp(np.round(data.train_counts * epochs))[1]  # how many bits the number has
    length = np.array([len(token) for token in raw])
    scripts = [tokenizer.script_of(token.decode(errors="replace")) for token in raw]
    names, script = np.unique(scripts, return_inverse=True)
    _, shared = tokenizer.unseen(raw, config.pos_dim)

    document = np.cumsum(tokens == tok.eot)[:-1]  # of each token from the second on
    document -= document[0]
    document //= -(-(document[-1] + 1) // 5_000)
    size = np.bincount(document, tokenizer.text_bytes(tok)[tokens[1:]])

    found = {"script_names": names, "doc_nats": np.bincount(document, nats).astype(np.float32),
             "doc_tokens": np.bincount(document), "doc_bytes": size.astype(np.int64)}
    groups = {"seen": seen, "length": length, "script": script, "shared": shared}
    for what, group in groups.items():
        found[f"{what}_nats"] = np.bincount(group, token_nats).astype(np.float32)
        found[f"{what}_tokens"] = np.bincount(group, token_count).astype(np.int64)
    return found
