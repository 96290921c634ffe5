"""Whole folders in MXFP4 (gpt-oss) and in fp8 squares (DeepSeek-V3), as they are published: read by `model.init_from`, trained, exported in bf16.

The folders are written here by the formats: Open Compute Project, "Microscaling Formats", version 1.0, table 5 (E2M1) and section 5.2 (E8M0) with the layout of
gpt-oss's files; DeepSeek-V3's README_WEIGHTS.md. Oracle: Transformers in fp32 on the weights that they stand for, computed here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from family_training import SEQUENCE, STEP_TOLERANCE, make_job, tokens_of, train_with_transformers
from safetensors.torch import save_file
from tiny_families import CASES, Case, make_model, on_disk
from transformers import AutoModelForCausalLM, PreTrainedModel

STEPS = 2
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # and the same below zero, whose highest bit of four is set
BLOCK, SQUARE = 32, 128
MXFP4 = {"modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"], "quant_method": "mxfp4"}
FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [SQUARE, SQUARE]}


def mxfp4_of(weight: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random blocks [E,N,M/32,16] and scales [E,N,M/32] of about the size of weight [E,M,N], and what they stand for."""
    experts, rows, columns = weight.shape
    codes = torch.randint(0, 16, (experts, columns, rows // BLOCK, BLOCK), generator=generator)
    exponents = torch.randint(-5, -2, (experts, columns, rows // BLOCK), generator=generator)
    values = torch.tensor(E2M1 + [-value for value in E2M1])[codes] * 2.0 ** exponents[..., None].float()
    blocks = codes[..., 0::2] + 16 * codes[..., 1::2]  # two codes to a byte, the lower one first
    return blocks.to(torch.uint8), (exponents + 127).to(torch.uint8), values.reshape(experts, columns, rows).transpose(1, 2).contiguous()


def fp8_of(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rounded so that the largest of each square becomes 448; inverse scales; and what they stand for."""
    rows, columns = weight.shape
    stored, meant = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
    scales = torch.empty(-(-rows // SQUARE), -(-columns // SQUARE))
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            at = slice(row * SQUARE, (row + 1) * SQUARE), slice(column * SQUARE, (column + 1) * SQUARE)
            scales[row, column] = weight[at].abs().max() / 448
            stored[at] = (weight[at] / scales[row, column]).to(torch.float8_e4m3fn)
            meant[at] = stored[at].float() * scales[row, column]
    return stored, scales, meant


def quantized(family: str, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of the folder, and those that it stands for; what is not quantized is in bf16."""
    generator = torch.Generator().manual_seed(11)
    stored, meant = {}, {}
    for name, tensor in tensors.items():
        if family == "gpt_oss" and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[f"{name}_blocks"], stored[f"{name}_scales"], meant[name] = mxfp4_of(tensor, generator)
        elif family == "deepseek_v3" and name.endswith(("_proj.weight", "_proj_with_mqa.weight")):
            stored[name], stored[f"{name}_scale_inv"], meant[name] = fp8_of(tensor)
        else:
            kept = tensor if name.endswith("e_score_correction_bias") else tensor.to(torch.bfloat16)  # as DeepSeek has it
            stored[name], meant[name] = kept, kept.float()
    return stored, meant


def write_folder(folder: Path, family: str, model: PreTrainedModel) -> None:
    """The folder, in two files with an index. `model` gets the weights that it stands for."""
    model.save_pretrained(folder / "plain")
    stored, meant = quantized(family, on_disk(folder / "plain"))
    save_file(meant, folder / "plain/model.safetensors", {"format": "pt"})
    model.load_state_dict(AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.float32).state_dict())
    config = json.loads((folder / "plain/config.json").read_text())
    if family == "deepseek_v3":  # published with a module that predicts one token further
        config["num_nextn_predict_layers"] = 1
        beyond = f"model.layers.{config['num_hidden_layers']}"
        stored[f"{beyond}.eh_proj.weight"], stored[f"{beyond}.eh_proj.weight_scale_inv"], _ = fp8_of(torch.randn(32, 64))
        stored[f"{beyond}.enorm.weight"] = torch.ones(32, dtype=torch.bfloat16)
    config |= {"quantization_config": MXFP4 if family == "gpt_oss" else FP8, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(stored)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]  # a weight and its scales may lie in different files
    for number, half in enumerate(halves, start=1):
        save_file({name: stored[name].contiguous() for name in half}, folder / f"model-{number:05}-of-00002.safetensors", {"format": "pt"})
    index = {name: f"model-{number:05}-of-00002.safetensors" for number, half in enumerate(halves, start=1) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": index}))


# Blocks of 32 and squares of 128, of which the last are cut off; more than one of both.
@pytest.mark.parametrize("case", [Case("gpt_oss", "mxfp4", {"hidden_size": 64, "intermediate_size": 96}),
                                  Case("deepseek_v3", "fp8", {"hidden_size": 160, "moe_intermediate_size": 136, "initializer_range": 0.05})], ids=str)
def test_a_quantized_folder_trains_as_the_weights_it_stands_for(case, tmp_path):
    model = make_model(case)
    folder = tmp_path / "published"
    folder.mkdir()
    write_folder(folder, case.family, model)
    tokens = tokens_of(model.config.vocab_size)
    job = make_job(tmp_path / "job", folder, case.family, tokens, **{"run.steps": STEPS, "checkpoint.every": 1})
    job = job.with_keys({"model.config": str(folder)})
    job.must_run(2)
    for step, (record, theirs) in enumerate(zip(job.metrics(), train_with_transformers(model, tokens, STEPS), strict=True)):
        assert (record["loss"], record["grad_norm"]) == pytest.approx(theirs, rel=STEP_TOLERANCE, abs=0), f"step {step + 1}"

    exported = job.must_export(tmp_path / "exported", "--dtype", "bf16")
    model.save_pretrained(tmp_path / "theirs")
    found, expected = on_disk(exported), on_disk(tmp_path / "theirs")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16 or name.endswith("e_score_correction_bias"), name
        # Half a unit of bf16's last place, and what two steps of 1e-3 differ where a gradient is near zero (test_training.py).
        assert torch.allclose(tensor.float(), expected[name], rtol=2**-8, atol=4e-3), name
    assert "quantization_config" not in json.loads((exported / "config.json").read_text())
    loaded, report = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True, dtype=torch.float32, attn_implementation="eager")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        logits, own = loaded(tokens[None, :SEQUENCE]).logits, model(tokens[None, :SEQUENCE]).logits
    assert ((logits - own).norm() / own.norm()).item() < 0.05  # weights in bf16, through two layers
