#!/usr/bin/env bash
# Runs the agent's own tests in an arm64 Debian user space under emulation: as much of a Raspberry Pi as a PC can be.
#
#   sudo scripts/arm64_tests.sh [PYTEST ARGUMENTS]        default: those of contract and agent, without a broker
#
# What it shows: the code and the aarch64 wheels of every dependency compute what they should. What it does not: speed, memory, real
# cameras, GPUs. The user space is kept in $COVEY_ARM64_ROOT (default: ~/.cache/covey/arm64), so that only the first run takes long.
# Needs: root, debootstrap, qemu-user-static (Debian, Ubuntu), and this checkout's .venv (`make setup`).
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
root=${COVEY_ARM64_ROOT:-$HOME/.cache/covey/arm64}
suite=${COVEY_ARM64_SUITE:-bookworm} # Debian 12: Python 3.11
mirror=${COVEY_ARM64_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | head -1)}
pip=("$here/.venv/bin/python" -m pip --disable-pip-version-check)
emulator=${COVEY_ARM64_QEMU:-qemu-aarch64-static}
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(
    tests/contract tests/agent/core tests/agent/adapters tests/agent/daemon tests/agent/workers
    # These bring up the server's broker, which is not installed in there.
    --ignore=tests/agent/daemon/test_renewals.py --ignore=tests/agent/workers/test_deploy_over_broker.py
    --ignore=tests/agent/workers/test_link.py --ignore=tests/agent/workers/test_download.py --ignore=tests/agent/workers/test_hook.py
    # The limit of memory counts the emulator's own.
    --deselect=tests/agent/adapters/test_children.py::test_memory_limit_stops_a_child_and_not_the_agent
)

die() {
    echo "arm64_tests: $*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || die "needs root, for chroot and mounts: sudo $0"
command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
command -v "$emulator" >/dev/null || die "$emulator is missing: apt-get install qemu-user-static"
[ -x "$here/.venv/bin/python" ] || die "no .venv here: make setup"
[ -n "$mirror" ] || die "no Debian mirror is configured; name one in COVEY_ARM64_MIRROR"

# The kernel must know how to start an aarch64 program. F: the emulator is opened now, so that it is found inside the chroot too.
register_emulator() {
    local formats=/proc/sys/fs/binfmt_misc
    mountpoint -q $formats || mount -t binfmt_misc none $formats
    [ -e $formats/qemu-aarch64 ] && return
    local magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":qemu-aarch64:M::$magic:$mask:$(command -v "$emulator"):FP" >$formats/register
}

make_user_space() {
    [ -e "$root/.made-$suite" ] && return
    echo "making an arm64 $suite in $root (10 to 30 minutes, once) ..."
    mkdir -p "$root"
    debootstrap --arch=arm64 --variant=minbase --include=python3,libpython3-stdlib,openssl "$suite" "$root" "$mirror" >"$root.log" 2>&1 ||
        die "debootstrap failed, see $root.log"
    touch "$root/.made-$suite"
}

# The host's pip fetches and unpacks the aarch64 wheels: the emulated one takes minutes for what this one does in seconds.
install_wheels() {
    local stamp want
    stamp=$root/opt/site/.installed
    want=$(cat pyproject.toml constraints.txt scripts/arm64_tests.sh | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
    echo "fetching aarch64 wheels ..."
    rm -rf "$root/opt/site"
    local platforms=()
    for glibc in 36 34 31 28 27 17; do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done
    "$here/.venv/bin/python" - >"$root.requirements" <<'PYTHON'
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
needed = project["dependencies"] + project["optional-dependencies"]["agent"]
print("\n".join([*needed, "pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "bsdiff4", "onnx"]))
PYTHON
    "${pip[@]}" install --quiet --no-compile --only-binary=:all: --target "$root/opt/site" --python-version 3.11 --implementation cp \
        "${platforms[@]}" --platform manylinux2014_aarch64 --constraint constraints.txt --requirement "$root.requirements"
    echo "$want" >"$stamp"
}

mounted=()
attach() { # what must be taken off again, however this ends
    mount "$@"
    mounted=("${@: -1}" "${mounted[@]}")
}
detach() {
    for place in "${mounted[@]}"; do umount -l "$place" || true; done
}

run_tests() {
    mkdir -p "$root/host" "$root/proc" "$root/dev"
    attach -t proc proc "$root/proc"
    attach --bind /dev "$root/dev"
    attach --bind "$here" "$root/host"
    # qemu 7.2 passes the PC's cpuinfo through, and the library in both runtimes that reads it dies of what no ARM machine says.
    attach --bind "$here/scripts/arm64_cpuinfo.txt" "$root/proc/cpuinfo"
    chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8 HOME=/root TMPDIR=/tmp QEMU_CPU=cortex-a72 \
        PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/host/contract:/host/agent:/host:/opt/site \
        sh -c 'cd /host && uname -m && exec python3 -m pytest -q -p no:cacheprovider -p no:randomly "$@"' sh "${tests[@]}"
}

cd "$here"
trap detach EXIT
register_emulator
make_user_space
install_wheels
run_tests
