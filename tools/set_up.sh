# Part of ./dev: what a machine lacks. Only that is installed, so that a machine that has it all needs no network.

# command:package
tools=(g++:g++ cmake:cmake ninja:ninja-build pkg-config:pkg-config protoc:protobuf-compiler ccache:ccache)
libraries=(libyaml-cpp-dev nlohmann-json3-dev libcli11-dev libspdlog-dev libfmt-dev libxxhash-dev libgtest-dev libgmock-dev libbenchmark-dev
  libhwy-dev libjemalloc-dev libprotobuf-dev libssl-dev)

# For the preset fuzz alone: clang with its libFuzzer and sanitizers.
fuzz_libraries=(clang-14 libclang-common-14-dev libclang-rt-14-dev)

# with_progress COMMAND...: its last line of output, in place on a terminal and every 15 seconds elsewhere; all of it when it fails.
with_progress() {
  local log
  log=$(mktemp)
  if "$@" 2>&1 </dev/null | tee "$log" | show_last_lines; then
    rm -f "$log"
  else
    tail -n 30 "$log" >&2
    rm -f "$log"
    return 1
  fi
}

show_last_lines() {
  local line last="" begin=$SECONDS told=$SECONDS
  while true; do
    if IFS= read -r -t 5 line; then
      if [[ -n $line ]]; then last=$line; fi
    elif [[ $? -le 128 ]]; then  # above: nothing came for five seconds
      break
    fi
    if [[ -t 1 ]]; then
      printf '\r\033[K   %s' "${last:0:100}"
    elif ((SECONDS - told >= 15)); then
      printf '   after %d s: %s\n' $((SECONDS - begin)) "${last:0:100}"
      told=$SECONDS
    fi
  done
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
}

install_packages() {
  local as_root=()
  if [[ $(id -u) != 0 ]]; then as_root=(sudo); fi
  if ! command -v apt-get >/dev/null || { [[ ${#as_root[@]} != 0 ]] && ! command -v sudo >/dev/null; }; then
    die "these packages are missing: $*. Install them as root: apt-get install $*"
  fi
  say "installing: $*"
  "${as_root[@]}" apt-get update -qq </dev/null || say "apt-get update reported errors; trying with the lists there are"
  with_progress "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" ||
    die "apt-get could not install: $*"
}

# need_tools COMMAND:PACKAGE...
need_tools() {
  local missing=() pair
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  [[ ${#missing[@]} == 0 ]] || install_packages "${missing[@]}"
}

set_up_packages() {
  need_tools "${tools[@]}"
  need_libraries "${libraries[@]}"
}

need_libraries() {
  local missing=() package
  for package in "$@"; do
    dpkg -s "$package" 2>/dev/null | grep -q '^Status: install ok installed' || missing+=("$package")
  done
  [[ ${#missing[@]} == 0 ]] || install_packages "${missing[@]}"
}

set_up_python() {
  local wanted stamp=.venv/requirements.sha256
  wanted=$(sha256sum requirements.txt)
  if [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then return; fi

  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    need_tools python3:python3
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "Python 3.11 or later is needed; python3 is $(python3 --version)"
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
    python3 -m venv .venv
  fi
  say "installing the packages of requirements.txt into .venv (about 5 GB; minutes)"
  with_progress .venv/bin/python -m pip install --no-input --disable-pip-version-check --progress-bar off -r requirements.txt ||
    die "pip could not install the packages of requirements.txt"
  printf '%s\n' "$wanted" >"$stamp"
}

# The tools of one command, in an environment of their own: .venv-NAME, from requirements-NAME.txt.
set_up_tools() {
  local file=requirements-$1.txt folder=.venv-$1 wanted
  wanted=$(sha256sum "$file")
  if [[ -f $folder/requirements.sha256 && $(<"$folder/requirements.sha256") == "$wanted" ]]; then return; fi
  say "installing the packages of $file into $folder"
  python3 -m venv "$folder"
  with_progress "$folder/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off -r "$file" ||
    die "pip could not install the packages of $file"
  printf '%s\n' "$wanted" >"$folder/requirements.sha256"
}

set_up() {
  set_up_packages
  set_up_python
}
