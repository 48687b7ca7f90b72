"""The catalogue of models that Codex reads: what it needs to know of each served model."""

from __future__ import annotations

from typing import Any

from aperto.server.pool import ModelInfo

_EFFORTS = ("low", "medium", "high")
_COMPACT_SHARE = (4, 5)
_MOST_TOOL_OUTPUT_TOKENS = 10_000
# Codex takes no entry without instructions. With its own, a first prompt has 7400 tokens, with
# these 3900: on a CPU a matter of minutes, and gpt-oss knows how to work in a terminal.
_INSTRUCTIONS = """\
You are a coding agent in a terminal on the user's machine, inside the folder of their project.
Carry out what the user asks, completely, and stop when it is done.

- Look before you change: read the files that matter; search with `rg`, or else with `grep`.
- Change files with `apply_patch` where you have that tool, otherwise with shell commands. Keep to
  the style of the code around, and change nothing that was not asked for.
- Afterwards run the project's tests or the program itself where that is possible, and repair what
  fails.
- Obey `AGENTS.md` files of the project. Never commit, push, or delete work of the user unless told.
- Say in one sentence what you do before long steps. Close with a short account of what changed and
  what you saw, naming files by their path.
"""


def codex_entry(info: ModelInfo, priority: int) -> dict[str, Any]:
    """An entry of Codex's model catalogue, with every field that Codex requires."""
    numerator, denominator = _COMPACT_SHARE
    return {
        "slug": info.name,
        "display_name": info.name,
        "description": "gpt-oss on this machine, served by aperto",
        "default_reasoning_level": "medium",
        "supported_reasoning_levels": [
            {"effort": effort, "description": f"{effort} reasoning effort"} for effort in _EFFORTS
        ],
        "base_instructions": _INSTRUCTIONS,
        "shell_type": "shell_command",
        "apply_patch_tool_type": "freeform",
        "experimental_supported_tools": [],
        "supports_parallel_tool_calls": True,
        "input_modalities": ["text"],
        "context_window": info.context_tokens,
        "max_context_window": info.context_tokens,
        "auto_compact_token_limit": info.context_tokens * numerator // denominator,
        "truncation_policy": {
            "mode": "tokens",
            "limit": min(_MOST_TOOL_OUTPUT_TOKENS, info.context_tokens // 4),
        },
        "supports_reasoning_summaries": False,
        "support_verbosity": False,
        "visibility": "list",
        "supported_in_api": True,
        "priority": priority,
    }
