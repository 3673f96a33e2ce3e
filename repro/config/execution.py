"""The sections of a configuration that change no result: how a run is kept safe, and what a cluster is asked for.

They are no part of a configuration's hash, so an experiment may go on under other values.
"""

from dataclasses import dataclass

from repro.config.sections import MOST_HOURS, MOST_STEPS, check, not_negative, one_of, within

WATCHERS = ("tensorboard", "wandb")
MOST_MACHINES, MOST_MEMORY = 2**16, 10**6  # nodes, cores or GPUs; GB


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run uses its machine, and how it is kept safe.

    Attributes:
        memory_gib: What a rank may use; a training batch that needs more is accumulated from smaller ones. On a GPU, samples and features
            are computed in parts that fit, too. 0 takes the free memory of the GPU, and sets no limit on a CPU.
        checkpoint_minutes: The longest time between two checkpoints, beside `checkpoint_every_steps`.
        checkpoints_kept: How many of the newest are kept, for the case that the newest is damaged.
        rank_timeout_sec: How long a rank may give no sign of life before the others name it and stop.
        watchers: Where losses, rates, points of curves and samples go while a run goes on: "tensorboard", "wandb", or both.
    """

    memory_gib: float = 0.0
    checkpoint_minutes: float = 10.0
    checkpoints_kept: int = 2
    rank_timeout_sec: float = 300.0
    watchers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        not_negative("memory_gib", self.memory_gib, MOST_MEMORY, "0 sets no limit of its own")
        for key, most in {"checkpoint_minutes": MOST_HOURS * 60, "rank_timeout_sec": MOST_HOURS * 3600}.items():
            check(key, 0 < getattr(self, key) <= most, f"must be positive, and at most {most:,}")
        within("checkpoints_kept", self.checkpoints_kept, MOST_STEPS)
        for name in self.watchers:
            one_of("watchers", name, WATCHERS)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What `--slurm` asks the scheduler for, for each cell.

    Attributes:
        nodes: Machines of a cell.
        gpus_per_node: Its GPUs on each; one rank runs on each GPU. 0 asks for none: one rank on the CPU of each node.
        cpus_per_rank: Processor cores of a rank.
        memory_gb_per_node: Memory of a node; 0 leaves it to the scheduler.
        hours: The time limit; a cell that needs longer is requeued and goes on from its checkpoint. A cell that ends with code 75 before it
            is requeued too where it has one rank, unless it was cancelled; several ranks only go back after the notice of the limit.
        partition: Where to queue; empty takes the scheduler's default.
        account: Who pays; empty takes the default.
        options: Further options of sbatch, one each, such as "--constraint=h100".
        setup: Shell lines before the command, such as "source .venv/bin/activate".
    """

    nodes: int = 1
    gpus_per_node: int = 1
    cpus_per_rank: int = 8
    memory_gb_per_node: int = 0
    hours: float = 24.0
    partition: str = ""
    account: str = ""
    options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("nodes", "cpus_per_rank"):
            within(key, getattr(self, key), MOST_MACHINES)
        for key, most in {"gpus_per_node": MOST_MACHINES, "memory_gb_per_node": MOST_MEMORY}.items():
            not_negative(key, getattr(self, key), most)
        check("hours", 0 < self.hours <= MOST_HOURS, f"must be positive, and at most {MOST_HOURS:,}")
        for key in ("partition", "account"):
            check(key, all(sign.isalnum() or sign in "_-.," for sign in getattr(self, key)), "is no name that sbatch takes")
        for option in self.options:
            check(
                "options", option.startswith("-") and "\n" not in option, f"'{option}' is no option of sbatch, such as '--constraint=h100'"
            )
        for line in self.setup:
            check("setup", "\n" not in line, "takes one shell line each")
