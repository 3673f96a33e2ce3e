"""The package's formulations, by name."""

from repro.diffusion.ddpm import DDPM
from repro.diffusion.edm import EDM
from repro.diffusion.formulation import Formulation
from repro.diffusion.vp import VP

FORMULATIONS: dict[str, type[Formulation]] = {"ddpm": DDPM, "edm": EDM, "vp": VP}
