"""What fixed cuts inside tensors lose against FastCDC there, where that should hurt: no store, only chunk hashes.

Three ways to cut the same files: casstore's own (fixed cuts inside tensors), FastCDC inside tensors, and FastCDC
over whole files without any knowledge of tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

from benchmarks.harness import Measurement, Metric
from casstore import chunking
from casstore.tensors import find_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.datasets import Corpus
    from benchmarks.harness import Harness
    from casstore.tensors import TensorSpan

LEFT = Metric("share left after dedup", "of plain bytes", "lower")
CHUNKS = Metric("chunks", "", "lower")
Regions = tuple[chunking.Region, ...]


class _Bytes:
    """A whole file in memory, as the tensor parsers read it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    for name in harness.options.cuts_corpora:
        corpus = harness.corpus(name)
        for subject, plan in WAYS.items():
            chunks, left = _count(corpus, plan)
            measurements += [
                Measurement("cuts", name, subject, LEFT, (left / corpus.size,)),
                Measurement("cuts", name, subject, CHUNKS, (float(chunks),)),
            ]
    return measurements


def _fixed(spans: Sequence[TensorSpan], size: int) -> Regions:
    return chunking.plan_regions([(span.begin, span.end) for span in spans], size)


def _content_in_spans(spans: Sequence[TensorSpan], size: int) -> Regions:
    return tuple(chunking.Region(region.begin, region.end, fixed=False) for region in _fixed(spans, size))


def _content_in_files(spans: Sequence[TensorSpan], size: int) -> Regions:
    del spans
    return chunking.plan_regions([], size)


WAYS: dict[str, Callable[[Sequence[TensorSpan], int], Regions]] = {
    "fixed cuts inside tensors": _fixed,
    "FastCDC inside tensors": _content_in_spans,
    "FastCDC over whole files": _content_in_files,
}


def _count(corpus: Corpus, plan: Callable[[Sequence[TensorSpan], int], Regions]) -> tuple[int, int]:
    """Return the number of distinct chunks and their bytes."""
    distinct: dict[bytes, int] = {}
    for path in corpus.paths():
        data = path.read_bytes()
        for chunk in _chunks(data, plan(find_spans(_Bytes(data)), len(data))):
            distinct[blake3(chunk).digest()] = len(chunk)
    return len(distinct), sum(distinct.values())


def _chunks(data: bytes, regions: Regions) -> Iterator[memoryview]:
    view = memoryview(data)
    offset = 0
    for length in chunking.Chunker(regions).cut(view, offset=0, final=True).tolist():
        yield view[offset : offset + length]
        offset += length
