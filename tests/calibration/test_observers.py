"""Observers: what they return depends on the values and not on how they were cut into batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmambair_basicsr.calibration import (
    GramObserver,
    HistogramObserver,
    MinMaxObserver,
    MomentsObserver,
    PercentileObserver,
)

MAKERS = {
    "minmax": lambda: MinMaxObserver(),
    "minmax of channels": lambda: MinMaxObserver(dim=-1),
    "histogram": lambda: HistogramObserver(),
    "histogram of channels": lambda: HistogramObserver(dim=-1),
    "percentile": lambda: PercentileObserver(1, 99),
    "percentile of channels": lambda: PercentileObserver(5, 95, dim=-1),
    "moments": lambda: MomentsObserver(),
    "moments of channels": lambda: MomentsObserver((-1,)),
    "gram": lambda: GramObserver(),
}
EXACT = {name for name in MAKERS if not name.startswith(("moments", "gram"))}


def tensors(result) -> list[torch.Tensor]:
    """Every tensor in a result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [t for part in result for t in tensors(part)]
    return [t for part in vars(result).values() if isinstance(part, torch.Tensor) for t in [part]]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(MAKERS)),
    st.integers(0, 2**31 - 1),
    st.lists(st.integers(1, 9), min_size=2, max_size=5),
    st.floats(-30, 30),
)
def test_the_cut_into_batches_does_not_matter(name, seed, sizes, exponent):
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(sum(sizes), 4, 5, generator=generator) * 2.0**exponent
    whole, parts, merged = (MAKERS[name]() for _ in range(3))
    whole.update(data)
    shares = []
    for batch in reversed(data[torch.randperm(len(data), generator=generator)].split(sizes)):
        parts.update(batch)
        shares.append(MAKERS[name]())
        shares[-1].update(batch)
    for share in shares:
        merged.merge(share)
    for other in (parts, merged):
        for got, wanted in zip(tensors(other.finish()), tensors(whole.finish()), strict=True):
            if name in EXACT:
                assert torch.equal(got, wanted)
            else:
                torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12 * float(wanted.abs().max()))


def test_extremes_are_those_of_all_batches():
    observer = MinMaxObserver()
    for largest in (1.0, 10.0):
        observer.update(torch.linspace(-largest, largest, 5))
    assert [t.item() for t in observer.finish()] == [-10, 10]


@pytest.mark.parametrize("percent", [0, 0.1, 1, 25, 50, 99, 99.9, 100])
@pytest.mark.parametrize("bits", [10, 23])
def test_percentiles_are_numpys(percent, bits):
    x = torch.randn(4001, generator=torch.Generator().manual_seed(1)).exp() - 1
    observer = HistogramObserver(bits)
    observer.update(x)
    got = observer.finish()[0].percentile(percent)
    wanted = float(np.percentile(x.double().numpy(), percent))
    assert abs(got - wanted) <= 2.0 ** -(bits + 1) * abs(wanted) + 1e-12


def test_a_histogram_holds_every_value_in_a_narrow_bin():
    values = torch.tensor([-3e38, -1.0, -1e-40, -0.0, 0.0, 1e-45, 1.0, 1.0001, 3.4e38])
    observer = HistogramObserver(bits=23)
    observer.update(values)
    histogram = observer.finish()[0]
    assert histogram.total == len(values)
    assert torch.equal(histogram.values.float(), values.unique())
    assert histogram.counts.tolist() == [1, 1, 1, 2, 1, 1, 1, 1]


def test_moments_are_torchs():
    x = 100 + torch.randn(6, 4, 5, dtype=torch.float64)
    for keep in ((), (-1,), (1, 2), (2, 1)):
        observer = MomentsObserver(keep)
        for batch in x.split([1, 2, 3]):
            observer.update(batch)
        moments = observer.finish()
        dims = tuple(d for d in range(3) if d not in [k % 3 for k in keep])
        torch.testing.assert_close(moments.mean, x.mean(dims))
        torch.testing.assert_close(moments.variance, x.var(dims))


def test_gram_and_covariance_are_numpys():
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    observer = GramObserver()
    for batch in x.split(1):
        observer.update(batch)
    gram = observer.finish()
    flat = x.flatten(0, 1)
    torch.testing.assert_close(gram.gram, flat.T @ flat)
    torch.testing.assert_close(gram.covariance, torch.from_numpy(np.cov(flat.numpy().T)))


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_what_cannot_be_observed_is_refused(name):
    observer = MAKERS[name]()
    with pytest.raises(ValueError, match="there was no batch"):
        observer.finish()
    for bad, what in ((torch.empty(0, 3), "an empty tensor"), (torch.tensor([[1.0, torch.nan]]), "NaN or infinity")):
        with pytest.raises(ValueError, match=what):
            observer.update(bad)
    other = MAKERS["gram" if name != "gram" else "minmax"]()
    with pytest.raises(TypeError, match="cannot be merged"):
        observer.merge(other)
    for make in (lambda: HistogramObserver(bits=24), lambda: PercentileObserver(99, 1)):
        with pytest.raises(ValueError, match=r"bits must be|does not hold"):
            make()
