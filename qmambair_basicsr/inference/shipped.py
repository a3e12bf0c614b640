"""The networks that ship with the package: what each is for, and where its file is.

``assets/models.json`` is the table; the weights lie beside it as ``<name>.safetensors``. Reading it needs no torch.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ..strict import unknown

__all__ = ["ShippedModel", "model_for", "shipped", "shipped_model", "task_of", "weights_of"]

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


def model_for(task: str, scale: float = 1) -> ShippedModel:
    """The network of a task.

    Args:
        task: as in the table.
        scale: output size over input size that is wanted: the network of this scale, of the next larger one, or of the
            largest there is.

    Raises:
        ValueError: none is shipped for the task; the message names the tasks.
    """
    models = [model for model in shipped().values() if model.task == task]
    if not models:
        raise ValueError(unknown("shipped networks", "task", task, {model.task for model in shipped().values()}))
    models.sort(key=lambda model: model.scale)
    return next((model for model in models if model.scale >= scale), models[-1])


def weights_of(model: str | os.PathLike) -> Path:
    """The file of a network: a path, or the name of a shipped one.

    Raises:
        ValueError: neither.
    """
    path = Path(model)
    if path.is_file() or path.suffix or path.parent != Path():
        return path  # whoever reads it says what is wrong with it
    return shipped_model(path.name).path


def task_of(path: str | os.PathLike) -> str | None:
    """The task of a file that is called as a shipped one is; None for other names."""
    model = shipped().get(Path(path).stem)
    return None if model is None else model.task
