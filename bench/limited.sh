#!/usr/bin/env bash
# Runs a command in a memory cgroup of its own: bench/limited.sh 16G COMMAND...
# Mapped files count as they do on a machine of that size. Needs root, and cgroup v2 or v1.
set -euo pipefail
(($# >= 2)) || { echo "usage: $0 SIZE COMMAND..." >&2; exit 2; }
bytes=$(numfmt --from=iec "${1%iB}")
shift
name=aperto-$$
if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then
  group=/sys/fs/cgroup/$name limit=memory.max peak=memory.peak
  mkdir "$group"
  [[ -f $group/$limit ]] || { rmdir "$group"; echo "the memory controller is not enabled" >&2; exit 1; }
  echo 0 >"$group/memory.swap.max" 2>/dev/null || true # not there without swap accounting
else
  group=/sys/fs/cgroup/memory/$name limit=memory.limit_in_bytes peak=memory.max_usage_in_bytes
  [[ -d /sys/fs/cgroup/memory ]] || { echo "found no memory cgroup" >&2; exit 1; }
  mkdir "$group"
fi
trap 'rmdir "$group" 2>/dev/null || true' EXIT # it may be killed while the command runs
echo "$bytes" >"$group/$limit"
status=0
(echo "$BASHPID" >"$group/cgroup.procs"; exec "$@") || status=$?
echo "peak in the group, page cache included: $(numfmt --to=iec-i --suffix=B <"$group/$peak")" >&2
exit "$status"
