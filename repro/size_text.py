"""How a size P is written where a user, a command or a file name has to find it again."""


def size_text(size: float) -> str:
    """Returns the shortest text that reads back as exactly this size: 0.5, 1, 0.3333333333333333."""
    return repr(float(size)).removesuffix(".0")
