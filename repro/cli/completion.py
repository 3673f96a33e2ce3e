"""Completion of a command in the shell, by argcomplete: `eval "$(register-python-argcomplete ofa-diffusion)"`.

argcomplete is imported where the shell asks, and nowhere else.
"""

import argparse
import os
from collections.abc import Sequence


def completing(option: argparse.Action, names: Sequence[str]) -> None:
    """Has the shell complete an option's value by some names and by TOML files."""

    def completions(prefix: str, **_: object) -> list[str]:
        from argcomplete.completers import FilesCompleter

        return [*names, *FilesCompleter(("toml",))(prefix)]

    setattr(option, "completer", completions)  # noqa: B010  (argparse does not know it)


def completed(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Returns the parser; where the shell asks for completions, prints these and ends the process."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # an error, where it is missing: nothing may be run

        argcomplete.autocomplete(parser)
    return parser
