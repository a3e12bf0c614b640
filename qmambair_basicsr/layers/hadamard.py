"""Hadamard matrices of the orders that restoration networks have, and the rotations made from them.

Paley's constructions (J. Math. Phys. 12, 1933) and Sylvester's doubling: with q an odd prime and Q the Jacobsthal matrix,
``Q[i, j] = chi(i - j)``,

=============== ============== ==========================================================
Paley I         n = q + 1      q = 3 mod 4: 48, 60, 72, 132, 180, 264, 348, 360 ...
Paley II        n = 2 (q + 1)  q = 1 mod 4: 28, 36, 76 ...
doubling        n = 2 m        [[H, H], [H, -H]]: 96, 120, 144, 216, 2^k ...
=============== ============== ==========================================================

A network's other widths (174, or the 10 of a state) have none; :func:`rotation` takes a random orthogonal matrix there.
Published kernels (Quamba's ``hadamard_utils``) cover only 12, 40 and 1 times a power of two.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def hadamard(order: int) -> Tensor | None:
    """A matrix of +1 and -1 with H H^T = n I, (n, n) float64; None where no construction here reaches the order.

    Args:
        order: n.
    """
    with torch.device("cpu"):  # kept for all, also where a network is built on another device
        return _hadamard(order)


def _hadamard(order: int) -> Tensor | None:
    if order in (1, 2):
        return torch.tensor([[1.0]] if order == 1 else [[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    if order < 4 or order % 4:
        return None
    if _is_prime(order - 1):  # 4k - 1 is 3 mod 4
        return _bordered(order - 1, -1.0) + torch.eye(order, dtype=torch.float64)
    half = order // 2
    doubled = hadamard(half)
    if doubled is not None:
        return torch.cat((torch.cat((doubled, doubled), 1), torch.cat((doubled, -doubled), 1)))
    if half % 4 == 2 and _is_prime(half - 1):
        conference = _bordered(half - 1, 1.0)
        mixed = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        apart = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(conference, mixed) + torch.kron(torch.eye(half, dtype=torch.float64), apart)
    return None


def rotation(order: int, generator: torch.Generator, signs: bool = True) -> Tensor:
    """An orthogonal matrix that spreads outliers over all channels, (n, n) float64.

    ``diag(random signs) H / sqrt(n)`` where a Hadamard matrix is known, else a uniformly random orthogonal one.

    Args:
        order: n.
        generator: of the signs, and of the random matrix.
        signs: whether rows get random signs.
    """
    known = hadamard(order)
    if known is None:
        return torch.linalg.qr(torch.randn(order, order, generator=generator, dtype=torch.float64))[0]
    turned = known / math.sqrt(order)
    if not signs:
        return turned
    return (torch.randint(2, (order, 1), generator=generator) * 2 - 1).double() * turned


def _bordered(prime: int, below: float) -> Tensor:
    """[[0, 1], [below, Q]] of the Jacobsthal matrix of a prime; skew for q = 3 mod 4 and below -1."""
    squares = {(i * i) % prime for i in range(1, prime)}
    chi = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, prime)], dtype=torch.float64)
    index = torch.arange(prime)
    matrix = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 1:], matrix[1:, 0] = 1.0, below
    matrix[1:, 1:] = chi[(index[:, None] - index) % prime]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
