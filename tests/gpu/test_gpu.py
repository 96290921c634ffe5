"""What `./dev gpu-test` checks on a machine with a GPU, with the programs in CONCLAVE_GPU_BUILD.

Oracles: the kernels' references in double (test_gpu), and the same jobs on the CPU.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_job import MODEL, SmallJob

LAYERS = MODEL["num_hidden_layers"]
BUILD = Path(os.environ.get("CONCLAVE_GPU_BUILD", "build"))
TESTS = BUILD / "test_gpu"
SHARED = {"CONCLAVE_SHARE_GPUS": "1"}

# fp32 on both: sums in another order over some steps of AdamW, relative to the loss.
FP32_TOLERANCE = 1e-4
# bf16 keeps 8 bits: losses near 4 differ in their third digit.
BF16_TOLERANCE = 2e-2
# fp8 keeps 4 bits, 3 in gradients: experts' outputs are off by some percent, and are added to a stream that is not.
FP8_TOLERANCE = 3e-2


def run_tests(*words, tool=(), seconds=300):
    done = subprocess.run([*tool, TESTS, "--gtest_brief=1", *words], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def losses(job):
    return [step["loss"] for step in job.metrics()]


def job_in(folder, name, **keys):
    return SmallJob(folder, {"run.output_dir": str(folder / name), "run.steps": 8, "checkpoint.every": 0, **keys})


def assert_close(actual, expected, tolerance):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        assert math.isfinite(one) and abs(one - other) <= tolerance * abs(other), (actual, expected)


def test_every_kernel_equals_its_reference_on_the_device():
    run_tests()


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if not sanitizer:
        pytest.skip("compute-sanitizer is not there")
    # Our kernels; libraries ask the driver things that it may refuse.
    only_ours = ["--kernel-name", "kns=conclave", *(["--report-api-errors", "no"] if tool == "memcheck" else [])]
    run_tests("--gtest_filter=KernelShapes.*:Fp8Quantize.*", tool=[sanitizer, "--tool", tool, *only_ours, "--error-exitcode", "99"])


@pytest.mark.parametrize("keys", [{}, {"memory.activation_checkpointing": "full"}, {"memory.activation_checkpointing": "selective"},
                                  {"memory.activation_checkpointing": "full", "memory.activation_offloading": True, "memory.activation_loading_horizon": 1},
                                  {"moe.moe_load_balancing": "sinkhorn"}, {"moe.capacity_factor": 1.0}], ids=lambda keys: "-".join(map(str, keys.values())))
def test_one_rank_trains_as_on_the_cpu(tmp_path, keys):
    on_cpu = job_in(tmp_path, "cpu", **keys)
    on_gpu = job_in(tmp_path, "gpu", **keys, **{"run.device": "cuda"})
    on_cpu.must_run()
    on_gpu.must_run()
    assert_close(losses(on_gpu), losses(on_cpu), FP32_TOLERANCE)


def test_bf16_follows_fp32(tmp_path):
    exact = job_in(tmp_path, "fp32", **{"run.device": "cuda"})
    rounded = job_in(tmp_path, "bf16", **{"run.device": "cuda", "precision.compute": "bf16"})
    exact.must_run()
    rounded.must_run()
    assert_close(losses(rounded), losses(exact), BF16_TOLERANCE)


def fp8_job_in(folder, name, **keys):
    job = job_in(folder, name, **{"run.device": "cuda", "precision.compute": "bf16", **keys})
    (folder / "config.json").write_text(json.dumps({**MODEL, "hidden_size": 128, "intermediate_size": 256}))
    return job


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_experts_in_fp8_follow_bf16(tmp_path, checkpointing):
    keys = {"memory.activation_checkpointing": checkpointing}
    rounded = fp8_job_in(tmp_path, "bf16", **keys)
    in_fp8, again = (fp8_job_in(tmp_path, name, **keys, **{"precision.experts": "fp8"}) for name in ("fp8", "again"))
    for run in (rounded, in_fp8, again):
        run.must_run()
    assert_close(losses(in_fp8), losses(rounded), FP8_TOLERANCE)
    assert losses(in_fp8) != losses(rounded)
    assert losses(in_fp8) == losses(again)


def test_the_same_job_again_gives_the_same_bits(tmp_path):
    keys = {"run.device": "cuda", "precision.compute": "bf16", "run.deterministic": True}
    runs = [job_in(tmp_path, name, **keys) for name in ("one", "two")]
    for run in runs:
        run.must_run()
    assert losses(runs[0]) == losses(runs[1])


@pytest.mark.parametrize("degree", [1, 2])
def test_two_ranks_on_one_gpu_train_as_on_the_cpu(tmp_path, degree):
    keys = {"parallel.expert_parallel_degree": degree}
    on_cpu, on_gpu = job_in(tmp_path, "cpu", **keys), job_in(tmp_path, "gpu", **keys, **{"run.device": "cuda"})
    on_cpu.must_run(2)
    on_gpu.must_run(2, env=SHARED)
    assert_close(losses(on_gpu), losses(on_cpu), FP32_TOLERANCE)


OPERATORS = """
import sys
from pathlib import Path
import torch
from conclave import MoEConfig, _library
_library.find_built = lambda name: Path(sys.argv[1]) / name
from conclave.experts import ExpertAxis, experts_forward

axis = ExpertAxis(None, "", 1, 8, MoEConfig())
torch.manual_seed(3)
hidden, weight, grad = torch.randn(96, 64), torch.rand(96, 2), torch.randn(96, 64)
choice = torch.stack([torch.randperm(8)[:2] for _ in range(96)])
gate_up, down = torch.randn(8, 2 * 128, 64) * 0.1, torch.randn(8, 64, 128) * 0.1

def run(device, dtype):
    leaves = [tensor.to(device, dtype, copy=True).requires_grad_() for tensor in (hidden, gate_up, down)]
    out = experts_forward(axis, leaves[0], choice.to(device), weight.to(device), *leaves[1:])
    out.backward(grad.to(device, dtype))
    return [tensor.detach().float().cpu() for tensor in (out, *(leaf.grad for leaf in leaves))]

for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]) as profile:
        on_gpu = run("cuda", dtype)
    for got, right in zip(on_gpu, run("cpu", torch.float32), strict=True):
        assert (got - right).abs().max() <= tolerance * right.abs().max(), (dtype, (got - right).abs().max(), right.abs().max())
    names = {event.key for event in profile.key_averages()}
    for kernel in ("swiglu_forward_kernel", "swiglu_backward_kernel", "combine_kernel"):
        assert any(kernel in name for name in names), (kernel, names)
    assert any("_grouped_mm" in name for name in names) == (dtype == torch.bfloat16), names
"""


def test_operators_of_python_take_our_kernels_and_grouped_products():
    if not (BUILD / "libconclave_operators.so").exists():
        pytest.skip("the operators are not built")
    done = subprocess.run([sys.executable, "-W", "error:Experts on CUDA:RuntimeWarning", "-c", OPERATORS, BUILD], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def profile_of(job, *words):
    ended = job.must_run(command="bench step", arguments=["--json", "--steps", "2", *words])
    return json.loads(ended.outputs[0].splitlines()[-1])


def test_the_host_waits_for_the_device_a_known_number_of_times(tmp_path):
    """By docs/gpu.md: in each micro-step once a layer, for the loss and for the balance; the length of sequences adds nothing."""
    job = job_in(tmp_path, "gpu", **{"run.device": "cuda"})
    once = profile_of(job)["synchronizations"]
    twice = profile_of(job, "--set", f"data.global_batch_size={2 * job.keys['data.micro_batch_size']}")["synchronizations"]
    longer = profile_of(job, "--set", "data.sequence_length=32")["synchronizations"]
    print(f"waits: {once} a step of one micro-step, {twice} of two, {longer} with sequences twice as long")
    assert longer == once
    assert twice - once == LAYERS + 2
    assert once <= LAYERS + 2 + 4


def test_a_profile_shows_kernels_of_the_device(tmp_path):
    job = job_in(tmp_path, "gpu", **{"run.device": "cuda"})
    job.must_run(arguments=["--profile", "3:4"])
    trace = json.loads((job.output / "profile" / "steps-3-4.rank-0.json").read_text())
    kernels = {event["name"] for event in trace["traceEvents"] if event.get("cat") == "kernel"}
    for name in ("swiglu_backward_kernel", "route_kernel", "adamw_kernel", "cross_entropy_kernel"):
        assert any(name in kernel for kernel in kernels), name


def test_a_gpu_that_is_not_there_is_a_mistake_with_a_remedy(tmp_path):
    job = job_in(tmp_path, "gpu", **{"run.device": "cuda"})
    ended = job.run(env={"CUDA_VISIBLE_DEVICES": ""})
    assert ended.codes == [2] and "run.device: cpu" in ended.text
