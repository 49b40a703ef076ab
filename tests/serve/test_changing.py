"""Commands that change what is served, each after the other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray

from orchestrator.errors import OrchestratorError
from orchestrator.runtime.cluster import Cluster
from serve.changing import changing

pytestmark = pytest.mark.ray

_HOLDS = """
import sys, ray
from serve.changing import changing
ray.init(address=sys.argv[1], log_to_driver=False)
with changing():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.usefixtures("cluster")
def test_whoever_comes_second_waits_and_is_told_when_that_takes_too_long() -> None:
    with (
        changing(),
        pytest.raises(OrchestratorError, match="another command has been changing"),
        changing(patience_s=0.5),
    ):
        pytest.fail("two held it")
    with changing(patience_s=5):
        pass


def test_a_killed_command_holds_it_no_more(cluster: Cluster) -> None:
    assert cluster.cpus
    address = ray.get_runtime_context().gcs_address
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OrchestratorError), changing(patience_s=0.5):
            pytest.fail("two held it")
        other.kill()
        with changing(patience_s=30):
            pass
