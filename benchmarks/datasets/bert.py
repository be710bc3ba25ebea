"""The forward pass of a BERT encoder in torch, with the tensor names of the published files.

Imported only where a corpus is built: torch is in the bench extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_DROPOUT = 0.1


class Embeddings(nn.Module):
    """Words, positions and the (single) segment, summed."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = sizes["hidden_size"]
        self.word_embeddings = nn.Embedding(sizes["vocab_size"], hidden)
        self.position_embeddings = nn.Embedding(sizes["max_position_embeddings"], hidden)
        self.token_type_embeddings = nn.Embedding(sizes["type_vocab_size"], hidden)
        self.LayerNorm = nn.LayerNorm(hidden, sizes["layer_norm_eps"])
        self.dropout = nn.Dropout(_DROPOUT)
        positions = torch.arange(sizes["max_position_embeddings"]).unsqueeze(0)
        self.register_buffer("position_ids", positions)

    def forward(self, ids: Tensor) -> Tensor:
        """Return vectors for token ids."""
        places = self.position_embeddings(self.position_ids[:, : ids.shape[1]])
        summed = self.word_embeddings(ids) + places + self.token_type_embeddings(torch.zeros_like(ids))
        return self.dropout(self.LayerNorm(summed))


class Projection(nn.Module):
    """A linear map back to the hidden size, added to what came before and normalised."""

    def __init__(self, width: int, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        self.dense = nn.Linear(width, sizes["hidden_size"])
        self.LayerNorm = nn.LayerNorm(sizes["hidden_size"], sizes["layer_norm_eps"])
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, values: Tensor, before: Tensor) -> Tensor:
        """Return the normalised sum."""
        return self.LayerNorm(self.dropout(self.dense(values)) + before)


class Layer(nn.Module):
    """Attention, then two linear maps with GELU between."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, wide = sizes["hidden_size"], sizes["intermediate_size"]
        self.heads = sizes["num_attention_heads"]
        parts = {name: nn.Linear(hidden, hidden) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(parts), "output": Projection(hidden, sizes)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(hidden, wide)})
        self.output = Projection(wide, sizes)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return the layer's output; `mask` is added to the attention scores."""
        batch, length, hidden = values.shape
        query, key, value = (
            self.attention["self"][name](values).view(batch, length, self.heads, -1).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) * (hidden // self.heads) ** -0.5 + mask
        chances = functional.dropout(scores.softmax(-1), _DROPOUT, self.training)
        attended = self.attention["output"](
            (chances @ value).transpose(1, 2).reshape(batch, length, hidden), values
        )
        return self.output(functional.gelu(self.intermediate["dense"](attended)), attended)


class Bert(nn.Module):
    """The whole encoder. `config` is the model's config.json."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(config["hidden_size"], config["hidden_size"])})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return one vector per token, and the pooled first one."""
        # The smallest fp16 number, so that a copy in fp16 masks as well.
        mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -65504.0
        values = self.embeddings(input_ids)
        for layer in self.encoder["layer"]:
            values = layer(values, mask)
        return values, self.pooler["dense"](values[:, 0]).tanh()


def mean_pooled(values: Tensor, mask: Tensor) -> Tensor:
    """Return the normalised mean of the token vectors that are not padding: the sentence embedding."""
    weights = mask.unsqueeze(-1).to(values.dtype)
    return functional.normalize((values * weights).sum(1) / weights.sum(1), dim=-1)
