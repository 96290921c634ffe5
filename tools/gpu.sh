# Part of ./dev: the programs for machines with a GPU.

gpu_programs=(conclave test_gpu bench_moe)
gpu_targets=("${gpu_programs[@]}" conclave_cuda conclave_operators)

# Everything in build-gpu runs with the torch that is found there; the C++ and C libraries are the machine's own too.
gpu_pack() {
  command -v nvcc >/dev/null || die "gpu-pack needs nvcc 13.0, of NVIDIA's CUDA toolkit, on the PATH"
  stage "set-up" set_up
  stage "build" build release "${gpu_targets[@]}"
  rm -rf build-gpu
  mkdir -p build-gpu/lib
  local name
  for name in "${gpu_programs[@]}" libconclave_{cuda,operators}.so; do strip --strip-unneeded -o "build-gpu/$name" "build/$name"; done
  chmod +x "${gpu_programs[@]/#/build-gpu/}"
  for name in "${gpu_programs[@]}"; do ldd "build/$name"; done | awk '$3 ~ "^/(usr/)?lib/" { print $3 }' | sort -u |
    grep -Ev '/lib(c|m|dl|rt|util|pthread|gcc_s|stdc\+\+)\.so' | xargs -I{} cp -L {} build-gpu/lib/
  say "build-gpu: $(du -sm build-gpu | cut -f1) MB. Carry it and this checkout to the machine with the GPU, and run ./dev gpu-test there."
}

# with_gpu SCRIPT [ARGUMENTS]: runs a Python script on the programs for the GPU.
with_gpu() {
  local what=$1 python=python3 folder=build torch
  shift
  if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; fi
  "$python" -c 'import torch' 2>/dev/null || die "$what needs a Python that has torch: .venv (./dev setup), or python3"
  "$python" -c 'import numpy, pytest, yaml' 2>/dev/null || die "$what needs numpy, pytest and PyYAML beside torch: pip install numpy pytest pyyaml"
  if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    printf 'error: no NVIDIA GPU is visible here, and ./dev %s needs one. What can be checked without one is in ./dev test.\n' "$what" >&2
    exit 2
  fi
  if [[ -x build-gpu/conclave ]]; then
    folder=build-gpu
    torch=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
    # The plug-in asks for CUDA's runtime before torch, which knows where its own lies, is loaded.
    export LD_LIBRARY_PATH=$torch/lib:$PWD/build-gpu/lib:$(printf '%s:' "$torch"/../nvidia/*/lib)${LD_LIBRARY_PATH:-}
  else
    stage "set-up: packages" set_up_packages
    CONCLAVE_CONFIGURE="-DCONCLAVE_PYTHON=$(command -v "$python")" stage "build" build release "${gpu_targets[@]}"
  fi
  CONCLAVE_GPU_BUILD=$PWD/$folder CONCLAVE_PROGRAM=$PWD/$folder/conclave PYTHONPATH=python exec "$python" "$@"
}
