"""One tensor has many names: wrappers put words before it, and llama.cpp has its own."""

from __future__ import annotations

import pytest

from casstore.store.adding.bases.tensors.names import plain_name


@pytest.mark.parametrize(
    "names",
    [
        ("encoder.layer.0.output.dense.weight", "bert.encoder.layer.0.output.dense.weight"),
        ("encoder.layer.0.output.dense.weight", "0.auto_model.encoder.layer.0.output.dense.weight"),
        ("lm_head.weight", "output.weight", "module.lm_head.weight"),
        ("model.embed_tokens.weight", "token_embd.weight", "_orig_mod.model.embed_tokens.weight"),
        ("model.layers.3.self_attn.q_proj.weight", "blk.3.attn_q.weight"),
        ("model.layers.11.mlp.down_proj.weight", "blk.11.ffn_down.weight"),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("blk.0.attn_k_norm.weight", "layers.0.attn_k_norm.weight"),
        ("shared.weight", "shared.weight#2"),
    ],
)
def test_names_of_one_tensor(names):
    assert len({plain_name(name) for name in names}) == 1


def test_names_of_different_tensors():
    names = [
        "a.weight",
        "b.weight",
        "model.",
        "model",
        "bert.a.bias",
        "blk.0.attn_q.weight",
        "blk.1.attn_q.weight",
        "",
    ]
    assert len({plain_name(name) for name in names}) == len(names)
