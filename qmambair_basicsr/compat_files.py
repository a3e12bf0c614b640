"""Work-arounds for how BasicSR 1.4.2 handles option files, logs and folders; applied by :mod:`.compat`."""

from __future__ import annotations

import sys
import types
from codecs import BOM_UTF8
from pathlib import Path

from .files import write_bytes


def copy_opt_file(opt_file: str, experiments_root: str) -> None:
    """Copy an option file into the folder of its run, with the time and the command line above it.

    Takes the place of BasicSR's function of the same name; UTF-8 whatever the locale.

    Args:
        opt_file: the option file.
        experiments_root: the run's folder.
    """
    import time

    from basicsr.utils.dist_util import get_dist_info

    if get_dist_info()[0] != 0:
        return
    source = Path(opt_file)
    command = " ".join(" ".join(sys.argv).split()).encode("utf-8", "replace").decode()
    head = f"# GENERATE TIME: {time.asctime()}\n# CMD:\n# {command}\n\n"
    write_bytes(Path(experiments_root) / source.name, head.encode() + source.read_bytes().removeprefix(BOM_UTF8))


def copy_options_as_utf8() -> bool:
    """Let ``basicsr.train`` copy an option file with comments in any language.

    Symptom: ``UnicodeDecodeError`` from ``copy_opt_file`` where the locale is not UTF-8.
    Delete when: a BasicSR release reads option files as UTF-8.

    Returns:
        True when the function was replaced, False when it had been before.
    """
    from basicsr import train
    from basicsr.utils import options

    if options.copy_opt_file is copy_opt_file:
        return False
    options.copy_opt_file = train.copy_opt_file = copy_opt_file
    return True


def log_as_utf8() -> bool:
    """Let BasicSR's log file hold any text.

    Symptom: ``--- Logging error ---`` with a traceback for a name that is not ASCII, where the locale is not UTF-8.
    Delete when: a BasicSR release opens its log with ``encoding="utf-8"``.

    Returns:
        True when the file was wrapped, False when it had been before.
    """
    import logging

    from basicsr.utils import logger

    if logger.logging is not logging:
        return False

    class Logging(types.ModuleType):
        """The module ``logging`` with log files in UTF-8."""

        FileHandler = staticmethod(lambda name, mode="a": logging.FileHandler(name, mode, encoding="utf-8"))

        def __getattr__(self, name):
            return getattr(logging, name)

    logger.logging = Logging("logging")
    return True


def make_folders_of_the_run_only() -> bool:
    """Let ``path:`` hold more than folders.

    Symptom: ``TypeError: expected str, bytes or os.PathLike object, not list`` from ``make_exp_dirs`` for
    ``path: skip_keys_g``; a folder named like the value of every other key it does not know.
    Delete when: a BasicSR release makes only the folders that its ``parse_options`` has set.

    Returns:
        True when the function was wrapped, False when it had been before.
    """
    import basicsr.utils
    from basicsr import test, train
    from basicsr.utils import misc

    stock = misc.make_exp_dirs
    if stock.__module__ == __name__:
        return False
    made = ("experiments_root", "results_root", "models", "training_states", "log", "visualization")

    def make_exp_dirs(opt):
        stock({**opt, "path": {key: value for key, value in opt["path"].items() if key in made}})

    misc.make_exp_dirs = basicsr.utils.make_exp_dirs = train.make_exp_dirs = test.make_exp_dirs = make_exp_dirs
    return True
