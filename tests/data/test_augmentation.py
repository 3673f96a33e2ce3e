"""EDM's augmentation: each change against what it is on paper, and its labels."""

import math

import pytest
import torch

from repro.config import Diffusion, load_config
from repro.data.augmentation import augmented
from repro.data.images import digits
from repro.diffusion.batches import NoisyBatches
from repro.diffusion.edm import EDM
from repro.errors import ReproError

pytestmark = pytest.mark.quick

SIDE = 32
NEVER, ALWAYS = 0.9, 0.1  # beside a probability of 0.5
LEFT, TOP, FLIPS, SCALES, ROTATES, STRETCHES, MOVES, TURN, FREE, DIRECTION = range(10)


def waves(along=1.0, across=1.0):
    """A smooth image, as a function of coordinates from -1 to 1; it changes slowly enough for bicubic values to be near."""
    at = (torch.arange(SIDE, dtype=torch.float64) + 0.5) * 2 / SIDE - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    return x * along, y * across


def picture(x, y):
    return (torch.sin(2 * x + 0.3) + 0.5 * torch.cos(3 * y) + 0.4 * x * y)[None, None].float()


def changed(uniform=None, normal=None, images=None):
    draws, normals = torch.full((1, 10), NEVER), torch.zeros(1, 4)
    for which, value in (uniform or {}).items():
        draws[0, which] = value
    for which, value in (normal or {}).items():
        normals[0, which] = value
    found, labels = augmented(picture(*waves()) if images is None else images, draws, normals, 0.5)
    return found, labels[0].tolist()


def inside(images):
    """Leaves out where what lies beyond the edge is seen."""
    return images[..., SIDE // 3 : -SIDE // 3, SIDE // 3 : -SIDE // 3]


def near(found, expected):
    torch.testing.assert_close(inside(found), inside(expected), rtol=0, atol=0.015)


def test_what_is_not_drawn_leaves_an_image_to_the_bit():
    images = torch.randn(1, 3, SIDE, SIDE)
    found, labels = changed(images=images)
    assert torch.equal(found, images)
    assert labels == [0.0] * 9


def test_mirrors_are_exact():
    images = torch.randn(1, 3, SIDE, SIDE)
    found, labels = changed({LEFT: ALWAYS}, images=images)
    assert torch.equal(found, images.flip(3))
    assert labels == [1.0] + [0.0] * 8
    found, labels = changed({FLIPS: ALWAYS, TOP: ALWAYS}, images=images)
    assert torch.equal(found, images.flip(2))
    assert labels == [0.0, 1.0] + [0.0] * 7


def test_a_quarter_turn_a_shift_a_scale_and_a_stretch_are_those_of_the_image_s_formula():
    x, y = waves()
    found, labels = changed({ROTATES: ALWAYS, TURN: 0.75})
    near(found, picture(x, y).rot90(1, (2, 3)))  # a right angle, counterclockwise where y points down
    assert labels[3:5] == pytest.approx([-1.0, 1.0], abs=1e-6)
    found, labels = changed({MOVES: ALWAYS}, {2: 1.0, 3: -0.5})
    near(found, picture(x - 0.25, y + 0.125))  # an eighth of the side, which is 2
    assert labels[7:] == [1.0, -0.5]
    found, labels = changed({SCALES: ALWAYS}, {0: 1.5})
    near(found, picture(x * 2**-0.3, y * 2**-0.3))
    assert labels[2] == 1.5
    found, labels = changed({STRETCHES: ALWAYS}, {1: 1.5})
    near(found, picture(x * 2**-0.3, y * 2**0.3))
    assert labels[5:7] == [1.5, 0.0]
    angle = -(math.tau * 0.6 - math.pi)
    found, labels = changed({STRETCHES: ALWAYS, FREE: ALWAYS, DIRECTION: 0.6}, {1: 1.5})
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    along, across = along * 2**-0.3, across * 2**0.3
    near(found, picture(along * math.cos(angle) - across * math.sin(angle), along * math.sin(angle) + across * math.cos(angle)))
    assert labels[5:7] == pytest.approx([1.5 * math.cos(angle), -1.5 * math.sin(angle)], abs=1e-6)


def test_changes_come_one_after_the_other_scale_first_and_translation_last():
    x, y = waves()
    found, _ = changed({ROTATES: ALWAYS, TURN: 0.75, MOVES: ALWAYS, STRETCHES: ALWAYS}, {1: 1.0, 2: 1.0})
    x, y = (x - 0.25) * 2**-0.2, y * 2**0.2  # back through translation, then stretching,
    near(found, picture(-y, x))  # then the turn


def test_each_change_is_as_frequent_as_asked_and_a_batch_of_ranks_is_that_of_one():
    edm, images = EDM(Diffusion(formulation="edm")), digits()
    given = {"seed": 0, "device": torch.device("cpu"), "augment_probability": 0.12}
    batch = NoisyBatches(images, edm, batch_size=8192, **given)(0)
    labels = batch.condition["augment_labels"]
    assert labels.shape == (8192, 9)
    frequent = (labels != 0).double().mean(dim=0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12], dtype=torch.float64)
    assert ((frequent - expected).abs() < 4 * (expected * (1 - expected) / 8192).sqrt()).all(), frequent
    assert labels[labels[:, 2] != 0, 2].std().item() == pytest.approx(1.0, abs=0.1)
    whole = NoisyBatches(images, edm, batch_size=32, **given)(3)
    parts = [NoisyBatches(images, edm, batch_size=32, **given, rank=rank, ranks=2)(3) for rank in range(2)]
    for of in (lambda part: part.noisy, lambda part: part.target, lambda part: part.condition["augment_labels"]):
        assert torch.equal(torch.stack([of(part) for part in parts], dim=1).flatten(0, 1), of(whole))
    # What the network is given is the augmented image with the same noise as without.
    plain = NoisyBatches(images, edm, batch_size=32, **(given | {"augment_probability": 0.0}))(3)
    untouched = (whole.condition["augment_labels"] == 0).all(dim=1)
    assert 0 < untouched.sum() < 32
    assert torch.equal(whole.noisy[untouched], plain.noisy[untouched])
    assert not plain.condition


def test_a_network_that_is_not_told_and_two_mirrors_are_refused():
    asked = "base_training.augment_probability=0.12"
    with pytest.raises(ReproError, match=r"base_training.augment_probability: needs a network .* song_unet.augment_dim = 9"):
        load_config("digits_edm", [asked])
    load_config("digits_edm", [asked, "song_unet.augment_dim=9"])
    with pytest.raises(ReproError, match=r"base_training\.horizontal_flip: is part of the augmentation"):
        load_config("digits_edm", [asked, "song_unet.augment_dim=9", "base_training.horizontal_flip=true"])
