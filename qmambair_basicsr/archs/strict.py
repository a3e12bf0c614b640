"""Constructor options that name what was wrong with them."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable


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
        for key in options:
            if key not in allowed:
                near = difflib.get_close_matches(key, allowed, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise ValueError(
                    f"{type(self).__name__}: unknown option '{key}'.{hint} Allowed options: {', '.join(allowed)}."
                )
        return init(self, *args, **options)

    keywords = [p.replace(kind=p.KEYWORD_ONLY) for p in named if p.name != "self"]
    guarded.__signature__ = inspect.Signature(
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *keywords]
    )
    return guarded
