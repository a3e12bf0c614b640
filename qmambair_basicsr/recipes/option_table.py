"""The one source of every option file: those in ``options/``, and those that ``tools.make_options NAME`` makes.

A file is an architecture, a task, bit-widths and a method. Its contents are put together from five tables:

========== ============================================================================================
``DATA``    training and test sets (``option_data``)
``NETS``    constructor keys of an architecture at one size (``option_networks``)
``FP``      recipe that trains a full-precision network from scratch
``QAT``     recipe that fine-tunes a quantized network from full-precision weights
``TASKS``   what ties them together: scale, data, metric protocol, where the weights are
========== ============================================================================================

To add a task, add one line to ``TASKS`` (and to the other tables what is new in it); every file of it can be made then.
``PUBLISHED`` says which files are committed; ``python -m qmambair_basicsr.tools.make_options`` writes them.

Sources: recipes of the Q-MambaIR paper and of its released ``light x4`` configuration (where the two differ
the released one is followed: batch 16 per GPU on two GPUs, ground-truth patches of 192, DF2K); full-precision
recipes of the MambaIR release.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .option_data import CAR_SETS, COLOUR_QUALITIES, DN_SETS, QUALITIES, SIGMAS, SR_SETS
from .option_networks import NETS, net_key
from .recipe import Recipe

# widths at which ``plus`` rotates: at four bits it helps, at two it does not (quantizers/plus_ablation.md)
ROTATED = (4,)
PLUS = "plus"  # the method, or the last part of one, that is the preset of quantizers of this name; with a teacher

# -- recipes -------------------------------------------------------------------------------------------------

_FP_STEPS = (250_000, 400_000, 450_000, 475_000)
_FP_HALF_STEPS = tuple(step // 2 for step in _FP_STEPS)
_DN_STEPS = (800_000, 1_200_000, 1_400_000, 1_500_000)
_DN_HALF_STEPS = tuple(step // 2 for step in _DN_STEPS)
_QAT_STEPS = (10_000, 15_000, 17_500, 18_750)
# the other shipped networks start from tinySRx2, or from tinyDN
_TINY_NEXT = Recipe(
    1_200,
    1e-3,
    (),
    gt_size=72,  # the smallest photograph
    batch=8,
    val_freq=1000,
    save_freq=500,
    workers=1,
    start="tinySRx2",
    skip=("upsample.*",),
)
_TINY_SAME = replace(_TINY_NEXT, gt_size=48, batch=2, skip=())

FP = {
    "classic": Recipe(500_000, 2e-4, _FP_STEPS, gt_size=128, batch=4, ema=0.999),
    "light": Recipe(500_000, 2e-4, _FP_STEPS, gt_size=128, batch=16, ema=0.999),
    "dn": Recipe(800_000, 1e-4, _DN_HALF_STEPS, gt_size=128, batch=2, loss="CharbonnierLoss", start="ColorDN15"),
    "car": Recipe(800_000, 1e-4, _DN_HALF_STEPS, gt_size=126, batch=2, loss="CharbonnierLoss", start="CARq40"),
    # the release also grows the patch from 128 to 384 pixels and mixes images, which the stock loop does not do
    "real": Recipe(
        300_000,
        3e-4,
        (),
        gt_size=128,
        batch=8,
        loss="CharbonnierLoss",
        optim="AdamW",
        weight_decay=1e-4,
    ),
    # own recipes of one family and task; their official files differ from the rule of the size
    ("MambaIR", "SRx3"): Recipe(
        250_000, 1e-4, _FP_HALF_STEPS, gt_size=192, batch=4, ema=0.999, start="SRx2", skip=("upsample.*",)
    ),
    ("MambaIR", "SRx4"): Recipe(250_000, 1e-4, _FP_HALF_STEPS, gt_size=192, batch=4, ema=0.999, start="SRx2"),
    # from scratch with LR patches of 64, as the author corrected the published files (issues 82 and 96)
    ("MambaIR", "lightSRx3"): Recipe(500_000, 2e-4, _FP_STEPS, gt_size=192, batch=16, ema=0.999),
    ("MambaIR", "lightSRx4"): Recipe(500_000, 2e-4, _FP_STEPS, gt_size=256, batch=16, ema=0.999),
    ("MambaIR", "ColorDN15"): Recipe(1_600_000, 2e-4, _DN_STEPS, gt_size=128, batch=2, loss="CharbonnierLoss"),
    ("MambaIR", "CARq40"): Recipe(1_600_000, 2e-4, _DN_STEPS, gt_size=126, batch=2, loss="CharbonnierLoss"),
    ("MambaIRv2", "SRx2"): Recipe(500_000, 1e-3, _FP_STEPS, gt_size=128, batch=4),
    ("MambaIRv2", "SRx4"): Recipe(250_000, 1e-4, _FP_HALF_STEPS, gt_size=192, batch=4, start="SRx2"),
    ("MambaIRv2Light", "lightSRx2"): Recipe(500_000, 2e-4, _FP_STEPS, gt_size=128, batch=16, train="DIV2K"),
    ("MambaIRv2Light", "lightSRx4"): Recipe(500_000, 2e-4, _FP_STEPS, gt_size=192, batch=16, train="DIV2K"),
    "tiny": Recipe(10_000, 1e-3, (), gt_size=64, batch=4, ema=0.999, val_freq=2000, save_freq=1000, workers=1),
}
FP["light T"] = FP["light"]
# SwinIR's recipes are those that MambaIR and MaIR took over; at x3 a patch has whole windows
for _family in ("SwinIR", "MaIR"):
    FP |= {(_family, task): FP["MambaIR", task] for task in ("SRx3", "SRx4", "lightSRx3", "lightSRx4", "ColorDN15")}
FP |= {("MaIR", f"lightTSRx{s}"): FP["MambaIR", f"lightSRx{s}"] for s in (3, 4)}
FP["SwinIR", "CARq40"] = FP["MambaIR", "CARq40"]
_EDSR = Recipe(300_000, 1e-4, (200_000,), gt_size=96, batch=16, ema=0.999, train="DIV2K")  # BasicSR's option files
FP |= {("EDSR", f"{size}SRx{s}"): replace(_EDSR, gt_size=48 * s) for size in ("", "light") for s in (2, 3, 4)}
# the authors also grow the patch from 128 to 384 pixels, which the stock loop does not do; each noise by itself
_UNET = replace(FP["real"], ema=0.999, loss="L1Loss")
FP |= {("EAMamba", key): _UNET for key in ("dn", "real")}
FP["EAMambaSR", "light"] = replace(FP["light"], optim="AdamW")
FP["EAMambaSR", "lightSRx4"] = replace(FP["EAMambaSR", "light"], gt_size=256)
FP["VmambaIR", "dn"] = _UNET
FP["VmambaIR", "SRx4"] = replace(FP["classic"], gt_size=256, optim="AdamW")
FP["demo"] = FP["tiny"]
FP |= {
    ("MambaIR", "tinySRx3"): replace(_TINY_NEXT, total_iter=1_000),
    ("MambaIR", "tinySRx4"): replace(_TINY_NEXT, batch=12),
    ("MambaIR", "tinyDN"): replace(
        _TINY_SAME, total_iter=8_000, val_freq=2_000, val="BSDS400T91 val s25", skip=("upsample.*", "*.cab.*")
    ),
    ("MambaIR", "tinyCAR"): replace(_TINY_SAME, total_iter=2_000, start="tinyDN", val="BSDS400T91 val q10"),
    # tested on photographs only: once, behind the last iteration
    ("MambaIR", "tinyReal"): replace(_TINY_SAME, total_iter=1_000, start="tinyDN", val_freq=10_000),
}
QAT = {
    "classic": Recipe(20_000, 1e-4, _QAT_STEPS, gt_size=192, batch=16, val_freq=1000, calibration=8),
    "light": Recipe(20_000, 2e-4, _QAT_STEPS, gt_size=192, batch=16, val_freq=1000, calibration=8),
    **dict.fromkeys(
        ("dn", "car", "real"),
        Recipe(
            20_000,
            1e-4,
            _QAT_STEPS,
            gt_size=128,
            batch=4,
            loss="CharbonnierLoss",
            val_freq=1000,
            calibration=8,
        ),
    ),
    "tiny": Recipe(
        4_000,
        5e-4,
        (2_000, 3_000, 3_500, 3_750),
        gt_size=64,
        batch=4,
        val_freq=1000,
        save_freq=500,
        workers=1,
        calibration=8,
    ),
    # (family, task, bits) with a full-precision teacher: what two CPU cores can do; only training photographs, also for
    # validation
    **{
        ("MambaIRv2Light", "lightSRx2", bits): Recipe(
            1200,
            lr,
            (),
            gt_size=64,
            batch=2,
            train="BSDS400T91 train",
            val="BSDS400T91 val",
            val_freq=300,
            save_freq=50,
            workers=1,
            calibration=8,
            print_freq=10,
            distill=1.0,
            feature=0.02,
        )
        for bits, lr in ((4, 5e-4), (2, 1e-3))
    },
    # the preset, on a GPU: more steps, not more pixels, bring it on; at x2 without the features, which hold a trained network
    # back (quantizers/plus.md), and at two bits from where the recipe above ends
    **{
        ("MambaIRv2Light", f"lightSRx{scale}", bits, PLUS): Recipe(
            3000,
            lr,
            (),
            gt_size=48 * scale,
            batch=4,
            train="BSDS400 train",  # T91 has photographs smaller than a patch
            val="BSDS400T91 val",
            val_freq=1000,
            save_freq=500,
            workers=2,
            calibration=8,
            distill=1.0,
            feature=feature,
        )
        for scale, bits, lr, feature in ((2, 4, 4e-4, 0), (2, 2, 5e-4, 0), (4, 4, 5e-4, 0.02), (4, 2, 1e-3, 0.02))
    },
    # `make demo`: minutes on two CPU cores
    "demo": Recipe(
        400,
        1e-3,
        (200, 300, 360),
        gt_size=64,
        batch=4,
        val_freq=1000,
        save_freq=1000,
        workers=1,
        calibration=8,
        print_freq=5,
    ),
}

QAT["light T"] = QAT["light"]
_TINY_QAT = replace(QAT["tiny"], total_iter=1_500, milestones=())
QAT |= {
    ("MambaIR", "tinySRx3"): replace(_TINY_QAT, total_iter=1_000, gt_size=72, batch=8),
    ("MambaIR", "tinySRx4"): replace(_TINY_QAT, gt_size=72, batch=12),
} | {
    ("MambaIR", task): replace(_TINY_QAT, total_iter=n, gt_size=48, batch=2, calibration=16, **data)
    for task, n, data in (
        ("tinyDN", 4_500, {"train": "BSDS400T91 s5 to s50 stored", "val": "BSDS400T91 val s25"}),
        ("tinyCAR", 5_500, {"train": "BSDS400T91 q10 to q50 log", "val": "BSDS400T91 val q10"}),
        ("tinyReal", 1_500, {"val_freq": 10_000}),
    )
}

QAT["SwinIR", "car"] = replace(QAT["car"], gt_size=126)  # whole windows of 7 pixels

# -- tasks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A restoration problem with its data and protocol.

    Attributes:
        name: As it stands in file names (``SRx2``, ``lightSRx2``).
        size: Key of ``NETS``.
        recipe: Key of ``FP`` and ``QAT``.
        scale: Up-scaling factor.
        train: Key of ``DATA``.
        tests: Keys of ``DATA``; the first one also validates during training.
        crop: Border in pixels left out of PSNR and SSIM.
        y_channel: PSNR and SSIM on the Y channel of BT.601 instead of on all channels.
        in_chans: Image channels.
        weights: Folder of the full-precision weights that fine-tuning starts from; empty = where their training leaves them.
    """

    name: str
    size: str
    recipe: str
    scale: int
    train: str
    tests: tuple[str, ...]
    crop: int
    y_channel: bool = True
    in_chans: int = 3
    weights: str = "experiments/pretrained_models"


def _same_size(name: str, size: str, recipe: str, train: str, tests: tuple[str, ...], in_chans: int = 3) -> Task:
    """A task whose output has the input's size: all channels count, and the whole image."""
    return Task(name, size, recipe, 1, train, tests, crop=0, y_channel=False, in_chans=in_chans)


TASKS = {
    task.name: task
    for task in (
        *(Task(f"SRx{s}", "classic", "classic", s, "DF2K", SR_SETS, crop=s) for s in (2, 3, 4)),
        *(Task(f"lightSRx{s}", "light", "light", s, "DF2K", SR_SETS, crop=s) for s in (2, 3, 4)),
        # the smaller of the two light networks of a family that has two: MaIR-T
        *(Task(f"lightTSRx{s}", "light T", "light T", s, "DF2K", SR_SETS, crop=s) for s in (2, 3, 4)),
        Task("demoSRx2", "tiny", "demo", 2, "Photos", ("PhotosTest",), crop=2),
        Task("tinySRx2", "tiny", "tiny", 2, "BSDS400T91", SR_SETS[:3], crop=2, weights="qmambair_basicsr/assets"),
        *(Task(f"tinySRx{s}", "tiny", "tiny", s, "BSDS400T91", SR_SETS[:3], crop=s, weights="") for s in (3, 4)),
        *(
            replace(_same_size(name, "tiny same size", "tiny", train, tests), weights="")
            for name, train, tests in (
                (
                    "tinyDN",
                    "BSDS400T91 s5 to s50",
                    tuple(f"each CBSD68 s{n}{kind}" for kind in ("", " stored") for n in SIGMAS),
                ),
                ("tinyCAR", "BSDS400T91 q10 to q50", tuple(f"each LIVE1 q{n}" for n in COLOUR_QUALITIES)),
                ("tinyReal", "BSDS400T91 camera", ("CC15",)),
            )
        ),
        *(
            _same_size(f"ColorDN{n}", "same size", "dn", f"DFWB s{n}", tuple(f"{name} s{n}" for name in DN_SETS))
            for n in SIGMAS
        ),
        *(
            _same_size(f"CARq{n}", "same size", "car", f"DFWB q{n}", tuple(f"{name} q{n}" for name in CAR_SETS), 1)
            for n in QUALITIES
        ),
        _same_size("RealDN", "unet", "real", "SIDD train", ("SIDD",)),
    )
}

# (architecture family, task) of every network and task whose constructor keys are known
PAIRS = tuple(
    (family, task.name)
    for family in dict.fromkeys(family for family, _ in NETS)
    for task in TASKS.values()
    if (family, net_key(family, task.name, task.size, task.recipe)) in NETS
)

DISTILL = "distill"  # the method, or the first part of one, that has a full-precision teacher
CONV_FP = "convfp"  # the same of a placement: SwinIR's convolutions in full precision, its attention quantized

# Files in ``options/``, as (phase, family, task, bits, method): x2 of the super-resolution networks, the light x4 that the
# authors released, the shipped network and the demo, each in full precision and at 4 and 2 bits, and what README reports
PUBLISHED = (
    tuple(
        (phase, family, task, bits, "")
        for family, task in (
            ("MambaIR", "SRx2"),
            ("MambaIR", "lightSRx2"),
            ("MambaIR", "lightSRx4"),
            ("MambaIR", "tinySRx2"),
            ("MambaIR", "demoSRx2"),
            ("MambaIRv2Light", "lightSRx2"),
        )
        for phase in ("train", "test")
        for bits in (32, 4, 2)
    )
    + tuple(
        (phase, "MambaIRv2Light", "lightSRx2", bits, method)
        for phase, method in (("train", DISTILL), ("test", DISTILL), ("train", f"{DISTILL}_lsq"))
        for bits in (4, 2)
    )
    + (("ptq", "MambaIRv2Light", "lightSRx2", 4, "SPR2Q"),)
    + tuple(("train", "MambaIRv2Light", "lightSRx2", bits, PLUS) for bits in (4, 2))
)


def recipe_of(family: str, task: Task, bits: int, method: str = "") -> Recipe:
    """The recipe of an architecture, task and method: its own where it has one, else that of the task's size.

    Args:
        family: ``MambaIR`` ...
        task: entry of ``TASKS``.
        bits: of the weights; 32 trains the full-precision network from scratch.
        method: beginning with ``distill``, or ``plus``, where a teacher helps.
    """
    table = FP if bits == 32 else QAT
    parts = method.split("_")
    if parts[0] != DISTILL and PLUS not in parts:
        return _usual(table, family, task)
    own = table.get((family, task.name, bits, PLUS)) if PLUS in parts else None
    own = own or table.get((family, task.name, bits))
    return own or replace(_usual(table, family, task), distill=1.0, feature=0.02)


def begins_distilled(family: str, task: Task, bits: int, method: str) -> bool:
    """Whether training goes on from the network that ``distill`` trained, and not from full precision.

    A network whose inputs are rotated has to begin so.
    """
    return PLUS in method.split("_") and bits not in ROTATED and (family, task.name, bits) in QAT


def _usual(table: dict, family: str, task: Task) -> Recipe:
    """Of a family and task, of a family and recipe, or of the recipe alone."""
    return table.get((family, task.name)) or table.get((family, task.recipe)) or table[task.recipe]
