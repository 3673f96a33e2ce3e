"""Reads the page of a report as a browser would, and makes its numbers again from the records, by other code than the page's."""

import math
import statistics
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from scipy.stats import t as student

Record = dict[str, Any]
MINUS = "\N{MINUS SIGN}"


@dataclass
class Cell:
    text: str = ""
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def names(self):
        return self.attributes.get("data-records", "").split()

    @property
    def numbers(self):
        """The printed numbers: of `1.5 ± 0.1 %` or `1 to 2 %` both, as texts."""
        parts = self.text.replace(MINUS, "-").replace(",", "").replace("±", " ").replace(" to ", " ")
        parts = parts.translate(str.maketrans("()†", "   ")).split()
        return [part.lstrip("+") for part in parts if part not in ("%", "x")]


@dataclass
class Table:
    titles: list[str] = field(default_factory=list)
    numeric: list[bool] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)

    def named(self):
        """Yields (row as texts by title, title, cell) of every numeric cell that is no blank."""
        for row in self.rows:
            texts = {title: cell.text for title, cell in zip(self.titles, row, strict=True)}
            for title, numeric, cell in zip(self.titles, self.numeric, row, strict=True):
                if numeric and cell.text:
                    yield texts, title, cell


class Page(HTMLParser):
    """The tables, the elements and the scripts of a page."""

    VOID = ("meta", "link", "img", "source", "br", "input", "rect", "line", "circle")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, Table] = {}
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.verdicts: list[Cell] = []
        self._open: list[str] = []
        self._table: Table | None = None
        self._cell: Cell | None = None
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        attributes = {key: value or "" for key, value in attrs}
        self.elements.append((tag, attributes))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "table":
            self._table = self.tables[attributes["id"]] = Table()
        elif tag == "tr" and "tbody" in self._open:
            self._table.rows.append([])
        elif tag in ("td", "th") and self._table is not None:
            self._cell = Cell()
            if "thead" in self._open:
                self._table.numeric.append("data-how" in attributes)
            else:
                self._table.rows[-1].append(self._cell)
        elif tag == "button" and "data-records" in attributes:
            if self._table is None:
                self.verdicts.append(Cell())
                self._cell = self.verdicts[-1]
            self._cell.attributes = attributes
        elif tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"
        if tag in ("td", "th"):
            self._cell.text = self._cell.text.strip()
            if "thead" in self._open:
                self._table.titles.append(self._cell.text)
            self._cell = None
        elif tag == "table":
            self._table = None
        elif tag == "button" and self._table is None:
            self._cell = None

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif self._open and self._open[-1] != "style":
            self.text += data
            if self._cell is not None:
                self._cell.text += data


def at(record: Record, path: str) -> Any:
    """The part of a record that the page says it read."""
    for step in path.split("."):
        name, _, wanted = step.partition("[batch=")
        record = (record or {}).get(name)
        if wanted:
            record = next((item for item in record or [] if item["batch"] == int(wanted.rstrip("]"))), None)
    return record


def same_digits(printed: str, expected: float) -> bool:
    """Says whether a number is what is printed, to the printed digit."""
    decimals = len(printed.partition(".")[2])
    return abs(float(printed) - expected) <= 0.5 * 10**-decimals * (1 + 1e-6)


def by_seed(records: list[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {}
    for record in records:
        found.setdefault(record["cell"]["seed"], []).append(record)
    return found


def mean_and_error(values: list[float]) -> list[float]:
    """The mean and, for more than one value, its standard error."""
    n = len(values)
    return [statistics.fmean(values), *([statistics.stdev(values) / math.sqrt(n)] if n > 1 else [])]


def quality(records: list[Record]) -> list[float]:
    """Mean of the means, and the error over seeds or else over sampling seeds."""
    values = [record["quality"]["values"] for record in records]
    return mean_and_error([statistics.fmean(own) for own in values]) if len(values) > 1 else mean_and_error(values[0])


def paid(records: list[Record], path: str, sharers: int = 1) -> float:
    """The mean over seeds of what all the records of a seed cost; of a scoring pass, the share of one of its sizes."""

    def cost(record: Record) -> float:
        return (at(record, path) or 0.0) / (sharers if record["cell"]["method"].endswith("_scores") else 1)

    return statistics.fmean(sum(cost(record) for record in own) for own in by_seed(records).values())


def of_terms(records: list[Record], path: str) -> float:
    """The sum over (method, size) of the mean over seeds."""
    groups: dict[tuple, list[float]] = {}
    for record in records:
        groups.setdefault((record["cell"]["method"], record["cell"]["size"]), []).append(at(record, path) or 0.0)
    return sum(statistics.fmean(values) for values in groups.values())


def scores(records: list[Record], method: str, seed: int) -> dict[float, float]:
    return {
        record["cell"]["size"]: math.log(statistics.fmean(record["quality"]["values"]))
        for record in records
        if (record["cell"]["method"], record["cell"]["seed"]) == (method, seed)
    }


def log_ratios(records: list[Record], method: str, reference: str) -> list[float]:
    """For each seed the mean over sizes of ln(quality / that of the reference)."""
    found = []
    for seed in by_seed(records):
        ours, theirs = scores(records, method, seed), scores(records, reference, seed)
        assert ours.keys() == theirs.keys()
        found.append(statistics.fmean(ours[size] - theirs[size] for size in ours))
    return found


def estimate(values: list[float]) -> tuple[float, float, float]:
    """Mean, and Student's interval at 95 %."""
    mean, error = mean_and_error(values)
    half = student.ppf(0.975, len(values) - 1) * error
    return mean, mean - half, mean + half
