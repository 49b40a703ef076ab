from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from orchestrator.features.filling import compute_features, feature_key, search_rows
from orchestrator.features.store import FeatureStore, part_ranges
from orchestrator.runtime.folders import TrialStart
from orchestrator.runtime.process_cache import pristine_backbone
from orchestrator.runtime.trial_run import TrialTicket, conduct_trial, failed_record
from orchestrator.spec.parsing import parse_sweep
from orchestrator.spec.record import EpochRow
from orchestrator.training.io import Decision
from orchestrator.tuning.preparing import PreparedSweep, prepare_sweep

RawSpec = Callable[..., dict[str, object]]


class Told:
    """Keeps what a trial reports, and lets it go on."""

    def __init__(self) -> None:
        self.rows: list[EpochRow] = []

    def report(self, row: EpochRow, objective_best: float) -> tuple[Decision, str]:
        self.rows.append(row)
        return Decision.CONTINUE, ""

    def note(self, text: str) -> None:
        pass


def prepared(raw_spec: RawSpec) -> tuple[PreparedSweep, TrialStart]:
    """A sweep with its data in place, and the vetted default of its first block as a trial."""
    sweep = prepare_sweep(parse_sweep(raw_spec(), base=Path.cwd()))
    sweep.examples.save(sweep.folder / "data")
    block = sweep.spec.search[0]
    experiment = sweep.factory().make(block, block.vetted())
    start = TrialStart(
        experiment=experiment, block=block.digest, searched={}, default=True, attempt=1
    )
    sweep.folder.trial(experiment.id).write_start(start)
    return sweep, start


def ticket_for(sweep: PreparedSweep, start: TrialStart) -> TrialTicket:
    return TrialTicket(
        sweep=str(sweep.folder.root),
        store=str(sweep.store.root),
        trial=start.experiment.id,
        threads=1,
        use_gpu=False,
    )


def fill(sweep: PreparedSweep, start: TrialStart, store: FeatureStore) -> None:
    experiment, rows = start.experiment, search_rows(sweep.examples)
    key = feature_key(
        experiment.backbone,
        experiment.weights_digest,
        experiment.input,
        experiment.data_digest,
        output=experiment.strategy.pooling,
    )
    backbone = pristine_backbone(
        experiment.backbone,
        size=experiment.input.size,
        expected_digest=experiment.weights_digest,
        seed=0,
    )
    for part in part_ranges(len(rows)):
        features = compute_features(
            backbone,
            sweep.examples,
            rows[part.start : part.stop],
            contract=experiment.input,
            pooling=experiment.strategy.pooling,
            device=torch.device("cpu"),
            threads=1,
        )
        store.put(key, part, features)
    store.seal(key, n_rows=len(rows))


def test_a_trial_writes_its_record_once_and_is_not_run_again(raw_spec: RawSpec) -> None:
    sweep, start = prepared(raw_spec)
    fill(sweep, start, sweep.store)
    told, again = Told(), Told()
    record = conduct_trial(ticket_for(sweep, start), told)
    assert record is not None
    assert (record.status, len(record.epochs), len(told.rows)) == ("finished", 2, 2)
    assert set(record.files) == {
        "validation.arrow",
        f"checkpoints/epoch-{record.best_epoch:04d}/weights.safetensors",
    }
    assert sweep.folder.trial(record.trial).record() == record
    assert conduct_trial(ticket_for(sweep, start), again) == record
    assert again.rows == []


def test_an_error_of_the_trials_own_is_its_record(raw_spec: RawSpec) -> None:
    sweep, start = prepared(raw_spec)  # nobody has filled the feature store
    record = conduct_trial(ticket_for(sweep, start), Told())
    assert record is not None
    assert record.status == "failed"
    assert record.reason.startswith("IntegrityError: the feature store")
    assert sweep.folder.trial(record.trial).record() == record


@pytest.mark.parametrize("damaged", [False, True], ids=["missing", "damaged"])
def test_a_trial_whose_parent_is_not_there_says_what_to_do(
    raw_spec: RawSpec, damaged: bool
) -> None:
    sweep, start = prepared(raw_spec)
    fill(sweep, start, sweep.store)
    head = conduct_trial(ticket_for(sweep, start), Told())
    assert head is not None
    assert head.checkpoint is not None
    folder = sweep.folder.trial(head.trial).root
    if damaged:
        weights = folder / head.checkpoint / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    else:
        (folder / "record.json").unlink()
    block = sweep.spec.search[1]
    tuned = sweep.factory().make(block, block.vetted())
    child = start.model_copy(
        update={
            "experiment": tuned.model_copy(update={"parents": {"head": start.experiment.digest}})
        }
    )
    sweep.folder.trial(child.experiment.id).write_start(child)
    record = conduct_trial(ticket_for(sweep, child), Told())
    assert record is not None
    assert record.status == "failed"
    assert f"the head {folder} that this trial starts from is missing or damaged" in record.reason


def test_on_several_workers_an_error_is_raised_for_ray_train_to_see(raw_spec: RawSpec) -> None:
    sweep, start = prepared(raw_spec)
    with pytest.raises(Exception, match="the feature store"):
        conduct_trial(ticket_for(sweep, start), Told(), world_size=2)
    assert sweep.folder.trial(start.experiment.id).record() is None


class DiesAfter(Told):
    """The process dies when an epoch is reported, as a killed worker's does."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._epoch = epoch

    def report(self, row: EpochRow, objective_best: float) -> tuple[Decision, str]:
        if row.epoch == self._epoch:
            raise KeyboardInterrupt
        return super().report(row, objective_best)


def test_what_a_dead_trial_finished_stays_in_the_record_written_for_it(raw_spec: RawSpec) -> None:
    sweep, start = prepared(raw_spec)
    fill(sweep, start, sweep.store)
    folder = sweep.folder.trial(start.experiment.id)
    nothing = failed_record(folder, "killed")
    assert (nothing.status, nothing.epochs, nothing.objective) == ("failed", (), None)
    with pytest.raises(KeyboardInterrupt):
        conduct_trial(ticket_for(sweep, start), DiesAfter(1))
    record = failed_record(folder, "killed")
    assert [row.epoch for row in record.epochs] == [1]
    assert [phase.name for phase in record.phases] == ["head"]
    assert (record.status, record.reason, record.objective) == ("failed", "killed", None)
