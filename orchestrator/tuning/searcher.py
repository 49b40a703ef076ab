"""The Searcher that Tune asks: unfinished trials first, then suggestions that no record answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from orchestrator.runtime.folders import SweepFolder, TrialStart
from orchestrator.spec.experiment import HEAD, Experiment
from orchestrator.spec.record import Record
from orchestrator.spec.search_space import Block, Choice
from orchestrator.tuning.clock import SweepClock
from orchestrator.tuning.suggestions import METRIC, MOST_REPEATS, Outcome, Suggester, Suggestion


class SweepSearcher(Searcher):
    """Turns suggestions into trials; each is written to its folder before it starts."""

    def __init__(
        self,
        suggester: Suggester,
        make: Callable[[Block, Mapping[str, Any]], Experiment],
        blocks: Sequence[Block],
        folder: SweepFolder,
        *,
        clock: SweepClock,
        in_time: Callable[[Experiment], bool] = lambda _: True,
        known: Mapping[str, float],
        unfinished: Sequence[TrialStart],
        audits: Sequence[TrialStart] = (),
        room: float,
        mode: str,
    ) -> None:
        """Prepare.

        Args:
            suggester: Who suggests.
            make: Makes the experiment at a point of a block.
            blocks: Of the search.
            folder: Where trials are written.
            clock: Tells when the minutes are over.
            in_time: Whether a trial can still tell anything before they are.
            known: Objective of every trial that has ended, by id.
            unfinished: Trials that an earlier run began and did not end.
            audits: Trials to run once every block has had its first.
            room: How many more trials may be started.
            mode: `max` or `min`.
        """
        super().__init__(metric=METRIC, mode=mode)
        self._suggester = suggester
        self._make = make
        self._blocks = blocks
        self._folder = folder
        self._clock = clock
        self._in_time = in_time
        self._passed_over: Counter[int] = Counter()  # by block: suggested too late
        self._known = dict(known)
        self._unseen = set(known)  # of an earlier run, and not suggested again yet
        self._unfinished = list(unfinished)
        self._audits = [start for start in audits if start.experiment.id not in self._known]
        self._n_asked = 0
        self._room = room
        self._asks: dict[str, tuple[str | None, str]] = {}  # Tune's id → (ask, ours)
        self.reused = 0
        self.exhausted = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        """The next trial's config, or FINISHED."""
        if self._clock.over() or self._room <= 0:
            return Searcher.FINISHED
        if self._unfinished:
            start = self._unfinished.pop(0)
            again = start.model_copy(update={"attempt": start.attempt + 1})
            return self._started(trial_id, None, again)
        self._audits = [start for start in self._audits if self._in_time(start.experiment)]
        if self._audits and (self._n_asked >= len(self._blocks) or self._room <= len(self._audits)):
            return self._started(trial_id, None, self._audits.pop(0))
        self._n_asked += 1
        repeats: Counter[int] = Counter()
        while (suggestion := self._suggester.ask()) is not None:
            block = self._blocks[suggestion.block]
            experiment = self._make(block, suggestion.values)
            running = {ours for _, ours in self._asks.values()}
            if experiment.id in self._known or experiment.id in running:
                self._suggester.tell(suggestion.ask, self._known.get(experiment.id))
                # A searcher that begins anew draws all known points again, as new as they were.
                seen = experiment.id not in self._unseen
                repeats[suggestion.block] = repeats[suggestion.block] + 1 if seen else 0
                self._unseen.discard(experiment.id)
                self._suggester.repeated(suggestion.block, repeats[suggestion.block])
                self.reused += 1
                continue
            if not self._in_time(experiment):
                self._pass_over(suggestion)
                continue
            start = TrialStart(
                experiment=experiment,
                block=block.digest,
                searched={name: suggestion.values[name] for name in block.searched},
                default=suggestion.default,
                attempt=1,
            )
            return self._started(trial_id, suggestion.ask, start)
        if self._audits:
            return self._started(trial_id, None, self._audits.pop(0))
        self.exhausted = not self._passed_over
        return Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learn what became of a trial."""
        ask, ours = self._asks.pop(trial_id)
        value = result.get(METRIC) if result and not error else None
        if value is not None:
            self._known[ours] = float(value)
        if ask is not None:
            self._suggester.tell(ask, value)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles it to scratch, which is never read back."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the records are the state."""

    def _pass_over(self, suggestion: Suggestion) -> None:
        """Leave out what comes too late; a block of which nothing else comes is left out whole."""
        self._suggester.tell(suggestion.ask, None)
        self._passed_over[suggestion.block] += 1
        if self._passed_over[suggestion.block] >= MOST_REPEATS:
            self._suggester.close(suggestion.block)

    def _started(self, trial_id: str, ask: str | None, start: TrialStart) -> dict[str, Any]:
        self._room -= 1
        self._asks[trial_id] = (ask, start.experiment.id)
        self._folder.trial(start.experiment.id).write_start(start)
        return {
            "trial": start.experiment.id,
            "block": block_number(self._blocks, start),
            "handed_over": HEAD in start.experiment.parents,
            "whole": start.default and any(block.pretraining for block in self._blocks),
        }


def block_number(blocks: Sequence[Block], start: TrialStart) -> int:
    """Where the block that a trial belongs to stands in the spec as it is now."""
    return [block.digest for block in blocks].index(start.block)


def is_member(blocks: Sequence[Block], outcome: Outcome) -> bool:
    """Whether an outcome is a point of the blocks as they are now: no audit of a dropped one."""
    searched = blocks[outcome.block].searched
    return all(
        outcome.searched.get(name) in dim.values
        for name, dim in searched.items()
        if isinstance(dim, Choice)
    )


def outcome_of(blocks: Sequence[Block], start: TrialStart, record: Record) -> Outcome:
    """An ended trial as the suggester learns it; one without a result learns the worst value."""
    ended_well = record.objective is not None and record.status in ("finished", "stopped")
    value = record.objective if ended_well else record.experiment.objective.worst
    assert value is not None
    return Outcome(
        block=block_number(blocks, start),
        searched=start.searched,
        default=start.default,
        value=float(value),
    )
