"""A record with what one judge says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.storage.records import Judgement, Record


@dataclass(frozen=True)
class Entry:
    """A record with one judge's verdicts by completion."""

    record: Record
    verdicts: Mapping[int, Judgement]

    @property
    def success(self) -> bool | None:
        """Of the first candidate. No answer is a failure, an answer without verdict is None."""
        return self._at(0) if self.record.completions else False

    @property
    def success_at_k(self) -> bool | None:
        """Of any candidate; None when none succeeded and some cannot be told."""
        results = [self._at(index) for index in range(self.record.greedy)]
        if True in results:
            return True
        return None if None in results else False

    @property
    def drawn(self) -> list[bool]:
        """Whether each drawn answer is a success; those without verdict are left out."""
        indices = range(self.record.greedy, len(self.record.completions))
        return [found for index in indices if (found := self._at(index)) is not None]

    def labelled(self, *labels: str) -> bool | None:
        """Whether the first answer has one of the labels; as `success` where there is none."""
        if not self.record.completions:
            return False
        return self.verdicts[0].label in labels if 0 in self.verdicts else None

    @property
    def garbled(self) -> bool | None:
        """Whether the first answer is garbled and neither refused nor right; None: not known."""
        if not self.record.garbled or 0 not in self.verdicts:
            return None
        return self.verdicts[0].label == "garbled"

    @property
    def cut(self) -> bool | None:
        """Whether the limit of new tokens cut the first answer; None: not known."""
        return self.record.cut[0] if self.record.cut else None

    def _at(self, index: int) -> bool | None:
        return self.verdicts[index].success if index in self.verdicts else None
