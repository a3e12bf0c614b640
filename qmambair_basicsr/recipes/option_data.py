"""Training and test sets of the option files: folders relative to the working directory, and registered classes."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Data:
    """A set of image pairs.

    Attributes:
        name: Name in log files and result tables.
        gt: Folder of the ground truth; ``{s}`` stands for the scale.
        lq: Folder of the network's input; empty = the class makes it from the ground truth.
        template: How the input file is called, given the stem of the ground-truth file.
        type: Registered dataset class.
        extra: Further keys of that class.
        smallest: Shortest side of its images in pixels, as ``tools.prepare_data`` leaves them; 0 = not at hand. No patch may
            be larger.
    """

    name: str
    gt: str
    lq: str = ""
    template: str = "{{}}"
    type: str = "RestorationPairDataset"
    extra: tuple[tuple[str, object], ...] = ()
    smallest: int = 0

    def options(self, scale: int) -> dict:
        """The set's section in an option file."""
        pair = {"dataroot_lq": self.lq.format(s=scale), "filename_tmpl": self.template.format(s=scale)}
        return {
            "name": self.name,
            "type": self.type,
            "dataroot_gt": self.gt.format(s=scale),
            **(pair if self.lq else {}),
            **dict(self.extra),
            "io_backend": {"type": "disk"},
        }


def _bicubic(name: str) -> Data:
    """A set whose inputs are MATLAB-bicubic reductions made by ``tools.prepare_data``."""
    pair = f"datasets/{name}/HR", f"datasets/{name}/LR_bicubic/X{{s}}"
    return Data(name, *pair, "{{}}x{s}", smallest=SMALLEST.get(name, 0))


def _listed(name: str, part: str) -> Data:
    """The part of a bicubic set that a list of file names chooses (split for validation)."""
    file = f"qmambair_basicsr/data/files/{name.lower()}_{part}.txt"
    return replace(
        _bicubic(name), name=f"{name} {part}", extra=(("meta_info_file", file),), smallest=SMALLEST.get(name, 0)
    )


def _noisy(name: str, sigma: int) -> Data:
    """A set with Gaussian noise made on the fly."""
    return Data(name, f"datasets/{name}/HR", type="GaussianNoiseDataset", extra=(("sigma", sigma),))


def _jpeg(name: str, quality: int) -> Data:
    """A set compressed on the fly, one grey channel."""
    return Data(name, f"datasets/{name}/HR", type="JPEGDataset", extra=(("quality", quality), ("channels", 1)))


def _degraded(data: Data, name: str, kind: str, **keys: object) -> Data:
    """The same ground truth with inputs that a data set class makes on the fly."""
    return replace(data, name=name, lq="", type=kind, extra=(*data.extra, *keys.items()))


# training sets; a photograph of T91 (78 pixels) loses what 2, 3 and 4 together do not divide
SMALLEST = {"BSDS400T91": 72, "BSDS400": 312, "Photos": 128}
SR_SETS = ("Set5", "Set14", "B100", "Urban100", "Manga109")
DEMO_SETS = ("Photos", "PhotosTest")  # made by tools.demo
DN_SETS = ("CBSD68", "Kodak24", "McMaster", "Urban100")
CAR_SETS = ("classic5", "LIVE1")
SIGMAS = (15, 25, 50)
QUALITIES = (10, 30, 40)
COLOUR_QUALITIES = (10, 20, 30, 40)

DATA = (
    {name: _bicubic(name) for name in ("DF2K", "DIV2K", "BSDS400T91", *SR_SETS, *DEMO_SETS)}
    | {f"BSDS400T91 {part}": _listed("BSDS400T91", part) for part in ("train", "val")}
    # without T91, whose images are too small for a patch of 128 pixels
    | {"BSDS400 train": replace(_listed("BSDS400", "train"), gt="datasets/BSDS400T91/HR", lq=_bicubic("BSDS400T91").lq)}
    | {f"{name} s{sigma}": _noisy(name, sigma) for name in ("DFWB", *DN_SETS) for sigma in SIGMAS}
    | {f"{name} q{quality}": _jpeg(name, quality) for name in ("DFWB", *CAR_SETS) for quality in QUALITIES}
    | {
        # one network for all strengths: every training sample draws its own
        f"BSDS400T91 {title}": _degraded(_listed("BSDS400T91", part), "BSDS400T91", kind, **keys)
        for title, part, kind, keys in (
            ("s5 to s50", "train", "GaussianNoiseDataset", {"sigma": list(range(5, 51))}),
            # as the published protocol has it, and as picture files hold it
            ("s5 to s50 stored", "train", "GaussianNoiseDataset", {"sigma": list(range(5, 51)), "stored": 0.6}),
            ("val s25", "val", "GaussianNoiseDataset", {"sigma": 25}),
            ("q10 to q50", "train", "JPEGDataset", {"quality": list(range(10, 51))}),
            # equal steps of the logarithm: the lower the quality, the more there is to learn
            (
                "q10 to q50 log",
                "train",
                "JPEGDataset",
                {"quality": [10, 11, 12, 14, 16, 18, 21, 24, 28, 32, 38, 44, 50]},
            ),
            ("val q10", "val", "JPEGDataset", {"quality": 10}),
            ("camera", "train", "CameraNoiseDataset", {"quality": [85, 90, 95]}),
        )
    }
    # names of their own: one network is tested on all of them
    | {f"each CBSD68 s{n}": replace(_noisy("CBSD68", n), name=f"CBSD68 s{n}") for n in SIGMAS}
    | {
        f"each CBSD68 s{n} stored": _degraded(
            _noisy("CBSD68", n), f"CBSD68 s{n} stored", "GaussianNoiseDataset", stored=1
        )
        for n in SIGMAS
    }
    | {
        f"each LIVE1 q{n}": _degraded(_bicubic("LIVE1"), f"LIVE1 q{n}", "JPEGDataset", quality=n)
        for n in COLOUR_QUALITIES
    }
    | {
        "CC15": Data("CC15", "datasets/CC15/GT", "datasets/CC15/LQ"),
        "SIDD train": Data("SIDD", "datasets/SIDD/train/GT", "datasets/SIDD/train/LQ"),
        "SIDD": Data("SIDD", "datasets/SIDD/val/GT", "datasets/SIDD/val/LQ"),
    }
)
