"""What a resumed run takes from its state and what from its option file is said once; what cannot be is one error."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from basicsr.models import build_model

from qmambair_basicsr import checkpoints
from qmambair_basicsr.models import optimizers, resuming


@pytest.fixture
def said(monkeypatch) -> list[logging.LogRecord]:
    """What resuming logs."""
    records = []
    logger = logging.Logger("said")
    logger.addHandler(type("Keep", (logging.Handler,), {"emit": lambda self, record: records.append(record)})())
    monkeypatch.setattr(resuming, "get_root_logger", lambda: logger)
    return records


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.rand(2, 3, side, side, generator=generator) for key, side in (("lq", 12), ("gt", 24))}


def trained(model, steps, first=1):
    for i in range(first, first + steps):
        model.update_learning_rate(i, warmup_iter=model.opt["train"]["warmup_iter"])
        model.feed_data(batch(i))
        model.optimize_parameters(i)
    return model


@pytest.fixture
def state(parsed, train_options) -> dict:
    """The state of iteration 6, behind a milestone: Adam, lr 1e-3 halved at 5."""
    train_options["train"]["warmup_iter"] = 3
    train_options["train"]["optim_g"]["weight_decay"] = 0.01
    model = trained(build_model(parsed(copy.deepcopy(train_options))), 6)
    model.save(0, 6)
    return checkpoints.load_training_state(f"{model.opt['path']['training_states']}/6.state")


def resumed(parsed, options, state, **path):
    options = copy.deepcopy(options)
    options["path"] |= path
    torch.manual_seed(0)  # weights are not part of the state
    model = build_model(parsed(options))
    model.resume_training(copy.deepcopy(state))
    return model


def moments(model):
    return [entry["exp_avg"] for entry in model.optimizer_g.state_dict()["state"].values()]


def saved_moments(state):
    return [entry["exp_avg"] for entry in state["optimizers"][0]["state"].values()]


CHANGED = {"type": "Adam", "lr": 2e-3, "betas": [0.8, 0.99], "weight_decay": 0.1}


def test_what_is_ignored_is_listed_once(parsed, train_options, state, said):
    train_options["train"]["optim_g"] = dict(CHANGED)
    train_options["train"]["scheduler"]["milestones"] = [2, 4]
    train_options["manual_seed"] = 11
    model = resumed(parsed, train_options, state)
    assert [record.levelname for record in said] == ["WARNING"]
    text = said[0].getMessage()
    for part in (
        "Resuming at iteration 6, these options are ignored",
        "train: optim_g: lr: 0.002 (state: 0.001)",
        "betas: [0.8, 0.99] (state: [0.9, 0.99])",
        "weight_decay: 0.1 (state: 0.01)",
        "train: scheduler: milestones: [2, 4] (state: [5])",
        "manual_seed: 11 (state: 3)",
        "`path: resume_schedule: option`",
    ):
        assert part in text
    group, saved = model.optimizer_g.param_groups[0], state["optimizers"][0]["param_groups"][0]
    assert {key: group[key] for key in saved if key != "params"} == {k: v for k, v in saved.items() if k != "params"}
    assert model.seed == 3


def test_nothing_is_said_of_the_same_options(parsed, train_options, state, said):
    model = resumed(parsed, train_options, state)
    assert said == []
    assert model.get_current_learning_rate() == state["schedulers"][0]["_last_lr"]


def test_the_options_schedule_is_where_it_would_be(parsed, train_options, state, said):
    train_options["train"]["optim_g"] = dict(CHANGED)
    train_options["train"]["scheduler"]["milestones"] = [4, 7]
    model = resumed(parsed, train_options, state, resume_schedule="option")
    assert [record.levelname for record in said] == ["INFO"]
    assert "as the option file says: train: optim_g: betas" in said[0].getMessage()
    assert all(torch.equal(a, b) for a, b in zip(moments(model), saved_moments(state), strict=True))
    whole = build_model(parsed(copy.deepcopy(train_options)))
    for i in range(1, 7):
        whole.update_learning_rate(i, warmup_iter=3)
    for i in range(7, 9):
        for one in (whole, model):
            one.update_learning_rate(i, warmup_iter=3)
        assert model.get_current_learning_rate() == whole.get_current_learning_rate()
    settings = [{k: v for k, v in m.optimizer_g.param_groups[0].items() if k != "params"} for m in (model, whole)]
    assert settings[0] == settings[1]


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("schedule", ["state", "option"])
def test_moments_of_another_kind_of_optimizer_are_one_error(parsed, train_options, state, schedule, recorded):
    """Also from a state that does not name its optimizer, as stock BasicSR writes it."""
    train_options["train"]["optim_g"] = {"type": "SGD", "lr": 1e-3}
    if not recorded:
        del state["optimizer_kinds"], state["scheduler_kinds"]
    with pytest.raises(checkpoints.CheckpointError) as error:
        resumed(parsed, train_options, state, resume_schedule=schedule)
    text = str(error.value)
    assert "iteration 6 does not fit" in text and "train: optim_g: type is SGD" in text
    assert "start a new run from the weights" in text and "resume_schedule" not in text


def test_adam_and_adamw_share_moments(parsed, train_options, state, said):
    same = trained(resumed(parsed, train_options, state), 3, first=7)
    train_options["train"]["optim_g"]["type"] = "AdamW"
    model = resumed(parsed, train_options, state)
    assert "ignored: train: optim_g: type: AdamW (state: Adam)" in said[-1].getMessage()
    assert type(model.optimizer_g) is optimizers.Adam and model.schedulers[0].optimizer is model.optimizer_g
    trained(model, 3, first=7)
    weights = (one.net_g.state_dict() for one in (model, same))
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
    assert model.get_current_learning_rate() == same.get_current_learning_rate()
    model = resumed(parsed, train_options, state, resume_schedule="option")
    assert type(model.optimizer_g) is optimizers.AdamW
    assert all(torch.equal(a, b) for a, b in zip(moments(model), saved_moments(state), strict=True))
    fresh = build_model(parsed(copy.deepcopy(train_options))).optimizer_g.param_groups[0]
    assert model.optimizer_g.param_groups[0].get("decoupled_weight_decay") == fresh.get("decoupled_weight_decay")
    trained(model, 1, first=7)


@pytest.mark.parametrize("recorded", [True, False])
def test_another_kind_of_schedule(parsed, train_options, state, recorded):
    if not recorded:
        del state["optimizer_kinds"], state["scheduler_kinds"]
    train_options["train"]["scheduler"] = {"type": "CosineAnnealingRestartLR", "periods": [10], "eta_min": 1e-7}
    with pytest.raises(checkpoints.CheckpointError, match=r"CosineAnnealingRestartLR.*resume_schedule: option goes on"):
        resumed(parsed, train_options, state)
    model = resumed(parsed, train_options, state, resume_schedule="option")
    assert 0 < model.get_current_learning_rate()[0] < 1e-3


def test_another_schedule_word_is_refused(parsed, train_options, state):
    with pytest.raises(ValueError, match="resume_schedule: 'opton' is unknown; use state or option"):
        resumed(parsed, train_options, state, resume_schedule="opton")


def test_a_run_goes_on_under_another_name(loop, train_options):
    """BasicSR looks for the networks in the new run's folder, and makes no folders when it resumes."""
    train_options["datasets"]["train"]["num_worker_per_gpu"] = 0
    train_options["train"]["total_iter"] = 4
    loop.here(train_options)
    state = loop.folder / "experiments" / "run" / "training_states" / "4.state"
    train_options["train"]["total_iter"] = 6
    other = {**copy.deepcopy(train_options), "name": "other"}
    other["path"]["resume_state"] = str(state)
    loop.here(other)
    loop.here(train_options, "--auto_resume")
    ours, theirs = (checkpoints.read_file(loop.models(name) / "net_g_latest.pth") for name in ("run", "other"))
    for key in ("params", "params_ema"):
        assert all(torch.equal(ours[key][name], theirs[key][name]) for name in ours[key])
    (loop.models() / "net_g_4.pth").unlink()
    other["name"] = "third"
    with pytest.raises(checkpoints.CheckpointError, match=r"needs net_g_4\.pth of the same run: there is neither"):
        loop.here(other)
