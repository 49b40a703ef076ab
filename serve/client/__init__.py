"""A small client of the endpoint, with typed answers and problems. No torch, no Ray.

from serve.client import Client
"""

from ..contract import (
    AnyLabels,
    Embeddings,
    Entities,
    Explanation,
    Failed,
    ModelDetails,
    ModelEntry,
    OneLabel,
    Prediction,
    Problem,
    Span,
    Timing,
)
from .calls import Question
from .client import AsyncClient, Client
from .errors import (
    DeadlineError,
    EndpointError,
    ForeignAnswerError,
    KeyRefusedError,
    OverloadedError,
    ProblemError,
    RequestRefusedError,
    ServerFailedError,
    UnknownModelError,
    UnreachableError,
)

__all__ = [
    "AnyLabels",
    "AsyncClient",
    "Client",
    "DeadlineError",
    "Embeddings",
    "EndpointError",
    "Entities",
    "Explanation",
    "Failed",
    "ForeignAnswerError",
    "KeyRefusedError",
    "ModelDetails",
    "ModelEntry",
    "OneLabel",
    "OverloadedError",
    "Prediction",
    "Problem",
    "ProblemError",
    "Question",
    "RequestRefusedError",
    "ServerFailedError",
    "Span",
    "Timing",
    "UnknownModelError",
    "UnreachableError",
]
