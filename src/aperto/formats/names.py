"""Every tensor of a gpt-oss model: its canonical name, its shape, its name in each layout.

The only such table. A layer's names stand without their prefix; `{part}` in a GGUF name is `gate`
or `up` (or `gate_up` in files that fuse the two).
"""

from __future__ import annotations

import dataclasses

from aperto.config import ModelConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """One tensor's name in each layout."""

    canonical: str
    """The name aperto uses."""
    hf: str
    """Hugging Face; for MXFP4 experts the stem of `_blocks` and `_scales`."""
    openai: str
    """The original layout; q, k and v share one; for MXFP4 the stem of `.blocks` and `.scales`."""
    gguf: str
    """GGUF."""


_GLOBAL = (
    Names("embedding.weight", "model.embed_tokens.weight", "embedding.weight", "token_embd.weight"),
    Names("norm.weight", "model.norm.weight", "norm.scale", "output_norm.weight"),
    Names("head.weight", "lm_head.weight", "unembedding.weight", "output.weight"),
)

_ATTENTION = (
    Names("attn.norm.weight", "input_layernorm.weight", "attn.norm.scale", "attn_norm.weight"),
    Names("attn.q.weight", "self_attn.q_proj.weight", "attn.qkv.weight", "attn_q.weight"),
    Names("attn.q.bias", "self_attn.q_proj.bias", "attn.qkv.bias", "attn_q.bias"),
    Names("attn.k.weight", "self_attn.k_proj.weight", "attn.qkv.weight", "attn_k.weight"),
    Names("attn.k.bias", "self_attn.k_proj.bias", "attn.qkv.bias", "attn_k.bias"),
    Names("attn.v.weight", "self_attn.v_proj.weight", "attn.qkv.weight", "attn_v.weight"),
    Names("attn.v.bias", "self_attn.v_proj.bias", "attn.qkv.bias", "attn_v.bias"),
    Names("attn.out.weight", "self_attn.o_proj.weight", "attn.out.weight", "attn_output.weight"),
    Names("attn.out.bias", "self_attn.o_proj.bias", "attn.out.bias", "attn_output.bias"),
    Names("attn.sinks", "self_attn.sinks", "attn.sinks", "attn_sinks.weight"),
)

_MOE = (
    Names(
        "moe.norm.weight",
        "post_attention_layernorm.weight",
        "mlp.norm.scale",
        "post_attention_norm.weight",
    ),
    Names("moe.router.weight", "mlp.router.weight", "mlp.gate.weight", "ffn_gate_inp.weight"),
    Names("moe.router.bias", "mlp.router.bias", "mlp.gate.bias", "ffn_gate_inp.bias"),
    Names(
        "moe.gate_up.weight",
        "mlp.experts.gate_up_proj",
        "mlp.mlp1_weight",
        "ffn_{part}_exps.weight",
    ),
    Names(
        "moe.gate_up.bias",
        "mlp.experts.gate_up_proj_bias",
        "mlp.mlp1_bias",
        "ffn_{part}_exps.bias",
    ),
    Names(
        "moe.down.weight",
        "mlp.experts.down_proj",
        "mlp.mlp2_weight",
        "ffn_down_exps.weight",
    ),
    Names("moe.down.bias", "mlp.experts.down_proj_bias", "mlp.mlp2_bias", "ffn_down_exps.bias"),
)


def layer_name(layer_idx: int, suffix: str) -> str:
    """Return a canonical name, e.g. layer_name(3, "attn.sinks") -> "layers.3.attn.sinks"."""
    return f"layers.{layer_idx}.{suffix}"


def is_expert_weight(canonical: str) -> bool:
    """Whether this canonical tensor is one of the expert matrices, which are MXFP4 in gpt-oss."""
    return canonical.endswith(("moe.gate_up.weight", "moe.down.weight"))


def is_gate_up(canonical: str) -> bool:
    """Whether its rows interleave gate (even) and up (odd)."""
    return canonical.endswith(("moe.gate_up.weight", "moe.gate_up.bias"))


def is_matrix(canonical: str) -> bool:
    """Whether it is a dense matrix: embedding, head or an attention projection."""
    return canonical in ("embedding.weight", "head.weight") or canonical.endswith(
        ("attn.q.weight", "attn.k.weight", "attn.v.weight", "attn.out.weight")
    )


def all_names(config: ModelConfig) -> tuple[Names, ...]:
    """Every tensor of a model, in the order in which writers store them."""
    rows = [_GLOBAL[0]]
    for index in range(config.num_layers):
        rows += [_prefixed(row, index) for row in (*_ATTENTION, *_MOE)]
    return (*rows, *_GLOBAL[1:])


def _prefixed(row: Names, index: int) -> Names:
    return Names(
        canonical=f"layers.{index}.{row.canonical}",
        hf=f"model.layers.{index}.{row.hf}",
        openai=f"block.{index}.{row.openai}",
        gguf=f"blk.{index}.{row.gguf}",
    )


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Logical shape of every canonical tensor, in the order of `all_names`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.q_size, config.kv_size
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocab_size, hidden)}
    for index, layer in enumerate(config.layers):
        experts = layer.num_experts
        own: dict[str, tuple[int, ...]] = {
            "attn.norm.weight": (hidden,),
            "attn.q.weight": (q, hidden),
            "attn.q.bias": (q,),
            "attn.k.weight": (kv, hidden),
            "attn.k.bias": (kv,),
            "attn.v.weight": (kv, hidden),
            "attn.v.bias": (kv,),
            "attn.out.weight": (hidden, q),
            "attn.out.bias": (hidden,),
            "attn.sinks": (config.num_attention_heads,),
            "moe.norm.weight": (hidden,),
            "moe.router.weight": (experts, hidden),
            "moe.router.bias": (experts,),
            "moe.gate_up.weight": (experts, 2 * inner, hidden),
            "moe.gate_up.bias": (experts, 2 * inner),
            "moe.down.weight": (experts, hidden, inner),
            "moe.down.bias": (experts, hidden),
        }
        shapes |= {layer_name(index, suffix): shape for suffix, shape in own.items()}
    return shapes | {"norm.weight": (hidden,), "head.weight": (config.vocab_size, hidden)}
