"""Detects pointers of Git LFS and git-annex, and web pages that were saved, in place of weights, images or settings."""

from pathlib import Path

from repro.errors import ReproError
from repro.files.reading import open_regular

FIRST_BYTES = 256
# First bytes, in lower case and without leading white space -> what such a file is, with the remedy.
PLACEHOLDERS = {
    b"version https://git-lfs.github.com/spec/": "a pointer of Git LFS and not the file itself; run `git lfs pull` in its repository",
    b"version https://hawser.github.com/spec/": "a pointer of Git LFS and not the file itself; run `git lfs pull` in its repository",
    b"/annex/objects/": "a pointer of git-annex and not the file itself; run `git annex get` in its repository",
    b"<!doctype html": "a web page and not the file itself; download it anew, by the link to the file and not to its page",
    b"<html": "a web page and not the file itself; download it anew, by the link to the file and not to its page",
    b"<?xml": "a server's answer in XML and not the file itself; download it anew",
}


def placeholder(path: Path) -> str:
    """Returns what stands in place of a file's content, with the remedy; empty where the file is none of these, or cannot be read."""
    try:
        with open_regular(path) as file:
            return placeholder_in(file.read(FIRST_BYTES))
    except OSError:
        return ""


def placeholder_in(begin: bytes) -> str:
    """Returns what a file that begins with these bytes, `FIRST_BYTES` of them, stands for, with the remedy; empty where it is itself."""
    begin = begin.lstrip().lower()
    return next((what for beginning, what in PLACEHOLDERS.items() if begin.startswith(beginning)), "")


def refuse_placeholder(*paths: Path) -> None:
    """Checks that files, where they exist, hold their content.

    Raises:
        ReproError: One is a pointer or a web page in its place.
    """
    for path in paths:
        if what := placeholder(path):
            raise ReproError(f"{path}: {what}")
