"""Files that stand where weights, images or settings should lie: what a clone or a download leaves when the content itself did not come."""

from pathlib import Path

from repro.errors import ReproError
from repro.harness.reading import open_regular

FIRST_BYTES = 256
# How such a file begins, in small letters after white space, and what it is, with the remedy.
PLACEHOLDERS = {
    b"version https://git-lfs.github.com/spec/": "a pointer of Git LFS and not the file itself; run `git lfs pull` in its repository",
    b"version https://hawser.github.com/spec/": "a pointer of Git LFS and not the file itself; run `git lfs pull` in its repository",
    b"/annex/objects/": "a pointer of git-annex and not the file itself; run `git annex get` in its repository",
    b"<!doctype html": "a web page and not the file itself; download it anew, by the link to the file and not to its page",
    b"<html": "a web page and not the file itself; download it anew, by the link to the file and not to its page",
    b"<?xml": "a server's answer in XML and not the file itself; download it anew",
}


def placeholder(path: Path) -> str:
    """Returns what a file is in place of its content, with the remedy; empty where nothing is known against it, or it cannot be read."""
    try:
        with open_regular(path) as file:
            begin = file.read(FIRST_BYTES).lstrip().lower()
    except OSError:
        return ""
    return next((what for beginning, what in PLACEHOLDERS.items() if begin.startswith(beginning)), "")


def refuse_placeholder(*paths: Path) -> None:
    """Makes sure that files hold their content, where they are there at all.

    Raises:
        ReproError: One is a pointer or a web page in its place.
    """
    for path in paths:
        if what := placeholder(path):
            raise ReproError(f"{path}: {what}")
