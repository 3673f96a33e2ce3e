"""The package's samplers, by name."""

from repro.diffusion.ddim import DDIM
from repro.diffusion.heun import Heun
from repro.diffusion.sampler import Sampler
from repro.diffusion.solvers import SOLVERS

SAMPLERS: dict[str, Sampler] = {sampler.name: sampler for sampler in (DDIM(), Heun(), *SOLVERS)}
