"""Tables of the page, whose numbers link to the records that they come from."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from paper_figures.cells import Cell

MOST_NAMED = 200  # records that a number names: nobody looks through more, and each name is text of the page


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a table.

    Attributes:
        text: As it is printed.
        value: The number behind the text, by which a column is sorted; None for a text or a blank.
        records: The names of the records that the number was made from, of many the first `MOST_NAMED`.
        more: How many further records it was made from.
        reads: Where in these records, such as `size.macs`.
        source: Where a number comes from that no record holds: a publication.
    """

    text: str
    value: float | None = None
    records: tuple[str, ...] = ()
    more: int = 0
    reads: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its title and, if it holds numbers, how one is made from its records."""

    title: str
    how: str = ""

    @property
    def numeric(self) -> bool:
        """Whether it holds numbers."""
        return bool(self.how)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: `key` names it in the page, `rows` have an entry for each column, and the first `naming` of these name a row."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    naming: int = 2

    def slim(self) -> "Table":
        """Returns the table without its column of devices where it says the same in every row, which becomes a note."""
        index = next((i for i, column in enumerate(self.columns) if column.title == "Device"), None)
        devices = {row[index].text for row in self.rows} if index is not None else set()
        if index is None or len(devices) != 1:
            return self
        columns = self.columns[:index] + self.columns[index + 1 :]
        rows = tuple(row[:index] + row[index + 1 :] for row in self.rows)
        return replace(self, columns=columns, rows=rows, notes=(*self.notes, f"In every row: Device {devices.pop()}"))


def number(text: str, value: Any, cells: Iterable[Cell], reads: str) -> Entry:
    """Returns the entry of a number that was made from cells; a blank where there is none."""
    if value is None or pd.isna(value) or not text:
        return Entry(text="")
    names = tuple(dict.fromkeys(cell.name for cell in cells))
    more = max(0, len(names) - MOST_NAMED)
    return Entry(text=proper(text), value=float(value), records=names[:MOST_NAMED], more=more, reads=reads)


def words(texts: Iterable[object]) -> list[Entry]:
    """Returns the entries of texts."""
    return [Entry(text=str(text)) for text in texts]


def proper(text: str) -> str:
    """Formats a number or a range for the page: with a minus sign, and the word "to" in a range."""
    return text.replace("-", "\N{MINUS SIGN}").replace(" .. ", " to ")


def fixed(values: Sequence[float | None], significant: int) -> list[str]:
    """Prints numbers with the same decimals throughout, so that the largest has `significant` digits; blanks for None."""
    largest = max((abs(value) for value in values if value), default=1.0)
    decimals = max(0, significant - math.floor(math.log10(largest)) - 1)
    return ["" if value is None else f"{value:.{decimals}f}" if value else "0" for value in values]
