"""Metrics: features of Inception or of a classifier, and the distances between two sets of them."""
