"""Counter-based random state: what is drawn depends on where one is, not on what was drawn before.

A training step draws from a state seeded by (seed, rank, iteration), a training sample from one seeded by
(seed, rank, epoch, position). Nothing has to be saved for a resumed run to draw the same numbers, other draws
(loaders, validation, logging) cannot shift them, and a failing step can be replayed.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import numpy as np
import torch

# BasicSR's `prefetch_mode: cpu` loads samples in a thread beside the training step; the generators are global
_owner = threading.RLock()


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, Python's, NumPy's and torch's global random states start from ``key``; after, they are as before.

    Other threads that enter wait until this one leaves.

    Args:
        *key: non-negative whole numbers; every different sequence gives an unrelated state.
    """
    words = [int(word) for word in np.random.SeedSequence(key).generate_state(3, np.uint32)]
    with _owner:
        python_state, numpy_state = random.getstate(), np.random.get_state()
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            random.seed(words[0])
            np.random.seed(words[1])
            torch.manual_seed(words[2])
            try:
                yield
            finally:
                random.setstate(python_state)
                np.random.set_state(numpy_state)
