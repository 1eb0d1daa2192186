"""Ids -> the next ids -> text: a KV cache, sampling."""
import itertools
import math

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
def refuse_context(model, name):
    """InputError if a model's input vectors change when its tokens come one at a time: an arm may
    read each token's own id alone, or a token could not be sampled with a KV cache."""
    ids = torch.arange(8, device=model.device).unsqueeze(0) % model.config.vocab_size
    alone = torch.cat([model.embed(one) for one in ids.split(1, dim=1)], dim=1)
    if not torch.allclose(model.embed(ids), alone, rtol=1e-2, atol=1e-2):
        raise InputError(f"{name}: its input reads more than each token's own id; an arm's forward "
                         "may depend on the id alone")


@torch.no_grad()
def generate(model, ids, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None,
             use_cache=True):
    """Continue ids (B, T), 1 <= T <= block_size. Yields the next ids (B,), `max_new_tokens` times.

    Past block_size the older half of the context is dropped and the rest is computed again, so that
    a token costs the same on average. `use_cache` changes the cost and not the ids.
    """
    cache, head = None, model.head_rows()
    sayable = model.config.vocab_size if model.head_code is None else len(head[0])
    for _ in range(max_new_tokens):
        if ids.size(1) > model.config.block_size:
            ids, cache = ids[:, -max(1, model.config.block_size // 2):], None
        new = ids[:, -1:] if cache else ids
        if use_cache:
            cache = cache or KVCache()
        logits = model.logits(model.hidden(new, cache)[:, -1], head)[:, :sayable].float()
        next_ids = choose(logits, temperature, top_k, top_p, generator)
        ids = torch.cat((ids, next_ids.unsqueeze(1)), dim=1)
        yield next_ids


def choose(logits, temperature, top_k, top_p, generator):
    """Sample ids (B,) from logits (B, V): greedy at temperature 0, else among the top_k,
    else within the top_p of the probability."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    probs = logits.softmax(-1)
    if top_p is not None:
        ordered, order = probs.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0  # keeps the id that crosses top_p
        probs = torch.zeros_like(probs).scatter(-1, order, ordered)
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


def one_line_sample(model, tok):
    """How a model under training begins a document, on one line; the same seed each time. Training
    mode and random numbers stay as they were."""
    training = model.training
    begin = torch.tensor([[tok.eot]], device=model.device)
    text, = continue_text(model.eval(), tok, begin, max_new_tokens=24, temperature=0.7, top_p=0.9)
    model.train(training)
    return "sample: " + " ".join(text.split())
