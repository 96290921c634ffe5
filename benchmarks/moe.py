"""One layer's routed experts on one core, forward and backward: as a fraction of what the bare matrix products of the same shapes take, and beside
Transformers' experts (eager and grouped_mm) and a plain loop over the experts.

    ./dev bench moe
    ./dev bench moe --precision bf16 --shapes small
    ./dev bench moe --rivals
    ./dev bench moe --shapes wide --sweeps experts --experts 64
    ./dev bench moe --shapes olmoe qwen3_moe --sweeps rows --rows 64 32 16 8

Cases that are not measured again stay in the results as they were.

Rows per expert fall from many to few at a fixed model (tokens vary), and experts rise from 8 to 64 at equal work (tokens x choices is fixed).
In bf16 Conclave's weights and their gradients are fp32, as in training; the rivals' are bf16, and what casts them is not counted. "cast" is grouped_mm with
fp32 weights that are cast to bf16, and whose gradients are cast back, as in a step of mixed precision.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from sides import RESULTS, ROOT, SHAPES, BenchmarkError, exit_code_of, experts_of, processor_name

ROWS = (512, 256, 128, 64, 32, 16, 8)  # of an expert, with the shape's own numbers of experts and choices
EXPERTS = (8, 16, 32, 64)  # at 2048 tokens and 2 choices: 512 to 64 rows an expert


def measure_conclave(case: dict, rounds: int, program: Path = ROOT / "build/bench_moe", patience: float | None = None) -> dict:
    """What bench_moe prints for a case: median, least and most seconds of the layer and of its products. It is ended after `patience` seconds."""
    command = [program, "--rounds", rounds]
    for name in ("tokens", "experts", "choices", "hidden", "intermediate"):
        command += [f"--{name}", case[name]]
    if case["precision"] == "bf16":
        command.append("--bf16")
    if case.get("device") == "cuda":
        command.append("--cuda")
    if case.get("dense"):
        command.append("--dense")
    if case.get("fp8"):
        command.append("--fp8")
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=patience, env={**os.environ, "OMP_NUM_THREADS": "1"})
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError(str(error)) from None
    if done.returncode != 0:
        raise BenchmarkError(f"bench_moe ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


RIVALS = {"transformers_eager": "eager", "transformers_grouped_mm": "grouped", "plain_loop": "loop", "transformers_grouped_mm_cast": "cast"}


def measure_rivals(case: dict, rounds: int, names: tuple[str, ...] = tuple(RIVALS)[:3]) -> dict[str, float]:
    """Median seconds of forward and backward of the same layer by each rival, with gradients written anew in each round."""
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    device = case.get("device", "cpu")
    torch.set_num_threads(1)
    torch.set_default_device(device)
    torch.manual_seed(1)
    dtype = torch.bfloat16 if case["precision"] == "bf16" else torch.float32
    tokens, choices, experts, hidden = case["tokens"], case["choices"], case["experts"], case["hidden"]
    chosen = (torch.arange(tokens * choices) % experts).view(tokens, choices)
    weight = torch.softmax(torch.randn(tokens, choices), 1).to(dtype).requires_grad_()
    token = torch.randn(tokens, hidden, dtype=dtype, requires_grad=True)
    gradient = torch.randn(tokens, hidden, dtype=dtype)

    def transformers_experts(implementation: str):
        config = MixtralConfig(hidden_size=hidden, intermediate_size=case["intermediate"], num_local_experts=experts, num_experts_per_tok=choices)
        config._experts_implementation = implementation
        layer = MixtralExperts(config).to(dtype)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(std=0.02)
        return layer, lambda: layer(token, chosen, weight)

    def cast_from_fp32():
        layer, _ = transformers_experts("grouped_mm")
        layer.float()
        return layer, lambda: torch.func.functional_call(layer, {name: value.to(dtype) for name, value in layer.named_parameters()}, (token, chosen, weight))

    def plain_loop():
        layer, _ = transformers_experts("eager")
        gate_up = [matrix.detach().clone().requires_grad_() for matrix in layer.gate_up_proj]
        down = [matrix.detach().clone().requires_grad_() for matrix in layer.down_proj]
        owner = torch.nn.ParameterList(gate_up + down)

        def forward():
            out = torch.zeros_like(token)
            for expert in range(experts):
                place, choice = torch.where(chosen == expert)
                gate, up = torch.nn.functional.linear(token[place], gate_up[expert]).chunk(2, dim=-1)
                rows = torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, down[expert])
                out = out.index_add(0, place, rows * weight[place, choice, None])
            return out

        return owner, forward

    seconds = {}
    rivals = {"transformers_eager": lambda: transformers_experts("eager"), "transformers_grouped_mm": lambda: transformers_experts("grouped_mm"),
              "plain_loop": plain_loop, "transformers_grouped_mm_cast": cast_from_fp32}
    if dtype == torch.float32:
        del rivals["transformers_grouped_mm_cast"]
    for name, made in ((name, made) for name, made in rivals.items() if name in names):
        layer, forward = made()  # one at a time: 64 wide experts with their gradients take 6 GB
        taken = []
        for _ in range(rounds + 1):  # the first one warms up
            for parameter in layer.parameters():
                parameter.grad = None
            token.grad = weight.grad = None
            start = time.perf_counter()
            forward().backward(gradient)
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
        seconds[name] = statistics.median(taken[1:])
        for parameter in layer.parameters():
            parameter.grad = None
        del layer, forward
    return seconds


def cases_of(options: argparse.Namespace) -> list[dict]:
    cases = []
    for shape in options.shapes:
        experts, choices = experts_of(SHAPES[shape], None, None)
        model = dict(hidden=SHAPES[shape]["hidden_size"], intermediate=SHAPES[shape]["intermediate_size"], precision=options.precision, shape=shape)
        cases += [dict(model, sweep="rows", tokens=rows * experts // choices, experts=experts, choices=choices) for rows in options.rows]
        cases += [dict(model, sweep="experts", tokens=2048, experts=experts, choices=2) for experts in options.experts]
    return [case for case in cases if case["sweep"] in options.sweeps]


HEADER = (f"{'shape':<10}{'sweep':<9}{'experts':>8}{'rows each':>10}{'ms':>9}{'us/token':>10}{'of products':>12}"
          + "".join(f"{word:>9}" for word in RIVALS.values()))


def show(result: dict) -> None:
    own = result["layer_seconds"]["median"]
    ratios = [f"{result['rivals'][name] / own:.2f} x" if name in result["rivals"] else "" for name in RIVALS]
    print(f"{result['shape']:<10}{result['sweep']:<9}{result['experts']:>8}{result['rows_per_expert']:>10}{own * 1e3:>9.1f}"
          f"{own / result['tokens'] * 1e6:>10.1f}{result['fraction_of_product_rate']:>12.2f}" + "".join(f"{ratio:>9}" for ratio in ratios), flush=True)


def measure(options: argparse.Namespace) -> None:
    subprocess.run(["cmake", "--build", str(ROOT / "build"), "--target", "bench_moe"], check=True, stdout=subprocess.DEVNULL)
    file = RESULTS / f"moe-{'-'.join(options.shapes)}-{options.precision}.json"
    results = json.loads(file.read_text())["cases"] if file.exists() else []
    print(HEADER)
    for case in cases_of(options):
        result = {**case, **measure_conclave(case, options.rounds)}
        result["rivals"] = measure_rivals(case, options.rival_rounds, options.rivals)
        results = [other for other in results if any(other[key] != value for key, value in case.items())] + [result]
        show(result)
        file.write_text(json.dumps({"machine": processor_name(), "load": os.getloadavg()[0], "precision": options.precision, "cases": results}, indent=1) + "\n")
    print(f"written: {file.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["small"])
    parser.add_argument("--sweeps", nargs="+", choices=["rows", "experts"], default=["rows", "experts"])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="of an expert, of the sweep over rows")
    parser.add_argument("--experts", nargs="+", type=int, default=EXPERTS, help="of the sweep over experts")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rival-rounds", type=int, default=3)
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=tuple(RIVALS), help="(default: all; none: Conclave and its products alone)")
    return exit_code_of(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
