"""The banks of a sweep: its heads on stored features, drawn up front and trained together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from orchestrator.runtime.bank_run import BankTicket, conduct_bank
from orchestrator.runtime.folders import SweepFolder, TrialStart
from orchestrator.runtime.signals import Signals
from orchestrator.spec import mirror
from orchestrator.spec.record import Record
from orchestrator.spec.search_space import Block
from orchestrator.spec.sweep import WorkersSpec
from orchestrator.training.bank import bank_key, can_join, head_numbers
from orchestrator.tuning.experiments import ExperimentFactory
from orchestrator.tuning.progress import Progress
from orchestrator.tuning.sharing import SHAPING, corner_experiments, pooled_width
from orchestrator.tuning.suggestions import MOST_REPEATS, Suggester

# Weights, gradients, two moments, averages and the best epoch's copy, in fp32.
BYTES_A_NUMBER = 6 * 4
MOST_BYTES = 2**30
MOST_PADDING = 2  # times the narrowest of a bank's hidden layers
DECIDING = ("backbone", "augment", "mixup", "cutmix", "accumulate", "precision")
SHAPES = ("head", "optimizer", "batch_size")  # what heads of one bank have in common
POLL_S = 2.0


def banked_blocks(blocks: Sequence[Block], factory: ExperimentFactory) -> list[int]:
    """The blocks whose every experiment is a head that a bank can train."""
    return [
        number
        for number, block in enumerate(blocks)
        if all(can_join(e) for e in corner_experiments(block, factory, DECIDING))
    ]


def planned_banks(
    blocks: Sequence[Block], shares: Sequence[int], factory: ExperimentFactory
) -> list[dict[str, Any]]:
    """What will train together, as `plan.json` has it.

    Args:
        blocks: Of the search.
        shares: Trials that each block will get.
        factory: Makes the experiments.
    """
    banks: dict[str, dict[str, Any]] = {}
    for number in banked_blocks(blocks, factory):
        corners = corner_experiments(blocks[number], factory, (*SHAPING, *SHAPES))
        for experiment in corners:
            strategy = experiment.strategy
            bank = banks.setdefault(
                bank_key(experiment),
                {
                    "backbone": experiment.backbone.name,
                    "pooling": strategy.pooling,
                    "head": strategy.head,
                    "heads": 0.0,
                },
            )
            bank["heads"] += shares[number] / len(corners)
    return [{**bank, "heads": round(bank["heads"], 1)} for bank in banks.values()]


def draw_heads(
    blocks: Sequence[Block],
    wanted: Mapping[int, int],
    suggester: Suggester,
    factory: ExperimentFactory,
    known: Iterable[str],
) -> list[TrialStart]:
    """New experiments of some blocks, each block's default first.

    Args:
        blocks: Of the search.
        wanted: How many of which block; fewer come when a block has no more.
        suggester: Who draws them; it learns nothing meanwhile.
        factory: Makes the experiments.
        known: Trials that need not be drawn again.
    """
    unseen, taken = set(known), set(known)
    starts = []
    for number, n_wanted in wanted.items():
        block, repeats, drawn = blocks[number], 0, 0
        while drawn < n_wanted and repeats < MOST_REPEATS:
            suggestion = suggester.ask(number)
            if suggestion is None:
                break
            experiment = factory.make(block, suggestion.values)
            if experiment.id in taken:
                # A searcher that begins anew draws all known points again, as new as they were.
                repeats = 0 if experiment.id in unseen else repeats + 1
                unseen.discard(experiment.id)
                continue
            taken.add(experiment.id)
            repeats, drawn = 0, drawn + 1
            starts.append(
                TrialStart(
                    experiment=experiment,
                    block=block.digest,
                    searched={name: suggestion.values[name] for name in block.searched},
                    default=suggestion.default,
                    attempt=1,
                )
            )
    return starts


def run_banks(
    starts: Sequence[TrialStart],
    folder: SweepFolder,
    *,
    store: Path,
    workers: WorkersSpec,
    at_once: int,
    seconds: float | None,
    progress: Progress,
    on_record: Callable[[Record], None] | None = None,
) -> None:
    """Train the heads of `starts` in as few banks as they fit, over the cluster.

    A bank that fails is said to have, and its heads are left without records: they can be trained
    one by one.

    Args:
        starts: Heads to train; they are written to their folders first.
        folder: The sweep's.
        store: The feature store, seen by every node.
        workers: What a bank occupies: what one worker of a trial does.
        at_once: How many fit the cluster.
        seconds: Of wall time that are left; None for no limit.
        progress: Told how far they are.
        on_record: Told of each ended trial; None for heads that are no trials.
    """
    place = folder.head if on_record is None else folder.trial
    for start in starts:
        place(start.experiment.id).write_start(start)
    deadline = None if seconds is None else time.time() + seconds
    signals = Signals.start()
    task = conduct_bank.options(num_cpus=workers.cpus, num_gpus=workers.gpus)
    waiting = {}
    for number, members in enumerate(banks_of(starts, at_once=at_once), start=1):
        some = members[0].experiment
        name = f"bank {number}: {len(members)} heads on {some.backbone.name}"
        progress.say(f"start {name} {some.strategy.pooling} features")
        ticket = BankTicket(
            name=name,
            sweep=mirror.location_of(folder.root),
            store=mirror.location_of(store),
            trials=tuple(start.experiment.id for start in members),
            for_trials=on_record is not None,
            threads=max(1, int(workers.cpus)),
            use_gpu=workers.gpus > 0,
            deadline=deadline,
        )
        waiting[task.remote(ticket, signals)] = (name, members)
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
            for name, position in signals.news()[1].items():
                progress.say(f"  {name}: {position}")
            for ref in ready:
                name, members = waiting.pop(ref)
                _await(ref, name, progress)
                places = [place(start.experiment.id) for start in members]
                folder.look_up(places)
                found = [trial.known_record() for trial in places]
                ended = [record for record in found if record is not None]
                progress.say(f"end {name}: {sum(record.seconds for record in ended):.1f} s")
                if on_record is not None:
                    for record in ended:
                        on_record(record)
    finally:
        for ref in waiting:
            ray.cancel(ref, force=True)
        signals.close()


def banks_of(starts: Sequence[TrialStart], *, at_once: int) -> list[list[TrialStart]]:
    """The starts in banks: alike in `bank_key`, bounded in memory and in padding.

    Linear heads cost next to nothing, and share one bank; hidden layers and heads on positions cost
    arithmetic, and are spread over what runs side by side.
    """
    alike: dict[str, list[TrialStart]] = {}
    for start in starts:
        alike.setdefault(bank_key(start.experiment), []).append(start)
    return [
        bank
        for members in alike.values()
        for similar in _of_similar_width(members)
        for bank in _bounded(similar, -(-len(members) // at_once))
    ]


def _of_similar_width(members: Sequence[TrialStart]) -> list[list[TrialStart]]:
    """Heads that padding to the widest makes at most `MOST_PADDING` times as wide."""
    groups: list[list[TrialStart]] = []
    for start in sorted(members, key=_width):
        if not groups or _width(start) > MOST_PADDING * _width(groups[-1][0]):
            groups.append([])
        groups[-1].append(start)
    return groups


def _width(start: TrialStart) -> int:
    strategy = start.experiment.strategy
    return strategy.hidden if strategy.head == "mlp" else 1


def _bounded(members: Sequence[TrialStart], share: int) -> list[list[TrialStart]]:
    """Banks that fit into memory; of `share` heads at most where heads cost arithmetic."""
    some = members[-1].experiment  # the widest
    most = max(1, MOST_BYTES // (head_numbers(some, pooled_width(some)) * BYTES_A_NUMBER))
    if some.strategy.head == "mlp" or some.strategy.pooling == "none":
        most = min(most, share)
    # Heads of one seed read the same batches: they belong together.
    ordered = sorted(members, key=lambda start: start.experiment.strategy.seed)
    return [ordered[i : i + most] for i in range(0, len(ordered), most)]


def count_by_block(starts: Iterable[TrialStart], blocks: Sequence[Block]) -> Counter[int]:
    """How many trials each block has."""
    numbers = {block.digest: number for number, block in enumerate(blocks)}
    return Counter(numbers[start.block] for start in starts)


def _await(ref: ray.ObjectRef[None], name: str, progress: Progress) -> None:
    try:
        ray.get(ref)
    except ray.exceptions.RayError as err:
        cause = str(err).strip().splitlines()[-1]
        progress.say(f"{name} failed ({cause}); what it left is trained trial by trial")
