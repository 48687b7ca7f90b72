"""What happened inside the model while it answered: routing, attention, logit lens, entropies."""

from aperto.trace.page import write_page
from aperto.trace.record import Trace, record
from aperto.trace.table import write_tables

__all__ = ["Trace", "record", "write_page", "write_tables"]
