"""The heartbeat of a cell's run, as `status` reads it; imports nothing heavy."""

import json
import time
from pathlib import Path
from typing import Any

HEARTBEAT = "heartbeat.json"
HOURS_A_YEAR = 24 * 365.25


def read_heartbeat(folder: Path) -> dict[str, Any]:
    """Returns the last heartbeat of a cell's run, with its age in seconds by the file's date; empty where there is none."""
    path = folder / HEARTBEAT
    try:
        beat: dict[str, Any] = json.loads(path.read_text())
        return beat | {"age_sec": max(0.0, time.time() - path.stat().st_mtime)}
    except (OSError, ValueError):
        return {}


def duration(hours: float) -> str:
    """Returns a time in the unit that suits it."""
    for unit, length in (("years", HOURS_A_YEAR), ("days", 24.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * length:
            return f"{hours / length:,.3g} {unit}" if hours < 1000 * length else f"{hours / length:,.0f} {unit}"
    return f"{3600 * hours:.0f} s"
