"""Arithmetic on bits: a code is a vector over GF(2), its recoding an invertible affine map."""
import numpy as np
import torch


def ids_of(code):
    """The inverse of `binary_code`. (..., K) -> (...) int64."""
    return (code.long() << torch.arange(code.size(-1), device=code.device)).sum(-1)


def affine_code(code, A, b):
    """A c + b over GF(2), a bijection of {0, 1}^K if A is invertible. 2605.09751.

    (..., K) float, (K, K), (K,) -> (..., K) float. Integers up to K are exact in every float format
    in use, so a matrix product and a remainder are arithmetic over GF(2).
    """
    return (code @ A.to(code.dtype).T + b).to(code.dtype) % 2


def affine_decode(code, A, b):
    """The x with `affine_code(x, A, b) == code`: A^-1 (c + b). Same shapes.

    ValueError if A is not invertible.
    """
    return affine_code((code + b) % 2, gf2_inverse(A), torch.zeros_like(b))


def gf2_inverse(A):
    """Inverse of a (K, K) matrix of 0 and 1 over GF(2), by Gauss-Jordan elimination.

    ValueError if there is none.
    """
    K = len(A)
    M = torch.cat([A.bool(), torch.eye(K, dtype=torch.bool, device=A.device)], dim=1)
    for j in range(K):
        pivots = M[j:, j].nonzero()
        if not len(pivots):
            raise ValueError("the matrix has no inverse over GF(2)")
        pivot = j + int(pivots[0])
        M[[j, pivot]] = M[[pivot, j]]
        others = M[:, j].clone()
        others[j] = False
        M[others] ^= M[j]
    return M[:, K:].to(A.dtype)


def draw_affine(bits, seed):
    """A uniform over GL(K, 2) and b uniform over GF(2)^K: ((K, K), (K,)) uint8, a pure function of
    (bits, seed).

    Uniform matrices are drawn until one is invertible, so all invertible ones are equally likely;
    about 29 % of draws are.
    """
    rng = np.random.RandomState(seed)  # its stream is frozen: equal in every numpy version
    b = torch.from_numpy(rng.randint(0, 2, bits).astype(np.uint8))
    while True:
        A = torch.from_numpy(rng.randint(0, 2, (bits, bits)).astype(np.uint8))
        try:
            gf2_inverse(A)
            return A, b
        except ValueError:
            pass
