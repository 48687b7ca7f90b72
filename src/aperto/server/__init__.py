"""Wire formats over `chat`: the doors that clients of other servers know."""

from aperto.server.app import create_app
from aperto.server.services import Services
from aperto.server.settings import ServerSettings

__all__ = ["ServerSettings", "Services", "create_app"]
