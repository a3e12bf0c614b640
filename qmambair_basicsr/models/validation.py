"""Guards of validation and test: no meaningless figures, no comparison with a training patch, no lost results."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import path as osp

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger

from .. import made_from
from ..metrics.perceptual import MetricError
from ..metrics.strict_metric import better_of, check_metric, needs_truth, prepare_metric
from .non_finite import NonFiniteError


class FailedTestError(NonFiniteError):
    """A test whose figures would mean nothing: NaN or infinity in the weights or in an output, which is named."""

    exit_code = 1


def _room(folder: str | None) -> str:
    """How much room there is on the disk of a folder, in words."""
    place = osp.abspath(folder or ".")
    while not osp.isdir(place):
        place = osp.dirname(place)
    return f"{shutil.disk_usage(place).free:,} bytes free on its disk"


class ValidationError(ValueError):
    """A validation that cannot be carried out as the options ask for it."""


def _sets(opt: Mapping) -> list[Mapping]:
    """The sections of validation and test sets."""
    return [section for key, section in (opt.get("datasets") or {}).items() if key.split("_")[0] != "train"]


def _result_names(dataset) -> list[str]:
    """Names under which BasicSR saves the results of a data set: those of its inputs, without their ending."""
    if hasattr(dataset, "result_paths"):
        paths = dataset.result_paths()
    else:  # BasicSR's own: paths, or pairs of them
        paths = [p["lq_path"] if isinstance(p, Mapping) else p for p in getattr(dataset, "paths", [])]
    return [osp.splitext(osp.basename(str(path)))[0] for path in paths]


class CheckedValidation(SRModel):
    """BasicSR's validation, with its mistakes said before it starts and its figures kept from being nonsense.

    Metrics that need a ground truth are left out for sets without one. An output with NaN or infinity fails a test, and
    makes the figures of a validation during training NaN, with a warning. Both name the image.
    """

    def check_validation(self) -> None:
        """Look at all sets and metrics once, when the model is built.

        Raises:
            ValidationError: two sets have one name.
            MetricError: a metric is unknown, has wrong arguments, or lacks its weights.
        """
        sets = _sets(self.opt)
        for name, number in Counter(section.get("name") for section in sets).items():
            if number > 1:
                raise ValidationError(
                    f"{number} data sets are called {name!r}: their results would overwrite each other; rename all but one"
                )
        metrics = self._metrics()
        for name, options in metrics.items():
            check_metric(name, options)
            prepare_metric(options)
        compared = [name for name, options in metrics.items() if needs_truth(options["type"])]
        blind = [section.get("name") for section in sets if not section.get("dataroot_gt")]
        if compared and blind and len(blind) < len(sets) + self.is_train:
            get_root_logger().warning(
                f"{', '.join(blind)}: no ground truth (dataroot_gt), so {', '.join(compared)} will not be computed there"
            )
        if not self.is_train and self.opt.get("rank", 0) == 0 and sets:
            # by which tools.benchmark knows whether the figures are still those of these weights, options and images
            get_root_logger().info(made_from.log_line(made_from.of_test(self.opt)))

    def _metrics(self) -> dict:
        return (self.opt.get("val") or {}).get("metrics") or {}

    def feed_data(self, data: Mapping) -> None:
        """Take a batch; a set without ground truth is not compared with the last training patch."""
        self._image_name = data["lq_path"][0] if data.get("lq_path") else "an image"
        if "gt" not in data and hasattr(self, "gt"):
            del self.gt
        super().feed_data(data)

    def validation(self, dataloader, current_iter, tb_logger, save_img: bool = False) -> None:
        """Restore, measure and save the images of a set.

        Raises:
            ValidationError: results of two images would have one name.
            MetricError: a metric cannot be computed for an image, which is named.
            FailedTestError: in a test, the output for an image is NaN or infinite.
        """
        dataset = dataloader.dataset
        if self.is_train:  # BasicSR's loop has counted on when it validates at its end
            current_iter = min(current_iter, self._iteration)
        if save_img:
            self._check_result_names(dataset)
        self._non_finite: list[str] = []
        if hasattr(self, "metric_results"):
            del self.metric_results  # of another set, which may have other metrics
        with self._options_of(dataset):
            try:
                super().validation(dataloader, current_iter, tb_logger, save_img)
            except MetricError as err:
                raise MetricError(f"{self._image_name}: {err}") from err
            except OSError as err:
                if err.errno is not None or not save_img:
                    raise
                folder = self.opt["path"].get("visualization")  # BasicSR names neither the file nor the reason
                raise ValidationError(
                    f"{self._image_name}: its picture cannot be written below {folder} ({_room(folder)}): free space or "
                    "permit writing, or set val: save_img: false"
                ) from err

    def _check_result_names(self, dataset) -> None:
        shared = [name for name, number in Counter(_result_names(dataset)).items() if number > 1]
        if shared:
            raise ValidationError(
                f"data set {dataset.opt['name']!r}: several images are called {shared[0]!r} up to the ending, and their "
                "results would overwrite each other; rename all but one, or set val: save_img: false"
            )

    @contextmanager
    def _options_of(self, dataset) -> Iterator[None]:
        """Inside, the metrics are those that a data set has a ground truth for, and pictures have a folder of their own.

        In training BasicSR saves pictures by their name alone, in one folder for all validation sets.
        """
        opt = self.opt
        metrics, val, path = self._metrics(), opt.get("val"), opt["path"]
        truth = bool(dataset.opt.get("dataroot_gt")) or (len(dataset) > 0 and "gt" in dataset[0])
        if metrics and not truth:
            kept = {name: options for name, options in metrics.items() if not needs_truth(options["type"])}
            self.opt = self.opt | {"val": {**val, "metrics": kept or None}}
        if self.is_train and len(_sets(opt)) > 1 and path.get("visualization"):
            self.opt = self.opt | {
                "path": {**path, "visualization": osp.join(path["visualization"], dataset.opt["name"])}
            }
        try:
            yield
        finally:
            self.opt = opt

    def get_current_visuals(self) -> dict:
        """Input, result and ground truth of the current image; a result with NaN or infinity is reported.

        Raises:
            FailedTestError: the result is NaN or infinite in a test.
        """
        if not bool(torch.isfinite(self.output).all()):
            self._non_finite.append(str(self._image_name))
            message = f"the network's output for {self._image_name} is NaN or infinite"
            if not self.is_train:
                raise FailedTestError(f"{message}: no figure of this test would mean anything. Use other weights")
            get_root_logger().warning(f"{message}: the metrics of this validation are nan")
        return super().get_current_visuals()

    def _initialize_best_metric_results(self, dataset_name: str) -> None:
        """Best results so far, with each metric's own direction; a record kept in another one is begun anew."""
        records = getattr(self, "best_metric_results", {})
        before = records.get(dataset_name, {})
        self.best_metric_results = records
        records[dataset_name] = {
            name: before[name]
            if name in before and before[name]["better"] == better_of(options)
            else {
                "better": better_of(options),
                "val": math.inf * (-1 if better_of(options) == "higher" else 1),
                "iter": -1,
            }
            for name, options in self._metrics().items()
        }

    def _update_best_metric_result(self, dataset_name: str, metric: str, val: float, current_iter: int) -> None:
        if self._non_finite:
            self.metric_results[metric] = val = math.nan
        super()._update_best_metric_result(dataset_name, metric, val, current_iter)
