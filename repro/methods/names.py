"""Lists of methods that commands run by default; literals, so that `--help` imports no method."""

# What a configuration's `hours` are for: the ends of the scale, and the method beside the baselines that its paper has.
COMPARED = ("floor", "noise", "base", "ofa", "diff_pruning", "random")
# What is run where nothing is named: the cheap controls too, before all that trains.
DEFAULT = (*COMPARED[:3], "untrained", "untrained_random", *COMPARED[3:])
