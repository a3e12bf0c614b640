"""Fixtures of the schema's tests."""

from __future__ import annotations

from option_cases import small_images, test_options, train_options, work

__all__ = ["small_images", "test_options", "train_options", "work"]
