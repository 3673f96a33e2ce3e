"""What a stranger sends runs no code and takes no memory: the sources, a whole run, networks, and other files of a run."""

import ast
import dataclasses
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DDIMPipeline
from support.hostile import Payload, refused

from repro.cli import main
from repro.config import Base
from repro.diffusion.ddpm import sampling_scheduler
from repro.experiment.pretrained import load_pretrained
from repro.metrics.classifier import load_classifier
from repro.models.denoiser import load_denoiser, load_pipeline, save_denoiser
from repro.ofa.allocation import Plan, make_plan
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet
from repro.training.checkpoint import load_newest

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "tiny.toml"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG = "unet/config.json"

pytestmark = pytest.mark.timeout(60)  # a pipe that is waited for fails the test


# The source


FORBIDDEN_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    *("read_pickle", "load_state_dict_from_url", "system", "popen"),
    *("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list", "recv_object_list"),
}
# The class that the official CIFAR-10's format needs, which finds three names alone; and the kind of an error.
PICKLE_ALLOWED = {("repro/data/cifar10.py", "Unpickler"), ("repro/metrics/inception.py", "UnpicklingError")}
GUARDS = {("torch", "load"): ("weights_only", True), ("np", "load"): ("allow_pickle", False), ("numpy", "load"): ("allow_pickle", False)}


def offences(name, source):
    """Lists what a source file must not do."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            found += [f"imports {module}" for module in modules if module.partition(".")[0] in FORBIDDEN_MODULES]
            found += ["imports from pickle"] * (isinstance(node, ast.ImportFrom) and node.module == "pickle")
            found += ["renames pickle"] * any(alias.name == "pickle" and alias.asname for alias in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
            found += [f"pickle.{node.attr}"] * ((name, node.attr) not in PICKLE_ALLOWED)
        if isinstance(node, ast.Call):
            found += _bad_call(node)
    return found


def _bad_call(node):
    if isinstance(node.func, ast.Name):
        return [node.func.id] * (node.func.id in FORBIDDEN_CALLS)
    if not isinstance(node.func, ast.Attribute):
        return []
    keywords = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
    bad = [node.func.attr] * (node.func.attr in FORBIDDEN_ATTRIBUTES)
    bad += ["shell"] * bool(keywords.get("shell"))
    bad += ["trust_remote_code"] * bool(keywords.get("trust_remote_code"))
    owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
    guard = GUARDS.get((owner, node.func.attr))
    return bad + [f"{owner}.load"] * (guard is not None and keywords.get(guard[0]) is not guard[1])


@pytest.mark.parametrize("folder", ["repro", "baselines", "paper_figures"])
def test_no_source_loads_a_pickle_or_runs_what_it_reads(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {str(path.relative_to(ROOT)): offences(path.relative_to(ROOT).as_posix(), path.read_text()) for path in files}
    assert {name: bad for name, bad in found.items() if bad} == {}


@pytest.mark.parametrize(
    "source",
    [
        *("import dill", "import joblib.numpy_pickle", "from shelve import open", "from pickle import loads", "import pickle as p"),
        *("import pickle\npickle.loads(x)", "import pickle\npickle.Unpickler(x)", "torch.load(x)", "torch.load(x, weights_only=False)"),
        *("np.load(x)", "np.load(x, allow_pickle=True)", "eval(x)", "exec(x)", "yaml.load(x)\nimport yaml", "pd.read_pickle(x)"),
        *("subprocess.run(x, shell=True)", "dist.all_gather_object(a, b)", "X.from_pretrained(x, trust_remote_code=True)"),
    ],
)
def test_the_rule_on_sources_sees_what_it_forbids(source):
    assert offences("repro/x.py", source)


# A whole run


WATCHED = """
import sys
from pathlib import Path
log = open(sys.argv[1], "w")
sys.addaudithook(lambda event, what: event == "pickle.find_class" and print(what[0], what[1], file=log, flush=True))
from repro.cli import main
places = ["--config", sys.argv[2], "--results", "results", "--runs", "runs"]
assert main(["run", *places, "--methods", "base,ofa", "--yes"]) == 0
assert main(["run", *places, "--methods", "base,ofa", "--yes"]) == 0
assert main(["status", *places]) == 0
assert main(["extract", *places, "--size", "0.5", "--out", "subnet"]) == 0
from repro.models.denoiser import load_pipeline
load_pipeline("subnet")(batch_size=1, num_inference_steps=2)
from paper_figures.__main__ import main as figures
assert figures(["--results", "results"]) == 0
import pickle, fractions
pickle.loads(pickle.dumps(fractions.Fraction(1, 2)))  # so that a hook which sees nothing is seen
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_whole_run_unpickles_nothing(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "log"), str(TINY)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "log").read_text().split("\n")[:-1] == ["fractions Fraction"]


# Networks


@pytest.fixture
def folder(base, tiny, tmp_path):
    """A folder as `extract` makes it, to spoil."""
    save_denoiser(base, sampling_scheduler(tiny.diffusion, clip_sample=True), tmp_path / "subnet")
    return tmp_path / "subnet"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def with_tensors(folder, function):
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    function(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


def raw(folder, header, data=b"", length=None):
    """Writes a safetensors file whose header says what it likes."""
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def lying(dtype="F32", shape=(8, 1, 3, 3), begin=0, end=288):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def only_a_pickle(folder, marker):
    (folder / WEIGHTS).unlink()
    torch.save({"conv_in.weight": Payload(marker)}, folder / "unet/diffusion_pytorch_model.bin")


def index_to_a_pickle(folder, marker):
    only_a_pickle(folder, marker)
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "diffusion_pytorch_model.bin"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def module_beside(folder, marker):
    (folder / "unet/evil.py").write_text(f"open({str(marker)!r}, 'w')\nfrom diffusers import UNet2DModel as PrunedUNet2DModel")


def widths(name, width):
    return lambda folder, _marker: change(folder / CONFIG, widths={name: width})


def setting(**values):
    return lambda folder, _marker: change(folder / CONFIG, **values)


HOSTILE_NETWORKS = {
    "another class": (setting(_class_name="UNet2DConditionModel"), "config.json describes no PrunedUNet2DModel"),
    "class as a path": (setting(_class_name=["os", "system"]), "config.json describes no PrunedUNet2DModel"),
    "auto_map": (setting(auto_map={"AutoModel": "evil.UNet"}), "its auto_map is "),
    "quantization": (setting(quantization_config={"quant_method": "gguf"}), "its quantization_config is "),
    "another block": (setting(down_block_types=["os.system", "DownBlock2D"]), "down_block_types: unknown value 'os.system'"),
    "another activation": (setting(act_fn="__import__('os')"), "act_fn: unknown value "),
    "huge network": (setting(block_out_channels=[32768, 65536]), "conv_in.bias is F32 [8], the network's [32768]"),
    "endless network": (setting(layers_per_block=10**9), "layers_per_block: must be at least 1 and at most 64"),
    "many levels": (setting(block_out_channels=[8] * 10**5), "block_out_channels: needs 1 to 16 widths"),
    "huge integer": (setting(block_out_channels=[8, 10**30]), "an integer has more than 64 bits"),
    "no number": (setting(norm_eps=float("nan")), "nan is no number in JSON"),
    "huge width": (widths("conv_in", [10**9, 3]), "widths: conv_in is [1000000000, 3], and the whole network's [8, 1]"),
    "negative width": (widths("conv_in", [-8, 1]), "widths: conv_in is [-8, 1]"),
    "no width": (widths("conv_in", [0, 1]), "widths: conv_in is [0, 1]"),
    "broken width": (widths("conv_in", [4.5, 1]), "widths: conv_in is [4.5, 1]"),
    "true width": (widths("conv_in", [True, 1]), "widths: conv_in is [True, 1]"),
    "short width": (widths("conv_in", [4]), "widths: conv_in is [4]"),
    "unknown layer": (widths("conv_out.evil", [4, 1]), "widths: conv_out.evil is [4, 1], and the whole network's has no such layer"),
    "dunder layer": (widths("__class__", [4, 1]), "widths: __class__ is [4, 1]"),
    "attribute": (widths("conv_in.weight", [4, 1]), "widths: conv_in.weight is [4, 1]"),
    "widths that do not fit": (widths("conv_in", [4, 1]), "got weight of shape [8]"),
    "widths of a list": (setting(widths=[["conv_in", [4, 1]]]), ""),
    "no JSON": (lambda folder, _: (folder / CONFIG).write_text("{"), "Expecting property name"),
    "deep JSON": (lambda folder, _: (folder / CONFIG).write_text("[" * 100_000), "nested too deeply"),
    "huge JSON": (lambda folder, _: (folder / CONFIG).write_bytes(b" " * (2**24 + 1)), "More than 16 MiB"),
    "only a pickle": (only_a_pickle, "No such file or directory"),
    "index to a pickle": (index_to_a_pickle, "names 'diffusion_pytorch_model.bin', which is no safetensors file beside it"),
    "pickle in its place": (lambda folder, marker: torch.save(Payload(marker), folder / WEIGHTS), ""),
    "plain pickle in its place": (lambda folder, marker: (folder / WEIGHTS).write_bytes(pickle.dumps(Payload(marker))), ""),
    "endless header": (lambda folder, _: raw(folder, {}, length=2**62), ""),
    "header longer than the file": (lambda folder, _: raw(folder, {}, length=10**6), ""),
    "offset beyond the end": (lambda folder, _: raw(folder, {"conv_in.weight": lying(end=2**40)}, b"\0" * 288), ""),
    "overlapping tensors": (lambda folder, _: raw(folder, {"a": lying(), "b": lying()}, b"\0" * 288), ""),
    "shape that overflows": (lambda folder, _: raw(folder, {"conv_in.weight": lying(shape=(2**62, 8))}, b"\0" * 288), ""),
    "missing weight": (lambda folder, _: with_tensors(folder, lambda t: t.pop("conv_in.weight")), "conv_in.weight is missing"),
    "more weights": (
        lambda folder, _: with_tensors(folder, lambda t: t.update({"__class__": torch.ones(1)})),
        "__class__ is no part of the network",
    ),
    "other shape": (
        lambda folder, _: with_tensors(folder, lambda t: t.update({"conv_in.weight": torch.ones(8, 3, 3, 3)})),
        "conv_in.weight is F32 [8, 3, 3, 3], the network's [8, 1, 3, 3]",
    ),
    "other kind": (
        lambda folder, _: with_tensors(folder, lambda t: t.update({"conv_in.bias": torch.ones(8, dtype=torch.int64)})),
        "conv_in.bias is I64 [8]",
    ),
    "not a number": (lambda folder, _: with_tensors(folder, lambda t: t["conv_in.bias"].fill_(torch.nan)), "conv_in.bias is not finite"),
    "a pipe": (lambda folder, _: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)), "No regular file"),
    "a pipe for JSON": (lambda folder, _: ((folder / CONFIG).unlink(), os.mkfifo(folder / CONFIG)), "No regular file"),
    "a device": (lambda folder, _: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).symlink_to("/dev/zero")), "No regular file"),
    "a link to a text": (lambda folder, _: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).symlink_to("/etc/passwd")), ""),
}


@pytest.mark.parametrize("kind", HOSTILE_NETWORKS)
def test_a_hostile_network_is_refused_in_one_line_and_takes_no_memory(kind, folder, marker):
    spoil, reason = HOSTILE_NETWORKS[kind]
    spoil(folder, marker)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = refused(load_denoiser, folder)
    assert line.startswith(f"{folder}: not a readable network (") and reason in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


def test_what_lies_beside_a_network_or_is_said_of_its_origin_does_nothing(base, folder, marker):
    module_beside(folder, marker)
    change(folder / CONFIG, _name_or_path="https://example.com/evil", _diffusers_version="../../..")
    change(folder / "model_index.json", unet=["evil", "PrunedUNet2DModel"], _class_name=["evil", "X"])
    for loaded in (load_denoiser(folder), load_pipeline(folder).unet):
        assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"_class_name": "LCMScheduler"}, "scheduler_config.json describes no DDIMScheduler"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps: must be at least 1 and at most"),
        ({"trained_betas": [0.1] * 3}, "its trained_betas is [0.1, 0.1, 0.1], which nothing here has"),
        ({"beta_schedule": "os.system"}, "beta_schedule: unknown value 'os.system'"),
        ({"evil": 1}, "its evil is 1, which nothing here has"),
    ],
)
def test_a_hostile_sampler_is_refused(values, reason, folder):
    change(folder / "scheduler/scheduler_config.json", **values)
    assert refused(load_pipeline, folder).startswith(f"{folder}: not a readable sampler ({reason}")


@pytest.mark.parametrize("kind", ["only a pickle", "index to a pickle", "not a number", "offset beyond the end", "huge JSON", "a pipe"])
def test_a_hostile_base_is_refused_by_the_key_that_names_it(kind, tiny, base, folder, marker, tmp_path):
    base.save_pretrained(folder / "unet")
    HOSTILE_NETWORKS[kind][0](folder, marker)
    config = dataclasses.replace(tiny, base=Base(source="path", folder=str(folder), weights="raw"))
    line = refused(load_pretrained, config, tmp_path)
    assert str(folder / "unet") in line and ("base.folder" in line or CONFIG in line)


def test_a_base_is_read_from_its_own_file_alone(tiny, base, folder, marker, tmp_path):
    base.save_pretrained(folder / "unet")
    module_beside(folder, marker)
    torch.save(Payload(marker), folder / "unet/diffusion_pytorch_model.bin")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": "diffusion_pytorch_model.bin"}}))
    config = dataclasses.replace(tiny, base=Base(source="path", folder=str(folder), weights="raw"))
    loaded = load_pretrained(config, tmp_path)
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    written = (folder / CONFIG).read_text()
    for foreign in ({"_class_name": ["evil", "PrunedUNet2DModel"]}, {"auto_map": {"AutoModel": "evil.X"}}):
        (folder / CONFIG).write_text(written)
        change(folder / CONFIG, **foreign)
        assert "name another base" in refused(load_pretrained, config, tmp_path)


def test_names_of_diffusers_first_attention_are_understood(tiny, base, folder, tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    base.save_pretrained(folder / "unet")
    renamed = dict(base.state_dict())
    for new, name in old.items():
        renamed = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in renamed.items()}
    assert len(renamed.keys() - base.state_dict().keys()) == 8 * sum(name.endswith(".to_q.weight") for name in base.state_dict())
    safetensors.torch.save_file(renamed, folder / WEIGHTS)
    loaded = load_pretrained(dataclasses.replace(tiny, base=Base(source="path", folder=str(folder), weights="raw")), tmp_path)
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_a_hostile_base_ends_the_command_with_2(folder, marker, tmp_path, capsys):
    only_a_pickle(folder, marker)
    places = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    origin = ["--set", "base.source=path", "--set", f"base.folder={folder}", "--set", "base.weights=raw"]
    assert main(["run", "--config", str(TINY), *places, *origin, "--methods", "base", "--yes"]) == 2
    said = capsys.readouterr().err
    assert f"error: base.folder {folder}: " in said and "holds no diffusion_pytorch_model.safetensors" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["component", "pipeline", "module", "pickle"])
def test_diffusers_own_loader_runs_no_code_of_a_folder(kind, folder, marker, monkeypatch):
    index = folder / "model_index.json"
    run = f"open({str(marker)!r}, 'w')\n"
    if kind == "component":
        change(index, unet=["evil", "PrunedUNet2DModel"])
        module_beside(folder, marker)
    elif kind == "pipeline":
        change(index, _class_name=["evil", "DDIMPipeline"])
        (folder / "evil.py").write_text(run + "from diffusers import DDIMPipeline")
    elif kind == "module":  # as in a shell that was opened in the folder
        change(index, scheduler=["evil", "DDIMScheduler"])
        (folder / "evil.py").write_text(run + "from diffusers import DDIMScheduler")
        monkeypatch.syspath_prepend(folder)
    else:
        only_a_pickle(folder, marker)
    with pytest.raises((ValueError, OSError)):
        DDIMPipeline.from_pretrained(folder)


# Other files of a run


def test_a_checkpoint_that_is_a_pickle_is_removed_and_runs_nothing(marker, tmp_path):
    torch.save(Payload(marker), tmp_path / "step-000000004.safetensors")
    (tmp_path / "step-000000008.safetensors").write_bytes(pickle.dumps(Payload(marker)))
    assert load_newest(tmp_path, "run", {}) is None


@pytest.mark.parametrize("about", [{"width": 10**12}, {"levels": 10**9}, {"classes": 10**12}, {"width": "8"}, {"accuracy": 2}])
def test_a_classifier_of_a_giant_is_refused(about, tmp_path):
    known = {"accuracy": 0.9, "channels": 1, "classes": 10, "width": 16, "levels": 2, "blocks": 1}
    safetensors.torch.save_file({"stem.weight": torch.ones(1)}, tmp_path / "c.safetensors", metadata={"about": json.dumps(known | about)})
    assert refused(load_classifier, tmp_path / "c.safetensors").startswith(f"{tmp_path / 'c.safetensors'}: not a readable classifier (")


@pytest.mark.parametrize("text", ["[]", "{", '{"kept": []}', '{"kept": {"1": 5}, "params": {}}', "[" * 100_000, '{"kept": {"nan": {}}}'])
def test_a_plan_that_is_none_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        Plan.from_json(text)


@pytest.mark.parametrize("channels", [[10**12], [-1, 0], [0, 0], [1, 0], [], [0.5], ["0"]])
def test_a_plan_of_another_network_is_refused(channels, base):
    pipes = pipes_of(base)
    scores = {pipe.name: torch.ones(pipe.width) for pipe in pipes}
    plan = json.loads(make_plan(pipes, scores, (1.0, 0.5), params_base=1, rule="uniform", floor=0.25).to_json())
    plan["kept"]["0.5"][pipes[0].name] = channels
    line = refused(Supernet, base, pipes, Plan.from_json(json.dumps(plan)))
    assert line.startswith(f"the plan of size 0.5 is another network's ({pipes[0].name})")
