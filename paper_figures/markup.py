"""Formats the table of results: scaled, with footnotes, in Markdown."""

import math
import re
from collections.abc import Iterable, Sequence
from numbers import Integral

import pandas as pd

from paper_figures.cells import BUSY
from paper_figures.methods import look_of
from repro.text_table import markdown_table

SHARED_COST = (
    "device-hours and PFLOP are those of one joint training, shared by all of its sizes, and this size's extraction: "
    "pay the joint training once, whatever the number of sizes"
)
BUSY_NOTE = f"{BUSY} other work ran on the machine at the time: device-hours and latencies read high"
TITLES = {"device": "Device", "spread_over": "± over", "n_values": "Values", "n_samples": "Samples", "n_seeds": "Seeds"}


def printable(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Turns the raw table into strings scaled for reading, and returns them with the footnotes; published counts keep their digits."""
    published = table["published"] if "published" in table else pd.Series(False, index=table.index)
    marks, notes = _footnotes(table)
    shown = pd.DataFrame({"Method": [look_of(str(m)).label + mark for m, mark in zip(table["method"], marks, strict=True)]})
    shown["Size"] = _short(table["size"])
    shown["Realised"] = _scaled(table["realised_size"], 4)
    shown["Params (M)"] = _counted(table["params"] / 1e6, published)
    scale, unit = (1e9, "G") if (table[["macs", "macs_torch_pruning"]] >= 1e9).any(axis=None) else (1e6, "M")
    shown[f"MACs ({unit})"] = _counted(table["macs"] / scale, published)
    shown[f"MACs, torch-pruning ({unit})"] = _counted(table["macs_torch_pruning"] / scale, published)
    shown["Device-hours"] = marked(_scaled(table["device_hours"], 3), table["busy_machine"] == "yes")
    shown["Training PFLOP"] = _scaled(table["train_pflop"], 3)
    for column in [column for column in table.columns if column.endswith("_std_error")]:
        shown[column.removesuffix("_std_error")] = _with_error(table[column.removesuffix("_std_error")], table[column])
    same = []
    for column, title in TITLES.items():
        texts = ["" if pd.isna(value) else f"{value:,}" if isinstance(value, Integral) else str(value) for value in table[column]]
        distinct = {text for text in texts if text}
        if len(distinct) > 1:
            shown[title] = texts
        elif distinct:
            same.append(f"{title} {distinct.pop()}")
    reading = "MACs: one forward on one image. Device-hours and PFLOP: training overhead, without evaluation. ±: standard error of the mean"
    rows = "In every row of ours: " if published.any() else "In every row: "
    notes += [BUSY_NOTE] if (table["busy_machine"] == "yes").any() else []
    return shown, [*notes, reading, *([rows + "; ".join(same)] if same else [])]


def markdown(shown: pd.DataFrame, notes: Sequence[str], title: str, *, left: int = 1) -> str:
    """Writes a table of strings as Markdown, its columns aligned for reading as plain text too: the first `left` ones to the left."""
    cells = [[markdown_text(text) for text in row] for row in [list(shown.columns), *shown.to_numpy().tolist()]]
    lines = markdown_table(cells, "l" * left + "r" * (len(shown.columns) - left))
    footer = "".join(f"\n- {markdown_text(note)}." for note in notes)
    return f"# {markdown_text(title)}\n\n" + "\n".join(lines) + f"\n{footer}\n"


def marked(texts: Sequence[str], busy: Iterable[bool]) -> list[str]:
    """Marks the numbers, of which blanks are none, that were timed on a busy machine."""
    return [text + BUSY if text and was else text for text, was in zip(texts, busy, strict=True)]


def _footnotes(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Returns each row's mark, such as " (a)", and the notes that the marks stand for."""
    letters: dict[str, str] = {}
    marks = []
    for method, note in zip(table["method"], table["note"], strict=True):
        texts = ([SHARED_COST] if method in ("ofa", "slimmable") else []) + ([str(note)] if note else [])
        for text in texts:
            letters.setdefault(text, _letter(len(letters)))
        marks.append(f" ({', '.join(letters[text] for text in texts)})" if texts else "")
    return marks, [f"({letter}) {text}" for text, letter in letters.items()]


def _letter(index: int) -> str:
    """Returns a, b, ..., z, a1, b1, ..."""
    return "abcdefghijklmnopqrstuvwxyz"[index % 26] + (str(index // 26) if index >= 26 else "")


def _scaled(values: "pd.Series[float]", significant: int) -> list[str]:
    """Prints a column with the same number of decimals throughout, so that its largest number has `significant` digits."""
    present = [abs(float(value)) for value in values if pd.notna(value) and value != 0]
    whole_digits = math.floor(math.log10(max(present))) + 1 if present else 1
    decimals = max(0, significant - whole_digits)
    return ["" if pd.isna(value) else f"{float(value):.{decimals}f}" if value else "0" for value in values]


def _counted(values: "pd.Series[float]", published: "pd.Series[bool]") -> list[str]:
    """Prints our counts to four digits, and published ones, which are rounded already, as they are."""
    ours = _scaled(values, 4)
    return [text if not theirs or pd.isna(value) else f"{value:g}" for text, value, theirs in zip(ours, values, published, strict=True)]


def _short(values: "pd.Series[float]") -> list[str]:
    return ["" if pd.isna(value) else f"{value:g}" for value in values]


def _with_error(means: "pd.Series[float]", errors: "pd.Series[float]") -> list[str]:
    texts = []
    for value, error in zip(means, errors, strict=True):
        text = "" if pd.isna(value) else f"{value:.2f}"
        texts.append(text if pd.isna(error) else f"{text} ± {error:.2f}")
    return texts


def markdown_text(text: str) -> str:
    """Escapes Markdown's special characters."""
    return re.sub(r"[\\|`<\[\]]", r"\\\g<0>", text).replace("\n", " ")
