"""Networks that several tests build."""

# google/ddpm-cifar10-32's, as `Network` takes it.
CIFAR10_NETWORK = {
    "sample_size": 32,
    "channels": 3,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
