"""Formulations, samplers, and the batches that a network is trained on."""
