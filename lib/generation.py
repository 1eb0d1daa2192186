"""Ids -> the next ids -> text: a KV cache, sampling."""
import itertools

import torch

from lib.errors import InputError


class KVCache:
    """Every layer's keys and values of the positions seen so far."""

    def __init__(self):
        self.layers = {}
        self.length = 0  # positions filled; advanced by the model once all layers have written

    def update(self, layer, k, v):
        """Add k, v (B, n_head, T, head width) to a layer; returns all of it so far."""
        if layer in self.layers:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.layers[layer], (k, v)))
        self.layers[layer] = k, v
        return k, v


@torch.no_grad()
def refuse_context(model):
    """InputError if a model's input vectors change when its tokens come one at a time, as they do
    with a KV cache: an arm may read each token's own id alone."""
    config = model.config
    ids = torch.arange(min(64, config.block_size), device=model.device)[None] % config.vocab_size
    alone = torch.cat([model.embed(one) for one in ids.split(1, dim=1)], dim=1)
    if not torch.allclose(model.embed(ids), alone, rtol=1e-2, atol=1e-2):
        raise InputError(f"code '{config.code}': its input reads more than each token's own "
                         "id; an arm's forward may depend on the id alone")


@torch.no_grad()
def generate(model, ids, max_new_tokens, temperature=1.0, top_p=1.0, generator=None):
    """Continue ids (B, T), 1 <= T <= block_size. Yields the next ids (B,), `max_new_tokens` times.
    Past block_size the older half of the context is dropped and the rest is computed again, so that
    a token costs the same on average."""
    cache, head = KVCache(), model.head_rows()
    sayable = model.config.vocab_size if model.head_code is None else len(head[0])
    new = ids
    for _ in range(max_new_tokens):
        if ids.size(1) > model.config.block_size:
            new = ids = ids[:, -max(1, model.config.block_size // 2):]
            cache = KVCache()
        logits = model.logits(model.hidden(new, cache)[:, -1], head)[:, :sayable].float()
        next_ids = choose(logits, temperature, top_p, generator)
        new = next_ids.unsqueeze(1)
        ids = torch.cat((ids, new), dim=1)
        yield next_ids


def choose(logits, temperature, top_p, generator):
    """Sample ids (B,) from logits (B, V), the likeliest at temperature 0, else within top_p."""
    if temperature == 0:
        return logits.argmax(-1)
    ordered, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0  # keeps the id that crosses top_p
    probs = torch.zeros_like(ordered).scatter(-1, order, ordered)
    return torch.multinomial(probs, 1, generator=generator).squeeze(1)


def continue_text(model, tok, ids, seed=42, word="", **how):
    """Continue ids (B, T) -> B texts, each up to <|endoftext|>. `word` is the text of the model's
    slot, the free id that a coded head can say. how: arguments of `generate`."""
    generator = torch.Generator(ids.device).manual_seed(seed)
    steps = list(generate(model, ids, generator=generator, **how))
    texts = []
    for row in torch.stack(steps, 1).tolist():  # (B, max_new_tokens)
        said = itertools.takewhile(lambda id: id != tok.eot, row)
        text = ""
        for is_slot, some in itertools.groupby(said, lambda id: id == model.slot):
            text += word * len(list(some)) if is_slot else tok.decode(list(some))
        texts.append(text)
    return texts
