"""Option files of post-training quantization: the same sites, images and seed for every method.

Files are ``ptq_Q{network}_{task}_w4a4_{method}`` and ``test_Q{network}_{task}_w4a4_{method}``. Sites are those of SPR2Q's tables,
in which the other methods ran on the Mamba modules and the rest was quantized by SPR2Q's uniform quantizer: all linears,
convolutions inside the blocks, projections, scan inputs without D, states, products of attention, and token routing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .option_contents import network_options, stem, test_options, train_options, widths
from .option_data import DATA
from .option_networks import AROUND_SCANS, LINEARS_BESIDE_SCANS, WITH_GROUPS, WITHOUT_LINEARS, WITHOUT_SCAN
from .option_table import DISTILL, Task

ROUTED = ("MambaIRv2", "MambaIRv2Light")  # window attention and token routing
WITH_MAPS = (*ROUTED, "SwinIR")  # attention maps
CALIBRATION = {"batches": 4, "batch_size": 8}  # 32 patches, as 2DQuant and SPR2Q


@dataclass(frozen=True)
class PTQ:
    """How a method is run.

    Attributes:
        options: its own, where they are not the defaults.
        iterations: ``total_iter``, as far as measured what the table of ``ptq/README.md`` has; 1 for methods without iterations.
        weight: options of the weights' quantizers beside type and bits.
        kind: type of the weights' quantizers.
        grouped: parts whose inputs have a range for each channel.
        type: of the method, where the row has another name.
        scan_weight: options of the weights' quantizers in the modules around the scans, where they differ.
    """

    options: dict = field(default_factory=dict)
    iterations: int = 1
    weight: dict = field(default_factory=dict)
    kind: str = "MinMax"
    grouped: tuple[str, ...] = ()
    type: str = ""
    scan_weight: dict = field(default_factory=dict)


# the release's loss divides by the number of elements: most gradients fall below Adam's epsilon, which thousands of iterations
# make up for and hundreds do not; weighted like this both terms of the paper's loss are about equal at two bits. Relative steps
# of bounds are ours (ptq/README.md has what they give); ``absolute`` is the releases'
_BALANCED = {"schedule": "cosine", "loss": "formula", "feature_weight": 0.002, "bound_steps": "relative"}
_SPR2Q = {**_BALANCED, "routing": 41}
_QUICK = {"lr": 0.02, "act_lr": 1e-3}  # 20 iterations of a block cannot move roundings at the releases' rates


def _scan(method: str | dict, **others) -> PTQ:
    """A method in the modules around the scans, the rest by SPR2Q as its own row: the setting of other methods in its tables."""
    return PTQ({**_SPR2Q, "scan": method}, 1025, type="SPR2Q", **others)


_LOADING = ("use_hflip", "use_rot", "dataset_enlarge_ratio", "prefetch_mode")
_ROWS = {"granularity": "channel"}
_MAPS = {"map_percent": 99.9}  # as Percentile; ptq/README.md has what it gives

METHODS = {
    "MinMax": PTQ(),
    "Percentile": PTQ(),
    "Quamba": PTQ(_MAPS),
    "Quamba2": PTQ(_MAPS, grouped=("u", "x_proj")),
    "MambaQuant": PTQ(_MAPS, weight=_ROWS),
    "PTQ4VM": PTQ(iterations=500, weight={**_ROWS, "symmetric": True}),
    "TwoDQuant": PTQ(_BALANCED, 600),
    "SPR2Q": PTQ(_SPR2Q, 1025),
    "BRECQ": PTQ(_QUICK, 400, _ROWS),
    "FIMAQ": PTQ({**_QUICK, "images": 1, "rank": 2}, 300, _ROWS),
    "APHQViT": PTQ({**_QUICK, "images": 1}, 300, _ROWS),
    "QuantDLLM": PTQ(kind="AnyOrder"),
    "BlockAP": PTQ({"lr": 2e-4}, 400, _ROWS),
    "MinMaxScan": _scan("MinMax"),
    "PercentileScan": _scan("Percentile"),
    "QuambaScan": _scan("Quamba"),
    "Quamba2Scan": _scan("Quamba2", grouped=("u", "x_proj")),
    "MambaQuantScan": _scan("MambaQuant", scan_weight=_ROWS),
    "PTQ4VMScan": _scan({"type": "PTQ4VM", "iterations": 1000}, scan_weight={**_ROWS, "symmetric": True}),
}
"""Name of a row, most often of its method -> how it is run."""


def ptq_rows(family: str) -> list[str]:
    """Those of ``METHODS`` that a network can have."""
    absent = {"SPR2Q"} if family in WITHOUT_LINEARS else set()
    if family in WITHOUT_SCAN:
        absent |= {name for name, run in METHODS.items() if "scan" in run.options}
    return [name for name in METHODS if name not in absent]


def method_options(family: str, method: str) -> dict:
    """``ptq: method`` of a row.

    Where there are linears within the modules around the scans alone, SPR2Q has nothing to rectify beside them: what is left of
    it is 2DQuant.
    """
    run = METHODS[method]
    options = {"type": run.type or method, **run.options}
    if "scan" in options and family not in LINEARS_BESIDE_SCANS:
        options = {key: value for key, value in options.items() if key != "routing"} | {"type": "TwoDQuant"}
    if family not in WITH_MAPS:
        options.pop("map_percent", None)
    return options


def quant_options(family: str, bits: int | tuple[int, int], method: str) -> dict:
    """The ``quant:`` block; arguments as :func:`ptq_options`."""
    run, (weight, act) = METHODS[method], widths(bits)
    plain, off = {"type": "MinMax", "bits": act}, {"type": "Identity"}
    rows = {"type": run.kind, "bits": weight, **run.weight}
    quant = {"weight": rows, "act": plain}
    overrides = {}
    if family not in WITHOUT_SCAN:
        quant |= {"scan": plain, "state": plain}
        overrides["*.D"] = {"scan": off}
        if family == "VmambaIR":  # which also scans the channels
            overrides["*.channel_D"] = {"scan": off}
        for part in run.grouped:
            overrides[f"*.{part}"] = {"scan" if part == "u" else "act": {**plain, **_ROWS}}
    if run.scan_weight:
        overrides[AROUND_SCANS[family]] = {"weight": {**rows, **run.scan_weight}}
    if family in WITH_MAPS:
        quant["attention"] = plain
    if family in ROUTED:
        quant["routing"] = plain
        if run.kind == "MinMax" and not run.weight:
            overrides["*.wqkv"] = {"weight": {**rows, **_ROWS}}  # queries, keys and values have bounds of their own
    if family in WITH_GROUPS:
        quant["conv"] = "fp"
    return quant | ({"overrides": overrides} if overrides else {})


def ptq_options(family: str, task: Task, bits: int | tuple[int, int], method: str) -> dict:
    """Contents of a file that quantizes.

    Args:
        family: ``MambaIR`` ...; the quantized network's type is ``Q`` + family.
        task: row of ``TASKS``.
        bits: of weights and activations.
        method: key of ``METHODS``.
    """
    run = METHODS[method]
    like = train_options(family, task, 4, DISTILL)
    if task.scale > 1:  # photographs that are at hand; 32 x 32 patches of the network's input
        sets, train = like["datasets"], {key: like["datasets"]["train"][key] for key in _LOADING}
        sets["train"] = {**DATA["BSDS400 train"].options(task.scale), **train}
        sets["train"] |= {"gt_size": 32 * task.scale, "batch_size_per_gpu": 8, "num_worker_per_gpu": 1}
        sets["val"] = DATA["BSDS400T91 val"].options(task.scale)
    opt = {
        "name": stem("ptq", family, task.name, bits, method),
        "model_type": "PTQModel",
        **{key: like[key] for key in ("scale", "num_gpu", "manual_seed", "datasets")},
        "network_g": network_options(family, task, 32)
        | {"type": f"Q{family}", "quant": quant_options(family, bits, method)},
        "path": {key: like["path"][key] for key in ("pretrain_network_g", "strict_load_g", "resume_state")},
        "ptq": {"method": method_options(family, method), "calibration": dict(CALIBRATION)},
        "train": {"total_iter": run.iterations},
        **{key: like[key] for key in ("val", "logger", "dist_params")},
    }
    opt["val"]["val_freq"] = max(run.iterations, 1)
    opt["logger"] |= {"save_checkpoint_freq": 50, "print_freq": 10 if run.iterations > 1 else 1}
    return opt


def ptq_test_options(family: str, task: Task, bits: int | tuple[int, int], method: str) -> dict:
    """Contents of the test file of a quantized network; arguments as :func:`ptq_options`."""
    opt = test_options(family, task, 4)
    opt["name"] = stem("test", family, task.name, bits, method)
    opt["network_g"]["quant"] = quant_options(family, bits, method)
    opt["path"]["pretrain_network_g"] = (
        f"experiments/{stem('ptq', family, task.name, bits, method)}/models/net_g_latest.pth"
    )
    return opt
