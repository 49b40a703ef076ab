"""Who says what to try next: an Optuna study, random draws, or a grid; one interface."""

from __future__ import annotations

import itertools
import json
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from orchestrator.spec.parts import ObjectiveSpec
from orchestrator.spec.search_space import Block, Choice, Range
from orchestrator.spec.sweep import SweepSpec

METRIC = "objective"
BLOCK = "block"
MOST_REPEATS = 20


@dataclass(frozen=True)
class Suggestion:
    """One point of the search: a block, and a value for each of its dimensions."""

    ask: str
    block: int
    values: dict[str, Any]
    default: bool


@dataclass(frozen=True)
class Outcome:
    """What became of an earlier point, as its record says."""

    block: int
    searched: dict[str, Any]
    default: bool
    value: float


class Suggester(Protocol):
    """Suggests points and learns their values."""

    def ask(self, block: int | None = None) -> Suggestion | None:
        """The next point, or None when nothing is left to suggest.

        Args:
            block: Of this block; of the one whose turn it is when not given.
        """

    def close(self, block: int) -> None:
        """Suggest nothing more of a block."""

    def tell(self, ask: str, value: float | None) -> None:
        """The objective of a suggestion; None when it has none."""

    def repeated(self, block: int, times: int) -> None:
        """A block's last `times` suggestions were answered from records or run already."""


def build_suggester(spec: SweepSpec, earlier: Sequence[Outcome]) -> Suggester:
    """The suggester that the spec names, which knows what earlier runs of the sweep found."""
    match spec.tuner.searcher:
        case "optuna":
            return StudySuggester(spec.search, spec.objective, seed=spec.seed, earlier=earlier)
        case "random":
            return DrawnSuggester(_random_points(spec.search, spec.seed), n_blocks=len(spec.search))
        case "grid":
            return DrawnSuggester(_grid_points(spec.search), n_blocks=len(spec.search))
        case _:
            assert_never(spec.tuner.searcher)


def block_size(block: Block) -> float:
    """How many different points a block has; infinite when a dimension is continuous."""
    size = 1.0
    for dim in block.searched.values():
        if isinstance(dim, Choice):
            size *= len(dim.values)
        else:
            size *= dim.high - dim.low + 1 if dim.kind == "int" else math.inf
    return size


class StudySuggester:
    """TPE inside each block, blocks in turn, each block's vetted default first.

    The study lives in memory and is built from the records: they come first, then the missing
    defaults, so that a resumed sweep goes on where it stood. Ray's OptunaSearch asks it.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        objective: ObjectiveSpec,
        *,
        seed: int,
        earlier: Sequence[Outcome],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._blocks = blocks
        self._visits = [0] * len(blocks)
        self._exhausted: set[int] = set()
        storage = optuna.storages.InMemoryStorage()
        # A sampler with the same seed would repeat its draws after a replay.
        sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + len(earlier)) % 2**32)
        self._study = optuna.create_study(
            storage=storage,
            study_name="sweep",
            direction="maximize" if objective.mode == "max" else "minimize",
            sampler=sampler,
        )
        for outcome in earlier:
            self._replay(outcome)
        defaults_done = {o.block for o in earlier if o.default}
        self._defaults = [n for n in range(len(blocks)) if n not in defaults_done]
        self._search = OptunaSearch(
            self._define,
            metric=METRIC,
            mode=objective.mode,
            storage=storage,
            study_name="sweep",
            sampler=sampler,
        )
        self._asked = itertools.count()

    def ask(self, block: int | None = None) -> Suggestion | None:
        """The default of a block that lacks it, else a point of the block visited least."""
        lacking = [n for n in self._defaults if block in (None, n)]
        default = bool(lacking)
        if lacking:
            block = lacking[0]
            self._defaults.remove(block)
            vetted = self._blocks[block].vetted()
            fixed = {
                _name(block, name): _encoded(dim, vetted[name])
                for name, dim in self._blocks[block].searched.items()
            }
        else:
            open_blocks = [
                n
                for n in range(len(self._blocks))
                if n not in self._exhausted and block in (None, n)
            ]
            if not open_blocks:
                return None
            block = min(open_blocks, key=lambda n: (self._visits[n], n))
            fixed = {}
        self._visits[block] += 1
        self._study.enqueue_trial({BLOCK: str(block), **fixed})
        ask = f"ask-{next(self._asked)}"
        with warnings.catch_warnings():
            # Ray takes a draw of a second for a training in disguise; busy machines need it.
            warnings.filterwarnings("ignore", message="Define-by-run function")
            drawn = self._search.suggest(ask)
        assert drawn is not None
        assert int(drawn[BLOCK]) == block, "the study answered for another block"
        searched = self._blocks[block].searched
        values = dict(self._blocks[block].vetted())
        for name, dim in searched.items():
            values[name] = _decoded(dim, drawn[_name(block, name)])
        if not searched:
            self._exhausted.add(block)
        return Suggestion(ask=ask, block=block, values=values, default=default)

    def tell(self, ask: str, value: float | None) -> None:
        """Teach the study; a point without a value is dropped from it."""
        self._search.on_trial_complete(
            ask, result=None if value is None else {METRIC: value}, error=value is None
        )

    def close(self, block: int) -> None:
        """Leave the block out, its default too."""
        self._exhausted.add(block)
        self._defaults = [n for n in self._defaults if n != block]

    def repeated(self, block: int, times: int) -> None:
        """Ask again, and leave the block out once it has repeated itself too often."""
        if times >= MOST_REPEATS:
            self._exhausted.add(block)

    def _define(self, trial: optuna.Trial) -> None:
        """The define-by-run space: the block first, then the block's own dimensions."""
        names = [str(n) for n in range(len(self._blocks))]
        block = int(trial.suggest_categorical(BLOCK, names))
        for name, dim in self._blocks[block].searched.items():
            _suggest(trial, _name(block, name), dim)

    def _replay(self, outcome: Outcome) -> None:
        block = self._blocks[outcome.block]
        self._visits[outcome.block] += 1
        params: dict[str, Any] = {BLOCK: str(outcome.block)}
        distributions: dict[str, BaseDistribution] = {
            BLOCK: CategoricalDistribution([str(n) for n in range(len(self._blocks))])
        }
        for name, dim in block.searched.items():
            key = _name(outcome.block, name)
            params[key] = _encoded(dim, outcome.searched[name])
            distributions[key] = _distribution(dim)
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE,
                params=params,
                distributions=distributions,
                value=outcome.value,
            )
        )


class DrawnSuggester:
    """Points drawn up front; nothing is learned."""

    def __init__(
        self, points: Iterator[tuple[int, dict[str, Any], bool]], *, n_blocks: int
    ) -> None:
        self._points = points
        self._open = set(range(n_blocks))
        self._asked = itertools.count()

    def ask(self, block: int | None = None) -> Suggestion | None:
        """The next point of an open block; points of others are passed over."""
        wanted = self._open if block is None else self._open & {block}
        if not wanted:
            return None
        for number, values, default in self._points:
            if number in wanted:
                ask = f"ask-{next(self._asked)}"
                return Suggestion(ask=ask, block=number, values=values, default=default)
        return None

    def close(self, block: int) -> None:
        """Pass the block's points over."""
        self._open.discard(block)

    def tell(self, ask: str, value: float | None) -> None:
        """Nothing to learn."""

    def repeated(self, block: int, times: int) -> None:
        """The points end by themselves."""


def _random_points(
    blocks: Sequence[Block], seed: int
) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """Point i is a function of (seed, i) alone; blocks in turn, each default first.

    Ends after a round over the blocks in which all of them are finite and were drawn far more
    often than they have points.
    """
    sizes = [block_size(block) for block in blocks]
    for i in itertools.count():
        number = i % len(blocks)
        block, turn = blocks[number], i // len(blocks)
        if number == 0 and all(turn > MOST_REPEATS * size for size in sizes):
            return
        values = block.vetted()
        if turn > 0:
            rng = random.Random(f"{seed}/{i}")
            values |= {name: _drawn(dim, rng) for name, dim in sorted(block.searched.items())}
        yield number, values, turn == 0


def _grid_points(blocks: Sequence[Block]) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """All combinations of the listed values, blocks in turn."""
    grids = [_grid(number, block) for number, block in enumerate(blocks)]
    for points in itertools.zip_longest(*grids):
        yield from (point for point in points if point is not None)


def _grid(number: int, block: Block) -> Iterator[tuple[int, dict[str, Any], bool]]:
    vetted = block.vetted()
    names = list(block.searched)
    lists = [_members(dim) for dim in block.searched.values()]
    for combination in itertools.product(*lists):
        values = {**vetted, **dict(zip(names, combination, strict=True))}
        yield number, values, values == vetted


def _members(dim: Choice | Range) -> list[Any]:
    if isinstance(dim, Choice):
        return list(dim.values)
    assert dim.kind == "int", "the spec refuses a grid over a continuous range"
    return list(range(int(dim.low), int(dim.high) + 1))


def _drawn(dim: Choice | Range, rng: random.Random) -> Any:
    if isinstance(dim, Choice):
        return rng.choice(dim.values)
    match dim.kind:
        case "int":
            return rng.randint(int(dim.low), int(dim.high))
        case "log":
            return math.exp(rng.uniform(math.log(dim.low), math.log(dim.high)))
        case "uniform":
            return rng.uniform(dim.low, dim.high)
        case _:
            assert_never(dim.kind)


def _name(block: int, parameter: str) -> str:
    """A dimension's name in the study: its own in every block, so that TPE learns by block."""
    return f"{block}.{parameter}"


def _encoded(dim: Choice | Range, value: Any) -> Any:
    """A value as the study knows it: choices are their JSON text, so lists and dicts are safe."""
    return json.dumps(value, sort_keys=True) if isinstance(dim, Choice) else value


def _decoded(dim: Choice | Range, value: Any) -> Any:
    return json.loads(value) if isinstance(dim, Choice) else value


def _distribution(dim: Choice | Range) -> BaseDistribution:
    if isinstance(dim, Choice):
        return CategoricalDistribution([_encoded(dim, v) for v in dim.values])
    if dim.kind == "int":
        return IntDistribution(int(dim.low), int(dim.high))
    return FloatDistribution(dim.low, dim.high, log=dim.kind == "log")


def _suggest(trial: optuna.Trial, name: str, dim: Choice | Range) -> None:
    if isinstance(dim, Choice):
        trial.suggest_categorical(name, [_encoded(dim, v) for v in dim.values])
    elif dim.kind == "int":
        trial.suggest_int(name, int(dim.low), int(dim.high))
    else:
        trial.suggest_float(name, dim.low, dim.high, log=dim.kind == "log")
