"""The loss that conclave.Trainer trains on is the mean of the tokens' losses plus coefficient x balancing loss, whatever accumulation and ranks.

Oracle: plain Transformers in one process, each micro-batch's two losses taken from the model's outputs and added by hand.
Tolerance: 1e-5 of the largest value, fp32 sums in another order.
"""

import tempfile

import pytest
import torch
import torch.distributed as dist
from compared_steps import error_of, whole
from test_trainer import Tokens, arguments_for
from tiny_models import tiny_model
from torch_ranks import run_torch_ranks

import conclave

COEFFICIENT = 0.5  # so large that a wrong factor shows in every digit
BATCH = 2


class Uneven(Tokens):
    """Half of the samples' labels are masked, of each another number, so that the mean over tokens is not that over micro-batches."""

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(number)
        labels = sample["labels"].clone()
        labels[: number % 6] = -100
        return {"input_ids": sample["input_ids"], "labels": labels}


def expected(numbers: list[list[int]], smoothing: float = 0.0):
    """Of the micro-batches with these samples: (loss, gradients). With smoothing: that of Transformers' label smoother in place of cross entropy."""
    model, data = tiny_model("mixtral", output_router_logits=True, router_aux_loss_coef=COEFFICIENT), Uneven(64)
    entropy, tokens, balancing = [], 0, []
    for batch in numbers:
        inputs, labels = (torch.stack([data[number][key] for number in batch]) for key in ("input_ids", "labels"))
        out = model(input_ids=inputs)
        targets, logits = labels[:, 1:].flatten(), out.logits[:, :-1].flatten(0, 1)
        kept = targets != -100
        logs = torch.log_softmax(logits[kept].float(), dim=-1)
        likely = -logs.gather(1, targets[kept][:, None]).sum()
        entropy.append((1 - smoothing) * likely + smoothing * -logs.mean(dim=-1).sum())
        tokens += int(kept.sum())
        balancing.append(out.aux_loss)
    loss = sum(entropy) / tokens + COEFFICIENT * sum(balancing) / len(balancing)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


class Recorder(conclave.Trainer):
    """Keeps what samples a rank saw, and the gradients of the first step."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen, self.gradients = [], {}

    def training_step(self, model, inputs, *arguments, **options):
        self.seen.append([self.number_of[tuple(row.tolist())] for row in inputs["input_ids"]])
        return super().training_step(model, inputs, *arguments, **options)

    def _get_grad_norm(self, *arguments, **options):
        if not self.gradients:
            self.gradients = {name: whole(parameter.grad).clone() for name, parameter in self.model.named_parameters()}
        return super()._get_grad_norm(*arguments, **options)


def compare(folder: str, degree: int, sharded: bool, accumulation: int, **changes) -> None:
    conclave.init({"expert_parallel_degree": degree})
    model = conclave.transform(tiny_model("mixtral"), conclave.MoEConfig(moe_load_balancing="aux_loss", moe_aux_loss_coeff=COEFFICIENT))
    if sharded:
        conclave.fully_shard(model)
    data = Uneven(64)
    args = arguments_for(folder, BATCH, gradient_accumulation_steps=accumulation, max_steps=1, max_grad_norm=0.0, eval_strategy="no", save_strategy="no",
                         **changes)
    trainer = Recorder(model=model, args=args, train_dataset=data, eval_dataset=Uneven(8))
    trainer.number_of = {tuple(data[number]["input_ids"].tolist()): number for number in range(len(data))}
    evaluated = trainer.evaluate()["eval_loss"]
    trainer.train()
    what = f"degree {degree}, sharded {sharded}, accumulation {accumulation}, {changes}"
    seen = [None] * dist.get_world_size()
    dist.all_gather_object(seen, trainer.seen)
    loss, gradients = expected([batch for batches in seen for batch in batches], smoothing=args.label_smoothing_factor)
    assert trainer.state.log_history[-2]["loss"] == pytest.approx(loss, rel=1e-5), what
    for name, gradient in trainer.gradients.items():
        assert error_of(gradient, gradients[name]) < 1e-5, f"{what}: gradient of {name}"
    if args.label_smoothing_factor == 0:
        batches = [list(range(begin, begin + BATCH)) for begin in range(0, 8, BATCH)]
        pairs = [batches[step * len(seen) : (step + 1) * len(seen)] for step in range(len(batches) // len(seen))]
        right = sum(expected(pair)[0] for pair in pairs) / len(pairs)  # the mean of the steps' losses, as the stock Trainer has it
        assert evaluated == pytest.approx(right, rel=1e-5), f"{what}: evaluation"


def on_ranks(folder: str) -> None:
    for degree, sharded, accumulation in ((1, False, 1), (dist.get_world_size(), True, 4), (dist.get_world_size(), False, 3)):
        compare(folder, degree, sharded, accumulation)
    compare(folder, dist.get_world_size(), False, 2, label_smoothing_factor=0.2)
    if dist.get_world_size() == 1:
        compare(folder, 1, False, 4, average_tokens_across_devices=False)


@pytest.mark.parametrize("ranks", [1, 2])
def test_balancing_loss_weighs_the_coefficient(ranks):
    with tempfile.TemporaryDirectory() as folder:
        run_torch_ranks(ranks, on_ranks, folder)
