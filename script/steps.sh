# shellcheck shell=bash
# Sourced by the scripts beside it: their working directory, and how they show their steps.

SCRIPT=$(realpath "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
LOGS=.cache/logs
mkdir -p "$LOGS"
# Debian installs dockerd in /usr/sbin, which is not on a plain user's PATH.
export PATH="$PWD/.venv/bin:$PWD/.cache/bin:$PATH:/usr/sbin:/sbin"
# Where a machine keeps its interpreters from writing bytecode, each of the hundreds that start here takes twice as long.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$PWD/.cache/bytecode

# Prints the comment at the top of the calling script.
help() { sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//p}' "$SCRIPT"; }

say() { printf '%s\n' "$@"; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

log_of() { echo "$LOGS/$(tr -cs 'A-Za-z0-9.\n' '-' <<<"$1").log"; }

# Runs COMMAND with its output in a log; prints one line with its seconds, and the end of the log if it failed.
step() { # NAME COMMAND...
  local name=$1 log started=$SECONDS
  log=$(log_of "$1")
  shift
  printf '%s …' "$name"
  if NO_COLOR=1 "$@" >"$log" 2>&1 </dev/null; then
    printf ' %d s\n' $((SECONDS - started))
  else
    printf ' failed after %d s; the end of %s:\n' $((SECONDS - started)) "$log"
    tail -n 40 "$log"
    return 1
  fi
}

# The same for a long run of Ansible: shows each task when it begins.
playbook() { # NAME COMMAND...
  local name=$1 log line started=$SECONDS
  log=$(log_of "$1")
  shift
  printf '%s …\n' "$name"
  NO_COLOR=1 ANSIBLE_NOCOLOR=1 "$@" 2>&1 </dev/null | tee "$log" | while IFS= read -r line; do
    [[ $line =~ ^(TASK|RUNNING\ HANDLER)\ \[(.*)\] ]] || continue
    printf '  %3d s  %s\n' $((SECONDS - started)) "${BASH_REMATCH[2]}"
  done || {
    printf '%s failed after %d s; the end of %s:\n' "$name" $((SECONDS - started)) "$log"
    tail -n 60 "$log"
    return 1
  }
  printf '%s: %d s\n' "$name" $((SECONDS - started))
}

# script/bootstrap adds the user to the group docker; a shell that is older than that needs `sg` to be in it.
with_docker() { # ARGUMENT... of the calling script
  docker info >/dev/null 2>&1 && return
  [ "$(id -u)" != 0 ] && [ -z "${IN_GROUP_DOCKER:-}" ] ||
    fail "Docker Engine does not answer: see '$LOGS/dockerd.log' or 'systemctl status docker'."
  IN_GROUP_DOCKER=1 exec sg docker -c "$(printf '%q ' "$PWD/script/${0##*/}" "$@")"
}

# Unpacks a package of the distribution into .cache/PACKAGE, for its programs alone: installed, it would start its service.
extract() { # PACKAGE
  rm -rf ".cache/$1" && mkdir -p ".cache/$1" .cache/bin
  (cd ".cache/$1" && apt-get download "$1" && dpkg-deb --extract "$1"_*.deb . && rm "$1"_*.deb)
}

# Prints the path of a CPython between FIRST and LAST (3.11 3.13) that can make a virtual environment, or nothing.
find_python() { # FIRST LAST
  local candidate minor
  local candidates=(python3)
  for ((minor = ${2#3.}; minor >= ${1#3.}; minor--)); do candidates+=("python3.$minor" "$HOME/.pyenv/versions/3.$minor".*/bin/python "$PWD/.cache/python/cpython-3.$minor".*/bin/python3); done
  for candidate in "${candidates[@]}"; do
    "$candidate" - "$1" "$2" 2>/dev/null <<'PYTHON' && return
import ensurepip, os, sys, venv
first, last = (tuple(map(int, word.split("."))) for word in sys.argv[1:])
if not first <= sys.version_info[:2] <= last:
    sys.exit(1)
# Not sys.executable: it may belong to a virtual environment.
print(os.path.join(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2]))
PYTHON
  done
}

# Makes a virtual environment at DIRECTORY with exactly the LOCKs; only if they, or PYTHON, have changed.
virtual_environment() { # DIRECTORY PYTHON LOCK...
  local directory=$1 python=$2 lock stamp arguments=()
  shift 2
  stamp=$({ "$python" -VV; printf '%s\n' "$python"; cat "$@"; } | sha256sum)
  [ "$(cat "$directory/.stamp" 2>/dev/null)" != "$stamp" ] || return 0
  for lock in "$@"; do arguments+=(-r "$lock"); done
  rm -rf "$directory"
  "$python" -m venv "$directory"
  "$directory/bin/python" -m pip install --disable-pip-version-check --no-compile --require-hashes "${arguments[@]}"
  echo "$stamp" >"$directory/.stamp"
}

# Installs the role's torch version as a CPU wheel: from pip's configured sources, else from PyTorch's index.
install_torch() {
  local version
  version=$(sed -n "s/.*get(__model_server_python_version, '\([0-9.]*\)').*/\1/p" roles/model_server/vars/main.yml)
  [ -n "$version" ] || { echo "no torch version in roles/model_server/vars/main.yml"; return 1; }
  python -m pip install --disable-pip-version-check --no-compile --no-deps --no-index "torch==$version" ||
    python -m pip install --disable-pip-version-check --no-compile --no-deps --timeout 10 --retries 1 \
      --index-url https://download.pytorch.org/whl/cpu "torch==$version"
}
torch_installed() {
  python -c 'import torch' 2>/dev/null || step "torch (CPU) is installed into .venv" install_torch
}

# torchvision is installed beside the virtual environment, for use by PYTHONPATH: the server needs neither it nor numpy.
# This release works with any torch; later ones need exactly the torch that they were built with.
TORCHVISION=.cache/bench/torchvision
install_torchvision() {
  python -m pip install --disable-pip-version-check --no-compile --no-deps --target "$TORCHVISION" torchvision==0.16.2 numpy
}
torchvision_installed() {
  [ -e "$TORCHVISION" ] || step "torchvision is installed into $TORCHVISION" install_torchvision
}

# The engines, and what exports networks for them, are beside torchvision, whose numpy they use.
install_engines() {
  python -m pip install --disable-pip-version-check --no-compile --no-deps --target "$TORCHVISION" onnx onnxruntime flatbuffers ml-dtypes protobuf ncnn pnnx
}
engines_installed() {
  [ -e "$TORCHVISION/ncnn" ] || step "ONNX Runtime and ncnn are installed into $TORCHVISION" install_engines
}

install_packages() { # PACKAGE...
  as_root apt-get update --quiet && as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "$@"
}

# A browser, for the tests of Locust's page.
browser_installed() {
  command -v chromedriver >/dev/null || { apt-cache show chromium-driver >/dev/null 2>&1 && step "Chromium is installed" install_packages chromium chromium-driver; }
}
