"""OFA-Diffusion Compression (arXiv 2604.12668): a harness that reproduces the method and measures it beside independent pruning."""

from repro.torchvision_ops import install

install()
