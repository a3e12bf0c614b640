"""One way to train a network; the tables of :mod:`qmambair_basicsr.recipes.option_table` consist of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        total_iter: Iterations.
        lr: Initial learning rate.
        milestones: Iterations at which the rate is halved; empty = one cosine down to ``eta_min``.
        gt_size: Side of the ground-truth patch in pixels.
        batch: Images per GPU and iteration.
        ema: Decay of the averaged weights; 0 = none.
        loss: Registered pixel loss; CharbonnierLoss is sqrt(d^2 + 0.001^2).
        val_freq: Validate every so many iterations.
        save_freq: Save a checkpoint every so many iterations.
        workers: Data-loading processes per GPU.
        calibration: Batches that initialise the quantizers (QAT only).
        eta_min: Last learning rate of the cosine.
        start: Task whose full-precision weights training starts from (FP only; the tail is skipped); empty = none.
        skip: Name patterns of weights that are not taken over from ``start`` because their shape differs.
        train: Key of ``DATA`` to train on instead of the task's.
        optim: Registered optimizer, betas (0.9, 0.99).
        weight_decay: Of the optimizer.
        print_freq: Log a line every so many iterations.
        val: Key of ``DATA`` to validate on during training instead of the task's first test set.
        distill: Weight of the L1 distance to the full-precision network's output, which then replaces ``loss``.
        feature: Weight of the feature alignment with the full-precision network's blocks; 0 = none.
    """

    total_iter: int
    lr: float
    milestones: tuple[int, ...]
    gt_size: int
    batch: int
    ema: float = 0.0
    loss: str = "L1Loss"
    val_freq: int = 5000
    save_freq: int = 5000
    workers: int = 6
    calibration: int = 0
    eta_min: float = 1e-6
    start: str = ""
    skip: tuple[str, ...] = ()
    train: str = ""
    optim: str = "Adam"
    weight_decay: float = 0.0
    print_freq: int = 100
    val: str = ""
    distill: float = 0.0
    feature: float = 0.0
