"""Strengths of a degradation: one, or a list to pick from in training."""

from __future__ import annotations

from collections.abc import Callable

from .base import RestorationDataset

__all__ = ["check_levels"]


def check_levels(
    dataset: RestorationDataset, key: str, valid: Callable[[float], bool], allowed: str
) -> tuple[float, ...]:
    """Read an option that holds a number or a list of numbers.

    Args:
        dataset: whose option it is; must have scale 1.
        key: name of the option.
        valid: whether a number is allowed.
        allowed: what is allowed, in words.

    Returns:
        The numbers; exactly one outside training.

    Raises:
        ValueError: missing, not numbers, out of range, a list in a test, or a scale other than 1.
    """
    value = dataset.opt.get(key)
    levels = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not levels or not all(isinstance(v, (int, float)) and not isinstance(v, bool) and valid(v) for v in levels):
        raise ValueError(f"{dataset.title}: {key} must be one or a list of {allowed}, got {value!r}")
    if not dataset.training and len(levels) > 1:
        raise ValueError(f"{dataset.title}: a test needs one {key}, got {value!r}")
    if dataset.scale != 1:
        raise ValueError(f"{dataset.title}: input and ground truth have one size, but scale is {dataset.scale}")
    return levels
