"""Runs pieces of Python one after the other, as a notebook does."""

from __future__ import annotations

import ast
import linecache
import sys
import traceback
import types
from types import CodeType, TracebackType

_MAGIC_HINT = (
    "This is plain Python: lines that begin with % or ! (notebook magics, shell commands) do not "
    "work here, and no package can be installed."
)


class Interpreter:
    """Names that stay from cell to cell."""

    def __init__(self) -> None:
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        self.names = main.__dict__
        """The global names of the cells."""
        self._count = 0

    def run(self, code: str) -> None:
        """Run a cell; its last expression's value and its traceback are printed."""
        self._count += 1
        source = f"<cell {self._count}>"
        linecache.cache[source] = (len(code), None, code.splitlines(keepends=True), source)
        try:
            self._run(code, source)
        except SystemExit as error:
            if error.code not in (None, 0):
                print(f"SystemExit: {error.code}", file=sys.stderr)
        except BaseException as error:
            self._report(error, code)

    def _run(self, code: str, source: str) -> None:
        tree = ast.parse(code, source)
        last = tree.body[-1] if tree.body else None
        shown = isinstance(last, ast.Expr) and not code.rstrip().endswith(";")
        if shown:
            tree.body.pop()
        exec(compile(tree, source, "exec"), self.names)
        if shown and isinstance(last, ast.Expr):
            self._show(compile(ast.Expression(last.value), source, "eval"))

    def _show(self, code: CodeType) -> None:
        value = eval(code, self.names)
        if value is not None:
            print(repr(value))
            self.names["_"] = value

    def _report(self, error: BaseException, code: str) -> None:
        trace = _cell_frames(error.__traceback__)
        traceback.print_exception(type(error), error, trace)
        if isinstance(error, SyntaxError) and any(
            line.lstrip().startswith(("%", "!")) for line in code.splitlines()
        ):
            print(_MAGIC_HINT, file=sys.stderr)


def _cell_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame of a cell on."""
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
        trace = trace.tb_next
    return trace
