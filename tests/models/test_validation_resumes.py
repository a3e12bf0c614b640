"""A validation that a kill took away is made up for, once: the best figures are those of a run that never stopped."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from basicsr.utils import dist_util
from test_two_processes import free_port

from qmambair_basicsr import checkpoints
from qmambair_basicsr.models.mambair_model import MambaIRModel

PSNR = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}


class Killed(BaseException):
    """Stands in for SIGKILL: nothing between it and the test catches it, and the files are as they were."""


@pytest.fixture
def options(train_options) -> dict:
    """Saves and validates every second iteration, on two sets of ten images."""
    data = train_options["datasets"]
    data["train"]["num_worker_per_gpu"] = 0
    section = {key: data["train"][key] for key in ("type", "dataroot_gt", "dataroot_lq", "io_backend")}
    data |= {"val": {**section, "name": "first"}, "val_2": {**section, "name": "second"}}
    train_options["train"]["total_iter"] = 6
    train_options["logger"]["save_checkpoint_freq"] = 2
    train_options["val"] = {"val_freq": 2, "save_img": False, "metrics": {"psnr": PSNR}}
    return train_options


@pytest.fixture
def figures(monkeypatch) -> list[tuple]:
    """Every figure that validation gives within the loop, as (set, iteration, PSNR); they get worse and worse."""
    seen = []
    update, save = MambaIRModel._update_best_metric_result, MambaIRModel.save

    def watch(self, dataset, metric, value, iteration):
        value = float(value) - 10 * iteration  # the best is the first, which is in danger
        if not hasattr(self, "ended"):  # what comes after is the validation of the end, which a resumed run repeats
            seen.append((dataset, iteration, value))
        update(self, dataset, metric, value, iteration)

    def note_the_end(self, epoch, current_iter):
        if current_iter == -1:
            self.ended = True
        save(self, epoch, current_iter)

    monkeypatch.setattr(MambaIRModel, "save", note_the_end)
    monkeypatch.setattr(MambaIRModel, "_update_best_metric_result", watch)
    return seen


@pytest.fixture
def kill_at(monkeypatch):
    """``kill_at(iteration, image)``: the run dies at that image of the iteration's validation, 1 to 20 over both sets."""
    plan, images = {}, []
    test = MambaIRModel.test

    def dying(self):
        if self._iteration == plan.get("iteration"):
            images.append(1)
            if len(images) == plan["image"]:
                raise Killed
        test(self)

    monkeypatch.setattr(MambaIRModel, "test", dying)

    def prepare(iteration: int, image: int) -> None:
        images.clear()
        plan.update(iteration=iteration, image=image)

    return prepare


def state_of(loop, iteration, name="run"):
    return checkpoints.load_training_state(
        loop.folder / "experiments" / name / "training_states" / f"{iteration}.state"
    )


@pytest.mark.parametrize("image", [1, 10, 15])
def test_the_validation_that_was_cut_off_is_made_up_for(loop, options, figures, kill_at, image):
    loop.here({**copy.deepcopy(options), "name": "whole"})
    whole, best = list(figures), state_of(loop, 6, "whole")["best_metric_results"]
    assert best["first"]["psnr"]["iter"] == best["second"]["psnr"]["iter"] == 2
    figures.clear()
    kill_at(2, image)
    with pytest.raises(Killed):
        loop.here(options)
    assert state_of(loop, 2)["validated"] == []
    kill_at(0, 1)
    figures.clear()
    loop.here(options, "--auto_resume")
    assert figures == whole
    assert state_of(loop, 6)["best_metric_results"] == best
    assert state_of(loop, 2)["validated"] == ["first", "second"]


def test_what_is_validated_is_not_validated_again(loop, options, figures, kill_at):
    """The state of iteration 2 knows the metrics of iteration 2, though it was written before them."""
    loop.here({**copy.deepcopy(options), "name": "whole"})
    whole, best = list(figures), state_of(loop, 6, "whole")["best_metric_results"]
    options["train"]["total_iter"] = 3
    loop.here(options)
    figures.clear()
    options["train"]["total_iter"] = 6
    loop.here(options, "--auto_resume")
    assert figures == [figure for figure in whole if figure[1] > 2]
    assert state_of(loop, 6)["best_metric_results"] == best


def test_a_state_of_another_run_is_read_only(loop, options, figures):
    options["train"]["total_iter"] = 2
    loop.here(options)
    state = loop.folder / "experiments" / "run" / "training_states" / "2.state"
    content = checkpoints.load_training_state(state)
    del content["validated"]  # as stock BasicSR writes it
    checkpoints.write_file(content, state)
    before = state.read_bytes()
    figures.clear()
    other = {**copy.deepcopy(options), "name": "other"}
    other["path"]["resume_state"] = str(state)
    for folder in ("models", "training_states", "visualization"):
        (loop.folder / "experiments" / "other" / folder).mkdir(parents=True)
    shutil.copy(loop.models() / "net_g_2.pth", loop.models("other"))  # where BasicSR looks for it
    other["train"]["total_iter"] = 4
    loop.here(other)
    assert [f[:2] for f in figures if f[1] <= 4] == [(name, i) for i in (2, 4) for name in ("first", "second")]
    assert state.read_bytes() == before


def test_rank_0_makes_up_for_it_in_a_process_group(loop, options, figures, kill_at, monkeypatch):
    """``--launcher pytorch`` with one process: the network is wrapped and rank 0 validates."""
    for key, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("MASTER_PORT", free_port())):
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(dist_util.mp, "set_start_method", lambda *_: None)  # it would be this process's for ever
    try:
        kill_at(2, 12)
        with pytest.raises(Killed):
            loop.here(options, "--launcher", "pytorch")
        torch.distributed.destroy_process_group()
        kill_at(0, 1)
        figures.clear()
        loop.here(options, "--launcher", "pytorch", "--auto_resume")
    finally:
        torch.distributed.destroy_process_group()
    assert [figure[:2] for figure in figures] == [(name, i) for i in (2, 4, 6) for name in ("first", "second")]
