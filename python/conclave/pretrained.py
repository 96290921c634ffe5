"""Hugging Face checkpoint folders, read and written by all ranks together, without the whole model in any memory."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from conclave.checkpoint_files import CheckpointFolder, read_region, sources_of
from conclave.errors import CheckpointError
from conclave.folder_writer import FolderWriter
from conclave.initialization import allocate, check_materialized
from conclave.regions import Region, local_of, stored_tensors
from conclave.transformation import transformed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_pretrained(model: PreTrainedModel, folder: str | PathLike[str]) -> PreTrainedModel:
    """Loads this rank's parts of a transformed model (sharded or not, on the meta device or not) from a Hugging Face folder, reading only their bytes.

    Experts may be stored one by one or fused. Values are rounded to the model's dtype.

    Raises:
        OrderError: the model is not transformed.
        CheckpointError: the folder lacks a parameter, has another shape, or holds what the model has no place for.
    """
    transformed(model, "conclave.load_pretrained")
    checkpoint = CheckpointFolder(Path(folder))
    sources = sources_of(model, checkpoint.names())
    wanted = stored_tensors(model)
    ignored = set(model._tied_weights_keys or ())  # a tied head may be stored or not
    missing = [name for name in wanted if name not in sources]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors of the model: {', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}")
    surplus = [name for name in sources if name not in wanted and name not in ignored and not name.endswith("rotary_emb.inv_freq")]
    if surplus:
        raise CheckpointError(f"{folder} holds {len(surplus)} tensors that the model has no place for: {', '.join(surplus[:4])}"
                              f"{', ...' if len(surplus) > 4 else ''}.\nUse the checkpoint's own config.json.")
    if any(tensor.is_meta for tensor in wanted.values()):
        allocate(model)
        wanted = stored_tensors(model)
    with torch.no_grad():
        for name, tensor in wanted.items():
            region = Region.of(tensor)
            if not region.is_empty:
                local_of(tensor).copy_(read_region(checkpoint, name, sources[name], region, tuple(tensor.shape)))
    check_materialized(model)
    return model


def save_pretrained(model: PreTrainedModel, folder: str | PathLike[str], *, max_shard_size: int = 5_000_000_000) -> None:
    """Writes the ordinary Hugging Face folder of a transformed model, sharded or not. Collective over all ranks; all return when it is whole.

    The files are divided over the ranks; a rank that writes holds one parameter at a time. Names, and experts one by one, are Transformers' own.
    `max_shard_size`: bytes of a file, unless one parameter is larger. The tokenizer is the caller's to save.

    Raises:
        OrderError: the model is not transformed.
        NotMaterializedError: something is still on the meta device.
        CheckpointError: the folder cannot be written; every rank raises it, and no file of an earlier save has been replaced.
    """
    transformed(model, "conclave.save_pretrained")
    check_materialized(model)
    FolderWriter(model, Path(folder), max_shard_size).write()
