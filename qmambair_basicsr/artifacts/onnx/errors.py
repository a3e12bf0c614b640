"""The error of this folder."""


class ExportError(ValueError):
    """A network cannot be exported, or a file not be used, as asked; the message says which part and what to do."""
