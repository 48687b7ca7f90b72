"""The C++ core of aperto. Use it through aperto.native."""

from collections.abc import Sequence, Set
from typing import Annotated

import numpy
from numpy.typing import NDArray

from aperto._native import kernels as kernels


PAGE_TOKENS: int = 32

TILE_ROWS: int = 16

def isa_names() -> list[str]:
    """Instruction sets this CPU can run, best first."""

def tiles_bytes(kind: str, rows: int, k: int) -> int:
    """Bytes of a packed matrix [rows, k]."""

def quantize_q8_0(values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """Quantise [rows, k] floats to GGUF's Q8_0 blocks."""

def quantize_q8_0_bf16(values: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)], blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """Quantise [rows, k] bfloat16 bits to GGUF's Q8_0 blocks."""

def encode_mxfp4(values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None), order='C', device='cpu')], scales: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')]) -> tuple[float, float, float]:
    """
    Quantise [rows, k] floats to MXFP4 blocks [rows, k/32, 16] and scales [rows, k/32]. Returns the sum of squared differences, that of squares, and the largest difference.
    """

def encode_mxfp4_bf16(values: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), device='cpu', writable=False)], blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None), order='C', device='cpu')], scales: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')]) -> tuple[float, float, float]:
    """As encode_mxfp4, from [rows, k] bfloat16 bits."""

def decode_mxfp4(blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
    """
    Decode MXFP4 blocks [rows, k/32, 16] and scales [rows, k/32] into floats [rows, k].
    """

def decode_mxfp4_bf16(blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], values: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu')]) -> None:
    """As decode_mxfp4, into bfloat16 bits; exact too."""

def pack_q8(blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], tiles: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """Q8_0 blocks [rows, k/32, 34] into tiles."""

def pack_bf16(values: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)], tiles: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """bfloat16 bits [rows, k] into tiles."""

def pack_f32(values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], tiles: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """Floats [rows, k] into tiles."""

def pack_mxfp4(blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], interleaved: bool, tiles: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """MXFP4 [rows, k/32, 16] and scales [rows, k/32] into tiles."""

class KvCache:
    """Pages of keys and values, one pool a window group."""

    def copy_page(self, group: int, source: int, destination: int) -> None:
        """Copy a page within its group."""

    def page(self, group: int, page: int) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C')]:
        """The bytes of a page, in place: to save them, and to fill them."""

    def num_pages(self, group: int) -> int:
        """Pages of a window group."""

    @property
    def nbytes(self) -> int:
        """Bytes reserved for all pages."""

class Variant:
    """What rows of a batch change in the model."""

    def set_low_rank(self, layer: int, part: str, expert: int, a: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], b: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> None:
        """Add B A to the weight of a product."""

    def set_bias(self, layer: int, part: str, expert: int, values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], replace: bool) -> None:
        """Add to the bias of a product, or replace it."""

    def replace_vector(self, layer: int, name: str, values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None:
        """Replace a norm or the sinks."""

    def set_residual(self, layer: int, point: str, scale: float, values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None:
        """Scale the residual stream, then add."""

    def set_experts_per_token(self, layer: int, count: int) -> None:
        """Choose this many experts."""

class Taps:
    """Copies of what passes named points of a forward pass."""

    def __init__(self, points: Set[str]) -> None: ...

    def take(self) -> dict:
        """What the last batch left, [tokens, ...] by point."""

class Model:
    """The forward pass over packed weights."""

    def __init__(self, config: object, tensors: dict, isa: str, num_threads: int, max_batch_tokens: int) -> None: ...

    def forward(self, cache: KvCache, token_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], positions: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], seq_idx: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], page_tables: Sequence[Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)]], output_rows: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], variants: object | None = None, taps: Taps | None = None) -> object:
        """Run a batch; returns the logits [outputs, vocab] of its output rows."""

    def new_cache(self, num_pages: Sequence[int], kind: str) -> KvCache:
        """Allocate pages, one count a window group."""

    def page_bytes(self, group: int, kind: str) -> int:
        """Bytes of one page of a window group."""

    def new_variant(self) -> Variant:
        """A variant that changes nothing yet."""

    @property
    def config(self) -> object: ...

    @property
    def isa(self) -> str: ...

    @property
    def num_threads(self) -> int: ...

    @property
    def max_batch_tokens(self) -> int: ...

def sample(logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], rows: Sequence) -> list[tuple[int, float, list[tuple[int, float]]]]:
    """Draw a token for each row: (token id, logprob, [(id, logprob), ...])."""

def log_sum_exp(logits: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> float:
    """Log of the sum of exponentials of one row of logits."""

def counter_uniform(seed: int, position: int) -> float:
    """The number in [0, 1) behind a draw."""

def probe_read_bandwidth(bytes: int, threads: int, seconds: float) -> float:
    """
    Best streaming read of all threads together over `bytes` of memory, in bytes/s.
    """

def probe_int8_peak(threads: int, seconds: float) -> float:
    """Register-only 8-bit multiply-adds a second, all threads together."""

def probe_f32_peak(threads: int, seconds: float) -> float:
    """
    Register-only float32 fused multiply-adds a second, all threads together.
    """
