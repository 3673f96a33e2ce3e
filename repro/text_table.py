"""Tables of text: columns as wide as their longest cell, for a terminal and in Markdown."""

from collections.abc import Iterable, Sequence

Cells = Sequence[str]


def text_table(rows: Iterable[Cells], columns: str) -> list[str]:
    """Returns a line for each row.

    Args:
        rows: The cells; a row of one cell is a line of its own, and widens no column.
        columns: For each column "l" or "r", the side on which its cells are aligned.
    """
    return ["  ".join(row).rstrip() for row in _padded(list(rows), columns, least=0)]


def markdown_table(rows: Iterable[Cells], columns: str) -> list[str]:
    """Returns the lines of a Markdown table whose first row is its heading; its columns are aligned in plain text too.

    Args:
        rows: The cells, in which `|` is escaped already.
        columns: As in `text_table`.
    """
    heading, *body = _padded(list(rows), columns, least=3)
    rule = ["-" * len(cell) if side == "l" else "-" * (len(cell) - 1) + ":" for cell, side in zip(heading, columns, strict=True)]
    return [f"| {' | '.join(row)} |" for row in (heading, rule, *body)]


def _padded(rows: Sequence[Cells], columns: str, *, least: int) -> list[Cells]:
    widths = [max(least, *map(len, column)) for column in zip(*(row for row in rows if len(row) > 1), strict=True)]
    return [
        [cell.ljust(width) if side == "l" else cell.rjust(width) for cell, width, side in zip(row, widths, columns, strict=True)]
        if len(row) > 1
        else row
        for row in rows
    ]
