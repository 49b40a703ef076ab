"""A job's log, shown as it grows until the job ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.submitted import MARK
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

POLL_S = 0.5
LOST_AFTER = 20  # times that the dashboard is asked in vain, one a second


class Follower:
    """Shows a job's log once, however often the connection is lost.

    Args:
        client: Of the cluster.
        show: Is given the text, whole lines at a time.
    """

    def __init__(self, client: JobSubmissionClient, *, show: Callable[[str], None]) -> None:
        self._client = client
        self._show = show
        self._n_shown = 0  # characters of the log
        self._line = ""  # begun and not ended

    async def follow(self, job: str) -> None:
        """Until the job has ended and all of its log is shown.

        Raises:
            OrchestratorError: The dashboard is not there any more.
        """
        while not self._has_ended(await self._asked(job)):
            try:
                await self._tail(job)
            except (RuntimeError, OSError):
                await asyncio.sleep(POLL_S)
        self._take(self.whole_log(job)[self._n_shown :])
        self._print(self._line)

    def whole_log(self, job: str) -> str:
        """Everything that the job printed."""
        found: str = self._client.get_job_logs(job)
        return found

    async def _tail(self, job: str) -> None:
        """The log from its beginning on; what was shown before is not shown again."""
        seen = 0
        async for text in self._client.tail_job_logs(job):
            new = max(0, len(text) - max(0, self._n_shown - seen))
            seen += len(text)
            self._take(text[len(text) - new :])
        await asyncio.sleep(POLL_S)

    def _take(self, text: str) -> None:
        self._n_shown += len(text)
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            self._print(f"{line}\n")

    def _print(self, line: str) -> None:
        if line and not line.startswith(MARK):
            self._show(line)

    async def _asked(self, job: str) -> str:
        for _ in range(LOST_AFTER):
            try:
                return str(self._client.get_job_status(job))
            except (RuntimeError, OSError) as err:
                reason = err
                await asyncio.sleep(1)
        raise OrchestratorError(
            f"the cluster's dashboard does not answer any more ({reason}). The job may go on: the "
            "same command follows it again"
        )

    @staticmethod
    def _has_ended(status: str) -> bool:
        return status in ("SUCCEEDED", "FAILED", "STOPPED")
