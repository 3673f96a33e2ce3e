"""Figures as they are printed: in the width of one column and of two, nothing cut, type of 7 to 9 pt, and every one with its caption."""

import itertools
import re
from pathlib import Path

import pytest
from matplotlib.text import Text
from support.commands import typed
from support.record_factory import make_cifar10_records, make_records, write_records

from paper_figures.__main__ import main
from paper_figures.drawings import drawings_of
from paper_figures.house_style import COLUMN, PAGE, house_style, legend_columns
from paper_figures.published import load_published
from paper_figures.published_selection import literature_beside
from repro.experiment.records import read_records

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted(path.parent.name for path in ROOT.glob("results/*/figures"))


def texts_of(figure):
    """The texts that are drawn, each with its place in pixels; ticks outside of their axis are not drawn."""
    shown = []

    class Seen(Text):
        def draw(self, renderer):
            shown.append(self)

    with pytest.MonkeyPatch.context() as patch:
        figure.draw_without_rendering()
        patch.setattr(Text, "draw", Seen.draw)
        figure.draw_without_rendering()
    assert len(shown) > 3
    return [(text, text.get_window_extent()) for text in shown if text.get_visible() and text.get_text().strip()]


def check(figure, name):
    page, placed = figure.bbox, texts_of(figure)
    for text, place in placed:
        assert 7 <= text.get_fontsize() <= 9, (name, text.get_text(), text.get_fontsize())
        inside = page.x0 - 1 <= place.x0 and page.y0 - 1 <= place.y0 and place.x1 <= page.x1 + 1 and place.y1 <= page.y1 + 1
        assert inside, f"{name}: {text.get_text()!r} is cut at {figure.get_figwidth()} in"
    for (one, here), (other, there) in itertools.combinations(placed, 2):
        across, down = min(here.x1, there.x1) - max(here.x0, there.x0), min(here.y1, there.y1) - max(here.y0, there.y0)
        assert min(across, down) < 2, f"{name}: {one.get_text()!r} lies over {other.get_text()!r} at {figure.get_figwidth()} in"


def check_all(drawings):
    for name, drawing in drawings.items():
        for width in (COLUMN, PAGE):
            with house_style():
                check(figure := drawing.draw(width), name)
            assert figure.get_figwidth() <= width + 1e-6


@pytest.mark.parametrize("name", COMMITTED)
def test_nothing_of_a_committed_figure_is_cut_at_a_width_of_a_paper(name):
    folder = ROOT / "results" / name
    check_all(drawings_of(folder, read_records(folder)))


def test_nothing_is_cut_where_machines_are_several_or_figures_of_the_literature_beside_ours(tmp_path):
    records = make_cifar10_records()
    published = literature_beside(records, load_published(ROOT / "repro/shipped/published.toml")).entries
    of_quality = {name: drawing for name, drawing in drawings_of(tmp_path, records, published).items() if name.startswith("fid")}
    assert published
    check_all(of_quality)
    there = [record | {"cost": record["cost"] | {"threads_per_rank": 8}} for record in make_records(seeds=(1,))]
    here = drawings_of(tmp_path, [*make_records(), *there])
    check_all({name: here[name] for name in ("fid_vs_macs", "overhead")})


def test_a_legend_has_as_many_columns_as_fit():
    with house_style():
        assert [legend_columns(["OFA", "Diff-Pruning", "Untrained, importance"], width) for width in (2.0, 2.6, 3.5)] == [1, 2, 3]


def test_every_figure_has_a_caption_and_letters_as_outlines_of_a_font(tmp_path):
    folder = write_records(tmp_path / "digits", make_records(), strips=True)
    assert main(["--results", str(folder), "--width", "3.25in"]) == 0
    drawn = sorted(path.stem for path in (folder / "figures").glob("*.pdf"))
    captions = (folder / "figures/captions.md").read_text()
    assert sorted(re.findall(r"^## (\w+)$", captions, flags=re.MULTILINE)) == drawn
    for path in (folder / "figures").glob("*.pdf"):
        content = path.read_bytes()
        assert b"/Type3" not in content and b"/FontFile2" in content, path.name
        assert float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", content)[1]) <= 3.25 * 72 + 0.01


def test_the_claims_leave_the_captions_of_other_figures(tmp_path):
    folder = write_records(tmp_path / "digits", make_records())
    assert main(["--results", str(folder)]) == 0
    before = (folder / "figures/captions.md").read_bytes()
    assert main(["claims", "--results", str(folder)]) == 0
    assert (folder / "figures/captions.md").read_bytes() == before


@pytest.mark.parametrize("width", ["wide", "1in", "90", "nan"])
def test_a_width_that_no_figure_can_have_is_one_line(tmp_path, capsys, width):
    with pytest.raises(SystemExit):
        main(["--results", str(tmp_path), "--width", width])
    assert (
        f"--width: must be a width from 3in to 12in, such as 3.25in for one column or 6.75in for two, not '{width}'"
        in capsys.readouterr().err
    )


def test_a_width_goes_with_what_draws_figures(tmp_path):
    done = typed(main, "tables", "--results", tmp_path, "--width", "3.25")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--width: goes with `all` and `claims`" in done.stderr


def test_the_committed_captions_are_those_of_all_figures_that_the_records_allow():
    for name in COMMITTED:
        folder = ROOT / "results" / name
        drawings = drawings_of(folder, read_records(folder))
        captions = (folder / "figures/captions.md").read_text()
        assert set(drawings) == {path.stem for path in (folder / "figures").glob("*.pdf")}
        assert all(f"## {each}\n\n{drawing.caption}\n" in captions for each, drawing in drawings.items())
