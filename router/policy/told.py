"""What a record tells of the paths at the moment of its decision; a replay believes it."""

from __future__ import annotations

from collections.abc import Mapping

from router.policy.eligibility import No


class Told:
    """Verdicts of the candidates that were asked, and the drawn arm. One per replay."""

    def __init__(
        self,
        verdicts: Mapping[tuple[str, str], str | None],
        until: float | None,
        arm: int,
        stays: bool,
    ) -> None:
        """``verdicts``: (pool, source) -> why it could not, or None where it could, in the order they
        were asked. ``until``: when a held job was to be looked at again. ``stays``: it waited for the
        source it must stay with."""
        self.stays = stays
        self._verdicts = verdicts
        self._until = until
        self._places = {key: place for place, key in enumerate(verdicts)}
        self.arm = arm
        self.arms = 1  # of the choice that was made, known after the replay

    def knows(self, pool: str, source: str) -> bool:
        """Whether the record speaks of this candidate."""
        return (pool, source) in self._verdicts

    def refusal(self, pool: str, source: str) -> No | None:
        """Why it could not take the job."""
        why = self._verdicts[pool, source]
        return None if why is None else No(why, self._until)

    def place(self, pool: str, source: str) -> int:
        """Its place in the order of asking; the others come behind."""
        return self._places.get((pool, source), len(self._places))
