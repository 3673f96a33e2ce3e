"""Files that are damaged or were made to do harm: each is refused in one line that names it, and nothing of it is run."""

import contextlib
import hashlib
import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

import repro  # noqa: F401  (before diffusers)
from faults.lab import TINY, Outcome
from repro.cli import main
from repro.config import load_config
from repro.data.cifar10 import CIFAR10, read_cifar10
from repro.diffusion.ddpm import sampling_scheduler
from repro.errors import ReproError
from repro.files.places import Places
from repro.models.denoiser import build_base, load_denoiser, save_denoiser

# Nothing of it is trained or judged, so nothing has to be estimated first.
SMALL_CIFAR10 = ["--config", "cifar10_short"]
for setting in (
    "hours=0",
    "evaluation.metric=fid_classifier",
    "evaluation.samples=16",
    "evaluation.reference_images=16",
    "classifier.steps=1",
):
    SMALL_CIFAR10 += ["--set", setting]


class Payload:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def corrupt_data(folder: Path) -> Outcome:
    """Data files that are not what they should be."""
    outcome = Outcome("corrupt data files")
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 10
    for name in ("cut", "flipped", "no npz", "other arrays", "other kind", "official batch"):
        with outcome.trial(name):
            root = folder / name.replace(" ", "-")
            root.mkdir(parents=True)
            for split in ("train", "test"):
                np.savez(root / f"{split}.npz", images=images, labels=labels)
            sha256 = hashlib.sha256(images.tobytes()).hexdigest()
            path = root / "train.npz"
            content = path.read_bytes()
            if name == "official batch":
                path = root / CIFAR10.base_folder / CIFAR10.train_list[0][0]
                path.parent.mkdir()
                for member, _ in CIFAR10.train_list + CIFAR10.test_list:
                    (path.parent / member).write_bytes(content)
            elif name.startswith("other"):
                np.savez(path, **({"pixels": images} if name == "other arrays" else {"images": images / 255, "labels": labels}))
            else:
                middle = len(content) // 2
                path.write_bytes(
                    {"cut": content[:middle], "flipped": content[:middle] + b"\xff\x00" + content[middle + 2 :], "no npz": b"x"}[name]
                )
            _refused(
                folder,
                path.name,
                *SMALL_CIFAR10,
                "--data-root",
                str(root),
                "--set",
                f"data.sha256={sha256}",
            )
    for name in ("cut image", "no image", "bomb"):
        with outcome.trial(name):
            root = folder / name.replace(" ", "-")
            root.mkdir()
            for index in range(3):
                Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / f"{index}.png")
            path = root / "1.png"
            path.write_bytes({"cut image": path.read_bytes()[:60], "no image": b"text", "bomb": _bomb()}[name])
            _refused(folder, "1.png", *_tiny("data.name=folder", f"data.folder={root}"))
    return outcome


def hostile_archives(folder: Path) -> Outcome:
    """Archives, weights and folders that would run something or write elsewhere."""
    outcome, marker = Outcome("hostile archives, weights, folders"), folder / "marker"
    folder.mkdir(parents=True)
    poison = pickle.dumps({"data": Payload(marker), "labels": []})
    with outcome.trial("archive that leaves its folder"):
        root = folder / "archive"
        root.mkdir()
        with tarfile.open(root / CIFAR10.filename, "w:gz") as tar:
            for name in ("../../escaped", "/escaped", *(f"{CIFAR10.base_folder}/{member}" for member, _ in CIFAR10.train_list)):
                member = tarfile.TarInfo(name)
                member.size = len(poison)
                tar.addfile(member, io.BytesIO(poison))
        _refused(folder, CIFAR10.filename, *SMALL_CIFAR10, "--data-root", str(root))
    with outcome.trial("pickle with the official names and sums"):
        root = folder / "batches" / CIFAR10.base_folder
        root.mkdir(parents=True)
        lists = CIFAR10.train_list, CIFAR10.test_list
        for name, _ in lists[0] + lists[1]:
            (root / name).write_bytes(poison)
        md5 = hashlib.md5(poison, usedforsecurity=False).hexdigest()
        CIFAR10.train_list, CIFAR10.test_list = ([[name, md5] for name, _ in members] for members in lists)
        try:
            with _expected("refused"):
                read_cifar10(Places(cache=folder / "cache", data_root=folder / "batches"))
        finally:
            CIFAR10.train_list, CIFAR10.test_list = lists
    for name in ("weights are a pickle", "only a pickle", "header of lies", "widths of a giant", "weights that are not finite"):
        with outcome.trial(name):
            network = folder / name.replace(" ", "-")
            _network(network, name, marker)
            with _expected(str(network)):
                load_denoiser(network)
    with outcome.trial("checkpoint that is a pickle"):
        runs = folder / "runs" / "tiny" / "base-1-seed0" / "checkpoints"
        runs.mkdir(parents=True)
        torch.save(Payload(marker), runs / "step-000000004.safetensors")
        code, said = _main(["run", *_tiny(), "--methods", "base", *_places(folder)])
        assert code == 0 and "not a readable checkpoint" in said, said
    with outcome.trial("nothing was run"):
        assert not marker.exists()
        assert not list(folder.parent.rglob("escaped"))
    return outcome


def hostile_configurations(folder: Path) -> Outcome:
    """Configurations that are wrong or would reach out of their folder."""
    outcome = Outcome("hostile or mistaken configurations")
    folder.mkdir(parents=True)
    overrides = {
        "name=../../elsewhere": "name",
        "name=/elsewhere": "name",
        "ofa_training.zero_stage=3": "zero_stage",
        "ofa_training.steps=-1": "steps",
        "ofa_training.steps=1e300": "steps",
        "ofa_training.learning_rate=nan": "learning_rate",
        "ofa_training.batch_size='many'": "batch_size",
        "ofa_trainning.steps=1": "ofa_trainning",
        "sizes.trained=[2.0]": "trained",
        "network.norm_num_groups=0": "norm_num_groups",
        "execution.rank_timeout_sec=0": "rank_timeout_sec",
        "cluster.partition='x; touch marker'": "partition",
    }
    for override, key in overrides.items():
        with outcome.trial(override):
            _refused(folder, key, *_tiny(override))
    for name, content in {"binary": b"\xff\xfe\x00", "not TOML": b"name = = 1", "deep": b"x = " + b"[" * 5000, "a folder": None}.items():
        with outcome.trial(name):
            path = folder / name.replace(" ", "-")
            path.mkdir() if content is None else path.write_bytes(content)
            _refused(folder, str(path), "--config", str(path))
    return outcome


def _tiny(*overrides: str) -> list[str]:
    return ["--config", str(TINY), *(word for override in overrides for word in ("--set", override))]


def _places(folder: Path) -> list[str]:
    return ["--results", str(folder / "results"), "--runs", str(folder / "runs"), "--cache", str(folder / "cache")]


def _refused(folder: Path, named: str, *words: str) -> None:
    """Makes sure that a command ends with code 2 and one line that names what is wrong, and leaves no record."""
    code, said = _main(["run", *words, "--methods", "floor", *_places(folder)])
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and named in lines[0], f"code {code}: {said[-500:]}"
    assert not list((folder / "results").rglob("*.json")), "it left a record"


def _main(words: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(words)
    return code, said.getvalue()


@contextlib.contextmanager
def _expected(named: str) -> Iterator[None]:
    said = None
    try:
        yield
    except ReproError as error:
        said = str(error)
    assert said is not None, "it was not refused"
    assert named in said and "\n" not in said, said


def _network(folder: Path, fault: str, marker: Path) -> None:
    """Makes a folder as `save_denoiser` does, with a fault."""
    config = load_config(str(TINY))
    save_denoiser(build_base(config.network, seed=0), sampling_scheduler(config.diffusion, clip_sample=True), folder)
    weights, about = folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "unet" / "config.json"
    tensors = safetensors.torch.load_file(weights)
    if fault == "weights are a pickle":
        torch.save(Payload(marker), weights)
    elif fault == "only a pickle":
        weights.unlink()
        torch.save(Payload(marker), weights.with_suffix(".bin"))
    elif fault == "header of lies":
        weights.write_bytes((2**60).to_bytes(8, "little") + weights.read_bytes()[8:])
    elif fault == "widths of a giant":
        about.write_text(json.dumps(json.loads(about.read_text()) | {"widths": {"mid_block.resnets.0.conv1": [10**9, 16]}}))
    else:
        first = next(iter(tensors))
        safetensors.torch.save_file(tensors | {first: torch.full_like(tensors[first], torch.nan)}, weights, metadata={"format": "pt"})


def _bomb() -> bytes:
    """Returns a PNG of a few hundred bytes that says it holds 10^10 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, format="PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)
