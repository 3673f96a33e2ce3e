"""Tables and figures, from records alone: neither torch nor the trainer is imported."""
