"""Commands, one a file: ``python -m qmambair_basicsr.tools.NAME --help``. Libraries live in the sibling packages."""
