"""Seeded tiny gpt-oss checkpoints in all three layouts, and float32 oracles that run them.

Written here by hand, or with the gguf package, and not with aperto's writers, so that reading
them tests the reader.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

Logits = Callable[[Sequence[int]], np.ndarray]

GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
GRID_RMS = 2.926  # root mean square of GRID
HARMONY_SPECIALS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)


@dataclasses.dataclass(frozen=True)
class TinyLayer:
    window: int
    num_experts: int
    top_k: int


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    hidden: int
    intermediate: int
    layers: tuple[TinyLayer, ...]
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rope_theta: float
    rope_factor: float
    beta_fast: float
    beta_slow: float
    original_context: int
    max_context: int
    swiglu_limit: float

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        kv_rows = self.kv_heads * self.head_dim
        return self.heads * self.head_dim, kv_rows, kv_rows

    @property
    def uniform(self) -> bool:
        """One window size and one expert count throughout: what plain gpt-oss can state."""
        windows = {layer.window for layer in self.layers} - {0}
        return len(windows) <= 1 and len({(la.num_experts, la.top_k) for la in self.layers}) == 1

    @property
    def published(self) -> bool:
        """The published pattern: even layers windowed, odd layers full."""
        return self.uniform and all(
            bool(la.window) == (i % 2 == 0) for i, la in enumerate(self.layers)
        )


def write_tiny(
    path: str | Path,
    *,
    layout: Literal["hf", "openai", "gguf"] = "hf",
    seed: int = 0,
    hidden: int = 64,
    intermediate: int = 64,
    windows: Sequence[int] = (8, 0),
    experts: int | Sequence[int] = 4,
    top_k: int | Sequence[int] = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    vocab: int = 384,
    rope_theta: float = 150000.0,
    rope_factor: float = 32.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    original_context: int = 4096,
    max_context: int | None = None,
    swiglu_limit: float = 7.0,
    expert_dtype: Literal["mxfp4", "bf16"] = "mxfp4",
    rope_spelling: Literal["rope_scaling", "rope_parameters"] = "rope_scaling",
    shards: int = 1,
    tokenizer: bool = False,
    q8: bool = False,
    fused_gate_up: bool = False,
) -> Path:
    """Write a checkpoint folder (hf, openai) or file (gguf) and return its path.

    `windows` has one entry a layer (0: full attention). A short `original_context` needs a small
    `beta_fast` (context / beta_fast > 2 pi). The same seed and shapes give the same weights in
    every layout. `q8` stores a GGUF's matrices as Q8_0, `fused_gate_up` joins its gate and up.
    """
    num_layers = len(windows)
    experts = (experts,) * num_layers if isinstance(experts, int) else tuple(experts)
    top_k = (top_k,) * num_layers if isinstance(top_k, int) else tuple(top_k)
    layers = tuple(TinyLayer(*item) for item in zip(windows, experts, top_k, strict=True))
    config = TinyConfig(
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocab,
        rope_theta,
        rope_factor,
        beta_fast,
        beta_slow,
        original_context,
        max_context or int(original_context * rope_factor),
        swiglu_limit,
    )
    weights = make_weights(config, seed, expert_dtype)
    path = Path(path)
    match layout:
        case "hf":
            _write_hf(path, config, weights, rope_spelling, shards)
        case "openai":
            _write_openai(path, config, weights)
        case "gguf":
            _write_gguf(path, config, weights, q8, fused_gate_up, tokenizer)
    if tokenizer and layout != "gguf":
        write_tokenizer(path, vocab)
    return path


# --- weights ------------------------------------------------------------------------------------


def bf16(values: np.ndarray) -> np.ndarray:
    """Truncate float32 to BF16 bits, uint16."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def widen(bits: np.ndarray) -> np.ndarray:
    """BF16 bits to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def make_weights(config: TinyConfig, seed: int, expert_dtype: str = "mxfp4") -> dict[str, Any]:
    """Canonical name -> BF16 bits, or (blocks, scales) for MXFP4 experts.

    Scaled so that activations keep about unit variance, attention is neither flat nor one-hot,
    and logits have a standard deviation of about 3.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> np.ndarray:
        return bf16(rng.normal(mean, std, shape).astype(np.float32))

    def experts(num: int, rows: int, width: int, std: float) -> Any:
        if expert_dtype == "bf16":
            return normal(num, rows, width, std=std)
        # Random codes; the scales spread over four powers of two around the wanted deviation.
        blocks = rng.integers(0, 256, (num, rows, width // 32, 16), dtype=np.uint8)
        centre = round(float(np.log2(std / GRID_RMS)))
        spread = rng.integers(centre - 2, centre + 2, (num, rows, width // 32))
        return blocks, (spread + 127).astype(np.uint8)

    hidden, inner = config.hidden, config.intermediate
    q_rows, kv_rows, _ = config.qkv_rows
    weights: dict[str, Any] = {"embedding.weight": normal(config.vocab, hidden, std=1.0)}
    for index, layer in enumerate(config.layers):
        own = {"attn.norm.weight": normal(hidden, std=0.2, mean=1.0)}
        for part, rows, std in (("q", q_rows, 1.5), ("k", kv_rows, 1.5), ("v", kv_rows, 1.0)):
            own[f"attn.{part}.weight"] = normal(rows, hidden, std=std / hidden**0.5)
            own[f"attn.{part}.bias"] = normal(rows, std=0.2)
        own |= {
            "attn.out.weight": normal(hidden, q_rows, std=1.0 / q_rows**0.5),
            "attn.out.bias": normal(hidden, std=0.1),
            "attn.sinks": normal(config.heads, std=1.0),
            "moe.norm.weight": normal(hidden, std=0.2, mean=1.0),
            "moe.router.weight": normal(layer.num_experts, hidden, std=1.5 / hidden**0.5),
            "moe.router.bias": normal(layer.num_experts, std=0.3),
            "moe.gate_up.weight": experts(layer.num_experts, 2 * inner, hidden, 2 / hidden**0.5),
            "moe.gate_up.bias": normal(layer.num_experts, 2 * inner, std=0.3),
            "moe.down.weight": experts(layer.num_experts, hidden, inner, 1 / inner**0.5),
            "moe.down.bias": normal(layer.num_experts, hidden, std=0.1),
        }
        weights |= {f"layers.{index}.{name}": value for name, value in own.items()}
    weights["norm.weight"] = normal(hidden, std=0.2, mean=1.0)
    weights["head.weight"] = normal(config.vocab, hidden, std=3.0 / hidden**0.5)
    return weights


# --- Hugging Face -------------------------------------------------------------------------------

HF_LAYER = {
    "attn.norm.weight": "input_layernorm.weight",
    "attn.out.weight": "self_attn.o_proj.weight",
    "attn.out.bias": "self_attn.o_proj.bias",
    "attn.sinks": "self_attn.sinks",
    "moe.norm.weight": "post_attention_layernorm.weight",
    "moe.router.weight": "mlp.router.weight",
    "moe.router.bias": "mlp.router.bias",
    "moe.gate_up.weight": "mlp.experts.gate_up_proj",
    "moe.gate_up.bias": "mlp.experts.gate_up_proj_bias",
    "moe.down.weight": "mlp.experts.down_proj",
    "moe.down.bias": "mlp.experts.down_proj_bias",
} | {
    f"attn.{part}.{kind}": f"self_attn.{part}_proj.{kind}"
    for part in "qkv"
    for kind in ("weight", "bias")
}
HF_GLOBAL = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


def _hf_name(name: str) -> str:
    if name in HF_GLOBAL:
        return HF_GLOBAL[name]
    _, index, rest = name.split(".", 2)
    return f"model.layers.{index}.{HF_LAYER[rest]}"


def hf_tensors(weights: dict[str, Any]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        hf = _hf_name(name)
        if isinstance(value, tuple):
            tensors[f"{hf}_blocks"], tensors[f"{hf}_scales"] = value
        elif value.ndim == 3:
            tensors[hf] = np.ascontiguousarray(value.swapaxes(1, 2))
        else:
            tensors[hf] = value
    return tensors


def save_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a safetensors file: header length, JSON header, tensors one after the other."""
    kinds = {"uint16": "BF16", "uint8": "U8", "float32": "F32", "float16": "F16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        kind = kinds[str(array.dtype)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def hf_config(config: TinyConfig, mxfp4: bool, rope_spelling: str) -> dict[str, Any]:
    first = config.layers[0]
    rope: dict[str, Any] = {
        "beta_fast": config.beta_fast,
        "beta_slow": config.beta_slow,
        "factor": config.rope_factor,
        "original_max_position_embeddings": config.original_context,
        "rope_type": "yarn",
        "truncate": False,
    }
    if config.rope_factor == 1.0:
        rope = {"rope_type": "default"}
    raw: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": config.vocab - 1,
        "experts_per_token": first.top_k,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "initial_context_length": config.original_context,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate,
        "layer_types": [
            "sliding_attention" if la.window else "full_attention" for la in config.layers
        ],
        "max_position_embeddings": config.max_context,
        "model_type": "gpt_oss",
        "num_attention_heads": config.heads,
        "num_experts_per_tok": first.top_k,
        "num_hidden_layers": len(config.layers),
        "num_key_value_heads": config.kv_heads,
        "num_local_experts": first.num_experts,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "sliding_window": max(la.window for la in config.layers) or None,
        "swiglu_limit": config.swiglu_limit,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.vocab,
    }
    if rope_spelling == "rope_scaling":
        raw |= {"rope_scaling": rope, "rope_theta": config.rope_theta}
    else:
        raw["rope_parameters"] = rope | {"rope_theta": config.rope_theta}
    if mxfp4:
        kept = [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ]
        raw["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    if not config.uniform:
        raw |= {"model_type": "gpt_oss_puzzle", "architectures": ["GptOssPuzzleForCausalLM"]}
        raw["block_configs"] = [
            {
                "num_local_experts": la.num_experts,
                "num_experts_per_tok": la.top_k,
                "sliding_window": la.window or None,
            }
            for la in config.layers
        ]
    return raw


def _write_hf(
    path: Path, config: TinyConfig, weights: dict[str, Any], rope_spelling: str, shards: int
) -> None:
    path.mkdir(parents=True, exist_ok=True)
    mxfp4 = isinstance(weights["layers.0.moe.down.weight"], tuple)
    (path / "config.json").write_text(json.dumps(hf_config(config, mxfp4, rope_spelling), indent=2))
    generation = {
        "eos_token_id": [config.vocab - 1, config.vocab - 2],
        "do_sample": True,
        "pad_token_id": 0,
    }
    (path / "generation_config.json").write_text(json.dumps(generation, indent=2))
    tensors = hf_tensors(weights)
    if shards == 1:
        save_tensors(path / "model.safetensors", tensors)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard::shards]
        save_tensors(path / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


# --- original -----------------------------------------------------------------------------------

OPENAI_LAYER = {
    "attn.norm.weight": "attn.norm.scale",
    "attn.out.weight": "attn.out.weight",
    "attn.out.bias": "attn.out.bias",
    "attn.sinks": "attn.sinks",
    "moe.norm.weight": "mlp.norm.scale",
    "moe.router.weight": "mlp.gate.weight",
    "moe.router.bias": "mlp.gate.bias",
    "moe.gate_up.weight": "mlp.mlp1_weight",
    "moe.gate_up.bias": "mlp.mlp1_bias",
    "moe.down.weight": "mlp.mlp2_weight",
    "moe.down.bias": "mlp.mlp2_bias",
}


def openai_tensors(config: TinyConfig, weights: dict[str, Any]) -> dict[str, np.ndarray]:
    tensors = {
        "embedding.weight": weights["embedding.weight"],
        "norm.scale": weights["norm.weight"],
        "unembedding.weight": weights["head.weight"],
    }
    for index in range(len(config.layers)):
        own = f"layers.{index}."
        for kind in ("weight", "bias"):
            parts = [weights[f"{own}attn.{part}.{kind}"] for part in "qkv"]
            tensors[f"block.{index}.attn.qkv.{kind}"] = np.concatenate(parts)
        for name, openai in OPENAI_LAYER.items():
            value = weights[own + name]
            if isinstance(value, tuple):
                (
                    tensors[f"block.{index}.{openai}.blocks"],
                    tensors[f"block.{index}.{openai}.scales"],
                ) = value
            else:
                tensors[f"block.{index}.{openai}"] = value
    return tensors


def _write_openai(path: Path, config: TinyConfig, weights: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    first = config.layers[0]
    raw: dict[str, Any] = {
        "num_hidden_layers": len(config.layers),
        "num_experts": first.num_experts,
        "experts_per_token": first.top_k,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "swiglu_limit": config.swiglu_limit,
        "head_dim": config.head_dim,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "sliding_window": max(la.window for la in config.layers),
        "initial_context_length": config.original_context,
        "rope_theta": config.rope_theta,
        "rope_scaling_factor": config.rope_factor,
        "rope_ntk_alpha": config.beta_slow,
        "rope_ntk_beta": config.beta_fast,
    }
    if not config.published:
        raw["layers"] = [
            {
                "sliding_window": la.window,
                "num_experts": la.num_experts,
                "experts_per_token": la.top_k,
            }
            for la in config.layers
        ]
    (path / "config.json").write_text(json.dumps(raw))
    save_tensors(path / "model.safetensors", openai_tensors(config, weights))


# --- GGUF ---------------------------------------------------------------------------------------


def gguf_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """[..., K/32, 16] and [..., K/32] to GGUF's [..., K/32 * 17], element by element."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    packed = codes[..., :16] | (codes[..., 16:] << 4)
    joined = np.concatenate([scales[..., None], packed], axis=-1).astype(np.uint8)
    return joined.reshape(*joined.shape[:-2], joined.shape[-2] * 17)


def _write_gguf(
    path: Path, config: TinyConfig, weights: dict[str, Any], q8: bool, fused: bool, tokenizer: bool
) -> None:
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "gpt-oss")
    _gguf_metadata(writer, config, tokenizer)
    kinds = gguf.GGMLQuantizationType

    def add(name: str, value: Any, *, f32: bool = False) -> None:
        if isinstance(value, tuple):
            writer.add_tensor(name, gguf_mxfp4(*value), raw_dtype=kinds.MXFP4)
        elif f32 or value.ndim == 1:
            writer.add_tensor(name, widen(value))
        elif q8:
            writer.add_tensor(name, gguf.quantize(widen(value), kinds.Q8_0), raw_dtype=kinds.Q8_0)
        else:
            writer.add_tensor(name, value.view(np.uint8), raw_dtype=kinds.BF16)

    def add_experts(prefix: str, kind: str, value: Any) -> None:
        def rows(part: slice) -> Any:
            if isinstance(value, tuple):
                return tuple(np.ascontiguousarray(a[:, part]) for a in value)
            return np.ascontiguousarray(value[:, part])

        gate, up = rows(slice(0, None, 2)), rows(slice(1, None, 2))
        bias = kind == "bias"
        if not fused:
            add(f"{prefix}.ffn_gate_exps.{kind}", gate, f32=bias)
            add(f"{prefix}.ffn_up_exps.{kind}", up, f32=bias)
        elif isinstance(gate, tuple):
            both = tuple(np.concatenate(pair, axis=1) for pair in zip(gate, up, strict=True))
            add(f"{prefix}.ffn_gate_up_exps.{kind}", both)
        else:
            add(f"{prefix}.ffn_gate_up_exps.{kind}", np.concatenate([gate, up], axis=1), f32=bias)

    add("token_embd.weight", weights["embedding.weight"])
    for index in range(len(config.layers)):
        own, block = f"layers.{index}.", f"blk.{index}"
        add(f"{block}.attn_norm.weight", weights[own + "attn.norm.weight"])
        for part, name in (
            ("q", "attn_q"),
            ("k", "attn_k"),
            ("v", "attn_v"),
            ("out", "attn_output"),
        ):
            add(f"{block}.{name}.weight", weights[f"{own}attn.{part}.weight"])
            add(f"{block}.{name}.bias", weights[f"{own}attn.{part}.bias"])
        add(f"{block}.attn_sinks.weight", weights[own + "attn.sinks"])
        add(f"{block}.post_attention_norm.weight", weights[own + "moe.norm.weight"])
        add(f"{block}.ffn_gate_inp.weight", weights[own + "moe.router.weight"], f32=True)
        add(f"{block}.ffn_gate_inp.bias", weights[own + "moe.router.bias"])
        add_experts(block, "weight", weights[own + "moe.gate_up.weight"])
        add_experts(block, "bias", weights[own + "moe.gate_up.bias"])
        add(f"{block}.ffn_down_exps.weight", weights[own + "moe.down.weight"])
        add(f"{block}.ffn_down_exps.bias", weights[own + "moe.down.bias"], f32=True)
    add("output_norm.weight", weights["norm.weight"])
    add("output.weight", weights["head.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_metadata(writer: Any, config: TinyConfig, tokenizer: bool) -> None:
    import gguf

    first = config.layers[0]
    writer.add_block_count(len(config.layers))
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_expert_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_file_type(38)
    windows = [la.window for la in config.layers]
    if not config.uniform:
        writer.add_array("gpt-oss.attention.sliding_window", windows)
        writer.add_array("gpt-oss.expert_count", [la.num_experts for la in config.layers])
        writer.add_array("gpt-oss.expert_used_count", [la.top_k for la in config.layers])
    else:
        writer.add_sliding_window(max(windows))
        writer.add_expert_count(first.num_experts)
        writer.add_expert_used_count(first.top_k)
        if not config.published:
            writer.add_array("gpt-oss.attention.sliding_window_pattern", [bool(w) for w in windows])
    if config.rope_factor != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_factor)
        writer.add_rope_scaling_orig_ctx_len(config.original_context)
        writer.add_float32("gpt-oss.rope.scaling.yarn_beta_fast", config.beta_fast)
        writer.add_float32("gpt-oss.rope.scaling.yarn_beta_slow", config.beta_slow)
    if tokenizer:
        tokens, types, merges = gguf_vocabulary(config.vocab)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-4o")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(merges)
        writer.add_eos_token_id(tokens.index("<|return|>"))


# --- tokenizer ----------------------------------------------------------------------------------

MERGE_TEXT = (
    "the answer to the question is in the final message and the reasoning of the assistant "
    "is in the analysis channel while the user and the developer start and end their messages"
)
NUM_MERGES = 40


def train_merges(text: str, count: int) -> list[str]:
    """Byte-pair merges of a text, most frequent pair first; each product is thereby reachable."""
    words = [["Ġ", *word] for word in text.split()]
    merges = []
    for _ in range(count):
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(f"{left} {right}")
        for word in words:
            at = 0
            while at < len(word) - 1:
                if word[at] == left and word[at + 1] == right:
                    word[at : at + 2] = [left + right]
                at += 1
    return merges


MERGES = train_merges(MERGE_TEXT, NUM_MERGES)
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_alphabet() -> list[str]:
    """The 256 characters of the byte-level alphabet in the published order of ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + rank) for rank in range(len(others))]


def vocabulary(vocab: int) -> tuple[list[str], list[str]]:
    """(ordinary tokens by id, special tokens that follow them); the specials fill the rest."""
    ordinary = byte_alphabet() + [merge.replace(" ", "") for merge in MERGES]
    room = vocab - len(ordinary)
    if room < len(HARMONY_SPECIALS):
        raise ValueError(
            f"vocab {vocab} is too small for the tiny tokenizer; at least {len(ordinary) + 9}"
        )
    reserved = [f"<|reserved_{len(ordinary) + i}|>" for i in range(len(HARMONY_SPECIALS), room)]
    return ordinary, [*HARMONY_SPECIALS, *reserved]


def gguf_vocabulary(vocab: int) -> tuple[list[str], list[int], list[str]]:
    ordinary, special = vocabulary(vocab)
    return ordinary + special, [1] * len(ordinary) + [3] * len(special), list(MERGES)


def write_tokenizer(folder: Path, vocab: int) -> None:
    """Write tokenizer.json and tokenizer_config.json for a tiny vocabulary."""
    ordinary, special = vocabulary(vocab)
    added = [
        {
            "id": len(ordinary) + rank,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for rank, text in enumerate(special)
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: rank for rank, text in enumerate(ordinary)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


# --- oracles ------------------------------------------------------------------------------------


def hf_oracle(path: str | Path) -> Logits:
    """Transformers' model in float32 on an HF-layout checkpoint: ids -> logits [T, V]."""
    import torch
    from transformers import GptOssForCausalLM, Mxfp4Config
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    quantized = "quantization_config" in json.loads((Path(path) / "config.json").read_text())
    extra = {"quantization_config": Mxfp4Config(dequantize=True)} if quantized else {}
    model = GptOssForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        **extra,
    )
    model = model.float().eval()

    def logits(ids: Sequence[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([list(ids)])).logits[0].numpy()

    return logits


def torch_oracle(path: str | Path) -> Logits:
    """OpenAI's torch model in float32 on an original-layout checkpoint: ids -> logits [T, V].

    Its own loader fixes BF16 parameters and windows by parity, so the module is built here, with
    per-layer windows and experts where the configuration states them; the weights come through
    its own reader.
    """
    import torch
    from gpt_oss.torch.model import MLPBlock, ModelConfig, Transformer
    from gpt_oss.torch.weights import Checkpoint

    raw = json.loads((Path(path) / "config.json").read_text())
    layers = raw.pop("layers", None)
    raw.pop("max_position_embeddings", None)
    config = ModelConfig(**raw)
    model = Transformer(config, device=torch.device("cpu"))
    for index, layer in enumerate(layers or []):
        model.block[index].attn.sliding_window = layer["sliding_window"]
        own = dataclasses.replace(
            config, num_experts=layer["num_experts"], experts_per_token=layer["experts_per_token"]
        )
        model.block[index].mlp = MLPBlock(own, torch.device("cpu"))
    model = model.float().eval()
    checkpoint = Checkpoint(str(path), torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.get(name))

    def logits(ids: Sequence[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor(list(ids), dtype=torch.int32)).numpy()

    return logits
