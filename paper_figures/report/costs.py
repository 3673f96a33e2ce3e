"""Tables of the cost: the terms of each approach, its ratio to OFA, and quality for the cost."""

from collections.abc import Iterable, Sequence

from paper_figures.cells import BUSY, Cell, MissingRecordsError
from paper_figures.claims import READS
from paper_figures.curve_tables import printable_time_to_quality, time_to_quality
from paper_figures.curves import curves_in
from paper_figures.evidence import Grid
from paper_figures.markup import BUSY_NOTE
from paper_figures.methods import EQUAL, INDEPENDENT, LONGER_OR_SHORTER, look_of
from paper_figures.overhead import Comparison, comparisons, serving, why_not
from paper_figures.overhead_terms import Term, overhead_terms
from paper_figures.overhead_text import check_fair
from paper_figures.report.model import Column, Entry, Table, fixed, number, words
from repro.experiment.records import Record

CURRENCIES = {"device_hours": "device-hours", "train_pflop": "PFLOP"}
TOTAL = "each term's mean over seeds, added over the sizes"


def bills(records: Sequence[Record], cells: Sequence[Cell]) -> Table:
    """Returns the table of every term of every approach.

    Raises:
        MissingRecordsError: There is nothing to pay for.
    """
    terms, notes = overhead_terms(records)
    if not terms:
        raise MissingRecordsError(why_not(terms, notes))
    by_name = {cell.name: cell for cell in cells}
    hours, pflop = (fixed([getattr(term, currency) for term in terms], 4) for currency in CURRENCIES)
    rows = []
    for term, spent, work in zip(terms, hours, pflop, strict=True):
        made = [by_name[name] for name in term.names]
        reads = _reads(term, made)
        entries = [
            number(spent + BUSY * term.busy, term.device_hours, made, reads["device_hours"]),
            number(work, term.train_pflop, made, reads["train_pflop"]),
        ]
        rows.append(
            (
                *words([look_of(term.approach).label, term.term, term.device]),
                *entries,
                number(str(term.n_seeds), term.n_seeds, made, "cell.seed"),
            )
        )
    columns = [Column(title=title) for title in ("Approach", "Term", "Device")]
    columns += [Column(title="Device-hours", how="mean over seeds")]
    columns += [Column(title="Training PFLOP", how="mean over seeds; of a run for all sizes, its scoring stands under importance")]
    columns += [Column(title="Seeds", how="number of records")]
    note = "The base is needed by all and stands in no total. Evaluation is left out"
    return Table(
        key="bills", title="What each approach pays for", columns=tuple(columns), rows=tuple(rows), notes=(note, *notes, *_busy(terms))
    )


def _reads(term: Term, made: Sequence[Cell]) -> dict[str, str]:
    """Returns where the records of a term hold its two costs."""
    if made[0].trained_on:
        return {currency: f"base.trained.{currency}" for currency in CURRENCIES}
    if not term.phase:
        return READS
    work = "training.scoring_pflop" if term.phase == "importance" else READS["train_pflop"]
    return {"device_hours": f"cost.phases_device_hours.{term.phase}", "train_pflop": work}


def _busy(terms: Iterable[Term]) -> list[str]:
    return [BUSY_NOTE] if any(term.busy for term in terms) else []


def against_ofa(records: Sequence[Record], cells: Sequence[Cell]) -> Table:
    """Returns the table of every independent method beside OFA, with and without size 1.

    Raises:
        MissingRecordsError: Nothing can be compared.
    """
    terms, notes = overhead_terms(records)
    pairs = comparisons(terms)
    if not pairs:
        raise MissingRecordsError(why_not(terms, notes))
    by_name = {cell.name: cell for cell in cells}
    views = [(pair, True) for pair in pairs] + [(pair, False) for pair in pairs if 1.0 in pair.sizes and len(pair.sizes) > 1]
    columns = [Column(title=title) for title in ("Against OFA", "Sizes", "Device")]
    for unit in CURRENCIES.values():
        columns += [Column(title=f"OFA, {unit}", how=TOTAL), Column(title=f"Its own, {unit}", how=TOTAL)]
        columns += [Column(title=f"Ratio, {unit}", how="its own total over OFA's")]
        columns += [
            Column(title=f"Break-even, {unit}", how="the least number of sizes that cost more than OFA, each at the mean cost per size")
        ]
    return Table(
        key="against_ofa",
        title="One run for all sizes, or one for each",
        columns=tuple(columns),
        rows=tuple(_against(pair, by_name, with_base_size=with_base) for pair, with_base in views),
        notes=("Size 1 is free to who prunes each size alone: it is the base. So the second comparison leaves it out", *_busy(terms)),
    )


def _against(pair: Comparison, by_name: dict[str, Cell], *, with_base_size: bool) -> tuple[Entry, ...]:
    sizes = [size for size in pair.sizes if with_base_size or size != 1.0]
    ofa, own = ([by_name[name] for term in serving(terms, sizes) for name in term.names] for terms in (pair.ofa, pair.independent))
    entries = words([look_of(pair.method).label, ", ".join(f"{size:g}" for size in sizes), pair.device])
    for currency in CURRENCIES:
        versus = pair.versus(currency, with_base_size=with_base_size)
        if versus is None:
            entries += words([""] * 4)
            continue
        totals = [text + BUSY * versus.busy for text in fixed([versus.ofa, versus.independent], 4)]
        both, reads = [*ofa, *own], READS[currency]
        entries += [number(totals[0], versus.ofa, ofa, reads), number(totals[1], versus.independent, own, reads)]
        entries += [
            number(f"{versus.ratio:.2f}" + BUSY * versus.busy, versus.ratio, both, reads),
            number(str(versus.break_even), versus.break_even, both, reads),
        ]
    return tuple(entries)


def fair(grid: Grid) -> Table:
    """Returns the table of the quality for the cost, where one thing is equal: images per run, or total compute; with size 1 and without.

    Raises:
        MissingRecordsError: No two approaches can be compared so.
        IncomparableError: The qualities are on several scales, or the hours those of several machines.
    """
    sizes = grid.sizes("ofa", INDEPENDENT) if {"ofa", INDEPENDENT} <= grid.of.keys() else []
    rows = _fair_rows(grid, sizes) + (_fair_rows(grid.without_whole(), [size for size in sizes if size != 1.0]) if 1.0 in sizes else [])
    if not rows:
        raise MissingRecordsError("quality for the cost: left out, OFA and Diff-Pruning have no size in common; run `nox -s evidence`")
    columns = [Column(title=title) for title in ("Method", "What is equal", "Sizes")]
    columns += [
        Column(title=title, how="all sizes of a seed and what delivers them, added; the mean over seeds")
        for title in ("Device-hours", "Training PFLOP")
    ]
    columns += [
        Column(title=grid.metric, how="geometric mean over sizes; its mean over seeds ± standard error"),
        Column(title="Seeds", how="number of seeds"),
    ]
    notes = ["At the seeds that the methods of a comparison share"]
    notes += [BUSY_NOTE] if any(BUSY in entry.text for row in rows for entry in row) else []
    return Table(key="fair", title="The quality that the cost buys", columns=tuple(columns), rows=tuple(rows), notes=tuple(notes))


def _fair_rows(grid: Grid, sizes: Sequence[float]) -> list[tuple[Entry, ...]]:
    """Returns the rows of every fair comparison over some sizes."""
    rows = []
    for title, methods in EQUAL.items():
        present = [method for method in methods if method in grid.of]
        seeds = grid.seeds(*present) if present and sizes else []
        check_fair(grid, present, sizes, seeds)
        points = {method: point for method in present if seeds and (point := grid.point(method, sizes, seeds))}
        rows += [_fair(grid, title, method, sizes, seeds, point) for method, point in points.items()] if len(points) > 1 else []
    return rows


def _fair(
    grid: Grid, title: str, method: str, sizes: Sequence[float], seeds: Sequence[int], point: tuple[float, float, float, float]
) -> tuple[Entry, ...]:
    paid = {seed: cells for seed, cells in grid.paid(method, sizes).items() if seed in seeds}
    bill = [cell for cells in paid.values() for cell in cells]
    judged = [grid.of[method][seed][size] for seed in paid for size in sizes]
    hours, pflop, score, error = point
    quality = f"{score:.2f} ± {error:.2f}" if len(paid) > 1 else f"{score:.2f}"
    return (
        *words([LONGER_OR_SHORTER.get(method, look_of(method).label), title, ", ".join(f"{size:g}" for size in sizes)]),
        number(f"{hours:.4f}" + BUSY * any(cell.busy for cell in bill), hours, bill, READS["device_hours"]),
        number(f"{pflop:.5f}", pflop, bill, READS["train_pflop"]),
        number(quality, score, judged, "quality.values"),
        number(str(len(paid)), len(paid), judged, "cell.seed"),
    )


def time_to_quality_of(grid: Grid, target: float | None = None) -> Table:
    """Returns the table of time to quality, each number with the trainings that it comes from.

    Raises:
        MissingRecordsError: No training was judged on its way.
        IncomparableError: Curves are of several scales.
    """
    frame, curves = time_to_quality(grid, target), curves_in(grid)
    shown, notes = printable_time_to_quality(grid, frame, target)
    rows = []
    for index in range(len(frame)):
        raw, text = frame.iloc[index], shown.iloc[index]
        pairs = curves.pairs(str(raw["method"]), INDEPENDENT, float(raw["size"]))
        made = [cell for pair in pairs for curve in pair for cell in curve.paid]
        columns = ["method", "size", "target", "reached", "images", "device_hours", "train_pflop", "images_ratio", "mean_quality"]
        columns += ["area_difference_pct"]
        values = dict(zip(shown.columns, columns, strict=False))
        numbers = [number(text[title], raw.get(column), made, "curves.points") for title, column in values.items() if column != "method"]
        rows.append((*words([text["Method"]]), *numbers))
    how = "from the points of the trainings, as the footnotes say"
    titles = [Column(title=str(title), how="" if title == "Method" else how) for title in shown.columns]
    return Table(key="time_to_quality", title="Time to quality", columns=tuple(titles), rows=tuple(rows), notes=tuple(notes))
