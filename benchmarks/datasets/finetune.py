"""A real fine-tune of MiniLM in torch: names of Python functions have to find their docstrings, and no others.

Runs in a process of its own: it fixes torch's seed, threads and algorithms. On one machine the checkpoints are the
same every time; another processor may round differently. AdamW decays weights as torch does by default, so even
the embeddings of words that never occur move, by a few units in the last place: no tensor stays as it was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from benchmarks.datasets import docstrings, weights
from benchmarks.datasets.bert import Bert, mean_pooled
from benchmarks.datasets.minilm import LAST_LAYER, WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from benchmarks.datasets.weights import Tensors

BATCH = 16
LEARNING_RATE = 2e-5
WARM_UP = 0.1
"""The share of all steps in which the learning rate rises; it falls to zero in the others."""
WEIGHT_DECAY = 0.01
_LONGEST_NAME, _LONGEST_TEXT = 12, 32
_SHARPNESS = 20.0
_POOLER_SHARE = 0.1
_SEED = 25


def train(
    source: str, checkpoints: Mapping[int, str], *, last_layer_only: bool = False, seed: int = _SEED
) -> list[float]:
    """Fine-tune the model in the folder `source`; write the weights after each step of `checkpoints` to its path.

    `seed` decides which texts it sees in which order. Returns the loss of every step.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(mode=True)
    base = weights.read_safetensors(Path(source) / WEIGHTS)
    model = load(Path(source), base)
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(LAST_LAYER) or not last_layer_only)
    steps = max(checkpoints)
    optimizer = torch.optim.AdamW(_parameter_groups(model), lr=LEARNING_RATE)
    warm_up = max(1, round(steps * WARM_UP))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))
    )
    losses = []
    for step, (names, texts) in enumerate(_batches(Path(source) / "vocab.txt", steps, seed), 1):
        loss = _loss(model, names, texts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step in checkpoints:
            weights.write_safetensors(Path(checkpoints[step]), _weights(model, base))
    return losses


def load(source: Path, tensors: Tensors) -> Bert:
    """Return the model of a folder with a config.json, holding these weights."""
    model = Bert(json.loads((source / "config.json").read_bytes()))
    model.load_state_dict({name: torch.from_numpy(item.array.copy()) for name, item in tensors.items()})
    return model


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids as one rectangle, and its mask: 1 where a token is, 0 where there is padding."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return ids, mask


def _parameter_groups(model: Bert) -> list[dict[str, object]]:
    """Return what decays and what does not: norms and biases, as usual for BERT."""
    plain = [item for item in model.parameters() if item.requires_grad and item.dim() < 2]
    decaying = [item for item in model.parameters() if item.requires_grad and item.dim() >= 2]
    return [
        {"params": decaying, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]


def _batches(vocab: Path, steps: int, seed: int) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Return the token ids of names and of their docstrings, for every step."""
    vocabulary = docstrings.read_vocabulary(vocab)
    pairs = docstrings.pairs()
    order = np.random.default_rng(seed).permutation(len(pairs))
    batches = []
    for step in range(steps):
        chosen = [pairs[order[(step * BATCH + number) % len(pairs)]] for number in range(BATCH)]
        names = [docstrings.encode(name, vocabulary, longest=_LONGEST_NAME) for name, _ in chosen]
        texts = [docstrings.encode(text, vocabulary, longest=_LONGEST_TEXT) for _, text in chosen]
        batches.append((names, texts))
    return batches


def _loss(model: Bert, names: list[list[int]], texts: list[list[int]]) -> Tensor:
    """Return how badly names find their own texts among those of the batch, by mean and by pooled vectors."""
    embedded = []
    for rows in (names, texts):
        ids, mask = padded(rows)
        values, pooled = model(ids, mask)
        embedded.append((mean_pooled(values, mask), functional.normalize(pooled, dim=-1)))
    (name_means, name_pools), (text_means, text_pools) = embedded
    # The pooled vector has a small share: it is there so that the pooler's weights are trained like all others.
    return _contrast(name_means, text_means) + _POOLER_SHARE * _contrast(name_pools, text_pools)


def _contrast(left: Tensor, right: Tensor) -> Tensor:
    return functional.cross_entropy(left @ right.T * _SHARPNESS, torch.arange(len(left)))


def _weights(model: Bert, base: Tensors) -> Tensors:
    """Return the model's tensors in the order and with the element types of the file that it was made from."""
    state = model.state_dict()
    return {name: weights.Tensor(tensor.dtype, state[name].detach().numpy()) for name, tensor in base.items()}
