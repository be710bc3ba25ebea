"""Loads models with what people use, and prints what came out as JSON: `clients.py WHAT`, a process of its own.

WHAT is a JSON list of [kind, repository or folder, revision or null]. It knows nothing of casstore but HF_ENDPOINT, if that is set.
"""

from __future__ import annotations

import json
import sys
import warnings

import diffusers
import sentence_transformers
import torch
import transformers

TEXTS = ["A cat sits on the mat.", "Stocks fell sharply on Friday."]


def load_transformers(place, revision):
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, revision=revision)
    model = transformers.AutoModel.from_pretrained(place, revision=revision)
    with torch.no_grad():
        found = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).last_hidden_state
    return {
        "sum": found.double().sum().item(),
        "parameters": sum(item.numel() for item in model.parameters()),
    }


def load_sentence_transformers(place, revision):
    found = sentence_transformers.SentenceTransformer(place, revision=revision).encode(TEXTS)
    return {"shape": list(found.shape), "values": found[:, :8].astype(float).tolist()}


def load_diffusers(place, revision):
    loaded = diffusers.DDPMPipeline.from_pretrained(place, revision=revision)
    with torch.no_grad():
        found = loaded.unet(torch.zeros(1, 3, 16, 16), 5).sample
    return {"sum": found.double().sum().item(), "scheduler": type(loaded.scheduler).__name__}


def write_diffusers(place, _):
    """Write a small pipeline of random weights, as diffusers saves one."""
    torch.manual_seed(3)
    unet = diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(place)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = [globals()[kind](place, revision) for kind, place, revision in json.loads(sys.argv[1])]
    print(json.dumps(found))  # noqa: T201 - the answer
