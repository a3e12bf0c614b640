"""Thousands of changed option files: each ends in one clear message, or is an option file that runs.

More than the suite's share: ``QMAMBAIR_CAMPAIGN=5000 pytest tests/campaigns/test_mutated_options.py``.
"""

from __future__ import annotations

import copy
import os
import time

import pytest
from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from mutate_options import MARKER, mutants
from option_cases import TEST, TRAIN, small_images, work  # noqa: F401  (fixtures)

from qmambair_basicsr import preflight
from qmambair_basicsr.cli import message_of
from qmambair_basicsr.recipes.option_files import read_options
from qmambair_basicsr.schema import OptionError

COUNT = int(os.environ.get("QMAMBAIR_CAMPAIGN", "500"))
SEED = int(os.environ.get("QMAMBAIR_CAMPAIGN_SEED", "0"))
SLOWEST = 5.0  # seconds for one file on a busy machine; a hang is what this finds

QUANT = {key: {"type": kind, "bits": 4} for key, kind in (("weight", "RFA"), ("act", "LSQOffset"), ("scan", "DLS"))}


def originals() -> list[dict]:
    """Files without mistakes."""
    quantized = copy.deepcopy(TRAIN)
    quantized["model_type"] = "QATModel"
    quantized["network_g"] |= {"type": "QMambaIR", "quant": copy.deepcopy(QUANT)}
    quantized["quant_train"] = {
        "calibration": {"batches": 1, "batch_size": 1, "seed": -1},
        "lr_factor": 0.5,
        "health_freq": 0,
    }
    return [TRAIN, TEST, quantized]


def run_once(opt: dict, training: bool) -> None:
    """Build everything an accepted file describes, and take one step or restore one image."""
    calibration = (opt.get("quant_train") or {}).get("calibration")
    if calibration:
        calibration.update(batches=1, batch_size=1)  # any number is allowed, and takes its time
    data = {name: build_dataset(section) for name, section in opt["datasets"].items()}
    model = build_model(opt)
    samples = next(iter(data.values()))[0]
    model.feed_data({key: value[None] for key, value in samples.items() if hasattr(value, "shape")})
    if training:
        model.update_learning_rate(1, warmup_iter=opt["train"].get("warmup_iter", -1))
        model.optimize_parameters(1)
    else:
        model.test()


def all_names() -> list[str]:
    """Everything that is registered."""
    registries = (ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY)
    return [name for registry in registries for name in registry.keys()]  # noqa: SIM118


def test_tools_read_a_mutant_or_refuse_it_in_one_message(work):  # noqa: F811
    file = work / "file.yml"
    refused = 0
    for number, (_, content) in enumerate(mutants(SEED + 1, COUNT, originals(), all_names())):
        file.write_bytes(content)
        try:
            read_options(file, ("network_g",))
        except OptionError as err:
            refused += 1
            assert str(err).startswith(str(file)), content
        except Exception as err:
            raise AssertionError(f"mutant {number} of seed {SEED + 1}: {err!r}\n{content!r}") from err
        assert not (work / MARKER).exists(), content
    assert 0 < refused < COUNT


@pytest.mark.filterwarnings("ignore")
def test_every_mutant_is_one_message_or_runs(work, capsys):  # noqa: F811
    from basicsr.utils import options as stock

    file = work / "file.yml"
    refused = accepted = ran = 0
    slowest = 0.0
    for number, (training, content) in enumerate(mutants(SEED, COUNT, originals(), all_names())):
        file.write_bytes(content)
        words = ["train.py", "-opt", str(file)]
        started = time.perf_counter()
        try:
            with pytest.MonkeyPatch.context() as patch, preflight.our_command():
                patch.setattr("sys.argv", words)
                try:
                    opt, _ = stock.parse_options(str(work), training)
                finally:
                    slowest = max(slowest, time.perf_counter() - started)
        except OptionError as err:
            refused += 1
            text = str(err)
            assert text.startswith(str(file)) and "Traceback" not in text and len(text) < 40_000, content
            assert all(len(line) < 2000 for line in text.splitlines()), text
        except Exception as err:
            raise AssertionError(f"mutant {number} of seed {SEED}: {err!r}\n{content!r}") from err
        else:
            accepted += 1
            if accepted % max(1, COUNT // 80) == 0:
                ran += 1
                try:
                    run_once(opt, training)
                except Exception as err:
                    if message_of(err) is not None:  # what only building shows
                        continue
                    raise AssertionError(
                        f"mutant {number} of seed {SEED} is accepted but fails: {err!r}\n{content.decode()}"
                    ) from err
        assert not (work / MARKER).exists(), content
    capsys.readouterr()
    assert refused + accepted == COUNT and min(refused, accepted, ran) > 0
    assert slowest < SLOWEST
