"""Hugging Face checkpoint folders, read and written by all ranks together, without the whole model in any memory."""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from conclave.adapters import check_adapters, is_adapted, refuse_bare_layers
from conclave.agreement import together
from conclave.checkpoint_files import CheckpointFolder, Source, check_shapes, join_tied, read_region, sources_of
from conclave.errors import CheckpointError, OrderError
from conclave.folder_writer import FolderWriter
from conclave.initialization import allocate, check_materialized, fill
from conclave.regions import Region, local_of, stored_tensors, tied_names
from conclave.selection_bias import has_bias
from conclave.transformed_model import transformed

if TYPE_CHECKING:
    from peft import PeftModel


def load_pretrained(model: PreTrainedModel, folder: str | PathLike[str]) -> PreTrainedModel:
    """Loads this rank's parts of a transformed model (sharded or not, on the meta device or not) from a Hugging Face folder, reading only their bytes.

    Experts may be stored one by one or fused, a tied head under its name, the embedding's, or both with the same values. Values are rounded to
    the model's dtype. A model with a task's head (a classifier, a reward model) takes a checkpoint without it, and any model that of its base alone: the head
    starts anew, and a warning names it. Into a PeftModel, the adapters of an adapter folder. Collective.

    Raises:
        OrderError: the model is not transformed.
        CheckpointError: the folder lacks a parameter, has another shape, holds what the model has no place for, or holds a tied parameter twice with
            different values; every rank raises it.
    """
    state = transformed(model, "conclave.load_pretrained")
    if is_adapted(model):
        return _load_adapters(model, Path(folder))
    checkpoint, sources, new = together(lambda: _checked_sources(model, Path(folder)))
    wanted = stored_tensors(model)
    on_meta = any(tensor.is_meta for tensor in wanted.values())
    if on_meta:
        allocate(model, stored=sources)
        wanted = stored_tensors(model)
    with torch.no_grad():
        for name, tensor in wanted.items():
            region = Region.of(tensor)
            if name in new and on_meta:
                fill(model, name, state.mesh.seed)
            elif name not in new and not region.is_empty:
                local_of(tensor).copy_(read_region(checkpoint, sources[name], region, tuple(tensor.shape)))
    check_materialized(model)
    return model


def _checked_sources(model: nn.Module, folder: Path) -> tuple[CheckpointFolder, dict[str, Source], list[str]]:
    """The folder, where each parameter lies in it, and the parameters of a new head."""
    refuse_bare_layers(model)
    checkpoint = CheckpointFolder(folder)
    sources = sources_of(model, checkpoint.names())
    wanted = stored_tensors(model)
    join_tied(sources, tied_names(model, wanted), checkpoint)
    inside = f"{getattr(model, 'base_model_prefix', '')}."
    is_of_base = inside != "." and all(name.startswith(inside) for name in sources)  # saved of the model without any head
    takes_new_head = isinstance(model, PreTrainedModel) and (is_of_base or not model.can_generate())
    new = [name for name in wanted if name not in sources and takes_new_head and not name.startswith(inside)]
    missing = [name for name in wanted if name not in sources and name not in new]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors of the model: {', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}")
    surplus = [name for name in sources if name not in wanted and not name.endswith("rotary_emb.inv_freq")]
    if new:  # the head of another task is left behind
        surplus = [name for name in surplus if name.startswith(inside)]
        warnings.warn(f"{', '.join(new)} of {type(model).__name__} is not in {folder}: it starts anew and must be trained before it is used.", stacklevel=4)
    if surplus:
        raise CheckpointError(f"{folder} holds {len(surplus)} tensors that the model has no place for: {', '.join(surplus[:4])}"
                              f"{', ...' if len(surplus) > 4 else ''}.\nUse the checkpoint's own config.json.")
    for name, source in sources.items():
        if name in wanted:
            check_shapes(checkpoint, name, source, tuple(wanted[name].shape))
    return checkpoint, sources, new


def _load_adapters(model: PeftModel, folder: Path) -> PeftModel:
    from conclave.adapter_files import CONFIG, load_adapters

    def check() -> None:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise OrderError("the model is on the meta device, and an adapter's folder does not hold its weights.\n"
                             "Call conclave.load_pretrained before get_peft_model, on the model of Transformers.")
        if not (folder / CONFIG).exists() and not all((folder / name / CONFIG).exists() for name in model.peft_config):
            raise CheckpointError(f"{folder} has no {CONFIG}: it is not the folder of an adapter.\n"
                                  "Load a model's weights before get_peft_model, into the model of Transformers.")

    together(check)
    load_adapters(model, folder)
    return model


def save_pretrained(model: PreTrainedModel, folder: str | PathLike[str], *, max_shard_size: int = 5_000_000_000) -> None:
    """Writes the ordinary Hugging Face folder of a transformed model, sharded or not. Collective over all ranks; all return when it is whole.

    The files are divided over the ranks; a rank that writes holds one parameter at a time. Names, and experts one by one, are Transformers' own. Of a
    PeftModel, the adapters are written as PEFT writes them; of a model of one's own, its tensors under its own names, without a config.json.
    `max_shard_size`: bytes of a file, unless one parameter is larger. The tokenizer is the caller's to save.

    Raises:
        OrderError: the model is not transformed.
        NotMaterializedError: something is still on the meta device.
        CheckpointError: the folder cannot be written; every rank raises it, and no file of an earlier save has been replaced.
    """
    transformed(model, "conclave.save_pretrained")
    if has_bias(model) and dist.get_rank() == 0:
        warnings.warn("the model chooses its experts with a selection bias (moe_load_balancing='bias'), for which a folder of Transformers has no place: loaded "
                      "from there it chooses by the router's scores alone.", stacklevel=2)
    together(lambda: (refuse_bare_layers(model), check_materialized(model), check_adapters(model)))
    if is_adapted(model):
        from conclave.adapter_files import save_adapters

        save_adapters(model, Path(folder))
    else:
        FolderWriter(model, Path(folder), max_shard_size).write()
