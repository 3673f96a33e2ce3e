"""Every block of code in the READMEs and docs/ is run, heavy commands in small; and what the pages say of the code holds."""

import ast
import csv
import hashlib
import json
import re
import shlex
import signal
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest
from support.blocks import PAGES, ROOT, Scratch, Small, blocks, blocks_of

from repro.config import load_config
from repro.errors import INTERRUPTED, InterruptionError, ReproError, RunError
from repro.launch.processes import read_hosts
from repro.runtime import distributed

BLOCKS = blocks()
DOCS = ROOT / "docs"
STAGES = ("base_training", "ofa_training", "baseline_training", "finetuning")
BUDGET = {f"{stage}.{key}": value for stage in STAGES for key, value in (("steps", 2), ("batch_size", 16), ("warmup_steps", 0))}
JUDGED = {
    **{"evaluation.samples": 20, "evaluation.sampler_steps": 2, "evaluation.sampling_seeds": [0], "evaluation.latency_batches": [1]},
    **{"classifier.steps": 4, "classifier.least_accuracy": 0, "classifier.width": 8},
}
TINY = BUDGET | JUDGED | {"importance.images": 32, "importance.batch_size": 32, "pruning.images": 4, "pruning.threshold": 0.99}
# CIFAR-10 with a narrow network and few sizes: its budget still takes a CPU months.
NARROW = {
    **{"network.block_out_channels": [32, 64, 64, 64], "network.norm_num_groups": 8, "network.layers_per_block": 1},
    **{"sizes.trained": [1.0, 0.25], "sizes.reported": [1.0, 0.25], "compute.precision": "float32"},  # bfloat16 is slow on many a CPU
}


def words(settings):
    return " ".join("--set " + shlex.quote(f"{key}={json.dumps(value)}") for key, value in settings.items())


DIGITS, NARROWED = words(TINY), words(NARROW)
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
COPY = f"--data-root copy --set data.sha256={hashlib.sha256(IMAGES.tobytes()).hexdigest()}"
LOCAL = "nox -s reproduce_digits"
CHOOSE = "python -m repro choose --max-params 100k --out chosen --onnx"
EXTRACT = "python -m repro extract --size 0.5 --out subnet"
NO_GPU = "which has no GPU"
INTERFERENCE = "python -m repro run --config digits_interference --methods ofa --seeds 0,1,2"
MEASURED = words({"curves.points": 2, "curves.span": 2, "curves.triples": 16, "curves.interference": 2})
CLUSTER = f"--config digits --results cluster/{{0}} --runs cluster/{{0}} --methods floor {DIGITS}"

# command -> how it is run here, and how it then ends on a machine without a GPU; what is not in here runs as it is
TABLE = {
    LOCAL: Small(words=f"-- --sizes 0.5 --methods floor,base,ofa,random {DIGITS}", says="fid_classifier"),
    "nox -s reproduce_digits -- --seeds 0,1,2": Small(words=f"--methods floor {DIGITS}", after=(LOCAL,)),
    "nox -s reproduce_digits -- --config digits_transformer": Small(
        words=f"--methods base {DIGITS}", says="Results of the experiment digits_transformer"
    ),
    "nox -s baselines": Small(words=f"-- --methods magnitude --sizes 0.5 {DIGITS}", after=(LOCAL,)),
    "nox -s evidence": Small(words=f"-- --methods floor --seeds 0 {DIGITS}", after=(LOCAL,), says="no records of any ablation"),
    "nox -s reproduce_cifar10 -- --config cifar10_short": Small(words=f"--set hours=0.01 {NARROWED}", code=2, says="it has no GPU"),
    "nox -s reproduce_cifar10": Small(words=f"-- {NARROWED}", code=2, says=NO_GPU),
    "nox -s baselines -- --config cifar10": Small(words=NARROWED, code=1, says=NO_GPU),
    "python -m repro estimate --config cifar10": Small(words=NARROWED, says="PFLOP"),
    "python -m repro run --config cifar10_smoke": Small(
        words=f"{COPY} {NARROWED} --methods ofa --sizes 0.25 --set evaluation.samples=4 --set evaluation.reference_images=32 "
        "--set classifier.steps=2 --set classifier.width=8"
    ),
    EXTRACT: Small(words=DIGITS, after=(LOCAL,), says="subnet"),
    "python -m repro choose --max-params 100k --results results": Small(says="take P = 0.5 of seed 0"),
    CHOOSE: Small(words=DIGITS, after=(LOCAL,), says="-> "),
    "python -m repro choose --max-params 110k --measure --between --out in_between": Small(
        words=DIGITS, after=(LOCAL, f"python -m repro run --methods ofa {DIGITS}"), says="never trained at this size"
    ),
    "python -m repro extract --size 0.5 --out half": Small(words=DIGITS, after=(LOCAL,), says="half"),
    "python of docs/models.md": Small(after=(CHOOSE,)),
    "python of README.md": Small(after=(EXTRACT,)),
    "python of docs/reproduce.md": Small(after=(LOCAL,)),
    "python -m repro sizes --config digits": Small(words=DIGITS, after=(LOCAL,), says="0.75"),
    "python -m repro sizes --config digits --allocation uniform": Small(words="--runs other", says="0.75"),
    "python -m repro status": Small(words=DIGITS, after=(LOCAL,), says="done"),
    "python -m repro run --config cifar10 --data-root cifar10 ...": Small(words=NARROWED, code=2, says=NO_GPU),
    "python -m repro run --config cifar10 --yes --ranks 8": Small(words=f"--ranks 2 {CLUSTER.format('ranks')}", says="2 ranks"),
    "python -m repro run --config cifar10 --yes --parallel-cells 8": Small(words=f"--parallel-cells 2 {CLUSTER.format('cells')}"),
    "python -m repro run --config cifar10 --yes --hostfile hosts": Small(words=CLUSTER.format("hosts"), says="fid_classifier"),
    "torchrun --standalone --nproc-per-node 8 --module repro run --config cifar10 --yes": Small(
        swap=("node 8", "node 2"), words=CLUSTER.format("torchrun"), says="2 ranks"
    ),
    "nox -s reproduce_cifar10 -- --config cifar10_short --parallel-cells 8": Small(
        words=f"--set hours=0.01 {NARROWED}", code=2, says="it has no GPU"
    ),
    "python -m pytest tests/gpu -s": Small(says="skipped"),
    "python -m repro.bench": Small(words="--only memory --rounds 1 --steps 1", says="peak memory"),
    "python -m repro run --config cifar10_short --yes": Small(words=f"--set hours=0.01 {NARROWED}", code=2, says="it has no GPU"),
    "python -m repro status --config cifar10 --watch": Small(code=130, stopped=True, says="missing"),
    "python -m repro run --config shapes.toml --methods floor,noise,base,ofa": Small(
        words=f"--sizes 0.5 {DIGITS}", after=("python shapes.py",)
    ),
    "python -m paper_figures --results results/local --experiment shapes --show": Small(
        after=("python -m repro run --config shapes.toml --methods floor,noise,base,ofa",), says="fid_classifier"
    ),
    "python -m repro run --methods base,ofa --set base.source=path ...": Small(
        words=f"--sizes 0.5 {DIGITS}", after=("python own_base.py",)
    ),
    "python spread.py": Small(words="--help", says="python spread.py [-h] VERB"),
    "python spread.py run --sizes 0.5": Small(words=DIGITS, after=(LOCAL,), says="spread-0.5-seed0"),
    "python cubic_law.py": Small(words="--help", says="python cubic_law.py [-h] VERB"),
    "python cubic_law.py run": Small(words=f"--sizes 0.5 {DIGITS}", after=(LOCAL,), says="cubic_joint-seed0"),
    "python moments.py": Small(words="--help", says="python moments.py [-h] VERB"),
    "python moments.py run --methods floor,noise,base ...": Small(words=DIGITS, says="base-1-seed0: moments"),
    "python midpoint.py": Small(words="--help", says="python midpoint.py [-h] VERB"),
    "python midpoint.py run --methods base,ofa ...": Small(words=f"--sizes 0.5 {DIGITS}", says="ofa-0.5-seed0: fid_classifier"),
    "python flow.py": Small(words="--help", says="python flow.py [-h] VERB"),
    "python flow.py run ...": Small(words=DIGITS, says="ofa-0.5-seed0: fid_classifier"),
    "python parity.py": Small(words="--help", says="python parity.py [-h] VERB"),
    "python parity.py run ...": Small(words=DIGITS, says="ofa-0.5-seed0: fid_classifier"),
    "python plain_net.py": Small(words="--help", says="python plain_net.py [-h] VERB"),
    "python plain_net.py run ...": Small(words=DIGITS, says="random-0.5-seed0: fid_classifier"),
    "python folded.py": Small(words="--help", says="python folded.py [-h] VERB"),
    "python folded.py run ...": Small(words=DIGITS, says="ofa-0.5-seed0: fid_classifier"),
    "python cut_alone.py": Small(words="--help", says="python cut_alone.py [-h] VERB"),
    "python cut_alone.py run": Small(words=f"--sizes 0.5 {DIGITS}", after=(LOCAL,), says="cut_alone-0.5-seed0"),
    "python -m paper_figures --results results/local --experiment digits --show": Small(
        after=("python spread.py run --sizes 0.5", "python cubic_law.py run", "python cut_alone.py run"), says="cubic"
    ),
    "python -m paper_figures --results results/local --experiment digits --width 3.25in": Small(after=(LOCAL,), says="captions.md"),
    INTERFERENCE: Small(words=f"--seeds 0 --sizes 0.5 {DIGITS} {MEASURED}", says="ofa_joint-seed0"),
    "python -m repro run --config digits_interference --methods diff_pruning --sizes 1 --seeds 0,1,2": Small(
        words=f"--seeds 0 {DIGITS} {MEASURED}", after=(INTERFERENCE,), says="diff_pruning-1-seed0"
    ),
    "python -m paper_figures --experiment digits_interference": Small(after=(INTERFERENCE,), says="interference.pdf"),
    "nox -s bench -- --only memory": Small(words="--rounds 1 --steps 1", says="peak memory"),
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A copy of the checkout with a copy of CIFAR-10, of noise, and a file of hosts, this one, which its `ssh` reaches without a server."""
    scratch = Scratch(tmp_path_factory.mktemp("docs"), TABLE)
    (scratch.folder / "copy").mkdir()
    for name, count in (("train", 64), ("test", 16)):
        np.savez(scratch.folder / "copy" / f"{name}.npz", images=IMAGES[:count], labels=np.arange(count) % 10)
    (scratch.folder / "hosts").write_text("localhost slots=1\n")
    (scratch.programs / "ssh").write_text("#!/bin/sh\necho 127.0.0.1\n")  # DeepSpeed asks whether it answers, and for its address
    (scratch.programs / "ssh").chmod(0o755)
    commands = (command for block in BLOCKS if block.language == "bash" for command in block.commands)
    with ThreadPoolExecutor(1) as pool:
        scratch.begin(pool, dict.fromkeys(command for command in commands if "cifar10" in command))
        yield scratch
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_block_runs(scratch, block):
    if block.language == "bash":
        for command in block.commands:
            scratch.run(command)
    elif block.language == "toml":
        load_config(str(scratch.folder / block.file))
    elif block.language == "python" and block.file:
        scratch.run(f"python {block.file}")
    elif block.language == "python":
        scratch.script(block)


@pytest.mark.slow
def test_a_law_a_criterion_and_a_method_of_ones_own_make_another_network_and_are_in_the_table(scratch):
    scratch.run("python -m paper_figures --results results/local --experiment digits --show")
    folder = scratch.folder / "results" / "local" / "digits"
    names = ("cubic_joint", "ofa_joint", "spread-0.5", "random-0.5", "cut_alone-0.5")
    cubic, linear, spread, random, cut = (json.loads((folder / f"{name}-seed0.json").read_text()) for name in names)
    assert cubic["training"]["train_pflop"] != linear["training"]["train_pflop"]
    assert spread["size"]["widths"] != random["size"]["widths"] or spread["quality"] != random["quality"]
    assert cut["training"]["images"] == 32
    methods = {row["method"] for row in csv.DictReader((folder / "tables" / "results.csv").read_text().splitlines())}
    assert methods >= {"cubic", "spread", "cut_alone", "ofa"}


def test_every_block_says_what_it_is():
    assert {block.language for block in BLOCKS} <= {"bash", "python", "toml", "text"}
    assert all(block.file for block in BLOCKS if block.language == "toml")
    for page in PAGES:
        assert page.read_text().count("```") == 2 * len(blocks_of(page)), page


def test_every_entry_of_the_table_has_its_block():
    typed = {command for block in BLOCKS for command in block.commands if block.language == "bash"}
    typed |= {f"python {block.file}" for block in BLOCKS if block.language == "python" and block.file}
    typed |= {f"python of {block.page}" for block in BLOCKS if block.language == "python"}
    for key in TABLE:
        assert key in typed or (key.endswith(" ...") and any(command.startswith(key[:-3]) for command in typed)), key


def test_an_example_is_less_than_40_lines():
    counts = {block.file: block.text.count("\n") for block in BLOCKS if block.page == "docs/extend.md" and block.language != "bash"}
    assert len(counts) == 12
    assert max(counts.values()) < 40, counts


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_index_names_every_page_and_drawing():
    index = (DOCS / "README.md").read_text()
    assert {path.name for path in DOCS.glob("*.md")} - {"README.md"} == set(re.findall(r"\]\((\w[\w-]*\.md)\)", index))
    for page, drawing in (("concepts.md", "(flow.svg)"), ("architecture.md", "(architecture.svg)")):
        assert drawing in (DOCS / page).read_text()


# What a page says of the code

AS_A_WHOLE = {
    *(
        "provenance.config",
        "provenance.packages",
        "training.settings",
        "size.widths",
        "variant.changes",
        "quality.kid",
        "quality.also",
        "quality.condition",
        "base.trained",
        "made.inputs",
        "curves.points.sizes",
        "curves.metric",
        "curves.validation",
        "curves.interference.points",
        "curves.interference.swaps",
    ),
}
COMMITTED = (
    "floor",
    "noise",
    "base-1",
    "ofa_joint",
    "ofa-0.5",
    "ofa_m1-0.5",
    "diff_pruning-0.5",
    "untrained-0.5",
    "diff_pruning_scores",
    "ofa_open-0.25",
)


def keys_of(value, path=""):
    """Returns the paths of all values that are no tables, but for what is explained as a whole, and those of parts that are null."""
    if isinstance(value, dict) and path not in AS_A_WHOLE:
        return {key for name, inner in value.items() for key in keys_of(inner, f"{path}.{name}" if path else name)}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {key for inner in value for key in keys_of(inner, path)}
    return {path}


def explained():
    return set(re.findall(r"^\| `([\w.]+)` \|", (DOCS / "read-a-record.md").read_text(), flags=re.MULTILINE))


def unexplained(record):
    """Returns the keys that the page lacks; of a part that is null the page explains what is in it."""
    known = explained()
    return {key for key in keys_of(record) if key not in known and not any(name.startswith(f"{key}.") for name in known)}


@pytest.mark.parametrize("name", COMMITTED)
def test_every_key_of_a_committed_record_is_explained(name):
    assert unexplained(json.loads((ROOT / "results" / "digits" / f"{name}-seed0.json").read_text())) == set()


@pytest.mark.slow
def test_every_key_of_a_fresh_record_is_explained_and_no_other(scratch):
    scratch.run(LOCAL)
    records = [json.loads(path.read_text()) for path in (scratch.folder / "results" / "local" / "digits").glob("*.json")]
    records += [json.loads(path.read_text()) for path in (ROOT / "results").glob("digits*/*.json")]
    assert not {key for record in records for key in unexplained(record)}
    seen = {key for record in records for key in keys_of(record)}
    assert explained() - seen == {"quality.kid", "quality.also", "provenance.changed"}


def told():
    """Returns every text of the code, what is filled in left out."""
    for folder in ("repro", "baselines", "paper_figures"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_every_message_that_is_quoted_exists():
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    assert len(quoted) >= 20
    texts = set(told())
    for message in quoted:
        parts = [part for part in re.split(r"\.\.\.", message) if part.strip(" :;,'()")]
        assert parts, message
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in parts), flags=re.DOTALL)
        assert any(pattern.search(text) for text in texts), message


def texts_of(name):
    return [block.text for block in BLOCKS if block.page == f"docs/{name}.md" and block.language == "text"]


def test_the_host_file_and_the_section_cluster_of_the_page_are_taken(tmp_path):
    (hosts,) = (text for text in texts_of("cluster") if "slots=" in text)
    (tmp_path / "hosts").write_text(hosts)
    assert read_hosts(tmp_path / "hosts") == {"node-1": 8, "node-2": 8}
    (section,) = (text for text in texts_of("cluster") if text.startswith("[cluster]"))
    (tmp_path / "own.toml").write_text((ROOT / "tests" / "tiny.toml").read_text() + section)
    config = load_config(str(tmp_path / "own.toml"))
    assert {item.name for item in fields(config.cluster)} == set(tomllib.loads(section)["cluster"])
    assert config.cluster.gpus_per_node == 8


def test_the_launcher_carries_the_variables_that_the_page_names():
    distributed.engine_library()  # sets what DeepSpeed reads at its import
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
    from deepspeed.launcher import runner

    page = (DOCS / "cluster.md").read_text()
    (carried,) = re.findall(r"the variables that begin with (.*?);", page)
    assert set(re.findall(r"`(\w+)`", carried)) == {*runner.EXPORT_ENVS, *CUDA_Accelerator.export_envs(None)}
    assert f"`{runner.DEEPSPEED_ENVIRONMENT_NAME}`" in page


def test_the_exit_codes_are_those_of_the_code():
    page = (DOCS / "troubleshooting.md").read_text()
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)}
    assert codes == {0, RunError.exit_code, ReproError.exit_code, INTERRUPTED, InterruptionError(signal.SIGINT).exit_code}
