"""Mistakes that depend on where a file is used: the machine, networks of other papers, other plugins, BasicSR itself."""

from __future__ import annotations

import pytest
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY
from option_mistakes import found
from torch import nn

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NODELIST": "n1"}


class TestMachine:
    """Loggers and folders."""

    def test_missing_loggers(self, work, train_options, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        monkeypatch.setitem(sys.modules, "wandb", None)
        train_options["logger"] |= {"use_tb_logger": True, "wandb": {"project": "mine"}}
        tensorboard, wandb = found(train_options)
        assert "pip install tensorboard, or set use_tb_logger: false" in tensorboard
        assert "pip install wandb, or set project: ~" in wandb

    @pytest.mark.parametrize(
        ("name", "env", "said"),
        [
            ("none", {}, None),
            ("pytorch", TORCHRUN, None),
            ("pytorch", {}, "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set; start with `torchrun"),
            ("pytorch", TORCHRUN | {"RANK": "first"}, "RANK must be a whole number; got 'first'"),
            ("pytorch", TORCHRUN | {"MASTER_PORT": ""}, "MASTER_PORT must be a whole number"),
            ("pytorch", TORCHRUN | {"RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2; processes are counted from 0"),
            ("slurm", {}, "SLURM_PROCID, SLURM_NTASKS, SLURM_NODELIST are not set; start with `srun"),
            ("slurm", SLURM, "the command scontrol"),
        ],
    )
    def test_launcher(self, monkeypatch, name, env, said):
        from qmambair_basicsr.schema import machine

        for variable in {**TORCHRUN, **SLURM}:
            monkeypatch.delenv(variable, raising=False)
        for variable, value in env.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setenv("PATH", "")
        problems = [str(problem) for problem in machine.launcher(name, "train")]
        assert (problems == []) if said is None else (said in problems[0])
        assert machine.processes(name) == (2 if env and name != "none" else 1)

    def test_weights_of_a_metric(self, work, train_options, monkeypatch, tmp_path):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
        train_options["val"]["metrics"]["l"] = {"type": "calculate_lpips", "crop_border": 2}
        (problem,) = found(train_options)
        assert problem.startswith("val.metrics.l: ") and ("alexnet" in problem or "not installed" in problem)

    def test_occupied_folder(self, work, train_options):
        (work / "experiments").write_text("a file")
        (problem,) = found(train_options)
        assert "experiments is a file; move it away" in problem

    def test_folder_that_cannot_be_written(self, work, train_options, monkeypatch):
        monkeypatch.setattr("os.access", lambda *args, **kwargs: False)
        (problem,) = found(train_options)
        assert "cannot be written; start from another folder" in problem


LIGHT = {"depths": [1], "num_heads": [2], "embed_dim": 12, "upsampler": "pixelshuffledirect"}


@pytest.mark.parametrize(
    ("network", "scale", "said"),
    [
        (
            {"type": "VmambaIR", "variant": "MambaSISR6"},
            2,
            "network_g.variant: the network's output is 4 times its input",
        ),
        ({"type": "VmambaIR"}, 2, "network_g.variant: the network's output is 1 times its input"),
        ({"type": "VmambaIR", "variant": "Mamber3"}, 1, "network_g.variant: must be one of 'MambaSISR6'"),
        ({"type": "EAMamba", "upscale": 2}, 1, None),  # has no effect
        ({"type": "SwinIR", "window_size": 8, **LIGHT}, 2, None),
        (
            {"type": "SwinIR", "window_size": 7, **LIGHT},
            2,
            "SwinIR needs input patches whose side is a multiple of 7; got 16",
        ),
        ({"type": "QSwinIR", "window_size": 7, "quant": {}, **LIGHT}, 2, "QSwinIR needs input patches whose side is a"),
        (
            {"type": "QEDSR", "quant": {}, "num_in_ch": 3, "num_out_ch": 3, "upscale": 2, "depth": 3},
            2,
            "depth: unknown key",
        ),
        ({"type": "QEDSR", "quant": {}, "upscale": 2}, 2, "network_g.num_in_ch: missing"),
    ],
)
def test_networks_of_the_comparison(work, train_options, network, scale, said):
    train_options |= {"network_g": network, "scale": scale}
    problems = [p for p in found(train_options) if "dataroot" not in p]
    assert (problems == []) if said is None else any(said in p for p in problems), problems


class TestOtherPlugins:
    """What another plugin registers is checked from its signature, and not beyond."""

    @pytest.fixture
    def registered(self):
        added = []

        def add(registry, thing):
            registry._obj_map[thing.__name__] = thing
            added.append((registry, thing.__name__))
            return thing

        yield add
        for registry, name in added:
            del registry._obj_map[name]

    def test_network(self, work, train_options, registered):
        class TheirNet(nn.Module):
            def __init__(self, width: int, names: list[str] | None = None, upscale=4, act="relu", **kwargs):
                super().__init__()

        registered(ARCH_REGISTRY, TheirNet)
        train_options["model_type"] = "SRModel"
        train_options["network_g"] = {"type": "TheirNet", "width": 3, "upscale": 2, "extra": {"a": 1}, "act": None}
        assert found(train_options) == []
        train_options["network_g"] = {"type": "TheirNet", "wdith": 3, "names": "x", "upscale": 2}
        assert [p.split(":")[0] for p in found(train_options)] == ["network_g.wdith", "network_g.names"]

    def test_metric_and_data_set(self, work, train_options, registered):
        def their_metric(img, img2, window: int = 3, **kwargs):
            """Theirs.

            Args:
                img: image.
                colour_space (str): of the image.
            """

        class TheirDataset:
            """Theirs."""

            def __init__(self, opt):
                self.opt = opt

        registered(METRIC_REGISTRY, their_metric)
        registered(DATASET_REGISTRY, TheirDataset)
        train_options["val"]["metrics"] = {"m": {"type": "their_metric", "colour_space": "y", "whatever": 1}}
        train_options["datasets"]["val"] = {"name": "V", "type": "TheirDataset", "their_key": [1]}
        assert found(train_options) == []
        train_options["val"]["metrics"] = {"m": {"type": "their_metric", "color_space": "y", "window": "x"}}
        assert [p.split(":")[0] for p in found(train_options)] == ["val.metrics.m.color_space", "val.metrics.m.window"]


def test_stock_options_of_basicsr_pass(work, train_options):
    """Keys and spellings that BasicSR's own option files have."""
    train_options["model_type"] = "SRModel"
    train_options["network_g"] = {
        "type": "MSRResNet",
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_feat": 8,
        "num_block": 1,
        "upscale": 2,
    }
    for section in train_options["datasets"].values():
        section["type"] = "PairedImageDataset"
    train_options["datasets"]["train"] |= {"use_shuffle": True}
    train_options["val"]["val_freq"] = 5e3
    train_options["train"] |= {"total_iter": 1e6, "scheduler": {"type": "MultiStepLR", "milestones": [1], "gamma": 0.5}}
    train_options["logger"]["save_checkpoint_freq"] = 5e3
    assert found(train_options) == []
