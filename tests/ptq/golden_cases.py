"""Cases of the authors' code, and small networks of random parameters."""

from __future__ import annotations

from pathlib import Path

import torch


def cases(shared: Path, name: str, kind: str = "") -> list[dict]:
    """The cases of a file, those of one kind; never empty."""
    found = [c for c in torch.load(shared / "golden" / "ptq" / name, weights_only=True) if kind in ("", c["kind"])]
    assert found, (name, kind)
    return found


def far(a, b) -> float:
    """Largest difference."""
    return (torch.as_tensor(a).double() - torch.as_tensor(b).double()).abs().max().item()
