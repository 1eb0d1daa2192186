"""The other answers to the same question: does a language model need a trainable input table?

Each is an arm like those of codes.py: a class with its entry in `RIVALS`.
"""
import torch

from codes import KroneckerEmbedding


class RandomEmbedding(KroneckerEmbedding):
    """kron in everything but which rows: row i of token t is hash(seed, t, i) mod D. A multi-hash
    (Bloom) embedding, arXiv 1706.03993: spelling is worth nothing, and nearly all rows are in use.
    """
    reads_bytes = False

    def __init__(self, num_embeddings, embedding_dim, token_bytes, pos_dim=16, form="on_the_fly",
                 std=None, seed=0):
        self.seed = seed
        super().__init__(num_embeddings, embedding_dim, token_bytes, pos_dim, form, std)

    def rows(self, ids):
        i = torch.arange(self.pos_dim, device=ids.device)
        of_token = hash32(hash32(torch.full_like(ids, self.seed)) + ids)
        return hash32(of_token.unsqueeze(-1) + i) % len(self.weight)


def hash32(x):
    """A well-mixed 32-bit hash of int64 (Wellons' lowbias32), the same on every device.
    (...) int64 -> (...) int64 in [0, 2^32)."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


RIVALS = {"random": RandomEmbedding}
