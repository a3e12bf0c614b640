"""One run, and one that is killed and resumed, give the same bits."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from qmambair_basicsr import checkpoints
from qmambair_basicsr.models.non_finite import NonFiniteError

PSNR = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}


def same(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def outcome(loop, name):
    folder = loop.folder / "experiments" / name
    return (
        checkpoints.read_file(folder / "models" / "net_g_8.pth"),
        checkpoints.load_training_state(folder / "training_states" / "8.state"),
    )


def test_killed_and_resumed_run_equals_one_run(loop, train_options):
    """The kill comes in iteration 7 of 8, after the state of iteration 4, which lies within the first epoch of 5."""
    loop.here({**copy.deepcopy(train_options), "name": "whole"})
    loop.run_until(train_options, "iter:       7")
    assert not (loop.models() / "net_g_8.pth").exists()
    loop.here(train_options, "--auto_resume")
    weights, state = outcome(loop, "run")
    expected_weights, expected_state = outcome(loop, "whole")
    assert set(weights) == {"params", "params_ema"}
    assert same(weights, expected_weights)
    assert same(state, expected_state)


def test_validation_and_a_new_start_seed_do_not_matter_on_resume(loop, train_options):
    """Without workers every draw of loader, validation and network comes from one process's generators."""
    data = train_options["datasets"]
    data["train"]["num_worker_per_gpu"] = 0
    data["val"] = {key: data["train"][key] for key in ("name", "type", "dataroot_gt", "dataroot_lq", "io_backend")}
    loop.here({**copy.deepcopy(train_options), "name": "whole"})
    train_options["val"] = {"val_freq": 3, "save_img": False, "metrics": {"psnr": PSNR}}
    train_options["train"]["total_iter"] = 5
    loop.here(train_options)
    train_options["train"]["total_iter"] = 8
    train_options["manual_seed"] = 77
    loop.here(train_options, "--auto_resume")
    assert same(outcome(loop, "run")[0], outcome(loop, "whole")[0])


def test_prefetching_thread_does_not_disturb_the_draws(loop, train_options):
    """`prefetch_mode: cpu` without workers loads samples in a thread while the network drops paths."""
    data = train_options["datasets"]["train"]
    data["num_worker_per_gpu"] = 0
    loop.here({**copy.deepcopy(train_options), "name": "whole"})
    data |= {"prefetch_mode": "cpu", "num_prefetch_queue": 3}
    loop.here(train_options)
    assert same(outcome(loop, "run")[0], outcome(loop, "whole")[0])


def test_damaged_state_stops_with_its_path(loop, train_options):
    train_options["train"]["total_iter"] = 4
    loop.here(train_options)
    state = loop.folder / "experiments" / "run" / "training_states" / "4.state"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(checkpoints.CheckpointError, match=r"4\.state cannot be read .*truncated"):
        loop.here(train_options, "--auto_resume")


def test_diverging_run_stops_and_names_the_last_checkpoint(loop, train_options):
    train_options["train"]["optim_g"] = {"type": "SGD", "lr": 1e6}
    train_options["logger"]["save_checkpoint_freq"] = 1
    train_options["train"]["total_iter"] = 50
    with pytest.raises(NonFiniteError, match=r"stopped at iteration (\d+) .*net_g_(\d+)\.pth.*--auto_resume") as error:
        loop.here(train_options)
    stopped, last = map(int, re.search(r"iteration (\d+) .*net_g_(\d+)\.pth", str(error.value)).groups())
    assert last == stopped - 1
    for path in loop.models().iterdir():
        assert checkpoints.first_non_finite(checkpoints.read_file(path)["params"]) is None


def test_another_seed_gives_other_weights(loop, train_options):
    """The guarantee above would be empty if training drew nothing."""
    loop.here({**copy.deepcopy(train_options), "name": "whole"})
    loop.here({**train_options, "manual_seed": 4})
    assert not same(outcome(loop, "run")[0], outcome(loop, "whole")[0])


def test_quantized_run_with_teacher_resumes_exactly(loop, qat_options, fp_checkpoint):
    """Also from a bare state_dict, whose `param_key_g: ~` must not be asked of the run's own checkpoints."""
    bare = checkpoints.read_file(fp_checkpoint)["params"]
    checkpoints.write_file(bare, fp_checkpoint.with_name("bare.pth"))
    qat_options["path"] |= {"pretrain_network_g": str(fp_checkpoint.with_name("bare.pth")), "param_key_g": None}
    qat_options["quant_train"]["teacher"] = {"path": str(fp_checkpoint)}
    qat_options["train"]["distill_opt"] = {"type": "PixelDistillationLoss"}
    qat_options["datasets"]["train"]["num_worker_per_gpu"] = 0
    loop.here({**copy.deepcopy(qat_options), "name": "whole"})
    qat_options["train"]["total_iter"] = 5
    loop.here(qat_options)
    qat_options["train"]["total_iter"] = 8
    loop.here(qat_options, "--auto_resume")
    assert same(outcome(loop, "run"), outcome(loop, "whole"))
