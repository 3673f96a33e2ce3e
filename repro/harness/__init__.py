"""A name of earlier versions, which saved folders hold: see `repro.models.denoiser`."""
