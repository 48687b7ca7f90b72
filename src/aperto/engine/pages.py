"""KV pages: who holds which, what is shared by prefix, what is freed behind a window.

Every window group has a pool of physical pages of its own. A page is free, held (reference count
above 0), or cached: unreferenced, but still found by its prefix until its memory is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np

from aperto.engine.core import Int32Array
from aperto.engine.sequence import Sequence


class PrefixNode:
    """One full page worth of tokens after a given prefix, and where each group holds it."""

    __slots__ = ("holds", "key", "pages", "parent")

    def __init__(self, parent: PrefixNode | None, key: bytes, num_groups: int) -> None:
        self.parent = parent
        self.key = key
        self.pages = [-1] * num_groups
        """Physical page of each window group, -1 where it is not cached."""
        self.holds = 0
        """Children, and sequences whose text ends here; a held node is never forgotten."""


class PagePool:
    """Physical pages of one window group."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.refs = [0] * num_pages
        self.nodes: list[PrefixNode | None] = [None] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        # Insertion order is the order of release: the first is the least recently used.
        self._kept: dict[int, None] = {}
        self._passed: dict[int, None] = {}

    @property
    def num_available(self) -> int:
        """Pages that `take` can hand out: free ones and cached ones."""
        return len(self._free) + self.num_cached

    @property
    def num_cached(self) -> int:
        """Unreferenced pages that a prefix can still find."""
        return len(self._passed) + len(self._kept)

    @property
    def free_pages(self) -> list[int]:
        """Pages that hold nothing."""
        return list(self._free)

    @property
    def cached_pages(self) -> list[int]:
        """Unreferenced pages that a prefix can still find, the next to be evicted first."""
        return [*self._passed, *self._kept]

    def take(self) -> tuple[int, PrefixNode | None]:
        """Hand out a page with one reference, and the node that loses it if it was cached."""
        if self._free:
            page, node = self._free.pop(), None
        else:
            cached = self._passed or self._kept
            page = next(iter(cached))
            del cached[page]
            node, self.nodes[page] = self.nodes[page], None
        self.refs[page] = 1
        return page, node

    def hold(self, page: int) -> None:
        """Add a reference to a page that a prefix has found."""
        if self.refs[page] == 0:
            del (self._passed if page in self._passed else self._kept)[page]
        self.refs[page] += 1

    def renew(self, page: int) -> None:
        """Let a cached page be the last to be evicted; nothing happens to others."""
        if page in self._passed or page in self._kept:
            self._passed.pop(page, None)
            self._kept.pop(page, None)
            self._kept[page] = None

    def release(self, page: int, keep: bool = True) -> None:
        """Drop a reference; the last one leaves the page cached if a prefix knows it.

        Without `keep` it is evicted before all that are kept.
        """
        self.refs[page] -= 1
        if self.refs[page]:
            return
        if self.nodes[page] is None:
            self._free.append(page)
        elif keep:
            self._kept[page] = None
        else:
            self._passed[page] = None


class Pages:
    """All pages of an engine, the page tables of its sequences, and the prefix index."""

    def __init__(
        self,
        windows: Seq[int],
        num_pages: Seq[int],
        page_tokens: int,
        num_rows: int,
        max_tokens: int,
        share_prefixes: bool = True,
    ) -> None:
        self.windows = tuple(windows)
        self.page_tokens = page_tokens
        self.pools = [PagePool(n) for n in num_pages]
        self._share = share_prefixes
        self._index: dict[tuple[int, bytes], PrefixNode] = {}
        self._root = PrefixNode(None, b"", len(self.windows))
        max_pages = -(-max_tokens // page_tokens)
        self.tables: list[Int32Array] = [
            np.full((num_rows, max_pages), -1, dtype=np.int32) for _ in self.windows
        ]
        """[num_rows, max_pages] physical pages of each window group; a sequence owns one row."""

    @property
    def prefix_nodes(self) -> list[PrefixNode]:
        """All nodes of the prefix index, without the root."""
        return list(self._index.values())

    # --- what a sequence needs -----------------------------------------------------------------

    def pages_of(self, num_tokens: int) -> int:
        """Pages that hold this many positions from 0."""
        return -(-num_tokens // self.page_tokens)

    def working_pages(self, group: int, num_tokens: int) -> int:
        """Pages that a lone sequence of num_tokens needs at once in a window group."""
        window = self.windows[group]
        if window == 0:
            return self.pages_of(num_tokens)
        # `window` neighbouring positions touch at most this many pages.
        span = (window - 2) // self.page_tokens + 2 if window > 1 else 1
        return min(span, self.pages_of(num_tokens))

    @property
    def capacity_tokens(self) -> int:
        """Longest sequence that fits when it is alone."""
        longest: int = self.tables[0].shape[1] * self.page_tokens
        for group, pool in enumerate(self.pools):
            if pool.num_pages < self.working_pages(group, longest):
                longest = pool.num_pages * self.page_tokens
        return longest

    def first_needed(self, group: int, position: int) -> int:
        """First logical page that queries at `position` and after it still read."""
        window = self.windows[group]
        return 0 if window == 0 else max(0, position - window + 1) // self.page_tokens

    # --- prefixes ------------------------------------------------------------------------------

    def match(self, sequence: Sequence) -> tuple[int, list[PrefixNode]]:
        """Longest reusable prefix, in pages, and the nodes along all of the text that is known.

        Windowed groups need only the pages that later queries read. The last token is never part
        of it: its logits must be computed.
        """
        nodes: list[PrefixNode] = []
        if not self._share or not sequence.may_reuse_prefix:
            return 0, nodes
        runs = [0] * len(self.windows)  # cached neighbours up to and with the current page
        best, node = 0, self._root_of(sequence)
        for idx in range((sequence.num_tokens - 1) // self.page_tokens):
            child = self._index.get((id(node), self._page_key(sequence, idx)))
            if child is None:
                break
            node = child
            nodes.append(node)
            for group, page in enumerate(node.pages):
                runs[group] = runs[group] + 1 if page >= 0 else 0
            position = (idx + 1) * self.page_tokens
            if all(
                run >= idx + 1 - self.first_needed(group, position)
                for group, run in enumerate(runs)
            ):
                best = idx + 1
        return best, nodes

    def _root_of(self, sequence: Sequence) -> PrefixNode:
        return self._root if sequence.variant is None else sequence.variant.root

    def _page_key(self, sequence: Sequence, idx: int) -> bytes:
        # The bytes of the tokens themselves: a dict lookup compares them, not only their hash.
        start = idx * self.page_tokens
        return sequence.tokens[start : start + self.page_tokens].tobytes()

    def _child(self, node: PrefixNode, key: bytes) -> PrefixNode:
        child = self._index.get((id(node), key))
        if child is None:
            child = self._index[id(node), key] = PrefixNode(node, key, len(self.windows))
            node.holds += 1
        return child

    def _forget(self, node: PrefixNode | None) -> None:
        """Drop a node that nothing needs any more, and then its parents likewise."""
        while node is not None and node.parent is not None:
            if node.holds or any(page >= 0 for page in node.pages):
                return
            del self._index[id(node.parent), node.key]
            node.parent.holds -= 1
            node = node.parent

    # --- a sequence's life ---------------------------------------------------------------------

    def admit(self, sequence: Sequence, row: int, spare: int) -> bool:
        """Give a waiting sequence its cached prefix and pages for the rest of its text.

        Groups without a window get all pages at once, so that what is admitted can be prefilled;
        windowed groups get theirs chunk by chunk. Takes nothing and returns False where that
        would leave fewer than `spare` pages.
        """
        num_cached, nodes = self.match(sequence)
        position = num_cached * self.page_tokens
        firsts = [self.first_needed(group, position) for group in range(len(self.windows))]
        for group, pool in enumerate(self.pools):
            reused = [node.pages[group] for node in nodes[firsts[group] : num_cached]]
            needed = self.working_pages(group, sequence.num_tokens)
            revived = sum(pool.refs[page] == 0 for page in reused)
            if needed - len(reused) + revived + spare > pool.num_available:
                return False
        for group, pool in enumerate(self.pools):
            for idx in range(firsts[group], num_cached):
                page = nodes[idx].pages[group]
                pool.hold(page)
                self.tables[group][row, idx] = page
        tip = nodes[num_cached - 1] if num_cached else self._root_of(sequence)
        sequence.admit(row, position, firsts, num_cached, tip)
        cuts = [cut // self.page_tokens for cut in sequence.cut_points]
        sequence.kept_ends = (len(nodes), sequence.num_prompt // self.page_tokens, *cuts)
        self._renew(sequence, nodes)
        sequence.tip.holds += 1
        self.take(sequence, position)
        return True

    def _renew(self, sequence: Sequence, nodes: list[PrefixNode]) -> None:
        """Let cached windows before cut points be evicted last, the first cut's very last."""
        for end in (cut // self.page_tokens for cut in reversed(sequence.cut_points)):
            for group, window in enumerate(self.windows):
                if window and end <= len(nodes):
                    first = self.first_needed(group, (end - 1) * self.page_tokens)
                    for node in nodes[first:end]:
                        self.pools[group].renew(node.pages[group])

    def plant(
        self,
        keys: Seq[bytes],
        slots: Seq[tuple[int, int]],
        fill: Callable[[int, int, int], None],
    ) -> bool:
        """Make pages of a prefix known that was computed elsewhere.

        keys: the bytes of the tokens of each full page of the prefix. slots: (group, logical page)
        of those that are brought in. fill(group, logical page, physical page) writes one that is
        not here yet. Changes nothing and returns False where there is no room.
        """
        for group, pool in enumerate(self.pools):
            if sum(g == group for g, _ in slots) > pool.num_available:
                return False
        path = [self._root]
        for key in keys:
            path.append(self._child(path[-1], key))
        path[-1].holds += 1
        held: list[tuple[PagePool, int]] = []
        for group, idx in slots:
            pool, node = self.pools[group], path[idx + 1]
            page = node.pages[group]
            if page >= 0:
                pool.hold(page)
            else:
                page = self._take_page(group)
                fill(group, idx, page)
                node.pages[group] = page
                pool.nodes[page] = node
            held.append((pool, page))
        for pool, page in reversed(held):
            pool.release(page)
        path[-1].holds -= 1
        self._forget(path[-1])
        return True

    def _take_page(self, group: int) -> int:
        page, node = self.pools[group].take()
        if node is not None:
            node.pages[group] = -1
            self._forget(node)
        return page

    def path(self, sequence: Sequence, end: int) -> list[PrefixNode]:
        """Nodes of the first `end` pages of a running sequence, at most num_indexed."""
        node, nodes = sequence.tip, []
        for _ in range(sequence.num_indexed):
            nodes.append(node)
            assert node.parent is not None
            node = node.parent
        return nodes[::-1][:end]

    def page_keys(self, sequence: Sequence, end: int) -> list[bytes]:
        """Bytes of the tokens of each of the first `end` full pages of a text."""
        return [self._page_key(sequence, idx) for idx in range(end)]

    def room(self, sequence: Sequence, num_tokens: int) -> int:
        """How many of the next num_tokens positions have pages or can get them now."""
        if sequence.num_computed + num_tokens <= sequence.num_paged:
            return num_tokens
        for group, pool in enumerate(self.pools):
            end = sequence.end_pages[group] + pool.num_available
            num_tokens = min(num_tokens, end * self.page_tokens - sequence.num_computed)
        return num_tokens

    def take(self, sequence: Sequence, end: int) -> None:
        """Give a sequence its pages for positions below `end`; `room` must have agreed."""
        if 0 < end <= sequence.num_paged:
            return
        for group in range(len(self.pools)):
            tokens = max(end, sequence.num_tokens) if self.windows[group] == 0 else end
            table = self.tables[group]
            for idx in range(sequence.end_pages[group], self.pages_of(tokens)):
                table[sequence.row, idx] = self._take_page(group)
                sequence.end_pages[group] = idx + 1
        sequence.num_paged = min(sequence.end_pages) * self.page_tokens

    def advance(self, sequence: Sequence, num_tokens: int) -> None:
        """Note that num_tokens more positions are computed: index full pages, free old ones."""
        sequence.num_computed += num_tokens
        if self._share and sequence.num_computed >= ((sequence.num_indexed + 1) * self.page_tokens):
            self._index_pages(sequence)
        for group, window in enumerate(self.windows):
            if window and sequence.num_computed >= window:
                needed = self.first_needed(group, sequence.num_computed)
                self._free_before(sequence, group, needed)

    def _index_pages(self, sequence: Sequence) -> None:
        tip = sequence.tip
        for idx in range(sequence.num_indexed, sequence.num_computed // self.page_tokens):
            child = self._child(tip, self._page_key(sequence, idx))
            child.holds += 1
            tip.holds -= 1
            tip = child
            for group, pool in enumerate(self.pools):
                page = int(self.tables[group][sequence.row, idx])
                if page >= 0 and tip.pages[group] < 0 and pool.nodes[page] is None:
                    tip.pages[group] = page
                    pool.nodes[page] = tip
            sequence.num_indexed = idx + 1
        sequence.tip = tip

    def _free_before(self, sequence: Sequence, group: int, end: int) -> None:
        start = sequence.first_pages[group]
        if start >= end:
            return
        table, pool = self.tables[group], self.pools[group]
        for idx in range(start, end):
            pool.release(int(table[sequence.row, idx]), keep=self._is_kept(sequence, group, idx))
        table[sequence.row, start:end] = -1
        sequence.first_pages[group] = end

    def _is_kept(self, sequence: Sequence, group: int, idx: int) -> bool:
        """Whether a page lies in the window before a place where a later text may go on.

        One page more than the window: of a prompt that is repeated, the last token is computed.
        """
        return any(
            self.first_needed(group, (end - 1) * self.page_tokens) <= idx < end
            for end in sequence.kept_ends
        )

    def release(self, sequence: Sequence) -> None:
        """Take all pages back; the tail of the text is the first to be evicted later."""
        for group, pool in enumerate(self.pools):
            table = self.tables[group]
            held = slice(sequence.first_pages[group], sequence.end_pages[group])
            for page in table[sequence.row, held][::-1].tolist():
                pool.release(page)
            table[sequence.row, held] = -1
        if sequence.cut_points:
            self._renew(sequence, self.path(sequence, sequence.num_indexed))
        sequence.tip.holds -= 1
        self._forget(sequence.tip)
        sequence.retire()
