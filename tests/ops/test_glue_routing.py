"""MambaIRv2's routing on the C++ kernels: torch's noise bit by bit, picks of prompts, the order of the tokens."""

from __future__ import annotations

import pytest
import torch
from instruction_sets import in_use, libraries
from torch import nn

from qmambair_basicsr.ops.glue import noise
from qmambair_basicsr.ops.glue.routing import order, route, route_weights
from qmambair_basicsr.ops.native_library import is_available
from qmambair_basicsr.ops.semantic_order import semantic_order

pytestmark = pytest.mark.skipif(not is_available()[0], reason=is_available()[1])


@pytest.fixture(params=list(libraries()) or ["none"], autouse=True)
def instructions(request):
    with in_use(request.param):
        yield request.param


def test_noise_is_that_of_torch():
    assert noise.knows_torch(), "this version of torch draws its numbers in another way: measure and adapt the kernel"
    drawn, wanted = (torch.Generator().manual_seed(2**40 + 3) for _ in range(2))
    for count in (1, 2, 15, 16, 17, 589, 624, 625, 3, 5000, 1248, 623):
        got = noise.uniform(drawn, torch.full((count,), torch.nan))
        assert torch.equal(got, torch.rand(count, generator=wanted)), count
    drawn.set_state(wanted.get_state())
    torch.randn(3, generator=drawn)
    torch.randn(3, generator=wanted)  # numbers of other kinds in between
    assert torch.equal(noise.uniform(drawn, torch.empty(4, 9)), torch.rand(4, 9, generator=wanted))
    assert torch.equal(torch.randn(5, generator=drawn), torch.randn(5, generator=wanted))


def test_another_torch_draws_its_own_noise(monkeypatch):
    monkeypatch.setattr(noise, "knows_torch", lambda: False)
    got = noise.uniform(torch.Generator().manual_seed(3), torch.empty(40))
    assert torch.equal(got, torch.rand(40, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("out", [torch.empty(4, dtype=torch.float64), torch.empty(4, 4).t()[:2]])
def test_noise_of_another_kind_is_refused(out):
    with pytest.raises(ValueError, match="contiguous float32"):
        noise.uniform(torch.Generator(), out)


@pytest.mark.parametrize("prompts", [1, 7, 16, 64, 100])
def test_the_pick_of_a_prompt_and_the_order_of_the_tokens(prompts):
    generator = torch.Generator().manual_seed(prompts)
    scores, uniform = torch.randn(700, prompts, generator=generator), torch.rand(700, prompts, generator=generator)
    uniform[0, 0], uniform[1] = 0.0, uniform[1, 0]  # U = 0 is never picked
    scores[1] = scores[1, 0]  # equal scores: the first
    picked = torch.full((700,), -1)
    route(scores, uniform, picked)()
    exact = scores.double() - uniform.double().log().neg().log()
    assert picked[1] == 0 and (prompts == 1 or picked[0] != 0)
    rest = exact.gather(1, picked[:, None])[2:, 0]
    assert bool((rest >= exact[2:].amax(1) - 1e-6).all()), "up to the rounding of two logarithms"
    assert int((picked[2:] == exact[2:].argmax(1)).sum()) == 698
    found, inverse = torch.empty(700, dtype=torch.int32), torch.empty(700, dtype=torch.int64)
    order(picked, prompts, found, inverse)
    wanted = semantic_order(picked[None], prompts)
    assert torch.equal(found.long(), wanted[0]) and torch.equal(inverse, wanted[1])
    with pytest.raises(ValueError, match="refuse"):
        order(picked + prompts, prompts, found, inverse)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("prompts", [1, 3, 7, 15, 16, 31])
def test_scores_that_are_not_finite_pick_a_prompt(prompts, value):
    scores, uniform = torch.full((9, prompts), value), torch.rand(9, prompts)
    picked = torch.full((9,), -1)
    route(scores, uniform, picked)()
    assert bool(((picked >= 0) & (picked < prompts)).all())


def test_scores_next_to_each_other_are_told_apart():
    """Differences that the rough logarithms do not see."""
    uniform = torch.rand(4000, 40, generator=torch.Generator().manual_seed(1))
    noisy = uniform.double().log().neg().log()
    level = torch.rand(4000, 1, generator=torch.Generator().manual_seed(2)) * 20 - 10
    ranks = torch.rand(4000, 40, generator=torch.Generator().manual_seed(3)).argsort(1)
    scores = (noisy + level + ranks * 4e-6).float()  # every score but for a few millionths the same
    picked = torch.full((4000,), -1)
    route(scores, uniform, picked)()
    exact = scores.double() - noisy
    lost = exact.amax(1) - exact.gather(1, picked[:, None])[:, 0]
    assert float(lost.max()) <= 4e-6  # twice the rounding of scores of this size


@pytest.mark.parametrize("sizes", [(48, 16, 64), (7, 5, 3), (1, 1, 1), (174, 58, 64), (30, 33, 17)])
@pytest.mark.parametrize("count", [1, 8, 61])
def test_scores_of_layers(sizes, count):
    inputs, hidden, prompts = sizes
    torch.manual_seed(count)
    layers = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, prompts, bias=prompts != 3))
    wide, uniform = torch.randn(count, inputs + 3), torch.rand(count, prompts)
    x, picked = wide[:, 2 : 2 + inputs], torch.full((count,), -1)
    route(x, uniform, picked, route_weights(layers))()
    with torch.no_grad():
        exact = layers.double()(x.double()) - uniform.double().log().neg().log()
    lost = exact.amax(1) - exact.gather(1, picked[:, None])[:, 0]
    assert float(lost.max()) <= 1e-5


def test_layers_that_the_kernel_does_not_compute():
    first, last = nn.Linear(4, 3), nn.Linear(3, 2)
    assert route_weights(nn.Sequential(first, nn.GELU(), last)) is not None
    for other in (
        nn.Sequential(first, last),
        nn.Sequential(first, nn.GELU("tanh"), last),
        nn.Sequential(first, nn.GELU(), last.double()),
        nn.Sequential(nn.Linear(4, 600), nn.GELU(), nn.Linear(600, 2)),
        last,
    ):
        assert route_weights(other) is None
    weights = route_weights(nn.Sequential(first, nn.GELU(), nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="scores"):
        route(torch.zeros(5, 3), torch.zeros(5, 2), torch.zeros(5).long(), weights)
    with pytest.raises(ValueError, match="for 3 prompts, layers for 2"):
        route(torch.zeros(5, 4), torch.zeros(5, 3), torch.zeros(5).long(), weights)
