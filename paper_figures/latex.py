"""Tables as LaTeX: floats for a column of a paper, and long tables on landscape pages for its appendix."""

import re
import textwrap
from collections.abc import Sequence

import pandas as pd

from paper_figures.cells import BUSY

ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    BUSY: r"$\dagger$",
    "\n": " ",
}
PACKAGES = "booktabs,longtable,pdflscape,tabularx"
# Points: of a line on a landscape page of article, of a letter at 7 pt, of a bold one, and between columns.
LANDSCAPE, LETTER, BOLD, GAP = 540.0, 4.15, 4.7, 6.0
SHORT, HEAD = 14, 8  # letters: longer texts are wrapped, and heads above short ones

Cells = Sequence[str]  # of a row, as LaTeX


def latex_text(text: str) -> str:
    """Escapes the special characters of LaTeX; a character that its default fonts lack becomes a question mark."""
    known = "".join(character if ord(character) < 256 or character in ESCAPES else "?" for character in text)
    return "".join(ESCAPES.get(character, character) for character in known)


def latex_number(text: str) -> str:
    """Returns a number, or several, as LaTeX: with signs, times, and a standard error in small."""
    escaped = re.sub(r"-(?=\d)", "$-$", latex_text(text)).replace(" x", r"\,$\times$")
    return re.sub(r" \$\\pm\$ ([\d.]+)", r"\\,{\\tiny$\\pm$\\,\1}", escaped)


def float_table(
    name: str, experiment: str, columns: str, rows: Sequence[Cells | str], caption: str, notes: Sequence[str], *, wide: bool = False
) -> str:
    """Writes a table of the width of a column, or of a page if `wide`.

    Args:
        name: Of the file, without its suffix.
        experiment: The experiment, which is part of the label.
        columns: The columns of a `tabularx`, of which at least one is an `X`.
        rows: The rows, the first one that of the heads; a text is a rule or another line of its own.
        caption: A plain text.
        notes: Plain texts, below the table.
        wide: Whether it spans both columns of a paper.
    """
    environment = "table*" if wide else "table"
    head, *body = (row if isinstance(row, str) else " & ".join(row) + r" \\" for row in rows)
    lines = [
        *_comments(name),
        rf"\begin{{{environment}}}",
        rf"\caption{{{latex_text(caption)}.}}",
        rf"\label{{tab:{experiment}:{name}}}",
        r"\smallskip\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabularx}}{{\linewidth}}{{@{{}}{columns}@{{}}}}",
        *(r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
        r"\end{tabularx}",
        r"\par\smallskip",
        *[rf"\par\raggedright {latex_text(note)}." for note in notes],
        rf"\end{{{environment}}}",
    ]
    return "\n".join(lines) + "\n"


def panel(title: str, n_columns: int) -> str:
    """Returns the line that begins a part of a float."""
    return rf"\multicolumn{{{n_columns}}}{{@{{}}l}}{{\emph{{{title}}}}} \\"


def long_table(shown: pd.DataFrame, notes: Sequence[str], title: str, *, name: str, experiment: str, left: int = 1) -> str:
    """Writes a table of strings for an appendix: as long as it is, its long texts wrapped; the first `left` columns begin at the left."""
    columns, heads = zip(*_columns(_percent_in_heads(shown), left), strict=True)
    head = " & ".join(heads) + r" \\"
    lines = [
        *_comments(name),
        "% In a document of two columns it stands after \\onecolumn.",
        r"\begin{landscape}",
        r"\scriptsize\setlength{\tabcolsep}{3pt}\setlength{\LTcapwidth}{\linewidth}",
        rf"\begin{{longtable}}{{@{{}}{''.join(columns)}@{{}}}}",
        rf"\caption{{{latex_text(title)}.}}\label{{tab:{experiment}:{name}}}\\",
        *(r"\toprule", head, r"\midrule", r"\endfirsthead", r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"),
        *(" & ".join(map(latex_number, row)) + r" \\" for row in _percent_in_heads(shown).to_numpy().tolist()),
        r"\end{longtable}",
        *[rf"\par\raggedright {latex_text(note)}." for note in notes],
        r"\end{landscape}",
    ]
    return "\n".join(lines) + "\n"


def _comments(name: str) -> list[str]:
    alone = rf"\documentclass{{article}}\usepackage{{{PACKAGES}}}\begin{{document}}\input{{{name}}}\end{{document}}"
    return [rf"% In a paper: \usepackage{{{PACKAGES}}} and \input{{{name}}}. Alone: pdflatex -jobname {name} '{alone}'"]


def _percent_in_heads(shown: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of which the columns that are all per cent say so in their head alone."""
    found = {name: [text for text in shown[name] if text] for name in shown.columns}
    percent = [
        name for name, texts in found.items() if texts and all(re.fullmatch(r"[-+.()\d %]+", text) and "%" in text for text in texts)
    ]
    stripped = shown.assign(**{name: shown[name].str.replace(" %", "") for name in percent})
    return stripped.rename(columns={name: name if "%" in name else f"{name} (%)" for name in percent})


def _columns(shown: pd.DataFrame, left: int) -> list[tuple[str, str]]:
    """Returns each column's type and head: long texts are wrapped to the fewest lines at which the table fits a landscape page."""
    texts = {name: [str(text) for text in shown[name]] for name in shown.columns}
    heads = {name: textwrap.wrap(name, HEAD, break_long_words=False) or [""] for name in shown.columns}
    wrapped = [name for index, name in enumerate(texts) if index < left or _longest(texts[name]) > SHORT]
    short = [max(LETTER * _longest(texts[name]), BOLD * _longest(heads[name])) for name in texts if name not in wrapped]
    room = LANDSCAPE - GAP * len(texts) - sum(short)
    widths = next(
        (widths for lines in range(1, 9) if LETTER * sum((widths := _widths(wrapped, texts, lines)).values()) <= room),
        _widths(wrapped, texts, 9),
    )
    stretch = max(1.0, room / (LETTER * max(1, sum(widths.values()))))
    found = []
    for index, name in enumerate(texts):
        if name in wrapped:
            side = "raggedright" if index < left else "raggedleft"
            column = rf">{{\{side}\arraybackslash}}p{{{LETTER * stretch * widths[name]:.1f}pt}}"
            found.append((column, rf"\textbf{{{latex_text(name)}}}"))
        else:
            lines_of_head = r"\\".join(rf"\textbf{{{latex_text(line)}}}" for line in heads[name])
            found.append(("r", rf"\shortstack[r]{{{lines_of_head}}}"))
    return found


def _longest(texts: Sequence[str]) -> int:
    """Returns the length of the longest text in letters; a standard error is in small ones."""
    return max((len(text) - (len(text.partition(" ± ")[2]) + 2) // 3 for text in texts), default=0)


def _widths(names: Sequence[str], texts: dict[str, list[str]], lines: int) -> dict[str, int]:
    """Returns the least width of each column, in letters, at which no text takes more than so many lines."""

    def least(name: str) -> int:
        words = _longest([word for text in [name, *texts[name]] for word in re.split(r"[ -]", text)])
        longest = _longest(texts[name])
        return next(
            (width for width in range(words, longest) if all(len(textwrap.wrap(text, width)) <= lines for text in texts[name])),
            max(words, longest),
        )

    return {name: least(name) for name in names}
