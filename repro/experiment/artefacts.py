"""Manifests: `made.json`, the hashes of a cell's files and inputs, written once all of them are there.

Every file is held against its SHA-256 whenever something is read from the cell, and what the cell was made from (images, the cells that it
starts from) is held against what lies there now. So a flipped bit, a file of another seed or size, or images that changed between two
cells end in one line instead of in a record.
"""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.errors import ReproError
from repro.experiment.cells import Cell, Experiment
from repro.experiment.records import Record, record_path
from repro.files.reading import read_json
from repro.files.writing import sha256_of_file, sha256_of_json, write_atomically
from repro.runtime.heartbeat import HEARTBEAT

MADE = "made.json"
CHECKSUM = "sha256"  # of all else that the file says
PASSING = (
    MADE,
    HEARTBEAT,
    "checkpoints",
    "snapshots",
    "branches",
    "samples",
    "tensorboard",
    "wandb",
)  # beside what was made, and of no cell's identity


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `made.json` says.

    Attributes:
        identity: The cell and the configuration that made it.
        files: Path below the cell's folder -> SHA-256.
        inputs: What it was made from: `images` and `labels`, and the digest of every cell that it needed.
        environment: What made it: versions, threads, device (`provenance.environment`).
        params: Parameters of its network; None where it has none.
        training, realised, base_sha256: As of its product.
        device_seconds, busy: The clock of its making.
    """

    identity: str
    files: dict[str, str]
    inputs: dict[str, str]
    environment: dict[str, Any]
    params: int | None = None
    training: dict[str, Any] | None = None
    realised: float | None = None
    base_sha256: str | None = None
    device_seconds: dict[str, float] = field(default_factory=dict)
    busy: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What others know the cell by: the same wherever and however often it is made, as long as the bytes are.

        The code that goes with a network is left out: this program never runs it, and another version of it is no other network.
        """
        files = {name: sha256 for name, sha256 in self.files.items() if not name.endswith(".py")}
        return sha256_of_json({"identity": self.identity, "files": files, "inputs": self.inputs})


def is_made(experiment: Experiment, cell: Cell) -> bool:
    """Says whether a cell's artefacts lie in its folder."""
    return (experiment.folder(cell) / MADE).exists()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes a cell's manifest, which says that the cell is made.

    Raises:
        ReproError: The folder cannot be written, or the disk is full.
    """
    said = dataclasses.asdict(manifest)
    write_atomically(folder / MADE, json.dumps(said | {CHECKSUM: sha256_of_json(said)}).encode())


def files_of(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file that a cell leaves, by its path below the cell's folder."""
    return {name: sha256_of_file(folder / name) for name in _names(folder)}


def read_manifest(experiment: Experiment, cell: Cell) -> Manifest:
    """Returns the manifest of a cell whose files are what was written; each file is hashed once by a process.

    Raises:
        ReproError: The cell has not been run here, another configuration ran it, or a file is missing, new, or other than it was.
    """
    folder, experiment = experiment.folder(cell), experiment.of(cell)
    manifest = _parsed(experiment, cell)
    if manifest.identity != experiment.identity(cell):
        other = manifest.identity.partition(" ")[0]
        if other != cell.name:
            raise ReproError(f"{folder}: the files of another cell, {other}; give the folder its name, or delete it")
        raise ReproError(f"{folder}: made by another configuration; delete the folder, or keep it and name another --runs folder")
    for name in sorted(manifest.files.keys() ^ set(_names(folder))):
        gone = name in manifest.files
        raise ReproError(f"{folder / name}: {f'missing; {remedy(folder)}' if gone else 'not of this cell; move it elsewhere'}")
    for name, expected in manifest.files.items():
        if (found := _hash_once(folder / name)) != expected:
            raise ReproError(f"{folder / name}: damaged, its SHA-256 is {found[:16]}..., not {expected[:16]}...; {remedy(folder)}")
    return manifest


def inputs_of(experiment: Experiment, cell: Cell) -> dict[str, str]:
    """Returns what a cell is made from, as it lies there now.

    Raises:
        ReproError: A cell that it needs is not here, is damaged, or was itself made from something else than lies there now.
    """
    found = _data(experiment)
    for needed in experiment.needs(cell):
        manifest = read_manifest(experiment, needed)
        check_inputs(experiment, needed, manifest)
        found[needed.name] = manifest.digest
    return found


def check_inputs(experiment: Experiment, cell: Cell, manifest: Manifest) -> None:
    """Makes sure that a cell was made from what lies there now; a cell that it needed may be gone, since nothing is read from it.

    Raises:
        ReproError: It was made from something else.
    """
    folder = experiment.folder(cell)
    for name, now in _data(experiment).items():
        if (then := manifest.inputs.get(name, "")) != now:
            raise ReproError(
                f"{folder}: made from other {name} than {experiment.images.name} has now (SHA-256 {then[:16]}..., now {now[:16]}...); "
                "restore the data, or keep these results and name other --results and --runs folders"
            )
    for needed in experiment.needs(cell):
        if is_made(experiment, needed):
            theirs = read_manifest(experiment, needed)
            check_inputs(experiment, needed, theirs)
            if manifest.inputs.get(needed.name) != theirs.digest:
                raise ReproError(f"{folder}: made from another {needed.name} than the one that lies beside it; {remedy(folder)}")


def check_record(experiment: Experiment, cell: Cell, record: Record) -> None:
    """Makes sure that a record is of what its cell's manifest and those of the cells that it needed say.

    What is gone is not asked, and a manifest that is damaged says nothing: whoever reads from its cell is told.

    Raises:
        ReproError: It is of something else.
    """
    if record["status"] != "done":
        return
    experiment, made = experiment.of(cell), record.get("made") or {"sha256": None, "inputs": {}}
    for other, said in [(cell, made["sha256"]), *((needed, made["inputs"].get(needed.name)) for needed in experiment.needs(cell))]:
        if not is_made(experiment, other):
            continue
        try:
            manifest = _parsed(experiment, other)
        except ReproError:
            continue
        base = (record.get("base") or {}).get("sha256", manifest.base_sha256)
        if base != manifest.base_sha256 or (said or manifest.digest) != manifest.digest:
            raise ReproError(
                f"{record_path(experiment.results, cell.name)}: the record is of another {other.name} than the one that lies in "
                f"{experiment.folder(other)}; restore that one, or delete the record and run the command again"
            )


def remedy(folder: Path) -> str:
    """Says how a cell is made anew."""
    return f"delete the folder {folder} and run the command again, which makes that cell anew"


def _parsed(experiment: Experiment, cell: Cell) -> Manifest:
    """Reads `made.json` and holds it against its own checksum."""
    folder = experiment.folder(cell)
    path = folder / MADE
    try:
        said = read_json(path)
        checksum = said.pop(CHECKSUM)
        manifest = Manifest(**said)
    except FileNotFoundError as error:
        raise ReproError(
            f"{folder}: nothing there; run `{experiment.program.typed} run {experiment.source} {' '.join(cell.words())}` first"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReproError(f"{path}: not readable ({error}); {remedy(folder)}") from error
    if checksum != sha256_of_json(said):
        raise ReproError(f"{path}: damaged, its checksum is not that of its content; {remedy(folder)}")
    return manifest


def _data(experiment: Experiment) -> dict[str, str]:
    images = experiment.images
    return {"images": images.sha256, "labels": hashlib.sha256(images.labels.numpy().tobytes()).hexdigest()}


def _names(folder: Path) -> list[str]:
    """Returns the paths of a cell's files, less its manifest and what comes and goes."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in paths if path.parts[0] not in PASSING and not path.name.startswith("."))


def _hash_once(path: Path) -> str:
    status = path.stat()
    return _hash(path, status.st_mtime_ns, status.st_size, status.st_ino)


@functools.lru_cache(maxsize=4096)
def _hash(path: Path, _changed: int, _size: int, _inode: int) -> str:
    return sha256_of_file(path)
