"""The name by which folders that were saved before know `repro.models.denoiser`; it stays."""

from repro.models.denoiser import *  # noqa: F403
