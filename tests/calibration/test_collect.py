"""Statistics of a network's sites, and starting values that do not depend on how images are cut into batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qmambair_basicsr.archs.ss2d import SS2D
from qmambair_basicsr.calibration import GramObserver, MinMaxObserver, calibrate, collect
from qmambair_basicsr.layers import NetworkInfo, prepare
from qmambair_basicsr.layers.sites import network_sites, quantizers_of
from qmambair_basicsr.quantizers import QUANTIZER_REGISTRY, QuantSpec


def network(kind: str, bits: int = 4) -> nn.Module:
    """A linear layer and a selective scan, all sites with one kind of quantizer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), SS2D(8, d_state=2), nn.Linear(8, 3))
    entry = {"type": kind, "bits": bits}
    return prepare(net, QuantSpec.from_dict({"weight": entry, "act": entry, "scan": entry}), NetworkInfo()).eval()


def images(seed: int = 0) -> torch.Tensor:
    """Eight feature maps, the later ones larger."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 4, 5, 8, generator=generator) * torch.linspace(1, 4, 8)[:, None, None, None]


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters of quantizers after calibration, without their count of batches."""
    return {
        f"{name}.{key}": value.clone()
        for name, quantizer in quantizers_of(net).items()
        for key, value in quantizer.state_dict().items()
        if key != "observed"
    }


WITH_EXTREMES = [kind for kind in QUANTIZER_REGISTRY if QUANTIZER_REGISTRY[kind].extremes]


@pytest.mark.parametrize("kind", [*WITH_EXTREMES, "DoReFa"])
def test_ranges_do_not_depend_on_the_cut_into_batches(kind):
    data = images()
    states = []
    for sizes in ([8], [1] * 8, [5, 3], [2, 6]):
        net = calibrate(network(kind), data.split(sizes))
        states.append(state(net))
    for other in states[1:]:
        for key, value in states[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-6, msg=key)
    # and in another order
    net = calibrate(network(kind), data.flip(0).split(1))
    for key, value in state(net).items():
        torch.testing.assert_close(value, states[0][key], rtol=1e-5, atol=1e-6, msg=key)


def test_the_range_of_minmax_is_that_of_all_batches():
    net = prepare(
        nn.Sequential(nn.Linear(2, 2)),
        QuantSpec.from_dict({"weight": {"type": "MinMax", "bits": 4}, "act": {"type": "MinMax", "bits": 4}}),
        NetworkInfo(),
    )
    calibrate(net, [torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 10.0]])])
    assert net[0].act_quantizer.upper.item() == 10


def test_collects_what_full_precision_computes():
    net, data = network("LSQ"), images()
    plain = nn.Sequential(nn.Linear(8, 8), SS2D(8, d_state=2), nn.Linear(8, 3))
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if k in plain.state_dict()})
    net.train()
    net[0].eval()
    got = collect(net, data.split([3, 5]), {"*": lambda _: MinMaxObserver(), "2": lambda _: GramObserver()})
    assert set(got) == {placed.site.label for placed in network_sites(net)}
    low, high = got["0.act"]
    assert (low.item(), high.item()) == (data.min().item(), data.max().item())
    with torch.no_grad():
        inner = plain.eval()[:2](data).flatten(0, -2).double()
    torch.testing.assert_close(got["2.act"].gram, inner.T @ inner, rtol=1e-4, atol=1e-4)
    weight = plain[2].weight.detach().double()
    torch.testing.assert_close(got["2.weight"].gram, weight.T @ weight)
    assert got["1.A"][1].item() < 0  # the scan's A = -exp(A_logs), not its parameter
    # modes are as before, quantizers quantize again
    assert net.training and not net[0].training and net[1].training
    calibrate(net, [data])
    assert not torch.equal(net.eval()(data), plain(data))


def test_collecting_behind_quantizers_needs_calibration_and_sees_their_grid():
    net, data = network("LSQ", bits=2), images()
    calibrate(net, [data])
    net(data)  # fills the caches of weights
    plain = collect(net, [data], {"2": lambda _: MinMaxObserver()})
    behind = collect(net, [data], {"2": lambda _: MinMaxObserver()}, quantized=True)
    assert plain["2.act"] != behind["2.act"]
    before = net(data)
    collect(net, [data], {"*": lambda _: MinMaxObserver()})
    assert torch.equal(net(data), before)


def test_mistakes_are_named():
    net, data = network("LSQ"), images()
    with pytest.raises(ValueError, match=r"unknown site pattern '\*\.in_pro'.*in_proj"):
        collect(net, [data], {"*.in_pro": lambda _: MinMaxObserver()})
    with pytest.raises(ValueError, match=r"no batch reached 1 sites: 2\.act"):
        collect(net, [], {"2": lambda _: MinMaxObserver()})
    with pytest.raises(ValueError, match=r"0\.act: .*NaN or infinity"):
        collect(net, [data * torch.nan], {"0": lambda _: MinMaxObserver()})


@pytest.mark.parametrize("kind", ["LSQ", "DLS"])
def test_full_precision_is_that_of_quantizers_that_work_together_too(kind):
    """Unwatched sites of a calibrated scan pass unchanged: what lies behind them is as before calibration."""
    net, data = network(kind, 2), images()
    wanted = {"2": lambda site: MinMaxObserver() if site.site.operand == "act" else None}
    before = collect(net, [data], wanted)["2.act"]
    calibrate(net, [data])
    after = collect(net, [data], wanted)["2.act"]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
