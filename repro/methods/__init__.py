"""Ways to come by a network: one joint training run, training one size alone, controls, variants."""
