"""The layouts that the tests of traces run on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A layout of the ranks."""

    world: int
    expert: int = 1  # expert_parallel_degree
    shard: int = 0  # hybrid_shard_degree

    def __str__(self) -> str:
        return f"{self.world} ranks, expert {self.expert}, shard {self.shard}"
