"""A Sweep from its spec to its leaderboard: prepare, plan, features, search, winner on test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import TuneError

from orchestrator.data.examples import INDEX, Examples
from orchestrator.errors import OrchestratorError
from orchestrator.features.room import leased, make_room
from orchestrator.features.store import FeatureKey
from orchestrator.runtime.cluster import Cluster, joined_cluster
from orchestrator.runtime.feature_filling import FeatureNeed, fill_features, is_stored
from orchestrator.runtime.folders import TrialStart
from orchestrator.runtime.signals import Signals
from orchestrator.runtime.text_embedding import TextNeed, embed_texts
from orchestrator.runtime.trial_run import TrialTicket
from orchestrator.runtime.tune_trial import TuneContext, tune_trial
from orchestrator.runtime.winner_test import ensure_tested
from orchestrator.runtime.worker_group import MAX_FAILURES, WorkerGroups
from orchestrator.spec import mirror
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.record import Record
from orchestrator.spec.search_space import Block
from orchestrator.spec.sweep import SweepSpec
from orchestrator.training.bank import can_join
from orchestrator.tuning.adaptation_plan import (
    PRETRAININGS,
    pretraining_rows,
    seconds_to_come,
    with_neighbours,
)
from orchestrator.tuning.adapting import ensure_pretrained
from orchestrator.tuning.banking import banked_blocks, count_by_block, draw_heads, run_banks
from orchestrator.tuning.clock import SweepClock
from orchestrator.tuning.deadline import Deadline
from orchestrator.tuning.experiments import ExperimentFactory
from orchestrator.tuning.handing_over import HEADS, PLAN, HandOver, planned
from orchestrator.tuning.leaderboard import SweepStatus, winner_of, write_leaderboard
from orchestrator.tuning.plan import ACTUAL, CostBook, actual_costs, make_plan
from orchestrator.tuning.preparing import PreparedSweep, prepare_sweep
from orchestrator.tuning.progress import Progress, Silent
from orchestrator.tuning.scheduler import FlaggingScheduler
from orchestrator.tuning.screening import SCREEN, Screen, screen_backbones
from orchestrator.tuning.searcher import SweepSearcher, is_member, outcome_of
from orchestrator.tuning.sharing import Shared, block_shares, corner_experiments, store_budget
from orchestrator.tuning.suggestions import Outcome, build_suggester
from orchestrator.tuning.tracking import Tracker
from orchestrator.tuning.watching import SweepWatcher

TEXTS = (
    "backbone",
    "head",
    "pooling",
    "templates",
)  # what decides whether texts are read, and which


@dataclass(frozen=True)
class SweepOutcome:
    """How one run of a sweep ended."""

    folder: Path
    status: SweepStatus
    ended: int
    failed: int
    reused: int
    best: Record | None
    test: dict[str, Any] | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What `sweep --json` prints."""
        best = self.best
        return {
            "sweep": mirror.location_of(self.folder),
            "status": self.status,
            "trials": {"ended": self.ended, "failed": self.failed, "reused": self.reused},
            "best": None
            if best is None
            else {
                "trial": best.trial,
                "strategy": best.experiment.strategy.strategy,
                "backbone": best.experiment.backbone.name,
                "params": best.params,
                "validation": best.validation,
            },
            "test": None if self.test is None else self.test["metrics"],
            "seconds": round(self.seconds, 1),
        }


def run_sweep(
    spec: SweepSpec,
    *,
    address: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> SweepOutcome:
    """Run a sweep, or continue it from its records.

    Args:
        spec: What to search, on what, for how long.
        address: A Ray cluster to join; None starts one in this process.
        fresh: Start another sweep instead of continuing.
        progress: Told what happens.

    Returns:
        How this run ended; `interrupted` after Ctrl-C, with everything kept.

    Raises:
        SpecError: The spec cannot be run here (CapacityError: the cluster is too small).
        DataError: The data cannot be used.
        SweepLockedError: Another process is running this sweep.
    """
    told = progress or Silent()
    sweep = prepare_sweep(spec, fresh=fresh, progress=told)
    with sweep.folder.locked():
        return _Run(sweep, told).go(address)


class _Run:
    """One run of a sweep in this process."""

    def __init__(self, sweep: PreparedSweep, progress: Progress) -> None:
        self.sweep = sweep
        self.spec = sweep.spec
        self.folder = sweep.folder
        self.progress = progress
        self.clock = SweepClock(self.folder, minutes=self.spec.budget.minutes)
        self.starts = self.folder.starts()
        self.before = self.folder.records()
        self.reused = 0
        self.stored: tuple[FeatureKey, ...] = ()
        self.read: frozenset[FeatureNeed] = frozenset()
        self.costs = self._cost_book()
        self.too_late = False
        self.hand_over = HandOver()
        self.screen = Screen()
        self.exhausted = bool((self.folder.read("leaderboard.json") or {}).get("exhausted"))

    def go(self, address: str | None) -> SweepOutcome:
        """Search what is left, then test the winner."""
        self._write_sweep_json()
        if self._room() <= 0 or self.clock.over() or self.exhausted:
            self.progress.say("this sweep has ended already; nothing is left in its budget")
            if not self._test_missing():
                return self._outcome(self._status())
        status: SweepStatus = "interrupted"
        tracker = Tracker(self.spec, self.folder, self.progress)
        try:
            tracker.start(self.before.values())
            with joined_cluster(address) as cluster:
                self._search(cluster, tracker)
                status = self._status()
                self._test_winner(cluster)
        except KeyboardInterrupt:
            self.progress.say("interrupted; everything ended is kept. The same command continues")
        finally:
            self.clock.save()
            self._write_leaderboard(status)
            self._write_actual()
            tracker.close()
        return self._outcome(status)

    def _search(self, cluster: Cluster, tracker: Tracker) -> None:
        if self._room() <= 0 or self.clock.over() or self.exhausted:
            return
        factory = self.sweep.factory()
        shared = self.sweep.shared(factory)
        at_once = self._write_plan(factory, shared, cluster)
        if adaptations := self.sweep.adaptations():
            if not ensure_pretrained(
                adaptations,
                cluster,
                self.spec.workers,
                seconds_left=self.clock.left,
                progress=self.progress,
            ):
                return
            factory = self.sweep.factory()
            shared = self.sweep.shared(factory)
            at_once = self._write_plan(factory, shared, cluster)
        stored = {work.need.key(self.sweep.examples): work for work in shared if work.stored}
        self.stored = tuple(stored)
        self.read = frozenset(work.need for work in stored.values())
        self._embed(factory)
        with leased(self.sweep.store, stored):
            self._fill(stored)
            self._note_neighbours(factory)
            self._spend(factory, at_once, tracker)

    def _embed(self, factory: ExperimentFactory) -> None:
        """Let the text towers read the labels, for whoever starts from texts."""
        corners = [
            experiment
            for block in self.spec.search
            for experiment in corner_experiments(block, factory, TEXTS)
        ]
        embed_texts(
            [TextNeed.of(e) for e in corners if e.strategy.head == "text"],
            store=self.sweep.store,
            cpus=self.spec.workers.cpus,
            gpus=self.spec.workers.gpus,
            progress=self.progress.count,
        )

    def _fill(self, stored: Mapping[FeatureKey, Shared]) -> None:
        """Store what the plan says, in the room that the budget gives."""
        store = self.sweep.store
        evicted = make_room(
            store,
            needed_bytes=sum(
                work.bytes for key, work in stored.items() if not is_stored(store, key)
            ),
            budget_bytes=store_budget(self.spec, store),
            keep=stored,
        )
        if evicted:
            freed = sum(entry.bytes for entry in evicted)
            self.progress.say(
                f"feature store: {len(evicted)} entries longest unused were evicted, "
                f"{freed / 1e9:.2f} GB"
            )
        fill_features(
            [work.need for work in stored.values()],
            data=self.folder / "data",
            store=store,
            cpus=self.spec.workers.cpus,
            gpus=self.spec.workers.gpus,
            progress=self.progress.count,
        )

    def _note_neighbours(self, factory: ExperimentFactory) -> None:
        """Add to the plan what the stored features say of the pretrainings."""
        plan = self.folder.read(PLAN) or {}
        rows = with_neighbours(
            plan.get(PRETRAININGS, []),
            self.spec.search,
            factory,
            examples=self.sweep.examples,
            store=self.sweep.store,
        )
        for row in rows:
            if pair := row.get("neighbours"):
                self.progress.say(
                    f"{row['what']}: neighbours of the same class by frozen features "
                    f"{pair['before']:.3f} before, {pair['after']:.3f} after"
                )
        self.folder.write(PLAN, {**plan, PRETRAININGS: rows})

    def _spend(self, factory: ExperimentFactory, at_once: int, tracker: Tracker) -> None:
        """Spend the budget: heads in banks, then fine-tuning, until neither has more."""
        banked = banked_blocks(self.spec.search, factory)
        tuned_out = len(banked) == len(self.spec.search)
        n_records = -1
        while self._room() > 0 and not self.clock.over() and not (self.exhausted or self.too_late):
            self._bank(factory, banked, at_once, tracker, rest=n_records >= 0)
            left = self._room() > 0 and not self.clock.over()
            if left and (self._unfinished() or not tuned_out):
                self._name_heads(factory, at_once)
                self._screen(factory)
                tuned_out = self._tune(factory, banked, at_once, tracker)
            self.exhausted = len(self.before) == n_records and not self.too_late
            n_records = len(self.before)

    def _bank(
        self,
        factory: ExperimentFactory,
        banked: list[int],
        at_once: int,
        tracker: Tracker,
        *,
        rest: bool,
    ) -> None:
        """The heads on stored features: what earlier runs began, then each block's share.

        Args:
            factory: Makes experiments.
            banked: The blocks that are trained in banks.
            at_once: Banks side by side.
            tracker: Told of records.
            rest: The other blocks have nothing more: all that is left of the budget is for these.
        """
        begun = [
            start.model_copy(update={"attempt": start.attempt + 1})
            for start in self._unfinished()
            if can_join(start.experiment)
        ]
        have = count_by_block(self.starts.values(), self.spec.search)
        room = self._room() - len(begun)
        shares = block_shares(self.spec)
        wanted = {}
        for block in banked:
            share = shares[block]
            if self.spec.budget.trials is not None:
                share = int(room) if rest else share - have[block]
            wanted[block] = int(max(0, min(room, share)))
            room -= wanted[block]
        suggester = build_suggester(self.spec, list(self._outcomes().values()))
        drawn = draw_heads(self.spec.search, wanted, suggester, factory, self.starts)
        if begun or drawn:
            run_banks(
                [*begun, *drawn],
                self.folder,
                store=self.sweep.store.root,
                workers=self.spec.workers,
                at_once=at_once,
                seconds=self.clock.left(),
                progress=self.progress,
                on_record=lambda record: self._on_record(record, tracker),
            )
            self._look_again()

    def _name_heads(self, factory: ExperimentFactory, at_once: int) -> None:
        """Name the heads that fine-tuning starts from; those that nobody has are trained now."""
        self.hand_over = HandOver.of_plan(self.folder)
        lacking = self.hand_over.lacking(self.spec.search, factory)
        self.hand_over.name_best(self.before.values(), lacking.keys())
        lacking = self.hand_over.lacking(self.spec.search, factory)
        starts = [
            TrialStart(experiment=head, block="", searched={}, default=False, attempt=1)
            for head in {head.id: head for head in lacking.values()}.values()
            if can_join(head)
        ]
        for start in starts:
            self._remove_stopped_head(start.experiment.id)
        run_banks(
            starts,
            self.folder,
            store=self.sweep.store.root,
            workers=self.spec.workers,
            at_once=at_once,
            seconds=self.clock.left(),
            progress=self.progress,
        )
        records = [self.folder.head(start.experiment.id).record() for start in starts]
        # One that the budget has stopped is not the experiment that its digest says.
        whole = [record for record in records if record and record.status == "finished"]
        self.hand_over.name_best(whole, lacking.keys())
        self.folder.write(PLAN, {**(self.folder.read(PLAN) or {}), HEADS: self.hand_over.to_json()})

    def _remove_stopped_head(self, trial: str) -> None:
        """Make way for a head that an earlier run had no time to finish."""
        folder = self.folder.head(trial)
        record = folder.record()
        if record is not None and record.status == "stopped":
            mirror.remove_folder(folder.root)

    def _screen(self, factory: ExperimentFactory) -> None:
        """Decide once which backbones are fine-tuned."""
        if self.spec.screen is None:
            return
        plan = self.folder.read(PLAN) or {}
        decided = Screen.of_plan(plan)
        if decided is None:
            named = [self.folder.parent(head.trial).record() for head in self.hand_over.heads]
            decided = screen_backbones(
                self.spec,
                factory,
                [*self.before.values(), *(record for record in named if record)],
                examples=self.sweep.examples,
                store=self.sweep.store,
            )
            self.folder.write(PLAN, {**plan, SCREEN: decided.to_json()})
            for row in decided.rows:
                bank = "no head" if row.bank is None else f"best head {row.bank:.4f}"
                self.progress.say(
                    f"screen: {row.backbone.name} {row.role} (LogME {row.log_me:.3f}, {bank})"
                )
        self.screen = decided

    def _tune(
        self, factory: ExperimentFactory, banked: list[int], at_once: int, tracker: Tracker
    ) -> bool:
        """The fine-tuning search: Tune asks our searcher, runs trials, and tells our scheduler.

        Returns:
            Whether the searcher has nothing more to suggest.
        """
        signals = Signals.start()
        deadline = Deadline(
            self.clock,
            self.sweep.examples,
            costs=self.costs,
            stored=self.read,
            records=self.before.values(),
        )
        searcher = self._searcher(factory, banked, deadline)
        scheduler = FlaggingScheduler(self.spec, signals, self.clock)
        scheduler.replay(self.starts, list(self.before.values()))
        watcher = SweepWatcher(
            self.folder,
            signals,
            self.progress,
            metric=self.spec.objective.metric,
            on_record=lambda record: self._on_record(record, tracker),
        )
        scratch = Path(tempfile.mkdtemp(prefix="orchestrator-tune-"))
        train_scratch = self.folder / ".train"
        workers = self.spec.workers
        groups = None
        resources = {"CPU": workers.cpus, "GPU": workers.gpus}
        if workers.most > 1:
            location = mirror.location_of(train_scratch)
            groups = WorkerGroups(workers, signals, location, at_once=at_once)
            # Ray Train reserves the CPUs; Tune wants some resource for its actor.
            resources = {"memory": 1e6}
        context = TuneContext(
            ticket=TrialTicket(
                sweep=mirror.location_of(self.folder.root),
                store=mirror.location_of(self.sweep.store.root),
                trial="",
                threads=max(1, int(workers.cpus)),
                use_gpu=workers.gpus > 0,
            ),
            signals=signals,
            desk=groups.desk if groups else None,
        )
        trainable = tune.with_parameters(tune_trial, context=context)
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=self.folder.root.name,
                storage_path=str(scratch),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                callbacks=[watcher],
                verbose=0,
            ),
        )
        watcher.start()
        try:
            with groups or nullcontext():
                tuner.fit()
        except TuneError as err:  # Tune turns what our callbacks raise into text
            cause = str(err.__cause__ or err).strip().splitlines()[-1]
            told = "What has ended is kept; the same command continues"
            raise OrchestratorError(f"the search broke off ({cause}). {told}") from err
        finally:
            watcher.close()
            signals.close()
            self.reused += searcher.reused
            self._look_again()
            if self._room() > 0 and (reason := deadline.reason()) is not None:
                self.too_late = True
                self.progress.say(reason)
            shutil.rmtree(scratch, ignore_errors=True)
            mirror.remove_folder(train_scratch)
        return searcher.exhausted

    def _searcher(
        self, factory: ExperimentFactory, banked: list[int], deadline: Deadline
    ) -> SweepSearcher:
        outcomes = self._outcomes()
        narrowed = [self.screen.narrowed(block) for block in self.spec.search]
        search = tuple(n or block for n, block in zip(narrowed, self.spec.search, strict=True))
        suggester = build_suggester(
            self.spec.model_copy(update={"search": search}),
            [outcome for outcome in outcomes.values() if is_member(search, outcome)],
        )
        for number, block in enumerate(narrowed):
            if block is None or number in banked:
                suggester.close(number)
        started = self.starts.keys()

        def made(block: Block, values: Mapping[str, Any]) -> Experiment:
            experiment = factory.make(block, values)
            return self.hand_over.child(block, experiment, default=values == block.vetted())

        audits = self.screen.audits(self.spec.search, made)
        return SweepSearcher(
            suggester,
            made,
            self.spec.search,
            self.folder,
            clock=self.clock,
            in_time=deadline.allows,
            known={name: outcome.value for name, outcome in outcomes.items()},
            unfinished=self._unfinished(),
            audits=[start for start in audits if start.experiment.id not in started],
            room=self._room(),
            mode=self.spec.objective.mode,
        )

    def _outcomes(self) -> dict[str, Outcome]:
        return {
            name: outcome_of(self.spec.search, self.starts[name], record)
            for name, record in self.before.items()
        }

    def _unfinished(self) -> list[TrialStart]:
        return [start for name, start in self.starts.items() if name not in self.before]

    def _look_again(self) -> None:
        """Read what has ended since."""
        self.starts = self.folder.starts()
        self.before = self.folder.records()

    def _on_record(self, record: Record, tracker: Tracker) -> None:
        self.clock.save()
        self._write_leaderboard("running")
        tracker.log(record)

    def _room(self) -> float:
        """How many more records the budget allows."""
        limit = self.spec.budget.trials
        return float("inf") if limit is None else limit - len(self.before)

    def _status(self) -> SweepStatus:
        records, limit = self.folder.records(), self.spec.budget.trials
        complete = self.exhausted or (limit is not None and len(records) >= limit)
        cut_short = any(record.reason == "budget" for record in records.values())
        return "finished" if complete and not cut_short else "budget"

    def _test_missing(self) -> bool:
        winner = winner_of(self.before, self.spec.objective)
        if winner is None or not len(self.sweep.examples.indices("test")):
            return False
        return (self.folder.read("test.json") or {}).get("trial") != winner.trial

    def _test_winner(self, cluster: Cluster) -> None:
        winner = winner_of(self.folder.records(), self.spec.objective)
        if winner is not None and len(self.sweep.examples.indices("test")):
            ensure_tested(
                self.folder,
                winner,
                cpus=cluster.cpus_of_one(self.spec.workers),
                gpus=self.spec.workers.gpus,
                progress=self.progress.say,
            )

    def _write_sweep_json(self) -> None:
        data = mirror.fetch_folder(self.folder / "data", last=INDEX)
        if not (data / INDEX).exists():
            self.sweep.examples.save(data)
        opened = replace(self.sweep, examples=Examples.open(data))
        self.sweep = opened.tokenized(self.progress)
        mirror.publish_folder(data, last=INDEX)
        self.folder.write("sweep.json", self.sweep.description())

    def _write_plan(
        self, factory: ExperimentFactory, shared: list[Shared], cluster: Cluster
    ) -> int:
        """Write the plan; how many trials run at once by it."""
        self.costs = self._cost_book()
        adaptations = self.sweep.adaptations()
        rows = pretraining_rows(adaptations, self.costs, probe=False, progress=self.progress)
        plan = make_plan(
            self.spec,
            factory,
            self.sweep.examples,
            shared=shared,
            cluster=cluster,
            costs=self.costs,
            probe=False,
            progress=self.progress,
            pretrainings_s=seconds_to_come(rows),
        )
        self.folder.write(PLAN, planned(self.folder, {**plan, PRETRAININGS: rows}))
        at_once: int = plan["at_once"]
        return at_once

    def _cost_book(self) -> CostBook:
        """What was measured up to now, by whomever."""
        return CostBook.of(self.spec, self.sweep.storage)

    def _write_actual(self) -> None:
        """Beside the plan's forecast, what came."""
        plan = self.folder.read(PLAN)
        if plan is not None:
            actual = actual_costs(
                self.folder, self.folder.records().values(), seconds=self.clock.seconds()
            )
            actual["feature_bytes"] = self._feature_bytes(plan)
            self.folder.write(PLAN, {**plan, ACTUAL: actual})

    def _feature_bytes(self, plan: dict[str, Any]) -> int:
        """Of what this run has stored or found; what an earlier one said where it only tested."""
        if not self.stored:
            return int((plan.get(ACTUAL) or {}).get("feature_bytes", 0))
        folders = [self.sweep.store.folder(key) for key in self.stored]
        return sum(sum(mirror.sizes(folder).values()) for folder in folders)

    def _write_leaderboard(self, status: SweepStatus) -> None:
        write_leaderboard(
            self.folder,
            self.spec.objective,
            status=status,
            seconds=self.clock.seconds(),
            exhausted=self.exhausted,
        )

    def _outcome(self, status: SweepStatus) -> SweepOutcome:
        records = self.folder.records()
        return SweepOutcome(
            folder=self.folder.root,
            status=status,
            ended=len(records),
            failed=sum(record.status == "failed" for record in records.values()),
            reused=self.reused,
            best=winner_of(records, self.spec.objective),
            test=self.folder.read("test.json"),
            seconds=self.clock.seconds(),
        )
