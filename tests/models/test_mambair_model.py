"""``MambaIRModel`` outside the loop: tests by tiles, files, the average, and stopping at NaN."""

from __future__ import annotations

import errno
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from qmambair_basicsr import checkpoints
from qmambair_basicsr.layers.info import NetworkInfo, network_info
from qmambair_basicsr.models import optimizers
from qmambair_basicsr.models.non_finite import NonFiniteError, gradient_norm


class Square(nn.Module):
    """x * x, which overflows for large x."""

    def forward(self, x):
        return x * x


@ARCH_REGISTRY.register()
class ProbeNet(nn.Module):
    """Enlarges by 2, holds a buffer that moves with every training forward, insists on sides that divide by 4."""

    def __init__(self, gain=1.0, noisy=False):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.square = Square()
        self.gain = gain
        self.noisy = noisy

    def forward(self, x):
        assert x.shape[-2] % 4 == 0
        assert x.shape[-1] % 4 == 0
        y = self.square(self.norm(self.first(x)) * self.gain)
        if self.noisy:
            y = y + torch.rand(y.shape)
        return y.repeat_interleave(2, -2).repeat_interleave(2, -1)


@network_info.register(ProbeNet)
def _(net: ProbeNet) -> NetworkInfo:
    return NetworkInfo(scale=2, size_multiple=4)


@pytest.fixture
def options(train_options):
    train_options["network_g"] = {"type": "ProbeNet"}
    return train_options


def batch(size=16):
    return {"lq": torch.rand(2, 3, size, size), "gt": torch.rand(2, 3, 2 * size, 2 * size)}


def step(model, iteration=1, data=None):
    model.update_learning_rate(iteration)
    model.feed_data(data or batch())
    model.optimize_parameters(iteration)


def test_average_follows_parameters_and_copies_buffers(parsed, options):
    model = build_model(parsed(options))
    before = model.net_g_ema.first.weight.clone()
    assert torch.equal(before, model.net_g.first.weight)
    step(model)
    expected = 0.9 * before + 0.1 * model.net_g.first.weight
    torch.testing.assert_close(model.net_g_ema.first.weight.data, expected.data)
    assert model.net_g.norm.num_batches_tracked == 1
    for average, value in zip(model.net_g_ema.buffers(), model.net_g.buffers(), strict=True):
        assert torch.equal(average, value)


@pytest.mark.parametrize("tile", ["release", False, {"size": 8, "overlap": 4}])
@pytest.mark.parametrize("average", [0.9, 0])
def test_tiles_padding_and_mode(parsed, options, tile, average):
    """ProbeNet works pixel by pixel in eval mode, so that tiles must not change its output."""
    options["train"]["ema_decay"] = average
    options["tile"] = tile
    model = build_model(parsed(options))
    step(model)
    net = model.net_g_ema if average else model.net_g
    model.feed_data({"lq": torch.rand(1, 3, 13, 18)})
    mode = net.training
    model.test()
    assert net.training == mode
    net.eval()
    padded = torch.zeros(1, 3, 16, 20)
    padded[..., :13, :18] = model.lq
    with torch.no_grad():
        torch.testing.assert_close(model.output, net(padded)[..., :26, :36], rtol=1e-6, atol=1e-6)


def test_tile_is_set_in_one_place(parsed, options):
    options |= {"tile": False, "val": {"tile": False}}
    with pytest.raises(ValueError, match="set twice"):
        build_model(parsed(options))


def test_validation_alone_does_not_wait_for_other_ranks(parsed, options, monkeypatch, tmp_path):
    """Rank 0 validates while others train on: DDP's forward, which broadcasts buffers, must not run."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        options["train"]["ema_decay"] = 0
        model = build_model(parsed(options) | {"dist": True})
        assert isinstance(model.net_g, nn.parallel.DistributedDataParallel)
        step(model)
        monkeypatch.setattr(nn.parallel.DistributedDataParallel, "forward", None)
        model.test()
        assert model.output.shape == (2, 3, 32, 32)
    finally:
        torch.distributed.destroy_process_group()


def test_choice_of_weights(parsed, options, tmp_path):
    nets = {key: build_network({"type": "ProbeNet"}).state_dict() for key in ("params", "params_ema")}
    path = tmp_path / "net.pth"
    checkpoints.write_file(nets, path)
    options["path"]["pretrain_network_g"] = str(path)
    for key in nets:
        options["path"]["param_key_g"] = key
        model = build_model(parsed(options, is_train=False))
        assert torch.equal(model.net_g.first.weight, nets[key]["first.weight"])
    options["path"]["param_key_g"] = "weights"
    with pytest.raises(checkpoints.CheckpointError, match="it holds: params, params_ema"):
        build_model(parsed(options, is_train=False))


def test_loading_without_strict_lists_what_is_skipped(parsed, options, tmp_path, monkeypatch):
    state = build_network({"type": "ProbeNet"}).state_dict()
    state["extra"] = state.pop("first.bias")
    checkpoints.write_file({"params": state}, tmp_path / "net.pth")
    options["path"]["pretrain_network_g"] = str(tmp_path / "net.pth")
    with pytest.raises(checkpoints.CheckpointMismatchError, match=r"(?s)first\.bias.*extra"):
        build_model(parsed(options))
    warned = []
    monkeypatch.setattr(logging.getLogger("basicsr"), "warning", warned.append)
    options["path"]["strict_load_g"] = False
    build_model(parsed(options))
    assert [line.split(": ", 1)[1] for line in warned] == ["not in the file: first.bias", "not in the network: extra"]


def test_saved_weights_are_never_nan_and_older_files_stay(parsed, options):
    model = build_model(parsed(options))
    step(model)
    model.save(0, 1)
    with torch.no_grad():
        model.net_g.first.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"first\.weight is not finite.*net_g_1\.pth"):
        model.save(0, 2)
    folder = model.opt["path"]["models"]
    assert checkpoints.first_non_finite(checkpoints.read_file(f"{folder}/net_g_1.pth")["params"]) is None
    with pytest.raises(checkpoints.CheckpointError, match="does not exist"):
        checkpoints.read_file(f"{folder}/net_g_2.pth")


def test_full_disk_is_one_error_and_loses_nothing(parsed, options, monkeypatch):
    model = build_model(parsed(options))
    step(model)
    model.save(0, 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(checkpoints.CheckpointError, match=r"net_g_latest\.pth.*No space left"):
        model.save(-1, -1)
    assert checkpoints.load_training_state(f"{model.opt['path']['training_states']}/1.state")["iter"] == 1


def weights_of(model):
    return {key: value.clone() for key, value in model.net_g.state_dict().items() if "norm" not in key}


def break_input(model):
    return {**batch(), "lq": torch.full((2, 3, 16, 16), float("nan"))}


def break_target(model):
    return {**batch(), "gt": torch.full((2, 3, 32, 32), float("inf"))}


def break_weight(model):
    with torch.no_grad():
        model.net_g.first.bias[1] = float("inf")


def break_layer(model):
    model.net_g.gain = 1e30


def break_loss(model):
    model.cri_pix = lambda output, target: output.mean() * float("inf")


def break_gradient(model):
    model.net_g.first.weight.register_hook(lambda gradient: gradient / 0)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_input, "lq of the batch is not finite"),
        (break_target, "gt of the batch is not finite"),
        (break_weight, r"parameter first\.bias is not finite"),
        (break_layer, r"first non-finite layer: square \(Square\)"),
        (break_loss, "loss itself overflowed"),
        (break_gradient, r"outputs are finite; first non-finite gradient: first\.weight"),
    ],
)
def test_training_stops_where_it_became_non_finite(parsed, options, damage, words):
    model = build_model(parsed(options))
    step(model)
    model.save(0, 1)
    data = damage(model)
    before = weights_of(model)
    with pytest.raises(NonFiniteError, match=rf"stopped at iteration 7 \(l_pix .*{words}.*net_g_1\.pth"):
        step(model, 7, data)
    assert all(torch.equal(before[key], value) for key, value in weights_of(model).items())


def test_gradient_norm(monkeypatch):
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), ())]
    for parameter in parameters[:2]:
        parameter.grad = torch.rand_like(parameter)
    expected = torch.cat([p.grad.flatten() for p in parameters[:2]]).norm().item()
    assert gradient_norm(parameters) == pytest.approx(expected)
    monkeypatch.delattr(nn.utils, "get_total_norm", raising=False)  # torch before 2.6
    assert gradient_norm(parameters) == pytest.approx(expected)
    parameters[0].grad[0, 0] = float("nan")
    assert math.isnan(gradient_norm(parameters))
    assert gradient_norm([]) == 0


def test_random_networks_validate_alike_each_time(parsed, options, monkeypatch):
    options["network_g"]["noisy"] = True
    model = build_model(parsed(options))
    drawn = []
    loader = SimpleNamespace(dataset=SimpleNamespace(opt={"name": "pairs", "dataroot_gt": "gt"}))
    monkeypatch.setattr(model, "nondist_validation", lambda *args: drawn.append(torch.rand(3)))
    model.validation(loader, 1, None)
    torch.rand(5)
    model.validation(loader, 2, None)
    assert torch.equal(*drawn)


def test_optimizers(parsed, options):
    options["train"]["optim_g"] |= {"type": "AdamW", "weight_decay": 1e-4}
    model = build_model(parsed(options))
    assert type(model.optimizer_g) is optimizers.AdamW
    assert model.optimizer_g.param_groups[0]["weight_decay"] == 1e-4
    options["train"]["optim_g"]["type"] = "Adamw"
    with pytest.raises(ValueError, match=r"'Adamw' is unknown; use one of Adam, AdamW, SGD"):
        build_model(parsed(options))
    options["train"]["optim_g"] |= {"type": "Adam", "momentum": 0.9}
    with pytest.raises(ValueError, match=r"optim_g.*momentum"):
        build_model(parsed(options))


@pytest.mark.parametrize("fused", [True, False])
def test_fused_steps_and_training_states_of_either_kind(parsed, options, fused):
    model = build_model(parsed(options))
    assert model.optimizer_g.defaults["fused"] is True
    options["train"]["optim_g"]["fused"] = fused
    written = build_model(parsed(options))
    written.net_g.load_state_dict(model.net_g.state_dict())
    step(written)
    written.save(0, 1)
    model.net_g.load_state_dict(written.net_g.state_dict())
    path = f"{written.opt['path']['training_states']}/1.state"
    model.resume_training(checkpoints.load_training_state(path))
    assert model.optimizer_g.param_groups[0]["fused"] is fused
    for each in (model, written):
        torch.manual_seed(0)
        step(each)
    for got, want in zip(model.net_g.parameters(), written.net_g.parameters(), strict=True):
        assert torch.equal(got, want)


def test_gradient_norm_is_limited(parsed, options):
    options["train"] |= {"grad_clip": 1e-3, "optim_g": {"type": "SGD", "lr": 1.0}, "ema_decay": 0}
    model = build_model(parsed(options))
    before = torch.cat([p.detach().flatten() for p in model.net_g.parameters()])
    step(model)
    after = torch.cat([p.detach().flatten() for p in model.net_g.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_no_loss_and_no_gpu_are_named(parsed, options, monkeypatch):
    del options["train"]["pixel_opt"]
    with pytest.raises(ValueError, match="no loss; set pixel_opt"):
        build_model(parsed(options))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="num_gpu: 1, but torch sees no CUDA device"):
        build_model(parsed(options | {"num_gpu": 1}))


def test_training_state_of_another_network_is_refused(parsed, options):
    model = build_model(parsed(options))
    step(model)
    model.save(0, 1)
    state = checkpoints.load_training_state(f"{model.opt['path']['training_states']}/1.state")
    state["optimizers"][0]["param_groups"][0]["params"].pop()
    with pytest.raises(checkpoints.CheckpointError, match="iteration 1 does not fit"):
        build_model(parsed(options)).resume_training(state)
