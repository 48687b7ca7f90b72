#!/usr/bin/env bash
# Runs the native tests under the address and undefined-behaviour sanitizers, then the thread pool
# under the thread sanitizer. Needs gcc and the development environment (VENV, .venv by default).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
work=$PWD/build/sanitize
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$work/venv" "$work/logs"
mkdir -p "$work/logs"

# An environment of its own, since an editable install's hook would win over any path. The path
# file adds the development packages after its own, without running their hooks.
"$venv/bin/python" -m venv --without-pip "$work/venv"
own=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$site" >"$own/development.pth"
PATH="$PWD/$venv/bin:$PATH" "$work/venv/bin/python" -m pip --disable-pip-version-check install \
  --quiet --no-deps --no-build-isolation --ignore-installed . \
  -Cbuild-dir="$work/cmake" -Cinstall.strip=false \
  "-Ccmake.define.APERTO_SANITIZE=address;undefined"

# Python itself is not instrumented: the runtimes come first by force, its leaks are not ours, and
# reports go to files because pytest captures what a dying process prints.
runtimes="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
runtimes="$runtimes $(gcc -print-file-name=libstdc++.so)"
run() {
  env OMP_NUM_THREADS=1 LD_PRELOAD="$runtimes" \
    ASAN_OPTIONS="detect_leaks=0:log_path=$work/logs/asan" \
    UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1:log_path=$work/logs/ubsan" \
    "$work/venv/bin/python" "$@"
}
module=$(run -c 'from aperto import _native; print(_native.__file__)')
echo "sanitized module: $module"
[[ $module == "$work"/* ]] || { echo "that is not the sanitized build" >&2; exit 1; }
status=0
run -m pytest -p no:cacheprovider --timeout 900 "$@" tests/native || status=$?
if compgen -G "$work/logs/*" >/dev/null; then
  cat "$work"/logs/* >&2
  status=1
fi
((status == 0)) || exit "$status"

echo "thread pool under the thread sanitizer"
define=
[[ $(uname -m) == x86_64 ]] && define=-DAPERTO_X86=1
g++ -std=c++20 -O1 -g -fsanitize=thread -pthread -Inative $define \
  native/base/thread_pool.cc tests/native/thread_pool_stress.cc -o "$work/thread_pool_stress"
# Its shadow memory needs the addresses that randomisation may take.
TSAN_OPTIONS=halt_on_error=1 setarch "$(uname -m)" -R "$work/thread_pool_stress"
