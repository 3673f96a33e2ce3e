"""Time to quality: crossings of curves whose truth is known, bounds of those that never cross, and the same numbers by other code."""

import json
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats
from support.record_factory import make_record, make_scores, quality, variant_of, write_records

from paper_figures import claims
from paper_figures.__main__ import main
from paper_figures.cells import MissingRecordsError
from paper_figures.comparable import IncomparableError
from paper_figures.curve_plots import curves as draw
from paper_figures.curve_tables import printable_time_to_quality, time_to_quality, until_all_text
from paper_figures.curves import Bounded, Curves, crossing, interval_of, mean_log, ratio
from paper_figures.evidence import Grid
from repro.experiment.record_checks import contradiction
from repro.experiment.records import read_records

ROOT = Path(__file__).resolve().parents[2]
IMAGES = (1000, 2000, 4000, 8000)
SIZES = (1.0, 0.5)
SEEDS = (0, 1, 2)
HOURS, PFLOP = 1e-6, 1e-9  # of an image
JITTER = {0: 1.0, 1: 1.1, 2: 0.9}


def power(scale, slope):
    """Returns a curve whose crossings are known: scale * (images / 1000) ^ -slope reaches t after 1000 * (scale / t) ^ (1 / slope)."""
    return lambda images: scale * (images / 1000) ** -slope


def curve_record(method, size, seed, values, images=IMAGES, hours=HOURS, **changes):
    """Returns the record of a training that was judged on its way; `values` is a function of (size, images)."""
    sizes = SIZES if size is None else (size,)
    points = [
        {
            "step": count // 100,
            "images": count,
            "device_hours": count * hours,
            "train_pflop": count * PFLOP,
            "sizes": {f"{each:g}": {"validation_loss": 0.1, "value": JITTER[seed] * values(each, count)} for each in sizes},
        }
        for count in images
    ]
    scale = {key: value for key, value in quality([1.0], n_samples=500).items() if key not in ("mean", "values")}
    kept = {"curves": {"points": points, "metric": scale, "validation": {"name": "held out", "n": 10, "sha256": "e" * 64}, "cooldown": 0.0}}
    kept["training"] = {"steps": images[-1] // 100, "batch_size": 100, "images": images[-1], "train_pflop": images[-1] * PFLOP}
    record = make_record(method, size, seed, **({"variant": variant_of(method)} | kept | changes))
    record["cost"]["phases_device_hours"] |= {"prepare": 1.0}
    record["cost"]["device_hours"] = sum(v for k, v in record["cost"]["phases_device_hours"].items() if k not in ("start", "evaluate"))
    return record


def experiment(ofa, alone, images=IMAGES, seeds=SEEDS):
    """Returns records of a joint run and of independent runs, each a function of (size, images)."""
    records = []
    for seed in seeds:
        records.append(curve_record("ofa_joint", None, seed, ofa, images))
        records += [make_record("ofa", size, seed) for size in SIZES]
        records += [curve_record("diff_pruning", size, seed, alone) for size in SIZES]
    return records


def test_a_crossing_of_a_power_law_is_found_exactly():
    values = [power(8.0, 0.7)(count) for count in IMAGES]
    for target in (7.9, 5.0, 3.0, values[1], values[-1]):
        found = crossing(IMAGES, values, target)
        assert found.exact and found.observed == pytest.approx(1000 * (8.0 / target) ** (1 / 0.7))


def test_what_was_never_reached_and_what_was_there_at_once_are_bounds():
    values = [8.0, 4.0, 2.0, 1.0]
    assert crossing(IMAGES, values, 0.5) == Bounded(low=8000, observed=8000, high=math.inf)
    assert crossing(IMAGES, values, 9.0) == Bounded(low=0.0, observed=1000, high=1000)
    assert crossing(IMAGES, values, 8.0) == Bounded(low=0.0, observed=1000, high=1000)  # as good there, perhaps before
    back = [8.0, 3.0, 6.0, 1.0]  # noise: the first crossing counts
    assert crossing(IMAGES, back, 4.0).observed == pytest.approx(1000 * 2 ** (math.log(2) / math.log(8 / 3)))


def test_an_interval_of_numbers_that_were_all_observed_is_students_t_and_bounds_open_it():
    exact = [Bounded(low=value, observed=value, high=value) for value in (0.1, 0.4, 0.2)]
    found = interval_of(exact)
    low, high = stats.t.interval(0.95, 2, loc=np.mean([0.1, 0.4, 0.2]), scale=stats.sem([0.1, 0.4, 0.2]))
    assert (found.low, found.high) == pytest.approx((low, high))
    above = interval_of([*exact[:2], Bounded(low=0.2, observed=0.2, high=math.inf)])
    assert (above.low, above.high, above.mean) == (pytest.approx(low), math.inf, pytest.approx(found.mean))
    below = interval_of([*exact[:2], Bounded(low=-math.inf, observed=0.2, high=0.2)])
    assert (below.low, below.high) == (-math.inf, pytest.approx(high))
    assert interval_of(exact[:1]) is None


def test_the_lower_end_over_lower_bounds_holds_for_the_truth_nearly_as_often_as_it_says():
    random, held = np.random.default_rng(0), 0
    for _ in range(2000):
        truth = random.normal(0.5, 0.3, size=5)
        seen = np.minimum(truth, 0.6)  # a budget that ends there
        found = interval_of([Bounded(low=value, observed=value, high=value if value < 0.6 else math.inf) for value in seen])
        held += found.low <= 0.5 <= found.high
    assert held / 2000 == pytest.approx(0.935, abs=0.01)  # of 0.95: what is cut off at a budget is skewed


def test_ratios_of_bounds_are_bounds():
    known, least, most = Bounded(low=2, observed=2, high=2), Bounded(low=4, observed=4, high=math.inf), Bounded(low=0, observed=1, high=1)
    assert ratio(known, known) == Bounded(low=0, observed=0, high=0)
    assert ratio(least, known) == Bounded(low=math.log(2), observed=math.log(2), high=math.inf)
    assert ratio(known, least) == Bounded(low=-math.inf, observed=-math.log(2), high=-math.log(2))
    assert ratio(most, known) == Bounded(low=-math.inf, observed=-math.log(2), high=-math.log(2))


def test_the_area_of_a_power_law_is_that_at_the_middle():
    values = [power(8.0, 0.7)(count) for count in IMAGES]
    assert math.exp(mean_log(IMAGES, values, 1000, 8000)) == pytest.approx(8.0 * math.sqrt(8) ** -0.7)
    assert math.exp(mean_log(IMAGES, values, 1500, 6000)) == pytest.approx(8.0 * 3**-0.7)


def test_the_time_to_the_reference_is_recovered_with_its_interval():
    grid = Grid(experiment(lambda size, n: power(8 / size, 0.5)(n), lambda size, n: power(4 / size, 0.5)(n)))
    table = time_to_quality(grid).set_index(["size", "method"])
    # OFA needs (8 / 4) ^ (1 / 0.5) = 4 times as many images; the independent run's last value is at 8000 of its own.
    row = table.loc[(1.0, "ofa")]
    assert (row["reached"], row["n_seeds"], row["bound"]) == (0, 3, "at least")
    assert row["images"] == pytest.approx(8000) and row["images_ratio_low"] == pytest.approx(1) and row["images_ratio_high"] == math.inf
    assert row["area_difference_pct"] == pytest.approx(100)  # twice the quality everywhere
    longer = Grid(experiment(lambda size, n: power(8 / size, 0.5)(n), lambda size, n: power(4 / size, 0.5)(n), images=(1000, 64000)))
    row = time_to_quality(longer).set_index(["size", "method"]).loc[(0.5, "ofa")]
    assert (row["reached"], row["bound"]) == (3, "exact")
    assert row["images"] == pytest.approx(32000) and row["images_ratio"] == pytest.approx(4)
    assert row["device_hours"] == pytest.approx(32000 * HOURS) and row["train_pflop"] == pytest.approx(32000 * PFLOP)
    assert row["target"] == pytest.approx(statistics.geometric_mean([8 * j * 8**-0.5 for j in JITTER.values()]))


def test_a_target_that_is_named_is_the_same_for_all():
    grid = Grid(experiment(lambda size, n: power(8, 0.5)(n), lambda size, n: power(4, 0.5)(n)))
    table = time_to_quality(grid, target=3.5).set_index(["size", "method"])
    each = [1000 * (8 * j / 3.5) ** 2 for j in JITTER.values()]
    assert table.loc[(1.0, "ofa"), "images"] == pytest.approx(statistics.geometric_mean(each))
    assert table.loc[(1.0, "diff_pruning"), "target"] == 3.5


def verdicts(grid):
    return claims.claims_table(grid).set_index("key")


def test_one_run_counts_until_its_last_size_and_independent_runs_are_added_up():
    records = experiment(lambda size, n: power(8 * (2 - size), 0.5)(n), lambda size, n: power(8, 0.5)(n), images=(1000, 64000))
    row = verdicts(Grid(records)).loc["d7"]
    joint = 8000 * (1.5 / 1) ** 2  # size 0.5 is the last one there
    assert row["estimate"] == pytest.approx(2 * 8000 / joint) and row["verdict"] == "contradicted"
    assert row["estimate_without_1"] == pytest.approx(8000 / joint)
    with_scores = Grid(make_scores(records, "diff_pruning", pflop=8e-6, hours=0.0))
    assert verdicts(with_scores).loc["d7", "estimate"] == pytest.approx((2 * 8000 + 8000) / joint)


def test_what_never_got_there_contradicts_a_claim_and_supports_none():
    slow = Grid(experiment(lambda size, n: power(80, 0.5)(n), lambda size, n: power(4, 0.5)(n), images=(1000, 64000)))
    row = verdicts(slow).loc["d7"]
    assert (row["verdict"], row["low"]) == ("contradicted", 0.0) and row["high"] == pytest.approx(0.25)
    short = Grid(experiment(lambda size, n: power(80, 0.5)(n), lambda size, n: power(4, 0.5)(n), images=(1000, 2000)))
    row = verdicts(short).loc["d7"]
    assert row["verdict"] == "undecided" and row["estimate"] == pytest.approx(8)  # which it would support, were it not a bound
    fast = Grid(experiment(lambda size, n: power(5, 0.9)(n), lambda size, n: power(8, 0.5)(n)))
    assert verdicts(fast).loc["d7", "verdict"] == "supported"


def test_images_to_the_open_sets_last_value():
    records = []
    for seed in SEEDS:
        records += [curve_record("ofa_joint", None, seed, lambda size, n: power(4, 0.5)(n)), *(make_record("ofa", s, seed) for s in SIZES)]
        open_set = curve_record("ofa_joint", None, seed, lambda size, n: power(6, 0.5)(n), variant=variant_of("ofa_open"))
        open_set["cell"] |= {"name": f"ofa_open_joint-seed{seed}", "method": "ofa_open_joint"}
        records.append(open_set)
    row = verdicts(Grid(records)).loc["a2"]
    assert row["estimate"] == pytest.approx((4 / 6) ** 2) and row["verdict"] == "supported"
    assert row["n_seeds"] == 3 and row["estimate_without_1"] == pytest.approx((4 / 6) ** 2)


def test_curves_of_other_scales_are_not_compared():
    records = experiment(lambda size, n: power(8, 0.5)(n), lambda size, n: power(4, 0.5)(n))
    for record in records:
        if record["cell"]["name"] == "ofa_joint-seed1":
            record["curves"]["metric"]["n_samples"] = 999
    with pytest.raises(IncomparableError, match=r"samples (999 or 500|500 or 999)"):
        time_to_quality(Grid(records))


def flat(scale):
    return lambda size, n: power(scale, 0.5)(n)


def test_a_method_with_fewer_seeds_is_held_against_the_same_seeds_and_its_scale_is_looked_at():
    records = [*experiment(flat(8), flat(4)), curve_record("scratch", 0.5, 0, flat(6))]
    table = time_to_quality(Grid(records)).set_index(["size", "method"])
    assert (table.loc[(0.5, "scratch"), "n_seeds"], table.loc[(0.5, "ofa"), "n_seeds"]) == (1, 3)
    records[-1]["curves"]["metric"]["n_samples"] = 999
    with pytest.raises(IncomparableError, match="the curves of scratch and diff_pruning differ in samples"):
        time_to_quality(Grid(records))


def test_curves_of_other_bases_are_not_compared():
    records = experiment(flat(8), flat(4))
    for record in records:
        record["base"] = {"sha256": ("a" if record["cell"]["method"] == "ofa_joint" else "b") * 64}
    with pytest.raises(IncomparableError, match="at seed 0 the curves of ofa and diff_pruning differ in base"):
        time_to_quality(Grid(records))


def test_hours_of_another_machine_are_blank_and_images_are_not(tmp_path):
    records = experiment(flat(8), flat(4))
    for record in records:
        record["cost"]["device_name"] = "H100" if record["cell"]["method"] == "ofa_joint" else record["cost"]["device_name"]
    grid = Grid(records)
    table = time_to_quality(grid)
    row = table.set_index(["size", "method"]).loc[(0.5, "ofa")]
    assert pd.isna(row["device_hours"]) and "device_hours_ratio" not in table and row["images"] == pytest.approx(8000)
    assert any(note.startswith("No device-hours: ") for note in printable_time_to_quality(grid, table)[1])
    text = until_all_text(grid)
    assert "device-hours: the machines of the device-hours of" in text and re.search(r"PFLOP: OFA > ", text)


def test_what_delivers_a_size_must_be_known():
    scored = make_scores(experiment(flat(8), flat(4)), "diff_pruning", pflop=8e-6)
    assert verdicts(Grid(scored)).loc["d7", "n_seeds"] == 3
    without = [record for record in scored if record["cell"]["name"] != "diff_pruning_scores-seed1"]
    grid = Grid(without)
    assert verdicts(grid).loc["d7", "n_seeds"] == 2  # nothing is taken to cost nothing
    notes = printable_time_to_quality(grid, time_to_quality(grid))[1]
    assert any(note.startswith("diff_pruning-0.5-seed1 is left out") for note in notes)


def test_a_size_that_a_seed_lacks_costs_that_seed_and_no_size():
    records = [record for record in experiment(flat(8), flat(4)) if record["cell"]["name"] != "diff_pruning-0.5-seed2"]
    table = time_to_quality(Grid(records)).set_index(["size", "method"])
    assert (table.loc[(0.5, "ofa"), "n_seeds"], table.loc[(1.0, "ofa"), "n_seeds"]) == (2, 3)
    assert "at every size (0.5, 1), mean over 2 seeds" in until_all_text(Grid(records))
    apart = [curve_record("diff_pruning", 1.0, 0, flat(4)), curve_record("diff_pruning", 0.5, 1, flat(4))]
    assert list(time_to_quality(Grid(apart))["n_seeds"]) == [1, 1]


def test_the_joint_run_with_more_seeds_is_looked_at():
    records = experiment(flat(8), flat(4))
    longer = curve_record("ofa_joint", None, 0, flat(8), images=(1000, 64000), variant=variant_of("ofa_long"))
    longer["cell"] |= {"name": "ofa_long_joint-seed0", "method": "ofa_long_joint"}
    assert Curves(Grid([*records, longer])).longest == "ofa"
    assert verdicts(Grid([*records, longer])).loc["d7", "n_seeds"] == 3


def test_of_joint_runs_with_as_many_seeds_the_longer_is_looked_at():
    records = experiment(flat(8), flat(4))
    for seed in SEEDS:
        longer = curve_record("ofa_joint", None, seed, flat(8), images=(1000, 64000), variant=variant_of("ofa_long"))
        longer["cell"] |= {"name": f"ofa_long_joint-seed{seed}", "method": "ofa_long_joint"}
        records.append(longer)
    assert Curves(Grid(records)).longest == "ofa_long"


def test_without_curves_there_is_no_table_and_a_line_says_what_to_run():
    with pytest.raises(MissingRecordsError, match="no training was judged on its way; run `nox -s evidence`"):
        time_to_quality(Grid([make_record("ofa", 0.5)]))
    assert until_all_text(Grid([make_record("ofa", 0.5)])) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda points: points[1].update(images=500), "whose images do not rise"),
        (lambda points: points[-1].update(train_pflop=1.0), "a last point of 1 train_pflop"),
        (lambda points: points[-1].update(device_hours=50.0), "a last point of 50 device-hours"),
        (lambda points: points[1]["sizes"].update({"0.25": {"validation_loss": 0.1}}), "has the sizes"),
    ],
)
def test_a_record_whose_points_cannot_be_so_is_refused(change, said):
    record = curve_record("diff_pruning", 0.5, 0, lambda size, n: power(4, 0.5)(n))
    record.pop("sha256", None)
    record["schema_version"] = 1
    assert contradiction(record) == ""
    change(record["curves"]["points"])
    assert said in contradiction(record)


def test_the_command_writes_table_and_figure_and_prints_what_it_takes(tmp_path, capsys):
    folder = tmp_path / "digits"
    write_records(folder, experiment(lambda size, n: power(8, 0.5)(n), lambda size, n: power(6, 0.5)(n), images=(1000, 64000)))
    assert main(["--results", str(folder)]) == 0
    assert all((folder / "tables" / f"time_to_quality.{suffix}").exists() for suffix in ("csv", "md", "tex"))
    assert all((folder / "figures" / f"curves.{suffix}").exists() for suffix in ("pdf", "png"))
    capsys.readouterr()
    assert main(["overhead", "--results", str(folder), "--target", "4"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"To reach fid_classifier 4 at every size \(0\.5, 1\), mean over 3 seeds:\n  device-hours: OFA .*, Diff-Pruning .*, ratio 1\.1[23]",
        out,
    )
    for wrong in ("0", "many", "inf"):
        with pytest.raises(SystemExit):
            main(["overhead", "--results", str(folder), "--target", wrong])
        assert f"--target: must be a positive number, not '{wrong}'" in capsys.readouterr().err
    assert main(["report", "--results", str(folder), "--target", "4"]) == 0
    page = (folder / "report.html").read_text()
    assert 'id="time_to_quality"' in page and "How fast" in page and "Target: 4, as asked for" in page


def test_the_figure_has_a_panel_for_each_size_and_no_other():
    three = [curve_record("diff_pruning", size, 0, flat(4)) for size in (1.0, 0.5, 0.25)]
    assert [axes.axison for axes in draw(Grid(three)).axes[:4]] == [True, True, True, False]
    figure = draw(Grid(experiment(lambda size, n: power(8, 0.5)(n), lambda size, n: power(4, 0.5)(n))))
    assert isinstance(figure, Figure) and [axes.get_title() for axes in figure.axes[:2]] == ["P = 1", "P = 0.5"]
    line = next(line for line in figure.axes[0].lines if line.get_label() == "OFA")
    assert line.get_ydata() == pytest.approx([statistics.geometric_mean(JITTER.values()) * power(8, 0.5)(n) for n in IMAGES])


# The committed records, by other code: numpy alone, from the JSON


def again(folder):
    """Makes the table of time to quality again."""
    held, shares = {}, {}
    read = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for name, record in read.items():
        for scores in record["delivered_by"] or []:
            if "_scores" in scores:
                shares.setdefault(scores, []).append(name)
    for record in read.values():
        method = record["cell"]["method"].removesuffix("_joint")
        extra = {"images": 0.0, "device_hours": 0.0, "train_pflop": 0.0}
        for scores in record["delivered_by"] or []:
            if "_scores" in scores:
                extra["device_hours"] += read[scores]["cost"]["device_hours"] / len(shares[scores])
                extra["train_pflop"] += read[scores]["training"]["train_pflop"] / len(shares[scores])
        for point in (record.get("curves") or {"points": []})["points"]:
            for size, judged in point["sizes"].items():
                if judged.get("value"):
                    row = [point["images"], point["device_hours"], point["train_pflop"], judged["value"]]
                    held.setdefault((method, float(size), record["cell"]["seed"]), ([], extra))[0].append(row)
    return {key: (np.array(rows), extra) for key, (rows, extra) in held.items()}


def reached(rows, extra, target, column):
    """Returns the least and the greatest cost that a target may have been reached at, and what is shown."""
    x, y = rows[:, {"images": 0, "device_hours": 1, "train_pflop": 2}[column]], rows[:, 3]
    below = np.flatnonzero(y <= target)
    if not len(below):
        return x[-1] + extra[column], np.inf, x[-1] + extra[column]
    if below[0] == 0:
        return extra[column], x[0] + extra[column], x[0] + extra[column]
    i = below[0]
    found = np.exp(np.interp(-np.log(target), -np.log(y[i - 1 : i + 1]), np.log(x[i - 1 : i + 1]))) + extra[column]
    return found, found, found


def area(rows, begin, end):
    """Returns the mean of ln(quality) over ln(images) between two numbers of images."""
    x, y = np.log(rows[:, 0]), np.log(rows[:, 3])
    grid = np.unique(np.concatenate([np.log([begin, end]), x[(x > np.log(begin)) & (x < np.log(end))]]))
    return np.trapezoid(np.interp(grid, x, y), grid) / (grid[-1] - grid[0])


def student(values):
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return np.mean(values), np.mean(values) - half, np.mean(values) + half


def committed():
    return [path.parent.parent for path in sorted((ROOT / "results").glob("*/tables/time_to_quality.csv"))]


@pytest.mark.parametrize("folder", committed(), ids=lambda folder: folder.name)
def test_every_number_of_the_committed_table_comes_out_of_the_json_by_other_code(folder):
    table, held = pd.read_csv(folder / "tables" / "time_to_quality.csv"), again(folder)
    assert len(table) >= 20
    for row in table.itertuples():
        seeds = sorted({seed for method, size, seed in held if method == row.method and size == row.size})
        assert row.n_seeds == len(seeds)
        targets = {seed: held["diff_pruning", row.size, seed][0][-1, 3] for seed in seeds}
        both = [held[method, row.size, seed][0] for method in (row.method, "diff_pruning") for seed in seeds]
        begin, end = max(rows[0, 0] for rows in both), min(rows[-1, 0] for rows in both)
        assert (row.area_from_images, row.area_to_images) == (begin, end)
        areas = [[area(held[method, row.size, seed][0], begin, end) for seed in seeds] for method in (row.method, "diff_pruning")]
        assert row.mean_quality == pytest.approx(np.exp(np.mean(areas[0])))
        if row.method != "diff_pruning":
            found = [row.area_difference_pct, row.area_difference_pct_low, row.area_difference_pct_high]
            assert found == pytest.approx([100 * np.expm1(value) for value in student(np.subtract(*areas))])
        assert row.target == pytest.approx(np.exp(np.mean(np.log(list(targets.values())))))
        for column in ("images", "device_hours", "train_pflop"):
            ours = np.array([reached(*held[row.method, row.size, seed], targets[seed], column) for seed in seeds])
            theirs = np.array([reached(*held["diff_pruning", row.size, seed], targets[seed], column) for seed in seeds])
            assert getattr(row, column) == pytest.approx(np.exp(np.log(ours[:, 2]).mean()))
            assert row.reached == int(np.isfinite(ours[:, 1]).sum())
            if row.method == "diff_pruning":
                continue
            with np.errstate(divide="ignore"):
                low, high, mean = (
                    np.log(a / b) for a, b in ((ours[:, 0], theirs[:, 1]), (ours[:, 1], theirs[:, 0]), (ours[:, 2], theirs[:, 2]))
                )
            half = stats.t.ppf(0.975, len(seeds) - 1) / math.sqrt(len(seeds))
            ends = [
                ends.mean() + side * half * ends.std(ddof=1) if np.isfinite(ends).all() else side * np.inf
                for side, ends in ((-1, low), (1, high))
            ]
            assert getattr(row, f"{column}_ratio") == pytest.approx(np.exp(mean.mean()))
            assert getattr(row, f"{column}_ratio_low") == pytest.approx(np.exp(ends[0]))
            assert getattr(row, f"{column}_ratio_high") == pytest.approx(np.exp(ends[1]))


@pytest.mark.parametrize("folder", committed(), ids=lambda folder: folder.name)
def test_the_page_of_results_shows_the_committed_table_of_time_to_quality(folder):
    table = (folder / "tables" / "time_to_quality.md").read_text().partition("\n\n")[2].strip()
    assert f"<!-- time to quality -->\n{table}\n\n" in (ROOT / "results" / "README.md").read_text()
    shown, _ = printable_time_to_quality(grid := Grid(read_records(folder)), time_to_quality(grid))
    assert len(shown) and set(Curves(grid).of) >= {"ofa", "ofa_open", "slimmable", "diff_pruning", "random", "scratch"}
