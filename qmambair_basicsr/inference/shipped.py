"""The networks that ship with the package: what each is for, and where its file is.

``assets/models.json`` is the table; the weights lie beside it as ``<name>.safetensors``. Reading it needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..strict import unknown

__all__ = ["ShippedModel", "shipped", "shipped_model"]

ASSETS = Path(__file__).resolve().parents[1] / "assets"
TABLE = ASSETS / "models.json"


@dataclass(frozen=True)
class ShippedModel:
    """One network of ``assets``.

    Attributes:
        name: by which users choose it.
        task: ``sr``, ``denoise``, ``jpeg`` or ``realdenoise``.
        scale: size of the output over that of the input.
        channels: of the picture.
        bits: of weights and activations.
        range: which inputs it was trained on, in words.
        options: option file that trained it.
    """

    name: str
    task: str
    scale: int
    channels: int
    bits: tuple[int, int]
    range: str
    options: str

    @property
    def path(self) -> Path:
        """The packed checkpoint."""
        return ASSETS / f"{self.name}.safetensors"


def shipped() -> dict[str, ShippedModel]:
    """All of them by name, in the table's order."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: ShippedModel(name, **row | {"bits": tuple(row["bits"])}) for name, row in table.items()}


def shipped_model(name: str) -> ShippedModel:
    """The network of a name.

    Raises:
        ValueError: there is none; the message names those there are and the nearest.
    """
    models = shipped()
    if name not in models:
        raise ValueError(unknown("shipped networks", "name", name, models))
    return models[name]
