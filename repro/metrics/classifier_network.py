"""The network behind `fid_classifier`: a small residual one."""

from torch import Tensor, nn
from torch.nn import functional


class Classifier(nn.Module):
    """A residual network; its features are the average over positions of the last level.

    Args:
        channels: Channels of the images.
        classes: Number of labels.
        width: Channels of the first level; each level has half the resolution and twice the channels of the one before.
        levels: Resolutions.
        blocks: Residual units of a level.
    """

    def __init__(self, channels: int, classes: int, width: int, levels: int = 2, blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.levels = nn.Sequential()
        for level in range(levels):
            if level:
                self.levels.append(nn.Conv2d(width, 2 * width, 3, padding=1, stride=2))
                width = 2 * width
            for _ in range(blocks):
                self.levels.append(Residual(width))
        self.head = nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Maps images in [-1, 1], [B, C, H, W], to features, [B, 2^(levels - 1) * width]."""
        return functional.silu(self.levels(self.stem(images))).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Maps images in [-1, 1], [B, C, H, W], to logits, [B, classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


class Residual(nn.Module):
    """Two normalised convolutions and the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(2)])
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])

    def forward(self, images: Tensor) -> Tensor:
        """Maps [B, width, H, W] to the same shape."""
        hidden = images
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(functional.silu(norm(hidden)))
        return images + hidden
