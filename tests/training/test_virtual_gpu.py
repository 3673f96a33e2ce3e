"""The product on a virtual GPU: nothing makes the host wait, values are the CPU's, and nothing is left behind.

Each probe is a process of its own (`python -m support.probes NAME FOLDER`), which runs once for all tests here.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.timeout(620), pytest.mark.slow]
POINTS = (3, 6)  # of the training curve of six steps
TRAININGS = ("linear", "uniform", "weighted", "sandwich", "open", "accumulation", "distillation", "min_snr", "antithetic", "dropout")
TRAININGS += ("flipped", "summed", "scheduled", "unclipped", "on_the_host", "bfloat16", "adamw", "half_life", "edm", "vp", "augmented")
SHARDED = ("zero1", "zero2")
ALONE = ("base", "magnitude", "random", "scratch", "diff_pruning", "own_criterion")
SAMPLERS = ("sampler", "heun", "churn", "dpmsolver", "dpmsolver++", "unipc")
WHOLE = ("importance", *SAMPLERS, "features", "extraction")
WAITING = ("read", "wait", "h2d", "d2h")
ROUNDED = 5e-3  # of a norm: NHWC takes other kernels, and Adam makes a step of every rounding error


@pytest.fixture(scope="session")
def probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")

    @cache
    def run(name):
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "support.probes", name, str(folder)]
        done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((folder / f"{name}.json").read_text())

    return run


@pytest.fixture(scope="session")
def case(probe):
    return lambda name: probe("device")[name]


@pytest.fixture(scope="session")
def part(probe):
    def of(name, kind="parts"):
        found = probe(kind)[name]
        assert "error" not in found, f"{name}: {found['error']}"
        return found

    return of


def between_points(found):
    """The steps of a training but the first, which makes the optimiser's state, and those that end in a point of the curve."""
    return [step for number, step in enumerate(found["steps"], start=2) if number not in POINTS]


def summed(found, *kinds):
    return sum(found[kind] for kind in kinds)


# The device itself


@pytest.mark.parametrize(
    "name",
    [
        "a sum with the CPU",
        "a layer whose weight was forgotten",
        "a layer whose input was forgotten",
        "a concatenation with the CPU",
        "a number of the CPU changed in place",
        "index_select by the CPU",
        "the CPU indexed by the device",
    ],
)
def test_two_devices_are_refused_as_cuda_refuses_them(case, name):
    assert "Expected all tensors to be on the same device" in case(name)["error"]


@pytest.mark.parametrize("name", ["noise of a generator of the CPU", "noise on the CPU of a generator of the device"])
def test_a_generator_of_another_device_is_refused(case, name):
    assert "device type for generator" in case(name)["error"]


@pytest.mark.parametrize("name", ["item", "float", "a branch", "tolist", "nonzero", "a mask", "equal", "allclose", "unique"])
def test_what_the_host_cannot_go_on_without_is_a_read(case, name):
    assert case(name)["error"] is None and case(name)["counts"] == {"read": 1}


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("cpu", {"d2h": 1}),
        ("to the device", {"h2d": 1}),
        ("to the device, non_blocking", {"h2d": 1}),  # from pageable memory it waits all the same
        ("to the device from pinned memory", {"h2d": 1}),
        ("to the device from pinned memory, non_blocking", {"h2d_async": 1}),
        ("copy_ to the device", {"h2d": 1}),
        ("a tensor of a list", {"h2d": 1}),
        ("an index of the CPU", {"h2d": 1}),
        ("an index that is a list", {"h2d": 1}),
        ("synchronize", {"wait": 1}),
        ("an event", {"wait": 1}),
    ],
)
def test_copies_and_waits_are_counted(case, name, counted):
    assert case(name)["error"] is None and case(name)["counts"] == counted


@pytest.mark.parametrize(
    "name",
    [
        "a sum with a number of the CPU",
        "an index of the device",
        "a slice",
        "a tensor that a kernel fills",
        "noise of a generator of the device",
        "a mask that is filled",
        "index_add, asked to be in order",
        "attention backward, asked to be in order",
        "the bytes of an NCHW weight",
    ],
)
def test_what_a_kernel_does_alone_is_free(case, name):
    assert case(name) == {"error": None, "value": None, "counts": {}}


@pytest.mark.parametrize("name", ["index_add", "attention backward", "attention backward, warned of", "a loss of pixels, warned of"])
def test_a_kernel_that_adds_up_in_any_order_is_counted(case, name):
    assert case(name)["error"] is None and case(name)["counts"] == {"unrepeatable": 1}


@pytest.mark.parametrize("name", ["a loss of pixels, asked to be in order", "a product without cuBLAS's workspace"])
def test_a_kernel_that_cannot_be_in_order_is_refused_where_order_is_asked_for(case, name):
    assert "eterminis" in case(name)["error"]


def test_numpy_and_pinning_are_refused(case):
    assert "can't convert" in case("numpy")["error"] and "cannot pin" in case("a pinned tensor of the device")["error"]


def test_an_nhwc_weight_has_no_bytes_to_view(case):
    assert "self.stride(-1) must be 1" in case("the bytes of an NHWC weight")["error"]


def test_data_can_be_replaced_and_parameters_copied(case):
    assert case("data that is replaced")["value"] == 16.0 and case("a parameter that is copied")["value"] is True


def test_random_numbers_are_the_cpus(probe):
    values = probe("device")["values"]
    assert values["noise"] == values["noise_cpu"] and values["dropout_as_on_cpu"]


def test_channels_last_is_the_layout_of_the_data_too(probe):
    assert probe("device")["values"]["nhwc"] == [[18, 1, 6, 2]] * 2


def test_an_event_is_counted_where_the_project_caused_it(probe):
    (place,) = probe("device")["place"]
    assert "at repro/data/images.py:" in place and place.endswith("to_unit_range")


# A training step


@pytest.mark.parametrize("name", TRAININGS + ALONE)
def test_a_step_never_makes_the_host_wait(part, name):
    """F4 of the waits, F8 of the reads."""
    steps = between_points(part(name))
    assert len(steps) == 3
    assert [summed(step, *WAITING) for step in steps] == [0] * 3


@pytest.mark.parametrize("name", TRAININGS + ALONE)
def test_a_step_copies_nothing_to_the_device_but_channels_of_an_open_set_and_images_of_a_large_one(part, name):
    assert {step["h2d_async"] for step in part(name)["steps"]} == {1 if name in ("open", "on_the_host") else 0}


@pytest.mark.parametrize("name", TRAININGS + ALONE)
def test_a_point_of_the_curve_is_one_read(part, name):
    at_points = [step for number, step in enumerate(part(name)["steps"], start=2) if number in POINTS]
    assert [(step["read"], step["wait"], step["h2d"], step["d2h"]) for step in at_points] == [(1, 0, 0, 0)] * 2


@pytest.mark.parametrize("name", SHARDED)
def test_of_zero_deepspeed_itself_reads_the_gradients_norm_twice_a_step_and_copies_a_number(part, name):
    found = part(name)
    assert [(step["read"], step["h2d"], step["wait"], step["d2h"]) for step in between_points(found)] == [(2, 1, 0, 0)] * 3
    reads = [place for place in found["report"]["read"] if "> deepspeed/runtime/utils.py" not in place]
    assert [place.split()[-1] for place in reads] == ["_mean"]


@pytest.mark.parametrize("name", TRAININGS + SHARDED + ALONE)
def test_no_kernel_of_a_training_adds_up_in_any_order(part, name):
    """F3: attention's backward pass is in order only where determinism is asked for without `warn_only`."""
    assert part(name)["totals"]["unrepeatable"] == 0


@pytest.mark.parametrize("name", TRAININGS + SHARDED + ALONE)
def test_nothing_of_the_engine_stays_on_a_network(part, name):
    """F4: its hooks outlived it, and every later pass went through them."""
    assert part(name)["left"] == []


def test_determinism_is_asked_for_without_warn_only(probe):
    assert probe("parts")["determinism"] == {"asked": True, "warn_only": False}


def test_accumulation_takes_two_parts_a_step(part):
    assert part("accumulation")["accumulation"] == 2


@pytest.mark.parametrize("name", [*TRAININGS, *SHARDED, *ALONE, "classifier"])
def test_only_phases_wait_and_each_at_both_its_edges(part, name):
    """A joint run and a baseline have two phases, importance and training; diff_pruning scores in another cell before."""
    phases = {"base": 1, "classifier": 0, "diff_pruning": 3}.get(name, 2)
    waits = part(name)["report"].get("wait", {})
    own = sum(count for place, count in waits.items() if "at repro/runtime/gpu.py" in place)
    assert own == 2 * phases
    assert sum(waits.values()) - own == (1 if name in SHARDED else 0)  # DeepSpeed's, when it lets go of its buffers


def test_a_small_gpu_takes_a_batch_in_parts_by_its_free_memory(part):
    assert part("small_gpu")["accumulation"] == 2 and part("small_gpu", "parts_cpu")["accumulation"] == 1
    assert part("small_gpu")["sha256"] == part("accumulation")["sha256"]


# Values


@pytest.mark.parametrize("name", [name for name in (*TRAININGS, *SHARDED, *ALONE) if name != "bfloat16"])
def test_weights_and_curve_are_the_cpus_to_the_bit(part, name):
    ours, theirs = part(name), part(name, "parts_cpu")
    assert ours["curve"] == theirs["curve"] and ours["sha256"] == theirs["sha256"]


@pytest.mark.parametrize("name", WHOLE)
def test_scores_samples_features_and_subnets_are_the_cpus_to_the_bit(part, name):
    assert part(name)["sha256"] == part(name, "parts_cpu")["sha256"]


def test_bfloat16_is_near_the_cpus_which_has_another_list_of_what_is_rounded(part):
    ours, theirs = (part("bfloat16", kind)["curve"] for kind in ("parts", "parts_cpu"))
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=0.02)


def test_an_extracted_folder_holds_the_same_bytes_wherever_it_was_made(part):
    ours, theirs = part("extraction"), part("extraction", "parts_cpu")
    assert ours["files"] == theirs["files"] and ours["grid"] == theirs["grid"] and ours["as_on_cpu"]


# NHWC


@pytest.mark.parametrize("name", ["linear", "open", "accumulation", "distillation", "zero1", "base", "diff_pruning"])
def test_training_begins_and_ends_near_the_cpus_weights_in_nhwc(part, name):
    """F1: DeepSpeed views weights as bytes when it starts, which NHWC has not."""
    ours, theirs = part(name, "nhwc"), part(name, "parts_cpu")
    assert ours["norms"] == pytest.approx(theirs["norms"], rel=ROUNDED, abs=ROUNDED)
    assert ours["strides"] == []  # files want the other layout


@pytest.mark.parametrize("name", ["linear", "open", "base"])
def test_a_step_in_nhwc_never_makes_the_host_wait(part, name):
    assert [summed(step, *WAITING) for step in between_points(part(name, "nhwc"))] == [0] * 3


@pytest.mark.parametrize("name", ["resumed", "resumed_zero1"])
@pytest.mark.parametrize("kind", ["parts", "nhwc"])
def test_a_run_that_stops_and_goes_on_ends_in_the_same_bits(part, name, kind):
    found = part(name, kind)
    assert found["sha256"] == found["whole"] and found["curves_equal"]
    assert found["steps_taken"] == 3  # from the checkpoint of step 3


def test_the_classifier_and_the_throughput_begin_in_nhwc(part):
    """F1: the classifier has arithmetic of its own, which no configuration reaches: it stays NCHW, so that its features are one scale."""
    assert part("classifier", "nhwc")["accuracy"] > 0 and part("throughput", "nhwc")["training"] > 0


# The joint run, compiling, checkpoints


def test_the_joint_run_begins_on_the_device(part):
    """F2: its indices were made on the CPU while the base lay on the GPU."""
    assert len(part("linear")["curve"]) == 2 and part("extraction")["as_on_cpu"]


def test_what_is_compiled_is_warmed_up_with_as_many_images_as_it_trains_on(part):
    """F5: a warm-up with the whole batch runs out of memory where parts were meant to save it."""
    found = part("warm_up")
    assert found["accumulation"] == 2 and set(found["images"]) == {8}


def test_a_checkpoint_is_one_read_and_one_copy_a_tensor(part):
    """F6: it was one read a parameter."""
    found = part("checkpoints")
    saving = [step for step in found["steps"] if step["wait"]]  # those after a step that was saved, which count the saving
    assert len(saving) == 2
    assert [(step["wait"], step["h2d"]) for step in saving] == [(2, 0)] * 2
    assert max(step["read"] for step in saving) <= 2  # that the weights are finite, and a point of the curve
    assert max(step["d2h"] for step in saving) <= found["tensors"] + 1  # and the losses since the last point


def test_a_checkpoint_holds_the_cpus_bits(part):
    ours, theirs = part("checkpoints"), part("checkpoints", "parts_cpu")
    assert ours["checkpoint_sha256"] == theirs["checkpoint_sha256"] and ours["sha256"] == theirs["sha256"] == part("linear")["sha256"]


def test_a_step_of_the_classifier_never_makes_the_host_wait(part):
    """F6: its batch was four blocking copies."""
    assert [summed(step, *WAITING) for step in between_points(part("classifier"))] == [0] * 3
    assert max(step["h2d_async"] for step in part("classifier")["steps"]) <= 2


def test_a_classifier_that_lies_there_is_measured_on_the_device(part):
    found = part("classifier")
    assert found["again"] == found["accuracy"]


def test_pruning_by_a_criterion_of_the_house_copies_nothing_back_and_forth(part):
    """F6: the bisection made thousands of small copies."""
    for name in ("magnitude", "random", "scratch"):
        totals = part(name)["totals"]
        assert totals["read"] == len(POINTS) and totals["h2d"] < 200


# Sampling, importance, features, timing


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_of_samples_is_copied_to_the_host_once_and_never_read(part, name):
    found = part(name)
    assert found["sampling"]["d2h"] == found["batches"]
    assert found["sampling"]["read"] == found["sampling"]["wait"] == 0
    if name != "unipc":  # diffusers' own copies its noise levels at every step
        assert summed(found["sampling"], "h2d", "h2d_async") == found["copies"]  # its noise, and what churn adds
    assert found["device"] == "cpu"


def test_importance_is_never_read(part):
    scoring = part("importance")["scoring"]
    assert scoring["read"] == scoring["wait"] == 0
    assert scoring["h2d"] + scoring["d2h"] <= 3  # the images, the noise schedule, and the scores


def test_features_are_fetched_from_pinned_memory_and_copied_back_once_a_batch(part):
    found = part("features")
    assert found["extracting"]["h2d_async"] == found["extracting"]["d2h"] == found["batches"]
    assert found["extracting"]["read"] == found["extracting"]["wait"] == 0
    assert found["device"] == "cpu"


def test_a_timed_pass_is_waited_for_before_and_after_and_nothing_else_happens(part):
    found = part("latency")
    timing = found["timing"]
    warm_up = 1
    assert timing["wait"] == 2 * (found["passes"] + warm_up) + 2  # and where each series begins
    assert summed(timing, "read", "h2d", "h2d_async", "d2h", "d2h_async") == 0


def test_choose_times_its_candidates_on_the_device(part):
    assert min(part("choice")["latencies"]) > 0 and part("choice")["totals"]["read"] == 0


def test_throughput_is_measured_on_the_device(part):
    assert part("throughput")["on_gpu"] and part("throughput")["sampling"] > 0


# The command line


def test_the_command_line_runs_on_the_device(probe):
    found = probe("grid")["gpu"]
    assert found["code"] == 0, found["said"]
    assert {record["status"] for record in found["records"].values()} == {"done"}
    assert {record["cost"] for record in found["records"].values()} == {"cuda"}


def test_the_command_line_makes_the_cpus_weights_and_images(probe):
    ours, theirs = (probe("grid")[kind]["sha256"] for kind in ("gpu", "cpu"))
    assert any(name.endswith(".png") for name in theirs) and any("classifier" in name for name in theirs)
    assert {name: ours.get(name) for name in theirs} == theirs


def test_the_command_line_records_the_cpus_values(probe):
    ours, theirs = (probe("grid")[kind]["records"] for kind in ("gpu", "cpu"))
    assert ours.keys() == theirs.keys()
    for name, record in theirs.items():
        assert ours[name]["size"] == record["size"] and ours[name]["training"] == record["training"], name
        assert ours[name]["quality"] == record["quality"], name


def test_no_kernel_of_the_whole_command_adds_up_in_any_order(probe):
    counted = probe("grid")["gpu"]["counts"]
    assert counted and not [label for label, kinds in counted.items() if "unrepeatable" in kinds]


def test_training_phases_of_the_whole_command_read_at_points_of_the_curve_alone(probe):
    counted = {label: kinds for label, kinds in probe("grid")["gpu"]["counts"].items() if label.endswith(" train")}
    assert len(counted) == 3  # the base, the joint run, one baseline
    for label, kinds in counted.items():
        assert {place.partition("loop.py")[2].split()[-1] for place in kinds["read"]} == {"_mean"}, label


def test_no_sampler_of_the_whole_command_reads_the_device(probe):
    counted = {label: kinds for label, kinds in probe("grid")["gpu"]["counts"].items() if label.endswith(" evaluate")}
    assert len(counted) >= 3
    read = [place for kinds in counted.values() for place in kinds.get("read", {}) if "repro/diffusion/" in place]
    assert not read


def test_a_run_that_was_killed_ends_in_the_same_bytes(probe):
    found = probe("killed")
    assert found["killed"] and found["left"] == ["step-000000004.safetensors"]
    assert found["whole"]["code"] == found["stopped"]["code"] == 0, found["stopped"]["said"]
    assert found["whole"]["sha256"] == found["stopped"]["sha256"]
