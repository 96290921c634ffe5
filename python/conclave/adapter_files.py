"""Adapter folders as PEFT writes them, from and into adapters that lie in parts on many ranks."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor

from conclave.agreement import together
from conclave.errors import CheckpointError
from conclave.regions import Region, local_of

CONFIG = "adapter_config.json"


def save_adapters(model: PeftModel, folder: Path) -> None:
    """What PeftModel.save_pretrained writes in one process; only the adapters' tensors travel. Collective."""
    tensors = model.state_dict(keep_vars=True)
    chosen = [[name for adapter in model.peft_config for name in _stored_names(model, adapter).values()] if dist.get_rank() == 0 else []]
    dist.broadcast_object_list(chosen, src=0)
    whole = {name: tensors[name].detach().full_tensor() if isinstance(tensors[name], DTensor) else tensors[name].detach() for name in chosen[0]}
    together(lambda: _write(model, folder, whole) if dist.get_rank() == 0 else None)


def _write(model: PeftModel, folder: Path, whole: dict[str, torch.Tensor]) -> None:
    given = model.peft_config
    model.peft_config = copy.deepcopy(given)  # PEFT writes into it, on one rank
    try:
        folder.mkdir(parents=True, exist_ok=True)
        PeftModel.save_pretrained(model, str(folder), state_dict={name: tensor.cpu() for name, tensor in whole.items()})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the adapters could not be saved to {folder}: {error}") from None
    finally:
        model.peft_config = given


def load_adapters(model: PeftModel, folder: Path) -> None:
    """Into the adapters that the model has, by name; each rank reads its parts. Collective."""
    tensors = model.state_dict(keep_vars=True)
    for adapter in model.peft_config:
        path = (folder if adapter == "default" else folder / adapter) / SAFETENSORS_WEIGHTS_NAME
        names = together(lambda path=path, adapter=adapter: _checked_names(model, adapter, path, tensors))
        with torch.no_grad(), safe_open(path, framework="pt") as file:
            for stored, name in names.items():
                region = Region.of(tensors[name])
                if not region.is_empty:
                    local_of(tensors[name]).copy_(file.get_slice(stored)[region.slices])


def _checked_names(model: PeftModel, adapter: str, path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    names = _stored_names(model, adapter)
    try:
        with safe_open(path, framework="pt") as file:
            found = {stored: tuple(file.get_slice(stored).get_shape()) for stored in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.\nGive the folder of an adapter that PEFT or conclave.save_pretrained has saved.") from None
    for stored in sorted({*names, *found}):
        if stored not in found or stored not in names:
            raise CheckpointError(f"{path} {'lacks' if stored in names else 'holds'} {stored}, which the adapter {adapter!r} of the model "
                                  f"{'has' if stored in names else 'does not have'}.\nBuild the model with the adapter_config.json beside the file.")
        if found[stored] != tuple(tensors[names[stored]].shape):
            raise CheckpointError(f"{stored} has the shape {list(found[stored])} in {path}, and the model wants {list(tensors[names[stored]].shape)}.\n"
                                  "Build the model with the adapter_config.json beside the file.")
    return names


def _stored_names(model: PeftModel, adapter: str) -> dict[str, str]:
    """By the name in PEFT's file, the name in the model. PEFT itself chooses and renames, of tensors that stand for the model's."""
    stand_ins = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in model.state_dict(keep_vars=True).items()}
    name_of = {id(tensor): name for name, tensor in stand_ins.items()}
    return {stored: name_of[id(tensor)] for stored, tensor in get_peft_model_state_dict(model, state_dict=stand_ins, adapter_name=adapter).items()}
