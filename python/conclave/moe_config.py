"""conclave.MoEConfig: how the experts of a transformed model are balanced, and how tokens reach them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from conclave._library import call_checked, operators
from conclave.errors import UnsupportedError


@dataclass(frozen=True)
class MoEConfig:
    """Balancing and dispatch of a transformed model, by the names of SMP and of the job file. What is not given stays as the model's own configuration says.

    Attributes:
        moe_load_balancing: None: Transformers' own loss, on or off as `output_router_logits` of the model says; "aux_loss": that loss, switched on;
            "none": switched off; "sinkhorn": off, and in training tokens choose so that the demand of experts is even over all ranks
            (docs/balancing.md). "bias" and "balanced" are the program's (`conclave train`).
        moe_aux_loss_coeff: the strength of the auxiliary loss; None: the model's own `router_aux_loss_coef`.
        moe_z_loss_coeff: 0 or None; the z-loss is the program's.
        smp_moe: True; there is one layer.
        moe_all_to_all_dispatcher: True; tokens travel by all-to-all.
        global_token_shuffle: False; tokens stay in order.
        random_seed: None; no random number of a rank is drawn.
        overload: what happens when a rank's experts get far more tokens than another's (docs/dispatch.md); results differ by rounding only. "none":
            the others wait; "spill": busy experts are lent to idle ranks; "chunk": a rank takes its tokens one part after the other; None, as in
            a job: "spill" where the ranks that divide the experts share a host, else "none"; "none" with several dispatch_chunks, too.
        max_tokens_per_rank_factor: of "chunk": at most so many rows at once, over the mean of the ranks; None: 1.5.
        spill_threshold: of "spill": rows of the busiest rank over the mean above which experts are lent; None: 1.3.
        spill_least_rows: of "spill": the fewest rows that an expert is lent for; None: 128 on CPUs, 2048 on GPUs.
        dispatch_chunks: parts of the tokens that travel while experts compute another; None: 1.

    Raises:
        ConfigError: a value that no version accepts.
        UnsupportedError: a value that the program accepts and this front end does not.
    """

    moe_load_balancing: str | None = None
    moe_aux_loss_coeff: float | None = None
    moe_z_loss_coeff: float | None = None
    smp_moe: bool = True
    moe_all_to_all_dispatcher: bool = True
    global_token_shuffle: bool = False
    random_seed: int | None = None
    overload: str | None = None
    max_tokens_per_rank_factor: float | None = None
    spill_threshold: float | None = None
    spill_least_rows: int | None = None
    dispatch_chunks: int | None = None

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        call_checked(operators().read_settings, [f"moe.{name}={yaml_of(value)}" for name, value in given.items() if value is not None])
        if self.moe_load_balancing not in (None, "aux_loss", "none", "sinkhorn"):
            raise UnsupportedError(f"moe_load_balancing is {self.moe_load_balancing!r}, which carries a state or numbers of tokens that a model "
                                   "of Transformers has no place for.\nUse None, 'aux_loss', 'sinkhorn' or 'none', or train with the program: conclave.Job(path).train().")
        if self.global_token_shuffle:
            raise UnsupportedError("global_token_shuffle is True, and a transformed model would not use it: its tokens stay in order.\n"
                                   "Use False, or train with the program: conclave.Job(path).train().")
        if self.moe_z_loss_coeff:
            raise UnsupportedError(f"moe_z_loss_coeff is {self.moe_z_loss_coeff}, but a transformed model keeps Transformers' own losses, which have no "
                                   "z-loss.\nUse 0 or None, or train with the program: conclave.Job(path).train().")

    def overload_on(self, spans_hosts: bool) -> str:
        """What `overload` says, or what its None stands for where ranks that divide the experts lie on several hosts (`spans_hosts`) or on one."""
        if self.overload is not None:
            return self.overload
        asks_for_spill = self.spill_threshold is not None or self.spill_least_rows is not None
        return "none" if (self.dispatch_chunks or 1) > 1 or (spans_hosts and not asks_for_spill) else "spill"


def yaml_of(value: object) -> str:
    """A value as the job file's YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
