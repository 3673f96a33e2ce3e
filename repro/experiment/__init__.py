"""The grid of an experiment: its cells, their artefacts, evaluation and records."""
