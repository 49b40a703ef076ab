"""The driver's ears: trials' epochs and ends become lines, the leaderboard, and tracked runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from orchestrator.runtime.folders import SweepFolder
from orchestrator.runtime.signals import Signals
from orchestrator.runtime.trial_run import failed_record
from orchestrator.spec.record import Record
from orchestrator.tuning.progress import Progress

POLL_S = 1.0
POSITIONS_EVERY = 15


class SweepWatcher(tune.Callback):
    """Follows the trials of one run of a sweep."""

    def __init__(
        self,
        folder: SweepFolder,
        signals: Signals,
        progress: Progress,
        *,
        metric: str,
        on_record: Callable[[Record], None],
    ) -> None:
        self._folder = folder
        self._signals = signals
        self._progress = progress
        self._metric = metric
        self._on_record = on_record
        self._names: dict[str, str] = {}
        self._running: set[str] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True, name="sweep-watcher")
        self.failed = 0
        self.ended = 0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles it to scratch, which is never read back."""
        return {}

    def start(self) -> None:
        """Begin to show phases and positions."""
        self._thread.start()

    def close(self) -> None:
        """Stop showing."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial starts: say what it is."""
        ours = trial.config["trial"]
        start = self._folder.trial(ours).start()
        strategy = start.experiment.strategy.strategy
        self._running.add(ours)
        self._names[ours] = f"{ours} {strategy} {start.experiment.backbone.name}"
        values = ", ".join(f"{k}={_short(v)}" for k, v in start.searched.items() if k != "backbone")
        note = " (vetted default)" if start.default else ""
        again = f" (attempt {start.attempt})" if start.attempt > 1 else ""
        self._progress.say(f"start {self._names[ours]}{note}{again}: {values or 'no search'}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done: say where it stands."""
        if result.get("ended"):
            return
        value = result.get(f"validation_{self._metric}", float("nan"))
        self._progress.say(
            f"  {self._names.get(result['trial'], result['trial'])}: epoch {result['epoch']} "
            f"({result['phase']}) {self._metric} {value:.4f}, best {result['objective']:.4f}, "
            f"{result['seconds']:.1f} s"
        )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial has ended itself and written its record."""
        record = self._folder.trial(trial.config["trial"]).record()
        if record is not None:
            self._ended(record)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial's processes died, more often than they are restarted: write its record for it."""
        folder = self._folder.trial(trial.config["trial"])
        record = folder.record()
        if record is None:
            reason = "its process died; " + str(trial.error_file or "no trace was left")
            record = failed_record(folder, reason)
            folder.write_record(record)
        self._ended(record)

    def _ended(self, record: Record) -> None:
        self.ended += 1
        self.failed += record.status == "failed"
        value = (
            "no result" if record.objective is None else f"{self._metric} {record.objective:.4f}"
        )
        reason = f" ({record.reason})" if record.reason else ""
        self._progress.say(
            f"end {self._names.get(record.trial, record.trial)}: {record.status}{reason}, {value}, "
            f"{record.seconds:.0f} s, {record.peak_memory_bytes / 2**20:.0f} MiB"
        )
        self._running.discard(record.trial)
        self._on_record(record)

    def _listen(self) -> None:
        """Show phases as they begin, and positions when little else is heard."""
        rounds = 0
        while not self._done.wait(POLL_S):
            rounds += 1
            try:
                phases, positions = self._signals.news()
            except Exception:  # noqa: BLE001  (the cluster is going down; only display is lost)
                return
            for trial, text in phases:
                self._progress.say(f"  {self._names.get(trial, trial)}: {text}")
            if rounds % POSITIONS_EVERY == 0:
                for trial in [name for name in list(self._running) if name in positions]:
                    self._progress.say(f"  {self._names[trial]}: {positions[trial]}")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
