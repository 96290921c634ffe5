"""conclave.MoEConfig: how the experts of a transformed model are balanced, and how tokens reach them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from conclave._library import call_checked, operators
from conclave.errors import ConfigError


@dataclass(frozen=True)
class MoEConfig:
    """Balancing and dispatch of a transformed model, by the names of SMP and of the job file. What is not given stays as the model's own configuration says.

    Attributes:
        moe_load_balancing: None: Transformers' own loss, on or off as `output_router_logits` of the model says; "aux_loss": a balancing loss;
            "none": no loss; "sinkhorn": no loss, and in training tokens choose so that the demand of experts is even over all ranks; "bias": no loss,
            and a selection bias follows the load of all ranks after each optimizer step; "balanced": round-robin, for benchmarks
            (docs/balancing.md).
        moe_aux_loss_coeff: the strength of the auxiliary loss; None: the model's own `router_aux_loss_coef`.
        aux_loss_scope: whose tokens the auxiliary loss is taken over: "rank", which None stands for: each rank's own, as Transformers has it;
            "all_ranks": those of all ranks together, which does not depend on the layout.
        aux_loss_layers: "together", which None stands for: one product over all layers, as Transformers has it; "each": the mean of the layers' own.
        moe_z_loss_coeff: the strength of the router z-loss over the tokens of all ranks; None: 0.
        sinkhorn_tolerance, sinkhorn_iterations: when "sinkhorn" ends; None: as in a job.
        bias_update_rate: by which a step changes a selection bias; None: as in a job.
        capacity_factor: the most tokens of an expert in a micro-step of training, over the mean of all ranks; None: no token is dropped.
        drop_policy: which tokens a full expert keeps, "probability", which None stands for, or "position".
        router_jitter_noise: what the router sees is multiplied by 1 +- this in training; None: the model's own.
        smp_moe: True; there is one layer.
        moe_all_to_all_dispatcher: False stands for dispatcher="all_gather".
        dispatcher: "all_to_all", which None stands for, or "all_gather": every rank gets all tokens of its expert group.
        global_token_shuffle: tokens change ranks at random within an expert group before they are dispatched, and return after.
        random_seed: of that shuffle; None: the mesh's. Nothing else that is random belongs to a rank.
        overload: what happens when a rank's experts get far more tokens than another's (docs/dispatch.md); results differ by rounding only. "none":
            the others wait; "spill": busy experts are lent to idle ranks; "chunk": a rank takes its tokens one part after the other; None, as in
            a job: "spill" where the ranks that divide the experts share a host, else "none"; "none" with several dispatch_chunks, too.
        max_tokens_per_rank_factor: of "chunk": at most so many rows at once, over the mean of the ranks; None: 1.5.
        spill_threshold: of "spill": rows of the busiest rank over the mean above which experts are lent; None: 1.3.
        spill_least_rows: of "spill": the fewest rows that an expert is lent for; None: 128 on CPUs, 2048 on GPUs.
        dispatch_chunks: parts of the tokens that travel while experts compute another; None: 1.

    Raises:
        ConfigError: a value that cannot be used, or that nobody would use.
    """

    moe_load_balancing: str | None = None
    moe_aux_loss_coeff: float | None = None
    aux_loss_scope: str | None = None
    aux_loss_layers: str | None = None
    moe_z_loss_coeff: float | None = None
    sinkhorn_tolerance: float | None = None
    sinkhorn_iterations: int | None = None
    bias_update_rate: float | None = None
    capacity_factor: float | None = None
    drop_policy: str | None = None
    router_jitter_noise: float | None = None
    smp_moe: bool = True
    moe_all_to_all_dispatcher: bool = True
    dispatcher: str | None = None
    global_token_shuffle: bool = False
    random_seed: int | None = None
    overload: str | None = None
    max_tokens_per_rank_factor: float | None = None
    spill_threshold: float | None = None
    spill_least_rows: int | None = None
    dispatch_chunks: int | None = None

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.dispatcher == "all_to_all" and not self.moe_all_to_all_dispatcher:
            raise ConfigError("dispatcher is 'all_to_all' and moe_all_to_all_dispatcher is False, which asks for 'all_gather'.\nGive one of the two.")
        if not self.moe_all_to_all_dispatcher:  # the same choice by another name
            given |= {"moe_all_to_all_dispatcher": True, "dispatcher": "all_gather"}
        call_checked(operators().read_settings, [f"moe.{name}={yaml_of(value)}" for name, value in given.items() if value is not None])
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        """Keys of a rule or of a policy that is not chosen."""
        owners = {"aux_loss_scope": ("moe_load_balancing", "aux_loss"), "aux_loss_layers": ("moe_load_balancing", "aux_loss"),
                  "sinkhorn_tolerance": ("moe_load_balancing", "sinkhorn"), "sinkhorn_iterations": ("moe_load_balancing", "sinkhorn"),
                  "bias_update_rate": ("moe_load_balancing", "bias")}
        for name, (key, value) in owners.items():
            if getattr(self, name) is not None and getattr(self, key) != value:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, but {key} is {getattr(self, key)!r}, so nobody would use it.\n"
                                  f"Set {key}={value!r} beside it, or leave it out.")
        if self.moe_aux_loss_coeff is not None and self.moe_load_balancing not in (None, "aux_loss"):
            raise ConfigError(f"moe_aux_loss_coeff is {self.moe_aux_loss_coeff}, but moe_load_balancing is {self.moe_load_balancing!r}, so nobody would use "
                              "it.\nSet moe_load_balancing='aux_loss' beside it, or leave it out.")
        if self.drop_policy is not None and self.capacity_factor is None:
            raise ConfigError(f"drop_policy is {self.drop_policy!r}, but no token is dropped.\nGive a capacity_factor beside it, or leave it out.")
        if self.gathers_tokens and self.overload == "spill":
            raise ConfigError("overload is 'spill', but with the dispatcher 'all_gather' every rank gets all tokens, and nothing is lent.\n"
                              "Use overload='none', or dispatcher='all_to_all'.")

    @classmethod
    def of(cls, config: MoEConfig | Mapping[str, Any]) -> MoEConfig:
        """`config` itself, or one with the fields that a dictionary gives."""
        if isinstance(config, MoEConfig):
            return config
        if not isinstance(config, Mapping):
            raise ConfigError(f"a MoEConfig or a dictionary of its fields was expected, not {type(config).__name__}.\nGive conclave.MoEConfig(...).")
        unknown = sorted(set(config) - set(cls.__dataclass_fields__))
        if unknown:
            nearest = get_close_matches(unknown[0], cls.__dataclass_fields__, 1)
            raise ConfigError(f"MoEConfig has no field {unknown[0]!r}." + (f" Did you mean {nearest[0]}?" if nearest else f"\nThere are "
                              f"{', '.join(cls.__dataclass_fields__)}."))
        return cls(**config)

    @property
    def gathers_tokens(self) -> bool:
        """Whether the dispatcher is all_gather."""
        return self.dispatcher == "all_gather" or not self.moe_all_to_all_dispatcher

    @property
    def chooses(self) -> bool:
        """Whether tokens choose otherwise than by the plain top k of the router's scores, in training."""
        return self.moe_load_balancing in ("sinkhorn", "bias", "balanced") or self.capacity_factor is not None

    @property
    def has_own_aux_loss(self) -> bool:
        """Whether the auxiliary loss is another than Transformers' own."""
        return self.aux_loss_scope == "all_ranks" or self.aux_loss_layers == "each"

    @property
    def has_own_losses(self) -> bool:
        """Whether Conclave computes a balancing loss that Transformers does not."""
        return self.has_own_aux_loss or bool(self.moe_z_loss_coeff)

    def overload_on(self, spans_hosts: bool) -> str:
        """What `overload` says, or what its None stands for where ranks that divide the experts lie on several hosts (`spans_hosts`) or on one."""
        if self.overload is not None:
            return self.overload
        asks_for_spill = self.spill_threshold is not None or self.spill_least_rows is not None
        return "none" if self.gathers_tokens or (self.dispatch_chunks or 1) > 1 or (spans_hosts and not asks_for_spill) else "spill"


def yaml_of(value: object) -> str:
    """A value as the job file's YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
