"""One layer's routed experts on one GPU in bf16, forward and backward: as a fraction of the rate that cuBLAS reaches on dense products of the same sizes in
the same run, and beside Transformers' experts (eager and grouped_mm).

    ./dev gpu-bench
    ./dev gpu-bench --shapes fine --no-rivals
    ./dev gpu-bench --fp8

Shapes: a layer of Mixtral 8x7B, whole and with the slices of its experts that a rank has at expert degree 2, 4 and 8 (as many rows for fewer experts), and a
fine-grained one. `of products` is the time of the experts' bare products over the layer's: what it lacks of 1 is all that fusing the passes between products
could gain. `overlap` is the time of the weights' gradients one after the other over that on two streams, as grouped experts take them. With --fp8 our layer
multiplies in fp8, and what it is held against stays in bf16. Last comes what it costs that attention's backward pass adds in a fixed order. A case that fails is
said to, and the others go on. Exit code 2 where there is no GPU; with --check 1 when a case fails or its fraction is below what is wanted of it.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from moe import measure_conclave
from sides import ROOT, BenchmarkError, exit_code_of, processor_name

SHAPES = {
    "mixtral": dict(hidden=4096, intermediate=14336, experts=8, choices=2, degrees=(1, 2, 4, 8), wanted=0.85),
    "fine": dict(hidden=2048, intermediate=1408, experts=64, choices=8, degrees=(1,), wanted=0.65),
}
TOKENS = (8192, 32768)
PATIENCE_SECONDS = 150  # what hangs must not take the others' time
# With the hidden option --device cpu all of this runs where there is no GPU, so small that only its working can be seen.
ON_CPU = dict(hidden=64, intermediate=96, precision="fp32", device="cpu")


def cases_of(options: argparse.Namespace) -> list[dict]:
    return [dict(hidden=shape["hidden"], intermediate=shape["intermediate"], experts=shape["experts"] // degree, choices=shape["choices"], tokens=tokens,
                 precision="bf16", device="cuda", fp8=options.fp8, dense=True, shape=name, degree=degree, wanted=shape["wanted"])
            | (ON_CPU if options.device == "cpu" else {})
            for name, shape in SHAPES.items() if name in options.shapes for tokens in options.tokens for degree in shape["degrees"]]


def in_process(function: str, what, rounds: int) -> dict:
    """What module.function(what, rounds) returns, or why nothing. In a process of its own: what it allocates goes with it, and running out of memory ends no
    other."""
    program = f"import json, sys, {function.split('.')[0]}; print(json.dumps({function}(json.loads(sys.argv[1]), int(sys.argv[2]))))"
    try:
        done = subprocess.run([sys.executable, "-c", program, json.dumps(what), str(rounds)], capture_output=True, text=True, timeout=PATIENCE_SECONDS,
                              cwd=Path(__file__).parent)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {PATIENCE_SECONDS} s"}
    if done.returncode != 0:
        return {"error": reason_in(done.stderr) or f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def reason_in(text: str) -> str:
    """The line that says why something failed: the last that names an error, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "")


def name_of_gpu(device: str) -> str | None:
    """None, and why on standard error, where there is none."""
    import torch

    if device == "cpu":
        return processor_name()
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    print("error: no NVIDIA GPU is visible here, and this benchmark needs one.", file=sys.stderr)
    return None


def write_results(output: Path | None, gpu: str, results) -> None:
    machine = {"gpu": gpu, "torch": version("torch"), "date": date.today().isoformat()}
    if output:
        output.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


def measure(options: argparse.Namespace) -> int:
    gpu = name_of_gpu(options.device)
    if gpu is None:
        return 2
    print(f"{gpu}, torch {version('torch')}; {'fp8 against bf16' if options.fp8 else 'bf16'}, forward and backward")
    print(f"{'shape':<9}{'tokens':>7}{'degree':>7}{'dense TFLOP/s':>15}{'of dense':>10}{'of products':>13}{'overlap':>9}   rivals' seconds / ours")
    results, short = [], 0
    for case in cases_of(options):
        try:
            result = dict(case, **measure_conclave(case, options.rounds, options.program, PATIENCE_SECONDS))
        except BenchmarkError as error:
            short += 1
            results.append(dict(case, error=str(error)))
            print(f"{case['shape']:<9}{case['tokens']:>7}{case['degree']:>7}   {reason_in(str(error))}", flush=True)
            continue
        ours = result["layer_seconds"]["median"]
        overlap = result["weight_gradients_seconds"]["median"] / result["overlapping_weight_gradients_seconds"]["median"]
        rivals = in_process("moe.measure_rivals", case, options.rounds) if options.rivals and case["degree"] == 1 else {}
        result["rivals_seconds"] = rivals
        results.append(result)
        short += result["fraction_of_dense_rate"] < case["wanted"]
        beside = ", ".join(f"{name} {seconds / ours:.2f}" if isinstance(seconds, float) else f"{name}: {seconds}" for name, seconds in rivals.items())
        print(f"{case['shape']:<9}{case['tokens']:>7}{case['degree']:>7}{result['dense_tflops']:>15.0f}{result['fraction_of_dense_rate']:>10.3f}"
              f"{result['fraction_of_product_rate']:>13.3f}{overlap:>9.2f}   {beside}", flush=True)
        write_results(options.output, gpu, results)  # what is there, should the next one not end
    fixed = in_process("fixed_order.measure_attention", options.device, options.rounds)
    print("attention's backward pass with sums in a fixed order: " + (fixed.get("error") or f"{100 * fixed['cost']:+.0f} % of its time"))
    print(f"{short} of {len(results)} failed or are below what is wanted: " + ", ".join(f"{name} {SHAPES[name]['wanted']}" for name in options.shapes))
    results.append(fixed)
    write_results(options.output, gpu, results)
    return 1 if options.check and short else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fp8", action="store_true", help="our products in fp8; all that is beside them stays in bf16")
    parser.add_argument("--no-rivals", dest="rivals", action="store_false", help="without Transformers' experts")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a fraction of the dense rate is below what is wanted")
    parser.add_argument("--output", type=Path, help="write all numbers there, as JSON")
    parser.add_argument("--program", type=Path, default=Path(os.environ.get("CONCLAVE_GPU_BUILD", ROOT / "build")) / "bench_moe", help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help=argparse.SUPPRESS)
    return exit_code_of(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
