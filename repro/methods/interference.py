"""How the sizes of a supernet interfere in its joint training: measured at the snapshots of its way, and at the base that it began from."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from repro.diffusion.formulation import NoisyBatch, image_losses, predictor
from repro.experiment.cells import Cell, Experiment, base_cell
from repro.experiment.curves import validation_loss
from repro.experiment.run import load_model, plain_batches
from repro.methods.train_once import load_supernet
from repro.ofa.interference import gradient_cosines, groups_of, swapped_losses
from repro.ofa.pipes import pipes_of
from repro.runtime import distributed
from repro.runtime.precision import autocast
from repro.runtime.seeds import derive_seed
from repro.size_text import size_text
from repro.training.snapshots import put_weights


def interference_of(experiment: Experiment, cell: Cell, weights: Mapping[str, Tensor] | None, swaps: bool) -> dict[str, Any]:
    """Returns how the sizes of a joint training interfere at a point of its way, as a record holds it.

    Args:
        experiment: The configuration and its folders.
        cell: The joint training.
        weights: Of the snapshot; None is the base, before the first step.
        swaps: Whether the largest size's loss is measured, too, with groups of its weights exchanged with the base's.

    Returns:
        `norms`: size, as text -> norm of its mean gradient; `cosines`: pair of sizes, as text -> layer -> cosine between their mean
        gradients on training images under the training's own loss weighting, `all` for the layers together; and, where asked for, `swaps`:
        the validation loss `before` (of the base) and `after`, and for each group its `params` and the loss with it `given_back` and
        `taken_over`, see `repro.ofa.interference`.
    """
    base = load_model(experiment, base_cell(experiment.config, cell.seed))
    supernet = load_supernet(experiment, cell)
    put_weights(supernet, {f"base.{name}": tensor for name, tensor in base.named_parameters()} if weights is None else weights)
    supernet.to(distributed.device())
    settings, curves = experiment.config.ofa_training, experiment.config.curves
    assert curves is not None, cell.name
    seed = derive_seed("interference", cell.seed)
    batches = plain_batches(experiment, settings.batch_size, seed, weighting=settings.loss_weighting)

    def loss(size: float, batch: NoisyBatch) -> Tensor:
        with autocast(experiment.config.compute.precision, distributed.device()):
            return image_losses(predictor(supernet, size), batch).mean()

    even, odd = ([batches(step) for step in range(first, curves.interference, 2)] for first in (0, 1))
    norms, cosines = gradient_cosines(supernet, (even, odd), loss)
    found: dict[str, Any] = {
        "norms": {size_text(size): norm for size, norm in norms.items()},
        "cosines": {f"{size_text(small)},{size_text(large)}": layers for (small, large), layers in cosines.items()},
    }
    if swaps:
        found["swaps"] = _swaps(experiment, supernet.extract(max(supernet.sizes)), base)
    return found


def _swaps(experiment: Experiment, network: Any, base: nn.Module) -> dict[str, Any]:
    before = {name: tensor.to(distributed.device()) for name, tensor in base.named_parameters()}
    groups = groups_of(base, pipes_of(base, experiment.config.allocation.resampling_units))
    return swapped_losses(network.eval(), before, groups, lambda: validation_loss(experiment, network))
