"""A finished run on real images in a folder, and what is typed next over a damaged copy of it."""

import contextlib
import io
import json
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from paper_figures.__main__ import main as figures
from repro.__main__ import main as repro

TINY = Path(__file__).resolve().parents[1] / "tiny.toml"
IMAGES = 240
METHODS = "base,ofa,diff_pruning"
SETTINGS = (
    "trial=false",
    "data.name=folder",
    "data.folder=images",
    "classifier.least_accuracy=0",
    "evaluation.samples=24",
    "pruning.timesteps=20",
)
JUDGED = ("quality", "size", "base", "training", "delivered_by")

Damage = Callable[[Path], None]
Command = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Trial:
    """A damage, and the command that must notice it.

    Attributes:
        kind: What is damaged.
        name: Which file or key, and how.
        damage: Does it, in a copy of the finished run.
        again: The cells whose records are deleted before the command is typed, so that it has something to do.
        forget: Those whose folders are deleted too, so that they are made anew.
        verb: `run`, or a verb that reads records.
    """

    kind: str
    name: str
    damage: Damage
    again: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()
    verb: str = "run"


@dataclass(frozen=True)
class Verdict:
    """What came of a trial: `noticed` (refused or mended, and said) or not, a traceback or not, and the line that says it."""

    kind: str
    name: str
    noticed: bool
    traceback: bool
    said: str


def make_images(folder: Path) -> None:
    """Writes scikit-learn's handwritten digits as PNG files, a folder for each label."""
    bunch = load_digits()
    for index in range(IMAGES):
        path = folder / f"{bunch.target[index]}" / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(bunch.images[index] * (255 / 16)).astype(np.uint8)).save(path)


def make_run(folder: Path) -> None:
    """Runs the experiment of two seeds in a folder, from images to records."""
    make_images(folder / "images")
    with contextlib.chdir(folder):
        code, said = typed(repro, words("run"))
    assert code == 0, said


def words(verb: str) -> list[str]:
    """Returns a verb and what names the experiment, in its folder."""
    sets = [word for value in SETTINGS for word in ("--set", value)]
    places = [word for name in ("results", "runs", "cache") for word in (f"--{name}", name)]
    return [verb, "--config", str(TINY), *places, *sets, "--methods", METHODS, "--seeds", "0,1"]


def commands(verb: str) -> Iterator[tuple[Command, list[str]]]:
    """Yields what a user types after a trial's damage."""
    if verb == "run":
        yield repro, words("run")
    elif verb == "report":
        yield figures, ["report", "--results", "results"]
    else:
        yield figures, ["overhead", "--results", "results"]
        yield repro, words("status")


def tried(trial: Trial, finished: Path, folder: Path) -> Verdict:
    """Copies the finished run, damages the copy, types what reads it, and judges what is said."""
    shutil.copytree(finished, folder)
    trial.damage(folder)
    for cell in (*trial.again, *trial.forget):
        (folder / "results" / "tiny" / f"{cell}.json").unlink(missing_ok=True)
    for cell in trial.forget:
        shutil.rmtree(folder / "runs" / "tiny" / cell, ignore_errors=True)
    noticed, broke, lines = False, False, []
    for command, typed_words in commands(trial.verb):
        with contextlib.chdir(folder):
            code, said = typed(command, typed_words)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        mended = [line for line in said.splitlines() if "drawn again" in line or "is removed" in line]
        broke |= "Traceback" in said
        noticed |= (code in (1, 2) and len(errors) == 1) or (code == 0 and bool(mended) and same(folder, finished, trial))
        lines += [*errors, *mended]
    shutil.rmtree(folder, ignore_errors=True)
    return Verdict(trial.kind, trial.name, noticed, broke, "; ".join(lines))


def same(folder: Path, finished: Path, trial: Trial) -> bool:
    """Says whether what was made again is what it was before the damage."""
    for cell in (*trial.again, *trial.forget):
        ours, theirs = (json.loads((place / "results" / "tiny" / f"{cell}.json").read_text()) for place in (folder, finished))
        if any(ours[key] != theirs[key] for key in JUDGED):
            return False
    return True


def typed(command: Command, typed_words: Sequence[str]) -> tuple[int, str]:
    """Runs a command in this process and returns its exit code and all that it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = command(typed_words)
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc(file=said)
            code = 1
    return code, said.getvalue()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the place of every plain value of a JSON document; of a list, of its first two items."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value[:2]):
            yield from leaves(item, (*path, index))
    else:
        yield path


def edited(value: Any) -> Any:
    """Returns another value of the same kind where there is one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 1.01 + 1 if isinstance(value, float) else value + 1
    if isinstance(value, str):
        return value[:-1] + ("a" if value[-1:] != "a" else "b")
    return [1] if value == [] else {"a": 1} if value == {} else 1
