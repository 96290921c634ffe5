"""torch.sagemaker.moe.moe_config: SMP's MoEConfig, with SMP's defaults."""

from __future__ import annotations

from typing import Any

import conclave
from conclave.errors import ConfigError


def MoEConfig(smp_moe: bool = True, random_seed: int = 12345, moe_load_balancing: str = "sinkhorn", global_token_shuffle: bool = False,  # noqa: N802
              moe_all_to_all_dispatcher: bool = True, moe_aux_loss_coeff: float = 0.001, moe_z_loss_coeff: float = 0.001,
              use_cpu_initialization: bool = False, **beyond: Any) -> conclave.MoEConfig:
    """SMP's fields, and in `beyond` those of conclave.MoEConfig that SMP does not have.

    `moe_aux_loss_coeff` is that of "aux_loss"; with the other rules there is no auxiliary loss, as in SMP. `random_seed`: of the global token shuffle;
    initial values have that of `init`. `use_cpu_initialization`: accepted; weights stay where they are until they are divided.

    Raises:
        ConfigError: a value that cannot be used, or an unknown field.
    """
    if not isinstance(use_cpu_initialization, bool):
        raise ConfigError(f"use_cpu_initialization is {use_cpu_initialization!r}, but must be True or False.")
    fields = {"smp_moe": smp_moe, "random_seed": random_seed, "moe_load_balancing": moe_load_balancing, "global_token_shuffle": global_token_shuffle,
              "moe_all_to_all_dispatcher": moe_all_to_all_dispatcher, "moe_z_loss_coeff": moe_z_loss_coeff, **beyond}
    if moe_load_balancing == "aux_loss":
        fields["moe_aux_loss_coeff"] = moe_aux_loss_coeff
    return conclave.MoEConfig.of(fields)
