"""Why the client has no answer.

OrchestratorError
└── EndpointError             no answer
    ├── UnreachableError        no connection, or none that lived until the answer
    ├── DeadlineError           the caller's time is over
    ├── ForeignAnswerError      what answered does not keep the contract
    └── ProblemError            the endpoint says why: `.problem`
        ├── RequestRefusedError   400, 405, 408, 411, 413, 415, 422: the request must change
        ├── KeyRefusedError       401, 403: the key is missing or wrong
        ├── UnknownModelError     404: no such name is served
        ├── OverloadedError       429, 503: later, or with fewer at once
        └── ServerFailedError     any other 5xx: the endpoint's own fault
"""

from __future__ import annotations

from orchestrator.errors import OrchestratorError

from ..contract import Problem


class EndpointError(OrchestratorError):
    """The endpoint gave no answer."""


class UnreachableError(EndpointError):
    """No connection came about, or it ended before the answer did."""


class DeadlineError(EndpointError):
    """The time that the caller gave is over."""


class ForeignAnswerError(EndpointError):
    """What answered is not this product's endpoint, or one of another contract."""


class ProblemError(EndpointError):
    """The endpoint refused, and says why."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(self))

    def __str__(self) -> str:
        problem = self.problem
        text = f"{problem.status} {problem.title}"
        if problem.detail:
            text += f": {problem.detail}"
        return f"{text} (request {problem.instance})" if problem.instance else text


class RequestRefusedError(ProblemError):
    """The request must change before it can be answered."""


class KeyRefusedError(ProblemError):
    """The key is missing (401) or wrong (403)."""


class UnknownModelError(ProblemError):
    """No model of this name is served; the detail lists those that are."""


class OverloadedError(ProblemError):
    """The endpoint has more to do than it can."""


class ServerFailedError(ProblemError):
    """The endpoint itself failed."""


def error_of(problem: Problem) -> ProblemError:
    """The exception that `problem` is raised as."""
    kinds: dict[int, type[ProblemError]] = {
        401: KeyRefusedError,
        403: KeyRefusedError,
        404: UnknownModelError,
        429: OverloadedError,
        503: OverloadedError,
    }
    by_class = RequestRefusedError if problem.status < 500 else ServerFailedError
    return kinds.get(problem.status, by_class)(problem)
