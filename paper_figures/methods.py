"""Methods in tables and figures: labels, looks, order, and fair comparisons."""

import zlib
from dataclasses import dataclass

REAL_OR_NOISE = ("floor", "noise")  # no network drew their images
SHARED_RUNS = ("_joint", "_scores")  # how the methods end whose cells serve all sizes and are no network of the tables
INDEPENDENT = "diff_pruning"  # what a train-once method is held against, size by size
EQUAL = {
    "equal images per run": ("ofa", "slimmable", INDEPENDENT),
    "equal total compute, that of all independent runs": ("ofa_long", INDEPENDENT),
    "equal total compute, that of one joint run": ("ofa", "diff_pruning_short"),
}
LONGER_OR_SHORTER = {"ofa_long": "OFA, trained longer", "diff_pruning_short": "Diff-Pruning, trained shorter"}
# Family -> its budgets, smallest first; a line joins them.
BUDGETS = {
    "OFA": ("ofa", "ofa_long"),
    "Diff-Pruning": ("diff_pruning_short", INDEPENDENT),
    "OFA, each size fine-tuned": ("ofa_finetuned",),
    "Slimmable": ("slimmable",),
    "Scratch": ("scratch",),
}


@dataclass(frozen=True)
class Look:
    """A method's label, colour and marker; controls are drawn lightly."""

    label: str
    colour: str
    marker: str
    light: bool = False


# In the order of the tables. Colours are those of Okabe and Ito, which the colour-blind can tell apart; markers differ too, for print
# without colour.
LOOKS = {
    "base": Look("Base", "#000000", "*"),
    "ofa": Look("OFA", "#0072B2", "o"),
    "slimmable": Look("Slimmable", "#CC79A7", "P"),
    "diff_pruning": Look("Diff-Pruning", "#D55E00", "s"),
    "magnitude": Look("Magnitude", "#009E73", "^"),
    "random": Look("Random", "#E69F00", "D"),
    "scratch": Look("Scratch", "#56B4E9", "v"),
    "untrained": Look("Untrained, importance", "#777777", "x", light=True),
    "untrained_random": Look("Untrained, random", "#AAAAAA", "+", light=True),
    "floor": Look("Floor (real against real)", "#444444", "_"),
    "noise": Look("Noise", "#444444", "."),
}
# Of the known sampling laws; others are drawn after them, in the looks of their methods.
LAW_LOOKS = {
    "ofa_m1": Look("linear, m = 1", "#E69F00", "s"),
    "ofa": Look("linear, m = 3 (the paper's)", "#0072B2", "o"),
    "ofa_m5": Look("linear, m = 5", "#56B4E9", "^"),
    "ofa_weighted": Look("loss weights", "#D55E00", "v"),
    "ofa_sandwich": Look("sandwich", "#009E73", "D"),
    "slimmable": Look("slimmable", "#CC79A7", "P"),
}
SPARE_COLOURS = ("#8C564B", "#5D3A9B", "#7F7F00")
SPARE_MARKERS = ("X", "h", "<", ">")


def look_of(method: str) -> Look:
    """Returns a method's look, which depends on its name alone, so that it is the same whichever methods are present."""
    if method in LOOKS:
        return LOOKS[method]
    number = zlib.crc32(method.encode())
    return Look(_label_of(method), SPARE_COLOURS[number % len(SPARE_COLOURS)], SPARE_MARKERS[number // 7 % len(SPARE_MARKERS)])


def _label_of(method: str) -> str:
    """Returns the label of an unknown method: its name, which begins with the label of the longest known method that it begins with."""
    known = max((name for name in LOOKS if method.startswith(f"{name}_")), key=len, default="")
    return f"{LOOKS[known].label}, {method.removeprefix(f'{known}_').replace('_', ' ')}" if known else method


def family_look(family: str) -> Look:
    """Returns the look of a family of budgets: that of the method of the same label."""
    return look_of(next((method for method, look in LOOKS.items() if look.label == family), family))


def sort_key(method: str, size: float | None) -> tuple[int, str, float]:
    """Orders rows: known methods first, unknown ones after them by name, sizes descending."""
    known = list(LOOKS)
    return known.index(method) if method in LOOKS else len(known), method, -size if size is not None else 0.0
