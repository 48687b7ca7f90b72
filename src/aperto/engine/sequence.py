"""A request, and its state while the engine works on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np

from aperto.engine.constraint import Constraint
from aperto.engine.sampling import SampleRow, SamplingParams
from aperto.engine.stream import Channel, FinishReason, Token
from aperto.errors import ConfigError

if TYPE_CHECKING:
    from aperto.engine.pages import PrefixNode
    from aperto.engine.variants import LoadedVariant

MAX_TOP_LOGPROBS = 20
_NEWEST_CUTS = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to generate. Raises ConfigError on values that no model could serve."""

    prompt: Seq[int]
    """Token ids, at least one."""
    max_tokens: int
    """Most tokens to draw; 0 only prefills."""
    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    """How to draw them."""
    stop_ids: Collection[int] = ()
    """Tokens that end the answer; the one drawn is still delivered."""
    constraint: Constraint | None = None
    """A grammar over the drawn tokens; a fresh one for every request."""
    num_top_logprobs: int = 0
    """Most likely tokens reported with each token, 0 to 20."""
    echo_logprobs: bool = False
    """Also report the prompt's own logprobs; such a prompt is computed whole, cached or not."""
    cut_points: Seq[int] = ()
    """Positions in the prompt, 1 to its length, up to which a later prompt is likely to be the
    same: what windows need to go on from there is kept in the cache with priority."""
    variant: str = ""
    """Name of a variant that the engine has loaded; "" is the base model."""

    def __post_init__(self) -> None:
        if not len(self.prompt):
            raise ConfigError("the prompt is empty; expected at least one token id")
        if self.max_tokens < 0:
            raise ConfigError(f"max_tokens is {self.max_tokens}; expected 0 or more")
        if not 0 <= self.num_top_logprobs <= MAX_TOP_LOGPROBS:
            raise ConfigError(
                f"num_top_logprobs is {self.num_top_logprobs}; expected 0..{MAX_TOP_LOGPROBS}"
            )
        for cut in self.cut_points:
            if not 1 <= cut <= len(self.prompt):
                raise ConfigError(f"a cut point is {cut}; expected 1..{len(self.prompt)}")


class Sequence:
    """The text of one request as ids, how much of it is computed, and the pages that hold it."""

    __slots__ = (
        "arrival",
        "channel",
        "constraint",
        "cut_points",
        "echo_logprobs",
        "end_pages",
        "first_pages",
        "is_cancelled",
        "kept_ends",
        "max_tokens",
        "may_reuse_prefix",
        "num_computed",
        "num_indexed",
        "num_paged",
        "num_prompt",
        "num_tokens",
        "prefix_keys",
        "row",
        "sample_row",
        "save_ends",
        "stop_ids",
        "tip",
        "tokens",
        "variant",
    )

    tip: PrefixNode
    """Node of the last indexed page, while running."""

    def __init__(
        self, request: Request, num_groups: int, variant: LoadedVariant | None = None
    ) -> None:
        prompt = np.asarray(request.prompt, dtype=np.int32)
        self.arrival = -1
        """Order in which sequences came to the scheduler: earlier ones go first."""
        self.num_prompt = len(prompt)
        self.num_tokens = self.num_prompt
        """Tokens known: the prompt and what was drawn."""
        self.max_tokens = self.num_prompt + request.max_tokens
        """num_tokens at which the answer ends."""
        self.tokens = np.empty(self.max_tokens, dtype=np.int32)  # [max_tokens]
        self.tokens[: self.num_prompt] = prompt
        self.stop_ids = frozenset(request.stop_ids)
        self.constraint = request.constraint
        self.echo_logprobs = request.echo_logprobs
        self.may_reuse_prefix = not request.echo_logprobs
        cuts = sorted(set(request.cut_points))
        # The shared beginning, and where the newest turns begin: an old conversation's many
        # others would only evict what is of more use.
        self.cut_points = (*cuts[:1], *cuts[1:][-_NEWEST_CUTS:])
        """Cut points of the request that are kept in mind, in order."""
        self.prefix_keys: list[bytes] = []
        """Names of the prompt's full pages on disk, where prefixes are saved."""
        self.save_ends: list[int] = []
        """Full pages up to which the prompt is to be saved on disk, in order."""
        self.sample_row = SampleRow(request.sampling, prompt, request.num_top_logprobs)
        self.channel = Channel(self.num_prompt, self.sample_row.seed)
        if request.echo_logprobs:
            self.channel.prompt_logprobs.append(None)  # nothing comes before the first token
        self.variant = variant
        """Whose answer this is; None is the base model's."""
        self.is_cancelled = False
        self.row = -1
        """Row of the page tables while running, else -1."""
        self.num_computed = 0
        """Positions whose keys and values are in the cache."""
        self.num_paged = 0
        """Positions that have a page in every group."""
        self.num_indexed = 0
        """Full pages that the prefix index knows."""
        self.first_pages = [0] * num_groups
        """First logical page held in each group; those before it are behind the window."""
        self.end_pages = [0] * num_groups
        """One past the last logical page held in each group."""
        self.kept_ends: tuple[int, ...] = ()
        """Logical pages before which other texts are likely to end or to branch off: the end of
        the prompt, as a next turn drops the reasoning after it, the end of what was known, and
        the cut points."""

    @property
    def is_decoding(self) -> bool:
        """Whether just the newest token is left to compute."""
        return self.num_computed == self.num_tokens - 1

    def admit(self, row: int, position: int, firsts: list[int], end: int, tip: PrefixNode) -> None:
        """Start at a position whose earlier pages, `end` of them, came from the prefix cache."""
        self.row = row
        self.num_computed = position
        self.num_paged = 0
        self.num_indexed = end
        self.first_pages = firsts
        self.end_pages = [end] * len(firsts)
        self.tip = tip

    def retire(self) -> None:
        """Forget all pages; what was drawn stays and can be computed again."""
        self.row = -1
        self.num_computed = self.num_paged = self.num_indexed = 0

    def note_progress(self) -> None:
        """Tell the caller how much of the prompt is there."""
        self.channel.prefilled_tokens = min(self.num_computed, self.num_prompt)

    def append(self, token: Token) -> FinishReason | None:
        """Add a drawn token and deliver it; returns why the sequence ends with it, if it does.

        Raises whatever the constraint raises, before anything is delivered.
        """
        constraint = self.constraint
        if constraint is not None:
            constraint.accept(token.id)
        self.tokens[self.num_tokens] = token.id
        self.num_tokens += 1
        self.sample_row.count(token.id)
        self.channel.put(token)
        if token.id in self.stop_ids or (constraint is not None and constraint.is_done):
            return "stop"
        return "length" if self.num_tokens == self.max_tokens else None
