"""Bases that were trained elsewhere: diffusers folders, and the hub's real client against a server on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from diffusers import DDIMPipeline, DDPMScheduler

from repro.config import Base, load_config
from repro.diffusion.ddpm import sampling_scheduler
from repro.errors import ReproError
from repro.experiment.pretrained import load_pretrained, origin
from repro.models.denoiser import build_base

REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/some-ddpm"


def from_folder(config, folder):
    return replace(config, base=Base(source="path", folder=str(folder), weights="raw"))


def same_weights(one, other):
    theirs = other.state_dict()
    return one.state_dict().keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.fixture
def network_folder(base, tmp_path):
    """The folder of a network, as `save_pretrained` writes it."""
    base.save_pretrained(tmp_path / "network")
    return tmp_path / "network"


def test_a_network_folder_is_loaded_bit_for_bit(tiny, base, network_folder, tmp_path):
    assert same_weights(load_pretrained(from_folder(tiny, network_folder), tmp_path), base)


def test_a_pipeline_folder_is_loaded_bit_for_bit(tiny, base, tmp_path):
    DDIMPipeline(unet=base, scheduler=sampling_scheduler(tiny.diffusion, clip_sample=True)).save_pretrained(tmp_path / "pipeline")
    assert same_weights(load_pretrained(from_folder(tiny, tmp_path / "pipeline"), tmp_path), base)


def test_another_architecture_is_refused_by_the_key_that_differs(tiny, network_folder, tmp_path):
    other = replace(tiny, network=replace(tiny.network, freq_shift=1))
    with pytest.raises(ReproError, match=r"its freq_shift is 0, the configuration's network has 1; change \[network\]"):
        load_pretrained(from_folder(other, network_folder), tmp_path)


def test_another_noise_schedule_is_refused(tiny, network_folder, tmp_path):
    DDPMScheduler(beta_end=0.03).save_pretrained(network_folder)
    with pytest.raises(ReproError, match=r"its beta_end is 0.03, the configuration says 0.02; change diffusion.beta_end"):
        load_pretrained(from_folder(tiny, network_folder), tmp_path)


def test_a_network_that_predicts_no_noise_is_refused(tiny, network_folder, tmp_path):
    DDPMScheduler(prediction_type="v_prediction").save_pretrained(network_folder)
    with pytest.raises(ReproError, match="predicts 'v_prediction'; only one that predicts the noise"):
        load_pretrained(from_folder(tiny, network_folder), tmp_path)


def test_pickled_weights_are_refused(tiny, base, tmp_path):
    base.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(ReproError, match=r"holds no diffusion_pytorch_model\.safetensors; weights are read as safetensors only"):
        load_pretrained(from_folder(tiny, tmp_path / "pickled"), tmp_path)


def test_damaged_weights_are_refused(tiny, network_folder, tmp_path):
    weights = network_folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ReproError, match=r"is not readable .*; fetch it again"):
        load_pretrained(from_folder(tiny, network_folder), tmp_path)


def test_no_diffusers_folder_is_refused(tiny, tmp_path):
    with pytest.raises(ReproError, match="is no diffusers folder"):
        load_pretrained(from_folder(tiny, tmp_path / "nowhere"), tmp_path)


def test_the_cifar10_network_is_the_one_on_the_hub(tmp_path):
    """The keys of google/ddpm-cifar10-32's config.json that differ from diffusers' defaults."""
    config = load_config("cifar10")
    with torch.device("meta"):
        ours = dict(build_base(config.network, seed=0).config)
    hub = {
        "norm_eps": 1e-6,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
        "attention_head_dim": None,
        "act_fn": "silu",
    }
    assert {key: ours[key] for key in hub} == hub
    for seed in (0, 3):  # one for all seeds
        assert origin(config, seed) == {
            "source": "hub",
            "weights": "raw",
            "repository": "google/ddpm-cifar10-32",
            "revision": "267b167dc01f0e4e61923ea244e8b988f84deb80",
        }


def test_a_branch_is_no_revision():
    with pytest.raises(ReproError, match="revision: must be the 40 digits of a commit"):
        Base(source="hub", repository=REPOSITORY, revision="main")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download needs, over a folder."""

    def __init__(self, folder, *arguments):
        self._folder = folder
        super().__init__(*arguments)

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def log_message(self, *_arguments):
        pass

    def _answer(self, *, with_body):
        path = urlsplit(self.path).path
        files = sorted(item.name for item in self._folder.iterdir())
        if path == f"/api/models/{REPOSITORY}/revision/{REVISION}":
            return self._send(
                json.dumps({"id": REPOSITORY, "sha": REVISION, "siblings": [{"rfilename": name} for name in files]}).encode(), with_body
            )
        if path.startswith(f"/api/models/{REPOSITORY}/tree/{REVISION}"):
            listing = [{"type": "file", "path": name, "size": (self._folder / name).stat().st_size, "oid": "0"} for name in files]
            return self._send(json.dumps(listing).encode(), with_body)
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{REVISION}/")
        if name in files:
            return self._send((self._folder / name).read_bytes(), with_body)
        self.send_error(404)
        return None

    def _send(self, content, with_body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@pytest.fixture
def hub(network_folder):
    """The address of a hub that holds the network."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, network_folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(tmp_path, endpoint):
    """Loads the base in a process of its own, since the client reads the hub's address once; prints the hash of its weights."""
    program = (
        "import sys, dataclasses, repro\n"
        "from pathlib import Path\n"
        "from repro.config import Base, load_config\n"
        "from repro.errors import ReproError\n"
        "from repro.experiment.pretrained import load_pretrained\n"
        f"base = Base(source='hub', repository={REPOSITORY!r}, revision={REVISION!r}, weights='raw')\n"
        "config = dataclasses.replace(load_config(sys.argv[1]), base=base)\n"
        "try:\n"
        "    model = load_pretrained(config, Path(sys.argv[2]))\n"
        "except ReproError as error:\n"
        "    sys.exit(f'error: {error}')\n"
        "print(sum(p.double().sum().item() for p in model.parameters()))\n"
    )
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    tiny = Path(__file__).parents[1] / "tiny.toml"
    command = [sys.executable, "-c", program, str(tiny), str(tmp_path / "cache")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_the_hub_client_downloads_a_pinned_revision_and_keeps_it(base, hub, tmp_path):
    expected = sum(p.double().sum().item() for p in base.parameters())
    first = fetch(tmp_path, hub)
    assert first.returncode == 0, first.stderr
    assert float(first.stdout) == expected
    assert list((tmp_path / "cache" / "hub").rglob(f"snapshots/{REVISION}/*.safetensors"))
    again = fetch(tmp_path, "http://127.0.0.1:9")  # nobody answers there
    assert again.returncode == 0, again.stderr
    assert float(again.stdout) == expected


@pytest.mark.slow
def test_an_unreachable_hub_is_one_line_with_the_remedy(tmp_path):
    done = fetch(tmp_path, "http://127.0.0.1:9")
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(f"error: base.repository {REPOSITORY} at {REVISION}: cannot be downloaded (")
    assert "--set base.source=path --set base.folder=DIR" in line
