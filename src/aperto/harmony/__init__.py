"""The harmony format: messages to token ids and token ids to events."""

from aperto.harmony.builtin import BROWSER, PYTHON
from aperto.harmony.header import Repair, RepairKind
from aperto.harmony.messages import (
    ANALYSIS,
    COMMENTARY,
    CONSTRAIN_JSON,
    FINAL,
    Conversation,
    DeveloperContent,
    Effort,
    FunctionTool,
    Message,
    ResponseFormat,
    Role,
    SystemContent,
    ToolNamespace,
    from_chat,
)
from aperto.harmony.parse import (
    Event,
    MessageEnd,
    MessageStart,
    StreamParser,
    TextDelta,
    TurnEnd,
    parse,
)
from aperto.harmony.render import History, render, render_for_training, stop_ids

__all__ = [
    "ANALYSIS",
    "BROWSER",
    "COMMENTARY",
    "CONSTRAIN_JSON",
    "FINAL",
    "PYTHON",
    "Conversation",
    "DeveloperContent",
    "Effort",
    "Event",
    "FunctionTool",
    "History",
    "Message",
    "MessageEnd",
    "MessageStart",
    "Repair",
    "RepairKind",
    "ResponseFormat",
    "Role",
    "StreamParser",
    "SystemContent",
    "TextDelta",
    "ToolNamespace",
    "TurnEnd",
    "from_chat",
    "parse",
    "render",
    "render_for_training",
    "stop_ids",
]
