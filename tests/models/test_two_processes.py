"""``torchrun --nproc_per_node 2 -m qmambair_basicsr.train --launcher pytorch`` on CPUs keeps replicas equal."""

from __future__ import annotations

import socket

import torch

PROBE = '''
"""The training command, with every rank writing down what it holds when it saves."""
import runpy
import torch
from qmambair_basicsr.models.mambair_model import MambaIRModel

save = MambaIRModel.save

def save_all_ranks(self, epoch, current_iter):
    save(self, epoch, current_iter)
    held = {"net": self.get_bare_model(self.net_g).state_dict(), "ema": self.net_g_ema.state_dict()}
    held["inputs"] = self.lq
    torch.save(held, f"rank{self.rank}_{current_iter}.pth")

MambaIRModel.save = save_all_ranks
runpy.run_module("qmambair_basicsr.train", run_name="__main__", alter_sys=True)
'''


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_replicas_are_equal_after_five_iterations(loop, qat_options):
    probe = loop.folder / "probe.py"
    probe.write_text(PROBE)
    qat_options["datasets"]["train"]["num_worker_per_gpu"] = 0
    qat_options["train"]["total_iter"] = 5
    qat_options["logger"]["save_checkpoint_freq"] = 5
    command = loop.command(qat_options, "--launcher", "pytorch")
    start = command.index("-m")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    loop.execute([*command[:start], *launcher, str(probe), *command[start + 2 :]])

    first, second = (torch.load(loop.folder / f"rank{rank}_5.pth") for rank in (0, 1))
    assert not torch.equal(first["inputs"], second["inputs"])  # each rank had data of its own
    for part in ("net", "ema"):
        assert first[part].keys() == second[part].keys()
        different = [key for key in first[part] if not torch.equal(first[part][key], second[part][key])]
        assert different == []
    saved = torch.load(loop.models() / "net_g_5.pth")
    assert all(torch.equal(saved["params"][key], first["net"][key]) for key in first["net"])
    calibrated = torch.load(loop.models() / "net_g_calibrated.pth")["params"]
    assert all(bool(calibrated[key]) for key in calibrated if key.endswith("initialized"))
