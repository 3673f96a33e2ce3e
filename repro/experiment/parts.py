"""The parts that a configuration names: the package's, imported when one is used, and those of a script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from repro.config import Config
from repro.config.networks import ARCHITECTURES, Architecture
from repro.config.sections import PARTS, Diffusion, one_of
from repro.errors import ReproError

if TYPE_CHECKING:
    from repro.data.condition import Condition
    from repro.data.space import Space
    from repro.diffusion.formulation import Formulation
    from repro.diffusion.sampler import Sampler
    from repro.metrics.metric import Metric

    Part = Metric | Sampler | Formulation | Space | Condition | type[Architecture]

# The key that names a part -> where its contract lies, and where the package's own do.
KINDS = {
    "evaluation.metric": (("repro.metrics.metric", "Metric"), ("repro.metrics.frechet", "METRICS")),
    "evaluation.sampler": (("repro.diffusion.sampler", "Sampler"), ("repro.diffusion.samplers", "SAMPLERS")),
    "diffusion.formulation": (("repro.diffusion.formulation", "Formulation"), ("repro.diffusion.formulations", "FORMULATIONS")),
    "data.space": (("repro.data.space", "Space"), ("repro.data.space", "SPACES")),
    "data.condition": (("repro.data.condition", "Condition"), ("repro.data.condition", "CONDITIONS")),
}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a script, beside the package's.

    Attributes:
        own: The key that names a part -> its name -> the part.
        architectures: The section -> the architecture, with those of the package.
    """

    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    architectures: Mapping[str, type[Architecture]] = field(default_factory=lambda: ARCHITECTURES)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Returns the known values of keys of the configuration, as `load_config` takes them."""
        return {key: (*known, *self.own.get(key, {})) for key, known in PARTS.items()}

    def metric(self, name: str) -> "Metric":
        """Returns a metric.

        Raises:
            ReproError: There is none of this name; likewise below.
        """
        found: Metric = self._find("evaluation.metric", name)
        return found

    def sampler(self, name: str) -> "Sampler":
        """Returns a sampler."""
        found: Sampler = self._find("evaluation.sampler", name)
        return found

    def formulation(self, settings: Diffusion) -> "Formulation":
        """Returns the formulation that a section `diffusion` describes."""
        found = self._find("diffusion.formulation", settings.formulation)
        formulation: Formulation = found(settings) if isinstance(found, type) else found  # the package's read that section
        return formulation

    def space(self, name: str) -> "Space":
        """Returns a space."""
        found: Space = self._find("data.space", name)
        return found

    def condition(self, name: str) -> "Condition":
        """Returns a condition."""
        found: Condition = self._find("data.condition", name)
        return found

    def _find(self, key: str, name: str) -> Any:
        one_of(key, name, self.names[key])
        if name in self.own.get(key, {}):
            return self.own[key][name]
        _, package = KINDS[key]
        return _imported(*package)[name]


def parts_of(own: "Sequence[Part]") -> Parts:
    """Sorts what a script brings beside methods.

    Args:
        own: Metrics, samplers, formulations, spaces and conditions, and classes of architectures.

    Raises:
        ReproError: Something is no part, or has a name that another has, or that a record cannot have.
    """
    if not own:
        return Parts()  # without the imports below
    contracts = {key: _imported(*contract) for key, (contract, _) in KINDS.items()}
    found: dict[str, dict[str, Any]] = {key: {} for key in KINDS}
    architectures = dict(ARCHITECTURES)
    for part in own:
        if isinstance(part, type) and issubclass(part, Architecture):
            if part.section in {item.name for item in fields(Config)} | architectures.keys():
                raise ReproError(f"section '{part.section}': there is one of this name already; give your architecture's another")
            architectures[part.section] = part
            continue
        key = next((key for key, contract in contracts.items() if contract in type(part).__mro__), "")
        if not key:
            raise ReproError(
                f"{part!r:.80}: no method, metric, sampler, formulation, space or condition; give an object of a class that derives from "
                "one of repro.api, or an Architecture"
            )
        kind, name = key.partition(".")[2], str(getattr(part, "name", ""))
        if not name.isidentifier():
            raise ReproError(f"{kind} '{name}': records name it; give it a name of letters, digits and _")
        if name in found[key] or name in PARTS[key]:
            raise ReproError(f"{kind} '{name}': there is one of this name already; give yours another")
        found[key][name] = part
    return Parts(own=found, architectures=architectures)


def _imported(module: str, name: str) -> Any:
    return getattr(import_module(module), name)
