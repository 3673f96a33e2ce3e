"""The recipes of independent pruning: name -> description."""

RECIPES = {
    "diff_pruning": "prune by | weight * gradient | summed over the informative timesteps (Fang et al., 2023), then train",
    "magnitude": "prune by the absolute values of the weights, then train",
    "random": "prune at random, then train: the strong control",
    "scratch": "the pruned architecture with random weights, trained: what inheriting weights is worth",
}
