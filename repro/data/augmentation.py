"""EDM's augmentation with labels (Karras et al., 2022, appendix F.2): the network is told how an image was changed, so samples are not."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

UNIFORM, NORMAL = 10, 4  # draws for each image
OCTAVES, SHIFT = 0.2, 0.125  # of scale and stretching; of the image's side


def augmented(images: Tensor, uniform: Tensor, normal: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Augments images: half of them are mirrored, and each further change happens to an image with the same probability.

    These are: mirrored top to bottom, half of the times; scaled by 2^(0.2 n); rotated by any angle; stretched by 2^(0.2 n) along a random
    axis, or half of the times along the image's own; moved by 0.125 n of its side. Pixels between pixels are bicubic, and beyond the edge
    they are reflected, where EDM's code filters by a wavelet.

    Args:
        images: Square, [B, C, S, S].
        uniform: Draws in [0, 1), [B, 10].
        normal: Standard normal draws, [B, 4].
        probability: Of each change but the first.

    Returns:
        The images, and their labels, [B, 9], zero where nothing was done: mirrored left to right, top to bottom, scale, the rotation's
        cosine less 1 and its sine, two of stretching, two of translation.
    """
    left, top, flips, scales, rotates, stretches, moves, turn, free, direction = uniform.unbind(1)
    happens = [draw < probability for draw in (flips, scales, rotates, stretches, moves)]
    mirrored = left < 0.5
    upside_down = happens[0] & (top < 0.5)
    scale, stretch, *shift = (torch.where(happens[which], normal[:, n], 0.0) for n, which in enumerate((1, 3, 4, 4)))
    angle = torch.where(happens[2], math.tau * turn - math.pi, 0.0)
    axis = torch.where(free < 0.5, math.tau * direction - math.pi, 0.0)
    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    images = torch.where(upside_down.view(-1, 1, 1, 1), images.flip(2), images)
    narrower, wider = 2 ** (-OCTAVES * scale), 2 ** (OCTAVES * stretch)
    back = _turned(angle) * narrower.view(
        -1, 1, 1
    )  # from a place in the new image to that in the old one; the signs are those of EDM's labels
    back = back @ _turned(-axis) @ torch.diag_embed(torch.stack([1 / wider, wider], dim=1)) @ _turned(axis)
    offset = back @ (-2 * SHIFT * torch.stack(shift, dim=1)[:, :, None])  # an image is 2 wide
    grid = affine_grid(torch.cat([back, offset], dim=2), list(images.shape), align_corners=False)
    sampled = grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    changed = torch.stack(happens[1:]).any(dim=0)
    labels = [mirrored, upside_down, scale, angle.cos() - 1, angle.sin(), stretch * axis.cos(), stretch * axis.sin(), *shift]
    return torch.where(changed.view(-1, 1, 1, 1), sampled, images), torch.stack([label.to(images.dtype) for label in labels], dim=1)


def _turned(angle: Tensor) -> Tensor:
    """Returns rotations by angles [B], [B, 2, 2]."""
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
