"""Tools that the model may call: they take a call and answer it with messages."""

from aperto.tools.specs import FORMS, close_tools, open_tools
from aperto.tools.tool import Tool

__all__ = ["FORMS", "Tool", "close_tools", "open_tools"]
