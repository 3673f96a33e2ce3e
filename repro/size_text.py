"""Exact text of a size P, and the name of a cell, for users, commands and file names."""


def size_text(size: float) -> str:
    """Returns the shortest text that reads back as exactly this size: 0.5, 1, 0.3333333333333333."""
    return repr(float(size)).removesuffix(".0")


def cell_name(method: str, size: float | None, seed: int) -> str:
    """Names a cell's record, folder and locks; two cells never share a name, however close their sizes."""
    return f"{method}-seed{seed}" if size is None else f"{method}-{size_text(size)}-seed{seed}"
