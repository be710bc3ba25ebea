"""Which rule of a family made one tensor from others, tried on samples, and how much of it a delta would store.

All functions are pure. A sample is the bytes of elements at some places of a tensor, whole elements, and those at the same
places of each base; 256 places tell which rule it is, some thousands also the share to within a few hundredths.
"""

from __future__ import annotations

from casstore.codecs.delta.fit.casts import fit_cast, fit_same
from casstore.codecs.delta.fit.estimate import Fit, best_of, estimate, residual_for
from casstore.codecs.delta.fit.lora import LoraFit, fit_lora
from casstore.codecs.delta.fit.quants import GgufFit, QuantiseFit, fit_gguf, fit_quantise
from casstore.codecs.delta.fit.sums import fit_combine, fit_mean, fit_tasks

__all__ = [
    "Fit",
    "GgufFit",
    "LoraFit",
    "QuantiseFit",
    "best_of",
    "estimate",
    "fit_cast",
    "fit_combine",
    "fit_gguf",
    "fit_lora",
    "fit_mean",
    "fit_quantise",
    "fit_same",
    "fit_tasks",
    "residual_for",
]
