"""The scripts of examples/python, each a whole program of two ranks on real text: the loss falls, what is saved is whole, a run goes on."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
from ranks import free_port
from torch_ranks import run_torch_ranks
from transformers import AutoModelForCausalLM

FOLDER = Path(__file__).resolve().parents[2] / "examples/python"


def run_scripts(folder: str, ports: list[int]):
    """`ports`: each start of a script meets its ranks at one of its own, as separate processes would."""
    sys.path.insert(0, str(FOLDER))
    import own_model
    import pretrain
    import trainer

    def start(script, *arguments):
        os.environ["MASTER_PORT"] = str(ports.pop())
        return script.main(list(arguments))

    output = Path(folder)
    losses = {"pretrain": start(pretrain, "--steps", "12", "--output", str(output / "pretrain")), "own_model": start(own_model, "--steps", "12")}
    first = start(trainer, "--steps", "20", "--output", str(output / "trainer"))
    resumed = start(trainer, "--steps", "22", "--output", str(output / "trainer"), "--resume", "--expert-parallel-degree", "1")
    return losses, first, resumed


@pytest.mark.slow
def test_scripts_train_save_and_go_on():
    with tempfile.TemporaryDirectory() as folder:
        losses, first, resumed = run_torch_ranks(2, run_scripts, folder, [free_port() for _ in range(4)], initialize=False)[0]
        for name, values in losses.items():
            assert values[-1] < values[0] - 0.5, f"{name}: {values}"  # ln 256 = 5.5 at first; 12 steps learn the frequencies of bytes
        assert first[-1]["loss"] < first[0]["loss"]
        assert first[-1]["expert_imbalance"] < 3, "without a balancing loss two of eight experts have all tokens by then: 4 of at most 4"
        assert {"grad_norm", "expert_imbalance", "dead_experts"} <= set(first[0])
        assert [line["step"] for line in resumed] == list(range(1, 23)), "the log goes on where the checkpoint was"
        assert resumed[-1]["loss"] < first[0]["loss"]
        for saved in ("pretrain", "trainer/model"):
            AutoModelForCausalLM.from_pretrained(Path(folder) / saved)
