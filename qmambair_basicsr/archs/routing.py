"""Token routing of MambaIRv2: Gumbel noise, prompt look-up with a straight-through gradient, semantic ordering.

Every token picks one of T prompts by ``argmax(logits + Gumbel noise)``, in training *and* at test time
(Guo et al., "MambaIRv2: Attentive State Space Restoration", sec. 3.2). The noise decides which noise source
is used, see :class:`RoutingNoise`; the pick itself is deterministic, and without noise the same on every machine, see
:func:`decide`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EVAL_ROUTINGS = ("gumbel", "argmax")

_shared_seed: ContextVar[int | None] = ContextVar("shared_routing_seed", default=None)
_tape: ContextVar[NoiseTape | None] = ContextVar("routing_noise_tape", default=None)
_evaluation_tapes: ContextVar[EvaluationTapes | None] = ContextVar("evaluation_noise_tapes", default=None)


@contextmanager
def shared_routing_noise(seed: int) -> Iterator[None]:
    """Give every MambaIRv2 forward inside the block the same Gumbel noise.

    A teacher and its student then route a token differently only where their logits differ, so that feature
    losses compare like with like. Holds for training and evaluation mode, and for either ``eval_routing``;
    each image of a batch has its own noise.

    Args:
        seed: Seed of the noise; use a fresh one every iteration.
    """
    token, tape = _shared_seed.set(int(seed)), _tape.get()
    if tape is not None:
        tape.start(int(seed))
    try:
        yield
    finally:
        _shared_seed.reset(token)


def noise_is_shared() -> bool:
    """Whether a :func:`shared_routing_noise` block is active."""
    return _shared_seed.get() is not None


class NoiseTape:
    """The numbers that a seed of shared noise gives, in tensors that stay where they are for every other seed.

    A recorded computation (a CUDA graph) cannot draw from a generator of its own; it reads these tensors instead, which are
    filled anew when a :func:`shared_routing_noise` block begins. Networks that run one after the other in a block read the
    same tensors.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._generator: torch.Generator | None = None
        self._seed = 0

    def start(self, seed: int) -> None:
        """Fill the tensors that there are with the numbers of ``seed``; those that are asked for later follow on them."""
        self._seed, self._generator = seed, None
        for tensor in self._tensors:
            tensor.uniform_(generator=self._generator_on(tensor.device))

    def _generator_on(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device=device)
            self._generator.manual_seed(self._seed)
        return self._generator

    def numbers(self, position: int, shape: torch.Size, like: Tensor) -> Tensor:
        """Those of draw ``position`` of a pass, a copy.

        Raises:
            ValueError: networks of one block draw numbers of different shapes.
        """
        if position == len(self._tensors):
            generator = self._generator_on(like.device)
            self._tensors.append(torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device))
        tensor = self._tensors[position]
        if tensor.shape != shape or tensor.dtype != like.dtype:
            raise ValueError(
                f"networks with routing noise of different shapes, {tuple(tensor.shape)} {tensor.dtype} and {tuple(shape)} "
                f"{like.dtype}, cannot be recorded together"
            )
        return tensor.clone()


@contextmanager
def taped_noise(tape: NoiseTape) -> Iterator[None]:
    """Inside, shared noise comes from a tape: the same numbers as without, at an address that does not change."""
    token = _tape.set(tape)
    try:
        yield
    finally:
        _tape.reset(token)


class EvaluationTapes:
    """The noise of evaluations in tensors, for recordings: it is the same in every pass over images of one size."""

    def __init__(self) -> None:
        self._by_seed: dict[int, NoiseTape] = {}

    def of(self, seed: int) -> NoiseTape:
        """The numbers of a seed; drawn when they are asked for first, which must not be inside a recording."""
        if seed not in self._by_seed:
            self._by_seed[seed] = NoiseTape()
            self._by_seed[seed].start(seed)
        return self._by_seed[seed]


@contextmanager
def evaluation_noise_on(tapes: EvaluationTapes) -> Iterator[None]:
    """Inside, noise of evaluations that is not shared comes from tapes: the same numbers as without."""
    token = _evaluation_tapes.set(tapes)
    try:
        yield
    finally:
        _evaluation_tapes.reset(token)


class RoutingNoise:
    """Gumbel noise of one forward pass; layers draw from it in order.

    ========================== =============================== =========================
    mode                       generator                       noise per image
    ========================== =============================== =========================
    inside shared_routing_noise seeded with the shared seed    own
    training                   torch's global one              own
    evaluation, ``gumbel``     seeded with ``eval_seed``       same for the whole batch
    evaluation, ``argmax``     none: no noise                  -
    ========================== =============================== =========================

    Sharing the noise within an evaluation batch makes the result of an image independent of the batch it is in.
    """

    def __init__(self, training: bool, eval_routing: str, eval_seed: int, device: torch.device) -> None:
        shared = _shared_seed.get()
        self.silent = not training and eval_routing == "argmax" and shared is None
        self.per_image = training or shared is not None
        self.generator = None
        self.tape, self.position = (None if shared is None else _tape.get()), 0
        tapes = _evaluation_tapes.get()
        if tapes is not None and shared is None and not training and not self.silent:
            self.tape = tapes.of(eval_seed)
        if not self.silent and self.tape is None and (shared is not None or not training):
            self.generator = torch.Generator(device=device)
            self.generator.manual_seed(eval_seed if shared is None else shared)

    def snapshot(self) -> RoutingNoise:
        """The same noise from here on, to run a layer apart from its network as often as one likes."""
        other = copy.copy(self)
        if self.generator is not None:
            other.generator = torch.Generator(device=self.generator.device)
            other.generator.set_state(self.generator.get_state())
        return other

    def add_to(self, logits: Tensor) -> Tensor:
        """Add standard Gumbel noise, ``-log(-log(U))`` with U uniform in [0, 1), to logits (B, L, T)."""
        uniform = self.uniform(logits)
        # torch's exponential_() costs 4 times as much as two logarithms on a CPU; U = 0 gives -inf: never picked
        return logits if uniform is None else logits - uniform.log_().neg_().log_()

    def uniform(self, logits: Tensor) -> Tensor | None:
        """The next numbers U for logits (B, L, T), (1, L, T) where the images of a batch share them; None without noise."""
        if self.silent:
            return None
        shape = logits.shape if self.per_image else torch.Size((1, *logits.shape[1:]))
        if self.tape is not None:
            self.position += 1
            return self.tape.numbers(self.position - 1, shape, logits)
        return torch.rand(shape, generator=self.generator, dtype=logits.dtype, device=logits.device)


NEAR = 3.7e-6
"""Logits this far below the largest one, in units of the largest magnitude among a token's logits, are as good as it.

Above what the order of a sum can change: float32 products of the official light weights (16 terms) are off by at most
5e-7 of that unit on Set5, those of 58 terms by twice as much. Below what a decision means: where scales are per tensor
and biases equal, quantized logits are whole multiples k of one step; unequal ones are 1 / k of the unit apart, k being
at most 58 * 2^14 and hardly ever a quarter of it. And no gap of such logits lies on the border itself: n / k = 3.7e-6
needs a multiple of 10,000,000 for k.
"""


def decide(logits: Tensor) -> Tensor:
    """The prompt of every token without noise: the lowest index among the logits that are as good as the largest.

    Logits that are equal in exact arithmetic (quantized ones often are, and so are those of equal prompts) differ in
    their last bits, and which one is larger depends on the order in which a machine's matrix product adds. Taking the
    largest would let the machine decide; this rule, with the tolerance ``NEAR``, does not. It compares with the largest
    logit only, so a chain of logits, each near to the next, is not one tie. Float16 and bfloat16 are coarser than
    ``NEAR``: there only equal logits tie. Exported graphs hold the same rule.

    With Gumbel noise the scores of two prompts are not equal, whatever their logits are: the noise breaks the tie, and
    the largest score is picked, as in the official network.

    Args:
        logits: (B, L, T). A token with NaN or an infinity among them: index 0.

    Returns:
        (B, L) int64, in range(T) whatever the logits are.
    """
    logits = logits.detach()
    low, top = logits.aminmax(dim=-1, keepdim=True)  # (B, L, 1)
    near = logits >= top - NEAR * torch.maximum(low.abs(), top.abs())
    # falling ranks instead of ones: not every runtime's argmax returns the first of equal values
    ranks = torch.arange(logits.shape[-1], 0, -1, dtype=torch.float32, device=logits.device)
    return (near * ranks).argmax(dim=-1)


class _PickPrompt(torch.autograd.Function):
    """Rows of a table by index; the backward pretends that the pick was the soft policy times the table."""

    @staticmethod
    def forward(ctx, policy: Tensor, picked: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(picked, table)
        return table[picked]  # (B, L, N)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        picked, table = ctx.saved_tensors
        grad_policy = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_policy = grad @ table.transpose(0, 1)  # (B, L, T)
        if ctx.needs_input_grad[2]:
            grad_table = torch.zeros_like(table).index_add_(0, picked.flatten(), grad.flatten(0, 1))
        return grad_policy, None, grad_table


def pick_prompt(scores: Tensor, table: Tensor, noisy: bool = True) -> tuple[Tensor, Tensor]:
    """Pick one prompt per token (``gumbel_softmax(hard=True, tau=1) @ table``).

    Args:
        scores: Logits plus noise, (B, L, T).
        table: Prompt dictionary, (T, N).
        noisy: There is noise in ``scores``: the largest is picked, and gradients reach them through softmax(scores).
            False: :func:`decide` picks, and the pick is a constant.

    Returns:
        picked (B, L) int64 and the prompts (B, L, N).
    """
    picked = _pick(scores, noisy)
    if not torch.is_grad_enabled() or not (scores.requires_grad or table.requires_grad):
        return picked, table[picked]
    policy = scores.softmax(dim=-1) if noisy else scores.detach()
    return picked, _PickPrompt.apply(policy, picked, table)


def _pick(scores: Tensor, noisy: bool) -> Tensor:
    return scores.argmax(dim=-1) if noisy else decide(scores)


class _HardPolicy(torch.autograd.Function):
    """One-hot rows of the soft policy's indices; the gradient passes to the soft policy."""

    @staticmethod
    def forward(ctx, policy: Tensor, picked: Tensor) -> Tensor:
        return torch.zeros_like(policy).scatter_(-1, picked.unsqueeze(-1), 1.0)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


def pick_policy(scores: Tensor, noisy: bool = True) -> tuple[Tensor, Tensor]:
    """As :func:`pick_prompt`, with the one-hot policy (B, L, T) itself, for products that quantize it."""
    picked = _pick(scores, noisy)
    soft = scores.softmax(dim=-1) if noisy and scores.requires_grad else scores.detach()
    return picked, _HardPolicy.apply(soft, picked)
