"""Every damage: bits, lengths, twins, keys, and the data beneath."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from damage.lab import Damage, Trial, edited, leaves
from repro.files.sealed import write_sealed

WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
FLIPS = 3
# Whose folder is damaged, its twins of another seed and of another size, and what reads it next.
CELLS = (
    ("base-1-seed0", "base-1-seed1", None, (), ("ofa_joint-seed0",)),
    ("ofa_joint-seed0", "ofa_joint-seed1", None, (), ("ofa-0.5-seed0",)),
    ("ofa-0.5-seed0", "ofa-0.5-seed1", "ofa-1-seed0", ("ofa-0.5-seed0",), ()),
    ("diff_pruning_scores-seed0", "diff_pruning_scores-seed1", None, (), ("diff_pruning-0.5-seed0",)),
    ("diff_pruning-0.5-seed0", "diff_pruning-0.5-seed1", "diff_pruning-1-seed0", ("diff_pruning-0.5-seed0",), ()),
)
# Of files of one kind, whose keys are edited.
KEYS_EDITED = {
    "made.json": ("ofa_joint-seed0", "ofa-0.5-seed0"),
    "plan.json": ("ofa_joint-seed0",),
    "config.json": ("base-1-seed0", "ofa-0.5-seed0"),
    "scheduler_config.json": ("base-1-seed0",),
    "model_index.json": ("base-1-seed0",),
}
JUDGED_AGAIN = ("ofa-0.5-seed0",)


def all_trials(finished: Path, seed: int = 0) -> list[Trial]:
    """Returns every trial on a finished run."""
    chance = random.Random(seed)
    return [*_cells(finished, chance), *_caches(finished, chance), *_records(finished, chance), *_data(), *_samples()]


def _cells(finished: Path, chance: random.Random) -> Iterator[Trial]:
    for cell, other_seed, other_size, again, forget in CELLS:
        folder = finished / "runs" / "tiny" / cell
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(finished).as_posix()
            twins = [name.replace(cell, twin) for twin in (other_seed, other_size) if twin]
            for title, damage in _bytes(finished, name, twins, chance):
                yield Trial(f"cell: {path.name}", title, damage, again, forget)
            if cell in KEYS_EDITED.get(path.name, ()):
                for title, damage in _keys(path, name):
                    yield Trial(f"cell: {path.name}", title, damage, again, forget)
        for twin in filter(None, (other_seed, other_size)):
            yield Trial("cell: folder", f"{cell} swapped with {twin}", _swap(f"runs/tiny/{cell}", f"runs/tiny/{twin}"), again, forget)
            model = _swap(f"runs/tiny/{cell}/model", f"runs/tiny/{twin}/model")
            if (folder / "model").exists():
                yield Trial("cell: folder", f"{cell}'s model swapped with {twin}'s", model, again, forget)


def _caches(finished: Path, chance: random.Random) -> Iterator[Trial]:
    for path in sorted(
        (*(finished / "runs" / "tiny").glob("*.safetensors"), *(finished / "runs" / "tiny" / "features").glob("*.safetensors"))
    ):
        name = path.relative_to(finished).as_posix()
        for title, damage in _bytes(finished, name, [f"runs/tiny/base-1-seed0/{WEIGHTS}"], chance):
            yield Trial("cache: classifier or features", title, damage, JUDGED_AGAIN)
    for path in sorted((finished / "cache" / "data").glob("*.npy")):
        name = path.relative_to(finished).as_posix()
        for title, damage in _bytes(finished, name, [], chance):
            yield Trial("cache: decoded pixels", title, damage, JUDGED_AGAIN)
        yield Trial("cache: decoded pixels", f"{name}: 400 bytes zeroed", _zeroed(name, 400), JUDGED_AGAIN)


def _records(finished: Path, chance: random.Random) -> Iterator[Trial]:
    for cell, twins in (("ofa-0.5-seed0", ("ofa-0.5-seed1", "ofa-1-seed0")), ("ofa_joint-seed0", ("ofa_joint-seed1",))):
        name = f"results/tiny/{cell}.json"
        for title, damage in _bytes(finished, name, [f"results/tiny/{twin}.json" for twin in twins], chance):
            yield Trial("record", title, damage, verb="records")
        for title, damage in _keys(finished / name, name):
            if cell == "ofa-0.5-seed0" or "provenance.config." not in title:
                yield Trial("record", title, damage, verb="records")
        yield Trial("record", f"{name}: a key twice", _key_twice(name), verb="records")
    strips = ("base-1-seed0", "ofa-0.5-seed0")
    for cell in strips:
        name = f"results/tiny/samples/{cell}.png"
        for title, damage in _bytes(finished, name, ["results/tiny/samples/ofa-1-seed0.png"], chance):
            yield Trial("strip of samples", title, damage, verb="report")


def _data() -> Iterator[Trial]:
    def first(folder: Path) -> Path:
        return sorted((folder / "images" / "3").glob("*.png"))[0]

    def inverted(folder: Path) -> None:
        with Image.open(first(folder)) as image:
            pixels = 255 - np.asarray(image)
        Image.fromarray(pixels).save(first(folder))

    def kept_time(folder: Path) -> None:
        path, status = first(folder), first(folder).stat()
        inverted(folder)
        content = path.read_bytes()
        path.write_bytes(content[: status.st_size].ljust(status.st_size, b"\0"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def half_removed(folder: Path) -> None:
        for path in sorted((folder / "images").rglob("*.png"))[::2]:
            path.unlink()

    changes: dict[str, Damage] = {
        "an image inverted": inverted,
        "an image altered, size and time kept": kept_time,
        "an image added": lambda folder: shutil.copy(first(folder), folder / "images" / "3" / "9999.png"),
        "an image removed": lambda folder: first(folder).unlink(),
        "an image renamed, so that it comes last": lambda folder: first(folder).rename(folder / "images" / "3" / "9999.png"),
        "an image moved to another label": lambda folder: first(folder).rename(folder / "images" / "4" / first(folder).name),
        "half of the images removed": half_removed,
        "a label's folder renamed": lambda folder: (folder / "images" / "3").rename(folder / "images" / "z"),
        "two images swapped": _swap_images,
    }
    for title, change in changes.items():
        yield Trial("data", f"{title}, then a subnet judged", change, JUDGED_AGAIN)
        yield Trial("data", f"{title}, then a joint run", change, forget=("ofa_joint-seed0", "ofa-0.5-seed0"))


def _swap_images(folder: Path) -> None:
    one, other = sorted((folder / "images" / "3").glob("*.png"))[:2]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def _samples() -> Iterator[Trial]:
    """Samples that lie in the folder of a cell that is to be judged."""

    def planted(name: str, make: Damage) -> Trial:
        return Trial("samples", name, make, JUDGED_AGAIN)

    def black(folder: Path) -> None:
        place = folder / "runs" / "tiny" / "ofa-0.5-seed0" / "samples"
        place.mkdir()
        for seed in (0, 1):
            for start in (0, 16):
                path = place / f"seed{seed}-{start:06d}.safetensors"
                write_sealed(path, {"pixels": torch.zeros(16, 1, 8, 8, dtype=torch.uint8)}, {"network": "0" * 64, "file": path.name})

    def garbage(folder: Path) -> None:
        place = folder / "runs" / "tiny" / "ofa-0.5-seed0" / "samples"
        place.mkdir()
        (place / "seed0-000000.safetensors").write_bytes(b"\0" * 1000)

    yield planted("black images of another network", black)
    yield planted("zeros in place of a file of samples", garbage)


def _bytes(finished: Path, name: str, twins: list[str], chance: random.Random) -> Iterator[tuple[str, Damage]]:
    """Yields bits flipped, the file cut, emptied, and swapped with its twins where these differ from it."""
    content = (finished / name).read_bytes()
    places = sorted({chance.randrange(len(content)) for _ in range(FLIPS)})
    for place in (*places, len(content) - 1):
        bit = 1 << chance.randrange(7)
        yield (
            f"{name}: bit {bit} of byte {place} flipped",
            _written(name, content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]),
        )
    yield f"{name}: cut in half", _written(name, content[: len(content) // 2])
    yield f"{name}: its last two bytes missing", _written(name, content[:-2])  # the last one of a text may be its newline
    yield f"{name}: emptied", _written(name, b"")
    for twin in twins:
        if (finished / twin).is_file() and (finished / twin).read_bytes() != content:
            yield f"{name}: swapped with {twin}", _swap(name, twin)


def _keys(path: Path, name: str) -> Iterator[tuple[str, Damage]]:
    """Yields each key of a JSON file edited."""
    content = json.loads(path.read_text())
    for place in leaves(content):
        changed = json.loads(json.dumps(content))
        part = changed
        for step in place[:-1]:
            part = part[step]
        part[place[-1]] = edited(part[place[-1]])
        title = ".".join(map(str, place))
        yield f"{name}: {title} edited", _written(name, json.dumps(changed, indent=2, sort_keys=True).encode())


def _key_twice(name: str) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(path.read_text().replace("{", '{"status": "done",', 1))

    return damage


def _written(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content) and None


def _zeroed(name: str, count: int) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-count] + b"\0" * count)

    return damage


def _swap(one: str, other: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / one).rename(folder / "swapped")
        (folder / other).rename(folder / one)
        (folder / "swapped").rename(folder / other)

    return damage
