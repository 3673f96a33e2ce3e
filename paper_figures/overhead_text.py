"""The cost comparison as plain text, for the terminal."""

from collections.abc import Iterable, Sequence

from paper_figures.evidence import Grid, check_machine
from paper_figures.methods import EQUAL, INDEPENDENT, LONGER_OR_SHORTER, look_of
from paper_figures.overhead import Comparison, comparisons, total, why_not
from paper_figures.overhead_terms import Term, overhead_terms
from repro.experiment.records import Record
from repro.text_table import text_table

CURRENCIES = ("device_hours", "train_pflop")
BUSY_WORDS = " (busy machine)"

Row = tuple[str, ...]  # of a label, device-hours, PFLOP and quality, or of a text alone


def overhead_text(records: Iterable[Record]) -> str:
    """Returns the cost comparison of one experiment as text; where nothing can be compared, one line that says why.

    Raises:
        ReproError: A record is malformed, or qualities on several scales, or device-hours of several machines, would be compared.
    """
    terms, notes = overhead_terms(records)
    pairs = comparisons(terms)
    if not pairs:
        return why_not(terms, notes) + "\n"
    blocks = []
    for device in sorted({pair.device for pair in pairs}):
        here = [term for term in terms if term.device == device]
        blocks.append(_bills(device, here))
        blocks += [_verdict(pair) for pair in pairs if pair.device == device]
    compared = {(pair.device, pair.method) for pair in pairs}
    alone = sorted({(t.approach, t.device) for t in terms if t.approach not in ("base", "ofa") and (t.device, t.approach) not in compared})
    blocks += _fair_blocks(Grid(records))
    notes += [f"{look_of(method).label} on {device} is not compared: OFA has none of its sizes there" for method, device in alone]
    return "\n".join([*blocks, *[f"Note: {note}.\n" for note in notes]])


def _fair_blocks(grid: Grid) -> list[str]:
    """Returns the comparisons at equal images per run or at equal compute, with size 1 and, where other sizes are left, without."""
    grids = [grid, grid.without_whole()] if 1.0 in grid.sizes("ofa", INDEPENDENT) else [grid]
    return [_fair(each) for each in grids if each.sizes("ofa", INDEPENDENT)]


def _fair(grid: Grid) -> str:
    """Returns comparisons at equal images per run, and at equal total compute."""
    sizes = grid.sizes("ofa", INDEPENDENT)
    over = f"sizes {_sizes(sizes)}" if 1.0 in sizes else "without size 1"
    rows: list[Row] = [(f"Quality for the cost, {over}", "device-hours", "PFLOP", grid.metric)]
    for title, methods in EQUAL.items():
        present = [method for method in methods if method in grid.of]
        seeds = grid.seeds(*present) if present else []  # the same for all, so that differences are paired
        check_fair(grid, present, sizes, seeds)
        points = [(_name(grid, method, sizes, seeds), point) for method in present if (point := grid.point(method, sizes, seeds))]
        if len(points) > 1:
            rows.append((f"  {title} (seeds {', '.join(map(str, seeds))}):",))
            rows += [(name, _amount(hours), _amount(pflop), f"{quality:.2f}") for name, (hours, pflop, quality, _) in points]
    return _block([*rows, (f"  ({grid.metric}: geometric mean over the sizes, mean over seeds)",)])


def check_fair(grid: Grid, methods: Sequence[str], sizes: Sequence[float], seeds: Sequence[int]) -> None:
    """Refuses to compare methods whose qualities are on several scales, or whose hours are of several machines.

    Raises:
        IncomparableError: They were.
    """
    grid.check_scale(*methods)
    paid = [grid.paid(method, sizes) for method in methods]
    check_machine([cell for by_seed in paid for seed in seeds for cell in by_seed.get(seed, [])])


def _name(grid: Grid, method: str, sizes: Sequence[float], seeds: Sequence[int]) -> str:
    paid = grid.paid(method, sizes)
    busy = any(cell.busy for seed in seeds for cell in paid.get(seed, []))
    return f"    {LONGER_OR_SHORTER.get(method, look_of(method).label)}{BUSY_WORDS if busy else ''}"


def _bills(device: str, terms: Sequence[Term]) -> str:
    """Returns each approach's terms and total, the base's apart."""
    rows: list[Row] = [(f"Training overhead on {device}, mean over seeds, without evaluation",)]
    for approach in dict.fromkeys(term.approach for term in terms):
        own = [term for term in terms if term.approach == approach]
        seeds = sorted({term.n_seeds for term in own})
        counted = f"{seeds[0]} seed{'s' if seeds != [1] else ''}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        title = f"{look_of(approach).label} ({counted})"
        if approach == "base":
            title += ", needed by all and in no total"
        rows += [("",), (title, "device-hours", "PFLOP", "")]
        rows += [_row(f"  {term.term}", (term.device_hours, term.train_pflop), busy=term.busy) for term in own]
        if len(own) > 1:
            totals = [total(own, currency) for currency in CURRENCIES]
            rows.append(_row("  total", totals, busy=any(term.busy for term in own)))
    return _block(rows)


def _verdict(pair: Comparison) -> str:
    """Returns the ratios and break-even points of one independent method against OFA."""
    label = look_of(pair.method).label
    rows: list[Row] = [(f"{label} against OFA, sizes {_sizes(pair.sizes)}", "device-hours", "PFLOP", "")]
    rows += _totals(pair, label, with_base_size=True)
    if 1.0 in pair.sizes and len(pair.sizes) > 1:
        rows.append(("  without size 1, which is free to who prunes independently (it is the base):",))
        rows += _totals(pair, label, with_base_size=False)
    if pair.left_out:
        rows.append((f"  (not compared, for only one of the two has them: sizes {_sizes(pair.left_out)})",))
    return _block(rows)


def _totals(pair: Comparison, label: str, *, with_base_size: bool) -> list[Row]:
    sides = [pair.versus(currency, with_base_size=with_base_size) for currency in CURRENCIES]
    busy = BUSY_WORDS if any(side and side.busy for side in sides) else ""
    return [
        _row("  OFA total", [side.ofa if side else None for side in sides]),
        _row(f"  {label} total", [side.independent if side else None for side in sides]),
        (f"  {label} / OFA{busy}", *(f"{side.ratio:.2f}" if side else "" for side in sides), ""),
        _row(f"  {label}, mean per size", [side.mean_per_size if side else None for side in sides]),
        ("  OFA is cheaper from this many sizes on", *(str(side.break_even) if side else "" for side in sides), ""),
    ]


def _row(label: str, amounts: Iterable[float | None], *, busy: bool = False) -> Row:
    return f"{label}{BUSY_WORDS if busy else ''}", *map(_amount, amounts), ""


def _block(rows: Iterable[Row]) -> str:
    return "\n".join(text_table(rows, "lrrr")) + "\n"


def _amount(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}" if value < 100 else f"{value:.1f}"


def _sizes(sizes: Sequence[float]) -> str:
    return ", ".join(f"{size:g}" for size in sizes)
