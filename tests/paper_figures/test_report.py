"""The report: every number again from the records, hostile records, few records, and the page in a real browser; under a minute."""

import csv
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from support import report_page as again
from support.record_factory import SIZES, busy, hash_of, make_cifar10_records, make_record, make_records, make_scores, write_records
from support.report_page import MINUS, Page, at, same_digits

from paper_figures.__main__ import main
from paper_figures.cells import cells_of
from paper_figures.latency import latency_table
from paper_figures.methods import LOOKS
from paper_figures.plots import quality_figure
from paper_figures.published import load_published
from paper_figures.published_selection import literature_beside
from paper_figures.report.page import page
from paper_figures.report.results import latencies
from repro.experiment.records import read_records
from repro.files.shipped_files import PUBLISHED

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "results" / "digits"
METHODS = {look.label: method for method, look in LOOKS.items()}
HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>\"'&{{ 7 * 7 }}"
QUALITY_CLAIMS = {  # key -> what is compared with what, as results/README.md says
    "a1": ("ofa", "ofa_open"),
    "b1": ("ofa", "ofa_uniform"),
    "b2": ("ofa", "ofa_random"),
    "d3": ("ofa", "diff_pruning"),
    "d4": ("ofa_long", "diff_pruning"),
    "d5": ("ofa", "diff_pruning_short"),
}
COSTS = {"d1": "cost.device_hours", "d2": "training.train_pflop"}


def chromium():
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


in_a_browser = pytest.mark.skipif(chromium() is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


@pytest.fixture(scope="module")
def digits():
    """The committed records by name, as their files have them, and the page made from them."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(DIGITS.glob("*.json"))}
    html = page(DIGITS, read_records(DIGITS))
    return records, html, Page(html)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two seeds of made-up records, with latencies, a failure and strips, and the page made from them."""
    folder = write_records(tmp_path_factory.mktemp("made") / "digits", some_records(), strips=True)
    html = page(folder, read_records(folder))
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}, html, Page(html)


def failed(method, reason):
    return make_record(method, 0.5, status="failed", reason=reason) | {"quality": None, "size": None, "training": None}


def some_records():
    records = make_records(seeds=(0, 1))
    for number, record in enumerate(records):
        if record["cell"]["method"] == "ofa_joint":
            record["training"]["scoring_pflop"] = 0.0001
        if record["cell"]["method"] == "base":
            trained = {"device_hours": 1.5, "device_name": "H100", "train_pflop": 9.0, "phases_device_hours": {"train": 1.5}}
            record |= {"training": None, "base": {"source": "shipped", "weights": "ema", "sha256": "b" * 64, "trained": trained}}
        if record["cell"]["size"]:
            about = {"device_name": "AMD EPYC (2 cores)" if record["cell"]["method"] != "random" else "H200", "threads": 2}
            about["busy"] = record["cell"]["method"] == "random"
            times = [(batch, batch * (1 + 0.1 * number)) for batch in (1, 8)]
            record["latency"] = [{"batch": batch, "ms": ms, "ms_quartiles": [0.9 * ms, 1.2 * ms]} | about for batch, ms in times]
    records = [busy(record) if record["cell"]["method"] == "random" else record for record in records]
    return [*make_scores(records, "diff_pruning"), failed("magnitude", "loss became NaN")]


# Every number


@pytest.mark.parametrize("which", ["digits", "made"])
def test_every_number_of_every_table_is_that_of_its_records(which, request):
    records, _, read = request.getfixturevalue(which)
    checked = 0
    for key, table in read.tables.items():
        for texts, title, cell in table.named():
            assert cell.names, f"{key}: {title} of {texts} names no record"
            held = [records[name] for name in cell.names]
            expected = EXPECTED[key](texts, title, cell, held)
            printed = cell.numbers
            assert len(printed) == len(expected), (key, title, texts, expected)
            for text, value in zip(printed, expected, strict=True):
                assert same_digits(text, value), (key, title, texts, cell.text, expected)
            checked += 1
    assert set(read.tables) == set(EXPECTED) - ({"ablations"} if which == "made" else set())
    assert checked > (550 if which == "digits" else 150)


def results_again(texts, title, cell, held):
    counts = {"Size": "cell.size", "Realised": "size.realised", "Params (M)": "size.params", "MACs (M)": "size.macs"}
    counts["MACs, torch-pruning (M)"] = "size.macs_torch_pruning"
    if title in counts:
        assert cell.attributes["data-reads"] == counts[title]
        mean = statistics.fmean(at(record, counts[title]) for record in held)
        return [round(mean) / 1e6 if "(M)" in title else mean]  # a whole number of parameters or MACs, as the CSV has it
    if title in ("Device-hours", "Training PFLOP"):
        return [again.paid(held, cell.attributes["data-reads"], sharers=len(SIZES) - 1)]  # of a scoring pass: the pruned sizes
    if title in ("Values", "Samples", "Seeds"):
        values = [len(record["quality"]["values"]) for record in held]
        return [{"Values": sum(values), "Samples": held[0]["quality"]["n_samples"], "Seeds": len(again.by_seed(held))}[title]]
    assert title == held[0]["quality"]["metric"]
    return again.quality(held)


def latency_again(texts, title, cell, held):
    batch = re.search(r"[Bb]atch (\d+)", title)
    if title.startswith("Quartiles"):
        ends = [at(record, f"latency[batch={batch[1]}].ms_quartiles") for record in held]
        return [statistics.fmean(own[index] for own in ends) for index in (0, 1)]
    if not batch:
        return [held[0]["cell"]["size"] if title == "Size" else len(again.by_seed(held))]
    times = [at(record, f"latency[batch={batch[1]}].ms") for record in held]
    assert len({(entry["device_name"], entry["threads"]) for record in held for entry in record["latency"]}) == 1
    assert "Device" not in texts or held[0]["latency"][0]["device_name"] in texts["Device"]
    return [1000 * int(batch[1]) / statistics.fmean(times)] if "Images/s" in title else again.mean_and_error(times)


def claims_again(texts, title, cell, held):
    key = texts["Key"]
    seeds = again.by_seed(held)
    if title == "Seeds":
        return [len(seeds)]
    if key in QUALITY_CLAIMS:
        values, scale = again.log_ratios(held, *QUALITY_CLAIMS[key]), lambda value: 100 * math.expm1(value)
    elif key in COSTS:
        bills = {
            seed: [sum(at(r, COSTS[key]) or 0.0 for r in own if is_ofa(r) == ofa) for ofa in (False, True)] for seed, own in seeds.items()
        }
        values, scale = [math.log(alone / ofa) for alone, ofa in bills.values()], math.exp
    else:
        values, scale = [imbalance(held, "ofa", seed) - imbalance(held, "ofa_m1", seed) for seed in seeds], lambda value: 100 * value
    found = again.estimate(values) if len(values) > 1 else values
    if title == "Without size 1":
        assert all(record["cell"]["size"] != 1 for record in held)
        return [scale(value) for value in found]
    return [scale(value) for value in (found[:1] if title == "Estimate" else found[1:])]


def is_ofa(record):
    return record["cell"]["method"].startswith("ofa")


def imbalance(held, method, seed):
    ours, alone = again.scores(held, method, seed), again.scores(held, "diff_pruning", seed)
    relative = [ours[size] - alone[size] for size in sorted(ours)]
    assert len(relative) == 2  # the smallest and the largest
    return abs(relative[0] - relative[1])


def ablations_again(texts, title, cell, held):
    if title.startswith("P = "):
        assert {f"P = {record['cell']['size']:g}" for record in held} == {title}
        return again.mean_and_error([statistics.fmean(record["quality"]["values"]) for record in held])
    if title in ("Difference", "95 % interval", "Without size 1"):
        assert title != "Without size 1" or all(record["cell"]["size"] != 1 for record in held)
        reference = METHODS[texts["Against"]]
        (method,) = {record["cell"]["method"] for record in held} - {reference}
        found = [100 * math.expm1(value) for value in again.estimate(again.log_ratios(held, method, reference))]
        return {"Difference": found[:1], "95 % interval": found[1:], "Without size 1": found}[title]
    if title == "Size error":
        return [max((record["size"]["realised"] - record["cell"]["size"] for record in held), key=abs)]
    costs = {"Device-hours": "cost.device_hours", "PFLOP": "training.train_pflop"}
    return [again.paid(held, costs[title])] if title in costs else [len(again.by_seed(held))]


def bills_again(texts, title, cell, held):
    assert {LOOKS[re.sub("_(joint|scores)$", "", record["cell"]["method"])].label for record in held} == {texts["Approach"]}
    if title == "Seeds":
        return [len(held)]
    if (title, texts["Term"]) == ("Training PFLOP", "ofa_joint train"):
        return [again.of_terms(held, "training.train_pflop") - again.of_terms(held, "training.scoring_pflop")]
    phase = re.sub(".*_(joint|scores) ", "", texts["Term"]) if re.search("_(joint|scores) ", texts["Term"]) else ""
    assert title != "Device-hours" or cell.attributes["data-reads"].endswith(phase)
    return [again.of_terms(held, cell.attributes["data-reads"])]


def against_again(texts, title, cell, held):
    path = "cost.device_hours" if title.endswith("device-hours") else "training.train_pflop"
    ofa, alone = (again.of_terms([record for record in held if is_ofa(record) == wanted], path) for wanted in (True, False))
    sizes = len(texts["Sizes"].split(", "))
    what = title.partition(",")[0]
    if what == "Break-even":
        return [next(k for k in range(1, 1000) if k * alone / sizes > ofa)]
    return [{"OFA": ofa, "Its own": alone, "Ratio": alone / ofa if ofa else 0.0}[what]]


def fair_again(texts, title, cell, held):
    seeds = again.by_seed(held)
    if title == "Seeds":
        return [len(seeds)]
    if title != held[0]["quality"]["metric"] if held[0]["quality"] else True:
        return [again.paid(held, {"Device-hours": "cost.device_hours", "Training PFLOP": "training.train_pflop"}[title])]
    logs = [[math.log(statistics.fmean(record["quality"]["values"])) for record in own] for own in seeds.values()]
    return again.mean_and_error([math.exp(statistics.fmean(values)) for values in logs])


EXPECTED = {
    "results": results_again,
    "latency": latency_again,
    "claims": claims_again,
    "ablations": ablations_again,
    "bills": bills_again,
    "against_ofa": against_again,
    "fair": fair_again,
}


def test_a_row_is_made_from_all_of_its_records_and_no_other(digits):
    records, _, read = digits
    for texts, title, cell in read.tables["results"].named():
        method, size = METHODS[re.sub(r" \([a-z](, [a-z])*\)$", "", texts["Method"])], float(texts["Size"]) if texts["Size"] else None
        own = {name for name, record in records.items() if (record["cell"]["method"], record["cell"]["size"]) == (method, size)}
        shared = {name for name in own for name in records[name]["delivered_by"]} if title in ("Device-hours", "Training PFLOP") else set()
        assert set(cell.names) == own | shared


def test_the_verdicts_are_those_of_the_committed_table(digits):
    _, _, read = digits
    with (DIGITS / "tables/claims.csv").open() as file:
        committed = {row["key"]: row for row in csv.DictReader(file)}
    at_a_glance = iter(read.verdicts)
    for row in read.tables["claims"].rows:
        texts = dict(zip(read.tables["claims"].titles, row, strict=True))
        expected = committed.pop(texts["Key"].text)
        if expected["verdict"] == "no records":
            assert not texts["Estimate"].text and texts["Verdict"].text.endswith("no records")
            continue
        assert same_digits(texts["Estimate"].numbers[0], float(expected["estimate"]))
        assert all(
            same_digits(*pair)
            for pair in zip(texts["95 % interval"].numbers, (float(expected["low"]), float(expected["high"])), strict=True)
        )
        assert texts["Verdict"].text.split(" ", 1)[1].split(" (")[0] == expected["verdict"]
        for title in ("Estimate", "95 % interval"):
            glance = next(at_a_glance)
            assert (glance.text, glance.names) == (texts[title].text, texts[title].names)
    assert not committed and next(at_a_glance, None) is None


def test_the_page_holds_every_record_whole_and_asks_nothing_of_the_network(digits):
    records, html, read = digits
    store = json.loads(read.scripts[0])
    for record in store["records"]:
        record["provenance"]["config"] = store["configs"][record["provenance"]["config"]]
    assert {record["cell"]["name"]: record for record in store["records"]} == records
    links = [value for _, attributes in read.elements for key, value in attributes.items() if key in ("src", "srcset", "href")]
    assert all(link.startswith(("data:", "#")) for link in links) and len(links) > 50
    assert len(html) < 5e6 and f"({len(html.encode()) / 1e6:.1f} MB" in html
    committed = (Path(__file__).parents[2] / "results" / "digits" / "tables" / "claims.csv").read_text()
    (estimate,) = (float(row["estimate"]) for row in csv.DictReader(committed.splitlines()) if row["key"] == "a1")
    assert estimate < 0 and f"{MINUS}{-estimate:.1f} %" in html
    assert all(attributes["alt"] for tag, attributes in read.elements if tag == "img")


def test_times_of_two_devices_are_two_rows_and_two_lines():
    entries = [
        [{"batch": 1, "ms": ms, "device_name": name, "threads": threads}]
        for ms, name, threads in ((2.0, "A", 1), (9.0, "A", 4), (50.0, "B", 1))
    ]
    cells = cells_of(
        [make_record("ofa", 0.5, seed, latency=[*own, *own_too]) for seed, own, own_too in zip((0, 1), entries, entries[1:], strict=False)]
    )
    rows, table = latencies(cells)
    found = {row.row["device"]: (row.row["latency_ms_1"], [cell.seed for cell in row.cells]) for row in rows}
    assert found == {"A, 1 thread": (2.0, [0]), "A, 4 threads": (9.0, [0, 1]), "B, 1 thread": (50.0, [1])}
    assert [row[2].text for row in table.rows] == list(found) and table.slim() == table
    figure = quality_figure(latency_table(rows), "latency_ms_1", 1.0, "ms")
    assert [label.get_text() for label in figure.subfigs[0].legends[0].get_texts()] == [f"OFA, {device}" for device in found]


def test_published_rows_name_their_source_instead_of_records(tmp_path):
    folder = write_records(tmp_path / "cifar10", make_cifar10_records())
    records = read_records(folder)
    read = Page(page(folder, records, literature_beside(records, load_published(PUBLISHED))))
    cells = [cell for texts, _, cell in read.tables["results"].named() if "published" in texts["Method"]]
    assert cells and all("https://" in cell.attributes["data-source"] and not cell.names for cell in cells)


# Determinism, strangers, and what is missing


def test_the_same_records_give_the_same_bytes(tmp_path):
    for place in ("one", "two"):
        write_records(tmp_path / place / "digits", some_records(), strips=True)
    assert main(["report", "--results", str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "paper_figures", "report", "--results", str(tmp_path / "two")]
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and str(tmp_path / "two/digits/report.html") in done.stdout, done.stderr
    one, two = ((tmp_path / place / "digits/report.html").read_bytes() for place in ("one", "two"))
    assert one == two


def hostile_records():
    records = some_records()
    for record in records:
        record["cost"]["device_name"] = HOSTILE
        record["provenance"] |= {"command": HOSTILE, "packages": {HOSTILE: HOSTILE, "__proto__": "x"}, "config": {HOSTILE: HOSTILE}}
        record["provenance"]["config_sha256"] = hash_of({HOSTILE: HOSTILE})
        for entry in record["latency"] or []:
            entry["device_name"] = HOSTILE
    variant = {"of": "ofa", "factor": HOSTILE, "label": HOSTILE}
    return [*records, failed("my_own", HOSTILE), *[make_record("ofa_x", 0.5, seed, variant=variant) for seed in (0, 1)]]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = write_records(tmp_path_factory.mktemp("hostile") / "digits", hostile_records())
    assert main(["report", "--results", str(folder)]) == 0
    return folder / "report.html"


def test_what_a_record_says_is_text(hostile):
    read = Page(hostile.read_text())
    assert len(read.scripts) == 2 and HOSTILE in read.text
    assert not [attributes for _, attributes in read.elements for key in attributes if key.startswith("on") or key == "style"]
    assert {attributes["src"][:5] for tag, attributes in read.elements if tag == "img"} == {"data:"}
    assert "<" not in read.scripts[0] and json.loads(read.scripts[0])["configs"] == [{HOSTILE: HOSTILE}]


@pytest.mark.parametrize(
    ("records", "missing"),
    [
        (
            [make_record("base", 1.0)],
            ["The verdicts: left out", "run nox -s evidence", "no OFA records", "no sample strips", "Latency: left out"],
        ),
        (
            [failed("ofa", "NaN")],
            ["no evaluated cell", "run python -m repro run"],
        ),
        ([make_record("floor", None)], ["no evaluated cell"]),
        ([make_record("base", 1.0, trial=True)], ["The table of results: left out, only trial records"]),
        ([make_record("base", 1.0), make_record("ofa", 0.5), make_record("diff_pruning", 0.5)], ["ofa_joint-seed0 has no record"]),
    ],
)
def test_few_records_make_a_page_that_says_what_is_missing(records, missing, tmp_path):
    folder = write_records(tmp_path / "digits", records)
    assert main(["report", "--results", str(folder)]) == 0
    text = Page((folder / "report.html").read_text()).text
    assert not [line for line in missing if line not in text], text
    assert text.count("Missing.") >= 3


def test_a_malformed_latency_or_curve_is_one_line(tmp_path, capsys):
    for key, value in (("latency", [{"batch": 1, "ms": -1.0, "device_name": "x"}]), ("latency", 3), ("training", {"curve": [[1]]})):
        write_records(tmp_path / "digits", [make_record("base", 1.0, **{key: value})])
        assert main(["report", "--results", str(tmp_path)]) == 2
        assert re.fullmatch(r"error: .*digits/base-1-seed0\.json: the record is malformed .*\n", capsys.readouterr().err)


# In a browser


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=chromium(), args=sandbox)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(digits[1])
    return path.as_uri()


@pytest.fixture
def visit(browser):
    """Opens an address in a window of a size and scheme; whatever the page complains of, or asks of the network, fails the test."""
    complaints, contexts = [], []

    def opened(address, width=1280, height=900, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        window = context.new_page()
        window.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        window.on("pageerror", lambda error: complaints.append(str(error)))
        window.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        window.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
        window.goto(address)
        return window

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_the_page_fits_its_window_and_is_seen(visit, address, width, height, scheme):
    window = visit(address, width, height, scheme)
    assert window.evaluate("document.documentElement.scrollWidth") == width
    outside = (
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1)"
    )
    assert window.evaluate(f"{outside}.map(e => e.outerHTML.slice(0, 80))") == []
    assert window.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    pictures = window.evaluate("[...document.querySelectorAll('picture img')].map(image => [image.currentSrc === image.src, image.width])")
    assert all(is_light == (scheme == "light") and shown > 300 for is_light, shown in pictures) and len(pictures) > 12
    assert window.evaluate("getComputedStyle(document.querySelector('.strip')).imageRendering") == "pixelated"
    assert min(window.evaluate(CONTRASTS)) >= 4.5


# The contrast of every text with the ground it stands on, as WCAG 2 defines it.
CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (colour) => { const [r, g, b] = channels(colour).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const opaque = (colour) => channels(colour).length === 3;
  const ground = (e) => opaque(getComputedStyle(e).backgroundColor) ? getComputedStyle(e).backgroundColor : ground(e.parentElement);
  const seen = [...document.querySelectorAll('body *')].filter(
    (e) => e.innerText && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  const pairs = seen.map((e) => [light(getComputedStyle(e).color), light(ground(e))].sort((a, b) => b - a));
  return pairs.map(([a, b]) => (a + 0.05) / (b + 0.05));
}"""


@in_a_browser
def test_columns_are_sorted_by_the_numbers_behind_them_and_by_keyboard(visit, address):
    window = visit(address)
    for table, title in (("results", "fid_classifier"), ("results", "Params (M)"), ("claims", "Estimate"), ("ablations", "Difference")):
        heading = window.locator(f"#{table} thead th").filter(has_text=title).first
        index = heading.evaluate("cell => cell.cellIndex")
        values = f"[...document.querySelectorAll('#{table} tbody tr')].map(row => row.cells[{index}].dataset.value ?? '')"
        heading.locator("button").focus()
        for key, state, sign in (("Enter", "ascending", 1), ("Space", "descending", -1)):
            window.keyboard.press(key)
            assert heading.get_attribute("aria-sort") == state
            found = window.evaluate(values)
            numbers = [float(value) for value in found if value]
            assert numbers == sorted(numbers, key=lambda number: sign * number) and len(numbers) > 5
            assert all(not value for value in found[len(numbers) :])  # blanks last, whichever way
        assert window.locator(f"#{table} thead [aria-sort='descending']").count() == 1
    window.locator("#results thead th").first.locator("button").click()
    names = window.locator("#results tbody th").all_inner_texts()
    methods = [unmarked(name).lower() for name in names]
    assert methods == sorted(methods)


def unmarked(name):
    """The name of a row, less the marks of its footnotes."""
    return re.sub(r" \([a-z](, [a-z])*\)$", "", name)


@in_a_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_number_opens_its_records(visit, address, digits, width):
    records, _, read = digits
    window = visit(address, width)
    dialog = window.locator("#dialog")
    texts, _, cell = next(item for item in read.tables["results"].named() if item[0]["Size"] == "0.5" and item[1] == "fid_classifier")
    button = window.locator(f"#results tbody button[data-records='{' '.join(cell.names)}'][data-reads='quality.values']").first
    button.click()
    assert dialog.is_visible() and cell.text in dialog.inner_text()
    assert window.locator("#dialog-title").inner_text() == f"{unmarked(texts['Method'])}, P = 0.5: fid_classifier"
    assert [item.get_attribute("data-record") for item in dialog.locator("[data-record]").all()] == cell.names
    for name in cell.names[:2]:
        summary = dialog.locator(f"[data-record='{name}'] > summary")
        summary.click()
        dialog.locator(f"[data-record='{name}'] dl").wait_for()
        shown, record = dialog.locator(f"[data-record='{name}']").inner_text(), records[name]
        provenance = record["provenance"]
        for text in (*map(str, record["quality"]["values"]), provenance["git_commit"], provenance["config_sha256"], provenance["command"]):
            assert text in shown
        dialog.locator(f"[data-record='{name}'] details summary").click()
        assert json.loads(dialog.locator(f"[data-record='{name}'] pre").inner_text()) == record
    box = dialog.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    window.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert window.evaluate("document.activeElement.dataset.records") == " ".join(cell.names)


@in_a_browser
def test_the_keyboard_reaches_every_number_of_a_table(visit, address):
    window = visit(address)
    assert window.locator("#results tbody button[tabindex='0']").count() == 1  # Tab goes past a table in one step
    window.locator("#results tbody button[tabindex='0']").focus()
    for key, place in (("ArrowRight", (0, 2)), ("ArrowDown", (1, 2)), ("ArrowLeft", (1, 1)), ("ArrowUp", (0, 1)), ("ArrowUp", (0, 1))):
        window.keyboard.press(key)
        at_cell = "c => [c.parentElement.sectionRowIndex, c.cellIndex]"
        assert tuple(window.evaluate(f"({at_cell})(document.activeElement.closest('td'))")) == place
    window.keyboard.press("Enter")
    assert window.locator("#dialog-title").inner_text() == "Base, P = 1: Size"
    shown = [item.get_attribute("data-record") for item in window.locator("#dialog [data-record]").all()]
    assert shown == [f"base-1-seed{seed}" for seed in range(5)]


@in_a_browser
def test_the_only_record_of_a_number_is_open_at_once(visit, tmp_path):
    folder = write_records(tmp_path / "digits", [make_record("base", 1.0)])
    assert main(["report", "--results", str(folder)]) == 0
    window = visit((folder / "report.html").as_uri())
    window.locator("#results tbody button").first.click()
    assert window.locator("#dialog [data-record='base-1-seed0']").get_attribute("open") is not None


@in_a_browser
def test_print_shows_every_row_whole(visit, address):
    window = visit(address, 703, 1000, "dark")  # A4 less its margins
    rows = window.locator("tbody tr").count()
    window.emulate_media(media="print")
    assert rows == len([row for row in window.locator("tbody tr").all() if row.is_visible()]) > 100
    cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText.slice(0, 40))"
    assert window.evaluate(cut) == []
    assert window.evaluate("document.documentElement.scrollWidth") <= 703
    assert not window.locator("nav").is_visible()
    ink, paper = window.evaluate("[getComputedStyle(document.body).color, document.querySelector('picture img').currentSrc.length]")
    assert ink == "rgb(26, 26, 26)" and paper == window.evaluate("document.querySelector('picture img').src.length")
    assert window.pdf(prefer_css_page_size=True).startswith(b"%PDF")


@in_a_browser
def test_a_hostile_record_is_text_in_the_browser_too(visit, hostile):
    window = visit(hostile.as_uri())
    window.locator("#results tbody button").first.click()
    window.locator("#dialog details summary").first.click()
    window.locator("#dialog dl").first.wait_for()
    shown = window.locator("#dialog").inner_text()
    assert HOSTILE in shown and f"{HOSTILE} {HOSTILE}" in shown
    window.locator("#dialog details details summary").first.click()
    window.locator("#dialog pre").first.wait_for()
    held = json.loads(window.locator("#dialog pre").first.inner_text())
    assert held["provenance"]["config"] == {HOSTILE: HOSTILE} and held["provenance"]["packages"]["__proto__"] == "x"
    assert window.evaluate("document.querySelectorAll('img:not([src^=\"data:\"]), script').length") == 2


def test_the_style_and_the_script_are_admitted_by_name_alone(digits):
    policy = next(attributes["content"] for tag, attributes in digits[2].elements if attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    assert len(re.findall(r"'sha256-[\w+/]{43}='", policy)) == 2


# Spread, busy machines, and what must not be compared


def test_a_latency_shows_its_quartiles_and_a_busy_machine(made):
    _, html, read = made
    table = read.tables["latency"]
    rows = {(row[0].text, row[1].text): dict(zip(table.titles, row, strict=True)) for row in table.rows}
    random, ofa = rows["Random", "0.5"], rows["OFA", "0.5"]
    assert random["Batch 1 (ms)"].text.endswith("†") and "†" not in ofa["Batch 1 (ms)"].text
    assert ofa["Quartiles, batch 1 (ms)"].attributes["data-reads"] == "latency[batch=1].ms_quartiles"
    assert "† other work ran on the machine at the time" in read.text.lower() and html


def test_the_bars_of_a_latency_reach_to_its_quartiles(made):
    records, _, _ = made
    rows, _ = latencies(cells_of(list(records.values())))
    axes = quality_figure(latency_table(rows), "latency_ms_1", 1.0, "ms").subfigs[0].axes[-1]
    (ofa,) = [container for container in axes.containers if container.get_label().startswith("OFA")]
    middles = ofa.lines[0].get_xdata()
    ends = [segment[:, 0] for segment in ofa.lines[2][0].get_segments()]
    assert [end[0] for end in ends] == pytest.approx([0.9 * middle for middle in middles])
    assert [end[1] for end in ends] == pytest.approx([1.2 * middle for middle in middles])


def test_latencies_without_quartiles_have_no_column_of_them():
    _, table = latencies(cells_of([make_record("ofa", 0.5, latency=[{"batch": 1, "ms": 2.0, "device_name": "A"}])]))
    assert not [column for column in table.columns if "Quartiles" in column.title]


def test_latencies_of_two_versions_of_torch_are_two_rows():
    records = [make_record("ofa", 0.5, seed, latency=[{"batch": 1, "ms": 2.0, "device_name": "A", "threads": 1}]) for seed in (0, 1)]
    for record, version in zip(records, ("2.13.0", "2.14.1"), strict=True):
        record["provenance"]["packages"] = {"torch": version}
    rows, _ = latencies(cells_of(records))
    assert [row.row["device"] for row in rows] == ["A, 1 thread, torch 2.13.0", "A, 1 thread, torch 2.14.1"]


def test_the_base_that_came_trained_shows_what_its_training_cost(made):
    _, _, read = made
    (row,) = [row for row in read.tables["results"].rows if row[0].text.startswith("Base")]
    cells = dict(zip(read.tables["results"].titles, row, strict=True))
    assert float(cells["Device-hours"].text) == 1.5 and cells["Device-hours"].attributes["data-reads"] == "base.trained.device_hours"
    assert float(cells["Training PFLOP"].text) == 9.0
    assert "trained once, on H100" in read.text


def test_a_report_refuses_to_compare_scales_and_shows_the_rest(tmp_path):
    records = make_records(seeds=(0, 1))
    for record in records:
        if record["quality"]:
            record["quality"]["extractor"] = {"name": "classifier", "sha256": ("a" if record["cell"]["seed"] else "b") * 64}
    folder = write_records(tmp_path / "digits", records)
    assert main(["report", "--results", str(folder)]) == 0
    read = Page((folder / "report.html").read_text())
    assert "claims" not in read.tables and "fair" not in read.tables and "against_ofa" in read.tables
    assert len([row for row in read.tables["results"].rows if row[0].text.startswith("Random")]) == 8
    assert "differ in extractor classifier bbbbbbbb or classifier aaaaaaaa" in read.text
