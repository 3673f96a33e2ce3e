"""FLOP of forward and backward passes; pure arithmetic, which estimates, runs and the checks of records share."""


def train_pflop(macs: float, images: float) -> float:
    """Returns the analytic work of training: 3 passes (forward and twice that backward) x 2 FLOP x MACs x images, in 10^15 FLOP."""
    return 3 * 2 * macs * images / 1e15


def activation_gradient_pflop(macs: float, images: float) -> float:
    """Returns the analytic work of gradients of the activations alone, as Formula 4 needs them: one pass back, none for the weights."""
    return 2 * 2 * macs * images / 1e15
