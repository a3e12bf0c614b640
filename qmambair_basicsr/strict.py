"""Names that must be known: one way to refuse the others, saying what is nearest and what is allowed.

Imports nothing but the standard library, so that command lines and option files are checked without torch.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Container, Iterable


def nearest(name: object, known: Iterable[object], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Known names that resemble a name, the most similar first.

    Args:
        name: what was asked for.
        known: what exists.
        count: at most so many.
        cutoff: least similarity, from 0 (anything) to 1 (equal).
    """
    return difflib.get_close_matches(str(name), [str(entry) for entry in known], count, cutoff)


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """`` (did you mean 'x'?)`` with the nearest known name, or nothing where none resembles it."""
    near = nearest(name, known)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown(where: str, kind: str, name: object, known: Iterable[object]) -> str:
    """Message about a name that does not exist: the place, the name, the nearest one and all that are allowed.

    Args:
        where: path of the key or title of what was asked.
        kind: ``key``, ``quantizer``, ``value`` ...
        name: what was asked for.
        known: what exists, in the order to list it.
    """
    known = [str(entry) for entry in known]
    return f"{where}: unknown {kind} {name!r}{did_you_mean(name, known)}; allowed: {', '.join(known)}"


def is_one_of(name: object, known: Container[str]) -> bool:
    """Whether a value of an option file is one of some names; a list or a section there is none, and no key to look up."""
    return isinstance(name, str) and name in known


def check_keys(where: str, keys: Iterable[object], known: Iterable[str], kind: str = "key") -> None:
    """Refuse the first key that is not known.

    Raises:
        ValueError: see :func:`unknown`.
    """
    known = list(known)
    for key in keys:
        if key not in known:
            raise ValueError(unknown(where, kind, key, known))


def strict_options(init: Callable, *, base: Callable | None = None) -> Callable:
    """Make a constructor refuse unknown keywords with the list of allowed ones.

    BasicSR calls ``Arch(**opt['network_g'])``; Python's own message names the unknown key only.

    Args:
        init (Callable): ``__init__`` to guard. May end in ``**options`` that it hands to ``base``.
        base (Callable | None): The constructor that receives those ``**options``; its keywords are allowed as well.

    Returns:
        Callable: The guarded constructor. It raises ValueError on an unknown keyword; its signature lists all
        allowed ones, so that option files can be checked without building anything.
    """
    parameters = dict(inspect.signature(init).parameters)
    if base is not None:
        parameters |= inspect.signature(base).parameters
    named = [p for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    allowed = sorted(p.name for p in named if p.name != "self")

    @functools.wraps(init)
    def guarded(self, *args, **options):
        check_keys(type(self).__name__, options, allowed, "option")
        return init(self, *args, **options)

    keywords = [p.replace(kind=p.KEYWORD_ONLY) for p in named if p.name != "self"]
    guarded.__signature__ = inspect.Signature(
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *keywords]
    )
    return guarded
