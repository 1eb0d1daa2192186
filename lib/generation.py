"""A prompt -> ids -> the next tokens: forced words, a KV cache, sampling."""
import math

import regex  # tiktoken's; its \w, unlike re's, has the vowel signs of Devanagari
import torch

from lib.errors import InputError


def cut_out(word, prompt):
    """A word that is to be one token -> (its text in the prompt, "" if it is not there; the pieces
    of the prompt around it). Whole words, case counts; the space before a word belongs to it, as in
    GPT-2's tokens, and is in the text if the word has one anywhere."""
    whole = regex.compile(rf" ?(?<!\w){regex.escape(word)}(?!\w)")
    return max(whole.findall(prompt), key=len, default=""), whole.split(prompt)


def prompt_ids(model, tok, prompt, oov=None):
    """Prompt -> (1, T) ids; an empty one begins a document. With `oov`, a model that reads bytes
    reads that word as one free slot with its bytes, which a coded head can also say."""
    text, pieces = "", [prompt]
    if oov and model.transformer.wte.reads_bytes:
        text, pieces = cut_out(oov, prompt)
    model.slot = model.set_bytes(text.encode()) if text else None  # forgets the last prompt's word
    ids = tok.encode(pieces[0])
    for piece in pieces[1:]:
        ids += [model.slot, *tok.encode(piece)]
    return torch.tensor([ids or [tok.eot]], device=model.device)


class KVCache:
    """Keys and values of the positions seen so far, for every layer; filled by one prompt, then one
    token at a time."""

    def __init__(self, config, batch_size, device, dtype):
        shape = (config.n_layer, batch_size, config.n_head, config.block_size,
                 config.n_embd // config.n_head)
        self.k = torch.empty(shape, device=device, dtype=dtype)
        self.v = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0  # positions filled; advanced by the model once all layers have written

    def update(self, layer, k, v):
        """Store k, v (B, n_head, T, head width) after what is there; returns all of it so far."""
        end = self.length + k.size(2)
        self.k[layer, :, :, self.length:end] = k
        self.v[layer, :, :, self.length:end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


@torch.no_grad()
def generate(model, ids, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None,
             use_cache=True):
    """Continue ids (B, T), 1 <= T <= block_size. Yields the next ids (B,), `max_new_tokens`
    times. temperature 0 is greedy.

    Past block_size the window slides: the older half of the context is dropped and the rest is
    computed again, so that a token costs the same on average however long the text. `use_cache`
    changes the cost and not the text.
    """
    cache, head = None, model.head_rows()
    sayable = model.config.vocab_size if model.head_code is None else len(head[0])
    for _ in range(max_new_tokens):
        if ids.size(1) > model.config.block_size:
            ids, cache = ids[:, -max(1, model.config.block_size // 2):], None
        if cache is not None:
            x = model.hidden(ids[:, -1:], cache)
        else:
            if use_cache:
                cache = KVCache(model.config, len(ids), ids.device, head[0].dtype)
            x = model.hidden(ids, cache)
        logits = model.logits(x[:, -1], head)[:, :sayable].float()
        next_ids = choose(logits, temperature, top_k, top_p, generator)
        ids = torch.cat((ids, next_ids.unsqueeze(1)), dim=1)
        yield next_ids


@torch.no_grad()
def refuse_context(model, name):
    """InputError if a model's hidden states change when its tokens come one at a time: then its
    input reads more than each token's own id, and with a KV cache it would not say what it learned.
    """
    ids = torch.arange(min(8, model.config.block_size), device=model.device).unsqueeze(0)
    ids = ids % model.config.vocab_size
    whole = model.hidden(ids)
    cache = KVCache(model.config, 1, ids.device, whole.dtype)
    parts = torch.cat([model.hidden(one, cache) for one in ids.split(1, dim=1)], dim=1)
    if not torch.allclose(whole, parts, rtol=1e-2, atol=1e-2):
        raise InputError(f"{name}: its input reads more than each token's own id, which cannot be "
                         "sampled a token at a time; an arm's forward may depend on the id alone")


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


def one_line_sample(model, tok, tokens=24):
    """What a model under training begins a document with, on one line. The same seed each time;
    nothing of the training's own random numbers is used, and its mode is left as it was."""
    training = model.training
    model.eval()
    begin = torch.tensor([[tok.eot]], device=model.device)
    drawn = torch.Generator(model.device).manual_seed(42)
    ids = [int(i) for i in generate(model, begin, tokens, 0.7, top_p=0.9, generator=drawn)]
    model.train(training)
    text = tok.decode(ids[:ids.index(tok.eot)] if tok.eot in ids else ids)
    return "sample: " + " ".join(text.split())
