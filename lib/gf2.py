"""Arithmetic on bits: a code is a vector over GF(2), its recoding an invertible affine map."""
import numpy as np
import torch


def ids_of(code):
    """The inverse of `binary_code`. (..., K) -> (...) int64."""
    return (code.long() << torch.arange(code.size(-1), device=code.device)).sum(-1)


def affine_code(code, A, b):
    """A c + b over GF(2), one to one if A (K' x K) has rank K. 2605.09751, there with K' = K.

    (..., K) float, (K', K), (K',) -> (..., K') float. Integers up to K are exact in every float
    format in use, so a matrix product and a remainder are arithmetic over GF(2).
    """
    return (code @ A.to(code.dtype).T + b).to(code.dtype) % 2


def affine_decode(code, A, b):
    """The x with `affine_code(x, A, b) == code`: A^-1 (c + b). (..., K') -> (..., K).

    ValueError if A has not rank K.
    """
    return affine_code((code + b) % 2, gf2_inverse(A), torch.zeros(A.size(1), dtype=b.dtype))


def gf2_inverse(A):
    """Left inverse (K, K') of a (K', K) matrix of 0 and 1 over GF(2), by Gauss-Jordan elimination;
    the inverse where K' = K.

    ValueError if there is none: if the rank is below K.
    """
    rows, K = A.shape
    M = torch.cat([A.bool(), torch.eye(rows, dtype=torch.bool, device=A.device)], dim=1)
    for j in range(K):
        pivots = M[j:, j].nonzero()
        if not len(pivots):
            raise ValueError("the matrix has no inverse over GF(2)")
        pivot = j + int(pivots[0])
        M[[j, pivot]] = M[[pivot, j]]
        others = M[:, j].clone()
        others[j] = False
        M[others] ^= M[j]
    return M[:K, K:].to(A.dtype)


def draw_affine(bits, seed, width=0):
    """A of rank K and b uniform over GF(2)^K': ((K', K), (K',)) uint8, a pure function of (bits =
    K, seed, width = K'; unset: K).

    Matrices are drawn until one has rank K; about 29 % of the square ones have it, and all of those
    are equally likely. Where K' > K a row that is zero or repeats an earlier one is drawn again.
    """
    width = width or bits
    rng = np.random.RandomState(seed)  # its stream is frozen: equal in every numpy version
    b = torch.from_numpy(rng.randint(0, 2, width).astype(np.uint8))
    while True:
        A = rng.randint(0, 2, (width, bits))
        seen = {(0,) * bits}
        for row in A if width > bits else []:
            while tuple(row) in seen:
                row[:] = rng.randint(0, 2, bits)
            seen.add(tuple(row))
        A = torch.from_numpy(A.astype(np.uint8))
        try:
            gf2_inverse(A)
            return A, b
        except ValueError:
            pass
