"""Where a search looks for what predicts the tensors of a file, and how long; `judge.py` compares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.store.adding.bases.planning.base_sketches import Made
from casstore.store.adding.bases.planning.judge import Found, Judge, better
from casstore.store.adding.bases.planning.peers import PeersOfFiles
from casstore.store.adding.bases.planning.small_tensors import SmallTensors
from casstore.store.adding.bases.rules.block_types import SOURCES, made_of, same_type
from casstore.store.adding.bases.rules.relation import Relation
from casstore.store.adding.bases.rules.rotary import rotated
from casstore.store.adding.bases.tensors.names import is_rotated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from casstore.machine.sketches import Sketch
    from casstore.store.adding.bases.files.base_files import BaseFiles
    from casstore.store.adding.bases.planning.base_sketches import BaseSketches
    from casstore.store.adding.bases.policy import DeltaPolicy
    from casstore.store.adding.bases.rules.block_target import BlockTarget
    from casstore.store.adding.bases.rules.target import TargetTensor
    from casstore.store.adding.bases.tensors.base_tensors import BaseFile, BaseTensor
    from casstore.tensors import TensorSpan

FIRST_LARGE = 4
"""Large tensors of a file that are compared before any other one."""

_LARGE = 0.02
"""Of what is left without a base: where more is left with one, the catalogue may know a better one."""

_BLOCKS_PLAIN = 0.9
_SURELY = 0.3
"""What is left of blocks without a base, and what must be left with one to keep it without trying the other."""

_PATIENCE = 16
_GLANCE = 8
"""After so many tensors for which nothing better was found, one in _GLANCE is looked up."""

_TURNED = 2
"""Queries and keys in a row for which other orders of rows are looked up."""

_STRANGERS = 8
"""Large tensors in a row that nothing predicts, from which names alone are no reason to try small ones."""

_NEAREST = 4
"""Files that are looked at for one tensor, of those that the catalogue finds."""

_MAX_FILES = 32
"""Files that are looked at for each that is added."""


class _Budget:
    """How often something is tried that has not helped yet."""

    def __init__(self, patience: int = _PATIENCE) -> None:
        self._patience = patience
        self._fruitless = 0

    def allows(self) -> bool:
        """Say whether to try once more, which counts as fruitless until `helped` is called."""
        self._fruitless += 1
        return self._fruitless <= self._patience or self._fruitless % _GLANCE == 0

    @property
    def is_patient(self) -> bool:
        """Whether it allows the next one, too."""
        return self._fruitless < self._patience

    def helped(self) -> None:
        """Begin again."""
        self._fruitless = 0


class BaseSearch:
    """Finds what predicts the tensors of one file. For one thread."""

    def __init__(
        self,
        *,
        files: Sequence[BaseFile],
        finder: BaseFiles,
        sketches: BaseSketches,
        policy: DeltaPolicy,
        adapters: Callable[[], Sequence[BaseFile]],
    ) -> None:
        """`files` are looked at first; `finder` opens others. `adapters` finds those that may have been merged into a base."""
        self._adapters = adapters
        self._files = list(files)
        self._finder = finder
        self._sketches = sketches
        self._policy = policy
        self._naming: dict[bytes, _Budget] = {}
        self._comparing: dict[bytes, _Budget] = {}
        self._looking = _Budget()
        self._turning = _Budget(_TURNED)
        self._summing = _Budget()
        self._merging = _Budget()
        self._peers = PeersOfFiles(sketches, policy)
        self._fitting: set[bytes] = set()
        self._made: list[Made] = []
        self._strangers = 0
        self._small = SmallTensors(policy, read=sketches.read, large=FIRST_LARGE)

    def relate(
        self, number: int, target: TargetTensor, *, ahead: Callable[[], Iterable[TargetTensor]]
    ) -> Relation | None:
        """Return what predicts a tensor, number `number` of its file's spans; None if nothing does well enough.

        `ahead` are tensors of which the next ones will be.
        """
        judge = Judge(target, self._sketches, self._policy)
        for file in self._files:
            self._compare(judge, file)
            if judge.is_settled:
                break
        if judge.may_be_better(_LARGE) and self._looking.allows():
            before = judge.best
            turned = is_rotated(target.span.name) and self._turning.allows()
            for file in self._unknown(
                self._sketches.layouts_like(
                    target, turned=turned, ahead=ahead if self._looking.is_patient else tuple
                )
            ):
                self._files.append(file)
                self._compare(judge, file)
            if judge.best is not before:
                self._looking.helped()
                self._turning.helped()
        if judge.may_be_better(0) and len(judge.near) > 1 and self._summing.allows() and judge.sum_up():
            self._summing.helped()
        if judge.may_be_better(0) and judge.near and self._merging.allows() and judge.merge(self._adapters()):
            self._merging.helped()
        best = judge.best
        self._small.note(target.span.dtype, None if best is None else best.operation)
        self._strangers = self._strangers + 1 if best is None else 0
        # What follows from another tensor is found by that one; its own sketch is for those who name its model.
        self._made.append(Made(number, target.elements, target.sketch, best is None or best.share > 0))
        return None if best is None else Relation(target.span, best.operation, judge.plain_share)

    def of_blocks(self, number: int, target: BlockTarget) -> Relation | None:
        """Return what makes tensor number `number`, one of blocks, out of floats, or what it has in common with other blocks."""
        best: Found | None = None
        for file in self._files:
            best = self._better_blocks(target, file, best)
        if target.is_large and (best is None or best.share > _SURELY) and self._looking.allows():
            before = best
            for file in self._unknown(self._sketches.layouts_like_blocks(target)):
                self._files.append(file)
                best = self._better_blocks(target, file, best)
            if best is not before:
                self._looking.helped()
        if target.is_large:
            self._made.append(Made(number, target.elements, target.sketch))
        if best is None:
            return None
        self._strangers = 0
        return Relation(target.span, best.operation, _BLOCKS_PLAIN if best.share < _SURELY else None)

    def _better_blocks(self, target: BlockTarget, file: BaseFile, best: Found | None) -> Found | None:
        """Return what makes blocks of a tensor of this file: of the one of their name, or else of one that is like them."""
        budget = self._naming.setdefault(file.layout_id, _Budget(_STRANGERS))
        if not budget.allows():
            return best
        named = file.find(target.span.name)
        tensors = [] if named is None else [named]
        if named is not None and file.layout_id in self._fitting:
            tensors = [self._in_order(target, named)]
        if named is None and target.is_large:
            tensors = [
                tensor
                for tensor in file.by_elements.get(target.elements, ())
                if tensor.span.dtype in SOURCES
                and (words := self._sketches.of(tensor)) is not None
                and target.is_like(words.tobytes(), tensor.span.dtype)
            ]
        for tensor in tensors:
            if not self._policy.allows(tensor.rank):
                continue
            for rule in (made_of, same_type):
                found = rule(target.span, tensor, read=target.read, read_base=self._sketches.read)
                if found is not None and found[0] < self._policy.keep:
                    share, operation = found
                    best = better(best, share, operation, self._policy)
                    budget.helped()
                    self._fitting.add(file.layout_id)
        return best

    def _in_order(self, target: BlockTarget, tensor: BaseTensor) -> BaseTensor:
        """Return a tensor of floats with its rows in the order of the target, as far as a few of its elements say."""
        if tensor.span.dtype not in SOURCES or not target.is_large:
            return tensor
        for view in (tensor, *rotated(target.span, tensor)):
            words = self._sketches.of(view)
            if words is not None and target.is_like(words.tobytes(), view.span.dtype):
                return view
        return tensor

    def by_name(self, span: TensorSpan, data: memoryview | None) -> Relation | None:
        """Return what predicts a tensor that is too small for a sketch, by tensors of its name; `data` are its bytes, or None."""
        return None if self._strangers >= _STRANGERS else self._small.find(span, data, self._files)

    def take_sketches(self, layout: bytes) -> list[Sketch]:
        """Return the sketches of the file's tensors, whose layout this is, and those of bases that were read for them."""
        made, self._made = self._made, []
        return self._sketches.take(layout, made)

    def _compare(self, judge: Judge, file: BaseFile) -> None:
        """Compare with the tensor of the same name, or else with all that have as many elements, while that helps."""
        named = judge.named_in(file)
        if named is not None:
            naming = self._naming.setdefault(file.layout_id, _Budget(_STRANGERS))
            is_known = named.number in file.sketches
            if naming.allows() and judge.compare_in_any_order(named):
                naming.helped()
                return
            if file.may_read and not is_known:
                return  # All sketches of another model would be read.
        comparing = self._comparing.setdefault(file.layout_id, _Budget())
        if comparing.allows() and judge.compare_others(self._peers.of(file, judge.elements)):
            comparing.helped()

    def _unknown(self, layouts: Iterable[bytes]) -> Iterator[BaseFile]:
        """Yield the files of layouts that are not looked at yet, the first few."""
        known = {file.layout_id for file in self._files}
        new = [layout for layout in layouts if layout not in known]
        for layout in new[: min(_NEAREST, _MAX_FILES - len(known))]:
            file = self._finder.of_layout(layout)
            if file is not None:
                yield file
