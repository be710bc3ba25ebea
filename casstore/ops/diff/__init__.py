"""What differs between two models, tensor by tensor and file by file, whatever the formats of their files.

Equal tensors are recognised by the chunks that hold them, without reading any. Of the others, which are read part by part, it
is said by how much they differ, and how one follows from the other if it does: cast, transposed, or quantised.
"""

from __future__ import annotations

from casstore.ops.diff.comparison import compare_models, outline
from casstore.ops.diff.result import FileChange, FileDiff, ModelDiff, TensorChange, TensorDiff, TensorSide

__all__ = [
    "FileChange",
    "FileDiff",
    "ModelDiff",
    "TensorChange",
    "TensorDiff",
    "TensorSide",
    "compare_models",
    "outline",
]
