"""What a run's learner versions have to be after any pushes: a plain list, written without a look at the store."""

from __future__ import annotations


class VersionsModel:
    """The versions of one run that are kept, the newest last: number, step and content of each."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self.kept: list[tuple[int, int, int]] = []

    @property
    def newest(self) -> int:
        """The newest version; 0 before the first."""
        return self.kept[-1][0] if self.kept else 0

    @property
    def content(self) -> int:
        """What the newest version holds."""
        return self.kept[-1][2]

    def push(self, content: int, step: int, rewind: bool = False, base: int | None = None) -> int | str:
        """The version that a push gets, or the status code that it ends with; `base`: the newest when it began."""
        same = [version for version, at, held in reversed(self.kept) if (held, at) == (content, step)]
        if rewind or (self.kept and step > self.kept[-1][1]):
            same = [version for version in same if version == self.newest]
        if same:
            return same[0]
        if base is not None and base != self.newest:
            return "ABORTED"
        if self.kept and step < self.kept[-1][1] and not rewind:
            return "FAILED_PRECONDITION"
        self.kept = [*self.kept, (self.newest + 1, step, content)][-self._keep :]
        return self.newest
