"""The report: one HTML page for each experiment, with its records inside, that asks nothing of the network."""
