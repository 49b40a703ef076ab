"""What the OpenAPI document says, Schemathesis asks: requests of its making, judged by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import sampled_from
from schemathesis.checks import (
    allow_header_conformance,
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from serve.handler import Handler
from serve.keys import Keys
from serve.limits import Limits
from serve.pages import PAGES
from tests.serve.conftest import running
from tests.serve.material import served

CHECKS = [
    allow_header_conformance,
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
SERVED = [{"name": "colours", "version": "3"}, {"name": "lengths", "version": "1"}]
UNUSUAL = [HealthCheck.filter_too_much, HealthCheck.too_slow]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The document, as the endpoint that it is about gives it."""
    plain = served(tmp_path_factory.mktemp("contract"))
    handler = Handler(plain.endpoints, limits=Limits(), keys=Keys({}), routes=PAGES)
    with running(handler) as port:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")


def test_every_operation_answers_as_the_document_says(document: Any) -> None:
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        statuses: set[int] = set()

        @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=UNUSUAL)
        @given(case=operation.as_strategy(), served=sampled_from([{}, *SERVED]))
        def answers(case: schemathesis.Case, served: dict[str, str]) -> None:
            case.path_parameters |= {k: v for k, v in served.items() if k in case.path_parameters}
            statuses.add(case.call_and_validate(checks=CHECKS).status_code)  # noqa: B023

        answers()
        asks = operation.method.upper() == "POST"
        assert (422 in statuses) if asks else (200 in statuses), (operation.label, statuses)
