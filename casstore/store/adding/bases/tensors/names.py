"""What the names of one tensor in several formats have in common."""

from __future__ import annotations

import re
from functools import lru_cache

_PREFIXES = (
    "_orig_mod.",
    "module.",
    "base_model.model.",
    "model.",
    "transformer.",
    "bert.",
    "roberta.",
    "auto_model.",
    "0.auto_model.",
    "encoder_model.",
    "language_model.",
)
"""What usual wrappers put before the names of a model's own modules: saved with or without them, it is the same model."""

_SECOND = re.compile(r"#\d+$")

_GGUF_BLOCK = re.compile(r"^blk\.(\d+)\.(.+)$")
_GGUF_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_NAMES = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}
"""Names that llama.cpp gives to tensors of the Llama family, and those that transformers gives to them.

https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py
"""


_ROTATED = re.compile(r"(?:^|[._])(?:q|k|wq|wk|query|key)(?:_proj)?\.weight$")

_WRAPPERS = 3
"""Parts of a name that unknown wrappers may have put before it."""


@lru_cache(maxsize=4096)
def endings(name: str) -> tuple[str, ...]:
    """Return what is left of a plain name without its first part, the first two and so on, as long as it is still a path."""
    parts = name.split(".")
    return tuple(".".join(parts[begin:]) for begin in range(1, min(_WRAPPERS + 1, len(parts) - 1)))


def is_rotated(name: str) -> bool:
    """Say whether a tensor may be the weights of queries or keys, which rotary embeddings turn."""
    return _ROTATED.search(plain_name(name)) is not None


# The names of a file are looked for in one file after the other.
@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """Return a tensor's name without what wrappers and formats add to it, in the words of transformers."""
    name = _SECOND.sub("", name)
    name = _GGUF_NAMES.get(name, name)
    block = _GGUF_BLOCK.match(name)
    if block is not None:
        part, dot, kind = block[2].rpartition(".")
        return f"layers.{block[1]}.{_GGUF_PARTS.get(part, part)}{dot}{kind}"
    while name.startswith(_PREFIXES):
        before = name
        for prefix in _PREFIXES:
            if name.startswith(prefix) and len(name) > len(prefix):
                name = name[len(prefix) :]
        if name == before:
            break
    return name
