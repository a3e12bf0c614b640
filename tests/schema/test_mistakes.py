"""Every kind of mistake in an option file is named with its key, what is allowed, and the nearest name."""

from __future__ import annotations

import copy

import pytest
from option_mistakes import REMOVE, change, found

from qmambair_basicsr import schema
from qmambair_basicsr.recipes import option_names


def test_files_without_mistakes_have_none(work, train_options, test_options):
    assert found(train_options) == []
    assert found(test_options, False) == []
    assert found(train_options, None) == found(test_options, None) == []
    assert found(train_options, False) == []  # a training file can be tested on its validation sets


def rows():
    """Every option file without a method, and of every method the files of one task."""
    yield from option_names.rows()
    every = (row for row in option_names.rows(every=True) if row.task == "lightSRx2" and row.bits == 4 and row.method)
    yield from (row for row in every if row.family in ("MambaIR", "MambaIRv2Light", "SwinIR"))


def test_every_option_file_that_can_be_made_lacks_nothing_but_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for row in rows():
        file = schema.parse(row.text(), row.name)
        wrong = [*file.problems, *schema.problems(file.data, row.phase == "train")]
        wrong = [str(problem) for problem in wrong if "does not exist" not in problem.text]
        assert wrong == [], row.name


TRAINING = [
    # names
    ("name", 20240101, "name: must be text that can be a folder's name"),
    ("name", True, "put it in quotes: 'True'"),
    ("name", "", "name: must be text"),
    ("name", "a/b", "name: must be text"),
    ("name", "..", "name: must be text"),
    ("name", "x" * 300, "name: must be text"),
    ("name", REMOVE, "name: missing"),
    # registered names and their arguments
    ("train.pixel_opt.type", "L1loss", "no loss is called 'L1loss' (did you mean 'L1Loss'?)"),
    ("train.pixel_opt.type", "GANLoss", "GANLoss cannot stand here"),
    ("train.pixel_opt.loss_wieght", 1.0, "unknown key (did you mean 'loss_weight'?)"),
    ("train.pixel_opt.reduction", "avg", "train.pixel_opt.reduction: must be one of 'mean', 'sum'; got 'avg'"),
    ("train.pixel_opt", "L1Loss", "train.pixel_opt: must be a section with the type of a loss and its arguments"),
    ("train.pixel_opt", REMOVE, "train: no loss; set pixel_opt"),
    ("train.scheduler.type", "MultiStepsLR", "(did you mean 'MultiStepLR'?)"),
    ("train.scheduler.gama", 0.5, "train.scheduler.gama: unknown key (did you mean 'gamma'?)"),
    ("train.scheduler.milestones", 20, "train.scheduler.milestones: must be a list"),
    ("train.scheduler", REMOVE, "train.scheduler: missing"),
    ("train.scheduler", {"type": "CosineAnnealingRestartLR", "periods": [2]}, "add up to 2, but total_iter is 4"),
    (
        "train.scheduler",
        {"type": "CosineAnnealingRestartLR", "periods": [4, 4]},
        "train.scheduler.restart_weights: has 1 entries, but periods 2",
    ),
    ("train.optim_g", "Adam", "train.optim_g: must be a section such as {type: Adam, lr: 0.0002}"),
    ("train.optim_g.type", "Adan", "train.optim_g.type: must be one of 'Adam', 'AdamW', 'SGD'"),
    ("train.optim_g.lr", -0.1, "train.optim_g.lr: must be a number, at least 0"),
    ("train.optim_g.lr", float("nan"), "train.optim_g.lr: must be a number"),
    ("train.optim_g.lr", "5e-4", "write the number as 0.0005 with a point, unquoted"),
    ("train.optim_g.lr", REMOVE, "train.optim_g.lr: missing"),
    ("train.optim_g.beta", 1, "train.optim_g.beta: unknown key (did you mean 'betas'?)"),
    ("train.optim_g.betas", [0, 0.99], "train.optim_g.betas[0]: must be a number with a point, at least 0 and below 1"),
    ("train.optim_g.betas", [0.9], "train.optim_g.betas: must be a list of 2 values"),
    ("train.optim_g", REMOVE, "train.optim_g: missing"),
    ("network_g.embed_dim", 32.0, "network_g.embed_dim: must be a whole number"),
    ("network_g.depths", 1, "network_g.depths: must be a list"),
    ("network_g.depths", [], "at least one is needed"),
    ("network_g.upsampler", "pixelshuffel", "network_g.upsampler: must be"),
    ("network_g.upscale", 4, "the network's output is 4 times its input, but scale: 2"),
    ("network_g.in_chans", 1, "network_g.in_chans: is 1, but datasets.train gives 3"),
    ("network_g.drop_path_rate", 1.0, "network_g.drop_path_rate: must be a number, at least 0 and below 1"),
    ("network_g", REMOVE, "network_g: missing"),
    ("model_type", REMOVE, "model_type: missing"),
    # metrics
    ("val.metrics.psnr.test_y_chanel", True, "unknown key (did you mean 'test_y_channel'?)"),
    ("val.metrics.psnr.crop_boder", 2, "unknown key (did you mean 'crop_border'?)"),
    ("val.metrics.psnr.crop_border", REMOVE, "val.metrics.psnr.crop_border: missing"),
    ("val.metrics.psnr.crop_border", -2, "val.metrics.psnr.crop_border: must be a whole number, at least 0"),
    ("val.metrics.psnr.crop_border", "2", "write the number as 2, unquoted"),
    ("val.metrics.psnr.crop_border", 30, "crop_border 30 leaves 0 pixels of p0.png"),
    ("val.metrics.psnr.better", "smaller", "val.metrics.psnr.better: must be one of 'higher', 'lower'"),
    ("val.metrics.psnr.test_y_channel", "false", "write false without quotes"),
    ("val.metrics.psnr.type", "calculate_pnsr", "(did you mean 'calculate_psnr'?)"),
    ("val.metrics.psnr", "calculate_psnr", "write {type: calculate_psnr}"),
    ("val.metrics", ["psnr"], "val.metrics: must be"),
    ("val.metrics.s", {"type": "calculate_ssim", "crop_border": 20}, "leaves 8 pixels"),
    # data
    ("datasets.train.use_hflip", "false", "write false without quotes"),
    ("train.amp", "fp8", "train.amp: must be one of 'bf16', 'fp16' or nothing (~)"),
    ("train.accumulate", 3, "train.accumulate: must divide datasets.train.batch_size_per_gpu"),
    ("train.checkpoint", "true", "write true without quotes"),
    ("train.requantize", "true", "write true without quotes"),
    ("train.compile", True, "train.compile: is not supported"),
    ("train.cuda_graph", "yes", "train.cuda_graph: must be true or false"),
    ("datasets.train.batch_size_per_gpu", 0, "batch_size_per_gpu: must be a whole number, at least 1"),
    ("datasets.train.batch_size_per_gpu", 64, "is 64, but an epoch has 40 samples"),
    ("datasets.train.batch_size_per_gpu", REMOVE, "datasets.train.batch_size_per_gpu: missing"),
    ("datasets.train.num_worker_per_gpu", -1, "num_worker_per_gpu: must be a whole number, at least 0"),
    ("datasets.train.dataset_enlarge_ratio", 0, "dataset_enlarge_ratio: must be a number, above 0"),
    ("datasets.train.gt_size", 31, "datasets.train.gt_size: must be a multiple of the scale 2; got 31"),
    ("datasets.train.gt_size", 64, "is 64, but the smallest image, p0.png, has a side of 48 pixels"),
    ("datasets.train.prefetch_mode", "gpu", "datasets.train.prefetch_mode: must be one of nothing (~), 'cpu', 'cuda'"),
    ("datasets.train.prefetch_mode", "cuda", "cuda needs pin_memory: true"),
    ("datasets.train.persistent_workers", True, "needs num_worker_per_gpu of at least 1"),
    ("datasets.train.io_backend", "disk", "datasets.train.io_backend: must be a section"),
    ("datasets.train.io_backend", {"type": "dsk"}, "(did you mean 'disk'?)"),
    ("datasets.train.filename_tmpl", "{}_{}", "datasets.train.filename_tmpl: must be a name with one {}"),
    ("datasets.train.filename_tmpl", "{name}x2", "datasets.train.filename_tmpl: must be a name with one {}"),
    ("datasets.train.type", REMOVE, "datasets.train.type: missing"),
    ("datasets.train.dataroot_lq", REMOVE, "datasets.train.dataroot_lq: missing"),
    ("datasets.train", REMOVE, "datasets.train: missing"),
    ("datasets.val.name", REMOVE, "datasets.val.name: missing"),
    ("datasets.validation", {}, "datasets.validation: unknown phase; allowed: train, val"),
    ("datasets.val", None, "datasets.val: must be a section"),
    ("datasets", None, "datasets: must be a section"),
    ("datasets.val.type", "SingleImageDataset", "SingleImageDataset has no ground truth, but val.metrics (psnr)"),
    (
        "datasets.val_2",
        {"name": "SmallVal", "type": "GaussianNoiseDataset", "dataroot_gt": "HR", "sigma": [5, 9]},
        "one",
    ),
    # the loop
    ("train.total_iter", REMOVE, "train.total_iter: missing"),
    ("train.total_iter", 0, "train.total_iter: must be a whole number, at least 1"),
    ("train.ema_decay", 1.5, "train.ema_decay: must be a number, at least 0 and below 1"),
    ("train.warmup_iter", "none", "train.warmup_iter: must be a whole number"),
    ("train.distill_opt", {"type": "PixelDistillationLoss"}, "compares with a teacher"),
    ("train", REMOVE, "train: missing"),
    ("val.val_freq", REMOVE, "val.val_freq: missing"),
    ("val.val_freq", 0, "val.val_freq: must be a whole number, at least 1"),
    ("val.save_img", "no", "write false without quotes"),
    ("val.save_img", REMOVE, "val.save_img: missing"),
    ("logger.print_freq", 0, "logger.print_freq: must be a whole number, at least 1"),
    ("logger.save_checkpoint_freq", REMOVE, "logger.save_checkpoint_freq: missing"),
    ("logger", REMOVE, "logger: missing"),
    ("logger.wandb", {"project": "mine"}, "set use_tb_logger: true"),
    ("path", None, "path: must be a section"),
    ("path.strict_load_g", "false", "write false without quotes"),
    ("path.skip_keys_g", ["upsample.*"], "path.skip_keys_g: needs strict_load_g: false"),
    ("manual_seed", -1, "manual_seed: must be a whole number, at least 0"),
    ("manual_seed", "1e3", "manual_seed: YAML reads '1e3' as text; write the number as 1000"),
    ("num_gpu", "cpu", "num_gpu: must be a whole number, at least 0 and at most 1,024 or 'auto'"),
    ("num_gpu", 999, "num_gpu: is 999, but torch sees"),
    ("num_gpu", REMOVE, "num_gpu: missing"),
    ("scale", "2", "scale: YAML reads '2' as text; write the number as 2, unquoted"),
    ("scale", 0, "scale: must be a whole number, at least 1"),
    ("quant_train", {"calibration": {"batches": 2}}, "MambaIRModel does not read it; use model_type: QATModel"),
    ("train.pixel_opt", {"type": "L1Loss", "schedule": {"from": 0}}, "train.pixel_opt.schedule.to: missing"),
    (
        "train.pixel_opt",
        {"type": "L1Loss", "schedule": "late"},
        "train.pixel_opt.schedule: must be a number or a section",
    ),
    (
        "train.pixel_opt",
        {"type": "L1Loss", "schedule": {"from": 0, "to": 1, "start": 9, "end": 3}},
        "train.pixel_opt.schedule.end: must be at least start (9); got 3",
    ),
    (
        "quant_train",
        {"oscillation": {"damp": 1}},
        "quant_train.oscillation.damp: unknown key (did you mean 'damping'?)",
    ),
    ("quant_train", {"oscillation": {"momentum": 0.1}}, "quant_train.oscillation: neither damping nor freeze is set"),
    (
        "quant_train",
        {"oscillation": {"freeze": 2}},
        "quant_train.oscillation.freeze: must be a number, at least 0 and at",
    ),
    ("quant_train", {"correction": {}}, "quant_train.correction.iterations: missing"),
    (
        "quant_train",
        {"progressive": [{"bits": 9}]},
        "quant_train.progressive[0].bits: must be a whole number, at least 2",
    ),
    (
        "quant_train",
        {"progressive": [{"bits": 3, "iterations": 1}, {"bits": 4, "iterations": 1}]},
        "quant_train.progressive: bits must be from 8 to 2 and fall from stage to stage, got [3, 4]",
    ),
    (
        "quant_train",
        {"start": {"method": {"type": "BREQ"}}},
        "quant_train.start.method.type: unknown post-training method",
    ),
    (
        "quant_train",
        {"start": {"method": {"type": "MinMax"}, "iterations": 3}},
        "MinMax has no iterations; leave them out",
    ),
    ("tile", {"size": 32, "overlap": 40}, "tile.overlap: must be below size (32)"),
    ("model_type", "QATModel", "QATModel needs a quantized network; MambaIR has no quantizer"),
]


@pytest.mark.parametrize(("where", "value", "said"), TRAINING, ids=lambda v: str(v)[:40])
def test_mistake_in_a_training_file(work, train_options, where, value, said):
    problems = found(change(train_options, where, value))
    assert any(said in problem for problem in problems), "\n".join(problems)


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("val.save_img", REMOVE, "val.save_img: missing"),
        ("val.suffix", REMOVE, "val.suffix: missing"),
        ("val", REMOVE, "val: missing"),
        ("datasets", {}, "datasets: must be a section"),
        ("network_g.upscale", 4, "the network's output is 4 times"),
        ("datasets.test_1", {"name": "P", "type": "SingleImageDataset", "dataroot_lq": "LR"}, "has no ground truth"),
        ("datasets.test_1.io_backend", {"type": "lmdb"}, "is no LMDB"),
    ],
)
def test_mistake_in_a_test_file(work, test_options, where, value, said):
    problems = found(change(test_options, where, value), False)
    assert any(said in problem for problem in problems), "\n".join(problems)


def test_a_set_without_ground_truth_beside_others(work, test_options):
    """It is restored; the metrics are those of the other sets."""
    photos = {"name": "P", "type": "SingleImageDataset", "io_backend": {"type": "disk"}}
    photos["dataroot_lq"] = test_options["datasets"]["test_1"]["dataroot_lq"]
    assert found(change(test_options, "datasets.test_2", photos), False) == []


def test_two_sets_of_one_name_are_refused(work, test_options):
    test_options["datasets"]["test_2"] = copy.deepcopy(test_options["datasets"]["test_1"])
    (problem,) = found(test_options, False)
    assert problem.startswith("datasets.test_2.name: 'Small' is the name of datasets.test_1 too")


def test_a_misspelt_required_key_is_one_mistake(work, train_options):
    train_options["train"]["total_iters"] = train_options["train"].pop("total_iter")
    (problem,) = found(train_options)
    assert problem.startswith("train.total_iters: unknown key (did you mean 'total_iter'?)")


def test_mistakes_of_all_sections_are_reported_at_once(work, train_options):
    for where, value in (
        ("name", 5),
        ("train.optim_g.lr", "x"),
        ("val.metrics.psnr.crop_boder", 1),
        ("datasets.val.dataroot_gt", "gone"),
        ("logger.print_freq", 0),
        ("network_g.depths", 3),
    ):
        change(train_options, where, value)
    assert len(found(train_options)) == 6


def test_phases_must_fit_into_the_training():
    opt = option_names.parse("train_QMambaIR_tinySRx2_w2a2").options()
    opt["train"] |= {"total_iter": 100, "ema_decay": 0}
    opt["quant_train"] |= {"correction": {"iterations": 100}, "progressive": [{"bits": 8, "iterations": 100}]}
    problems = "\n".join(found(opt, root=None))
    assert "quant_train.correction: starts from averaged weights; set train: ema_decay" in problems
    assert "quant_train.correction.iterations: must be below train.total_iter, 100; got 100" in problems
    assert "quant_train.progressive: must leave iterations of train.total_iter, 100; takes 100" in problems
    opt["train"]["ema_decay"] = 0.99
    opt["quant_train"] |= {"correction": {"iterations": 10}, "progressive": [{"bits": 8, "iterations": 10}]}
    assert "correction" not in (rest := "\n".join(found(opt, root=None)))
    assert "progressive" not in rest
