"""The one training loop, on DeepSpeed, and its checkpoints."""
