"""Images of one Gaussian value a pixel: their denoiser and the flow from noise to them are closed forms."""

from types import SimpleNamespace


class Gaussian:
    """D(x; sigma) of pixels from N(mean, deviation^2), as a sampler is given it."""

    def __init__(self, mean, deviation, sigmas):
        self.mean, self.deviation = mean, deviation
        self.formulation = SimpleNamespace(name="gaussian", sigmas=sigmas)
        self.asked = []

    def __call__(self, images, sigma):
        self.asked.append(sigma)
        variance = self.deviation**2
        return (self.mean * sigma**2 + images * variance) / (variance + sigma**2)

    def exact(self, noise, least=0.0):
        """Where the flow that starts from sigma_max * noise is at `least`."""
        greatest = self.formulation.sigmas[1]
        shrink = ((self.deviation**2 + least**2) / (self.deviation**2 + greatest**2)) ** 0.5
        return self.mean + (greatest * noise - self.mean) * shrink
