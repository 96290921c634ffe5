"""The example of fine-tuning, beside a small random model in place of the quickstart's: one command from chats to an answer, and PEFT loads the adapter."""

import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from peft import PeftModel
from tokenizers import ByteLevelBPETokenizer

ROOT = Path(__file__).resolve().parents[2]


def make_base(folder: Path) -> None:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([(ROOT / "examples/finetune/chats.jsonl").read_text()], vocab_size=512)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer).save_pretrained(folder)
    config = transformers.MixtralConfig(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                                        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256)
    transformers.MixtralForCausalLM(config).save_pretrained(folder)


@pytest.mark.slow
def test_one_command_from_chats_to_an_answer(tmp_path):
    transformers.set_seed(1)
    make_base(tmp_path / "base")
    command = [sys.executable, "examples/finetune/run.py", "--base", str(tmp_path / "base"), "--output", str(tmp_path / "out"), "--set", "run.steps=30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("loss on what the assistant says"))
    first, last = (float(word) for word in line.replace(",", " ").split() if word[0].isdigit())
    assert last < first - 0.5, line
    assert "Assistant: " in done.stdout
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = PeftModel.from_pretrained(plain, tmp_path / "out" / "adapter")
    assert sum(parameter.numel() for name, parameter in adapted.named_parameters() if "lora" in name) > 0
