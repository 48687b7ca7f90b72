"""What may be sampled next: the protocol through which a grammar restrains a sequence."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """A grammar's state along one sequence; used by one request and from the engine thread only.

    Whatever it raises ends its own request with an EngineError, and no other.
    """

    def mask(self) -> NDArray[np.uint32] | None:
        """Allowed next tokens: [ceil(vocab / 32)], least significant bit first; None allows all."""
        ...

    def accept(self, token_id: int) -> None:
        """Advance over a sampled token."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether nothing may follow; the sequence then stops."""
        ...
