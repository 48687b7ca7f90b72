"""Check that no file built for one instruction set defines a weak symbol: BUILD_DIR.

Inline functions and templates become weak symbols, of which the linker keeps one copy for the whole
program. If it kept the one built for AVX-512, other CPUs would run it and stop.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

OBJECTS = "CMakeFiles/aperto_core.dir/native/kernels/x86_*.o"
WEAK = re.compile(r"^[0-9a-f]+ ([WwVvu]) (.*)$", re.MULTILINE)


def weak_symbols(path: Path) -> list[str]:
    """Demangled names of the weak symbols that an object file defines."""
    listing = subprocess.run(
        ["nm", "-C", "--defined-only", path], check=True, capture_output=True, text=True
    ).stdout
    return [f"{kind} {name}" for kind, name in WEAK.findall(listing)]


def main() -> None:
    """Exit with the weak symbols found, if any."""
    build = Path(sys.argv[1]) if len(sys.argv) == 2 else sys.exit("usage: BUILD_DIR")
    objects = sorted(build.glob(OBJECTS))
    if not objects and platform.machine() in ("x86_64", "AMD64"):
        sys.exit(f"{build}: found no {OBJECTS}; expected a finished build folder")
    failed = False
    for path in objects:
        for symbol in weak_symbols(path):
            print(f"{path.name}: weak symbol {symbol}", file=sys.stderr)
            failed = True
    if failed:
        sys.exit("make these static, or keep templates of the standard library out of the file")


if __name__ == "__main__":
    main()
