"""What `deploy` and `rollback` make of their arguments, before any cluster."""

from __future__ import annotations

import argparse
import json
import os
import socket
from contextlib import nullcontext
from pathlib import Path

import pytest

from jobs.cli import build_parser, main
from jobs.deploy import checked_host, curl_body
from jobs.rollback import rolled
from jobs.served_models import clip_bundle, named_bundles, named_clips
from jobs.served_settings import settings_of
from jobs.serving_cluster import Running, found, set_environment
from jobs.terminal import Terminal
from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.registry import RegisteredVersion, Registry
from orchestrator.errors import OrchestratorError, SpecError
from orchestrator.spec.parts import TaskKind
from serve.app import AppSettings, EndpointSettings
from tests.serve.material import COLOURS, plain_bundle

KEYS = ["--keys", "k"]


def parsed(*words: str) -> argparse.Namespace:
    return build_parser(["deploy"]).parse_args(["deploy", *words])


def settings(*words: str, before: AppSettings | None = None) -> AppSettings:
    args = parsed(*words)
    return settings_of(args, named_bundles(args), before)


def test_only_keys_open_the_endpoint_to_other_machines() -> None:
    assert checked_host(parsed("a")) == "127.0.0.1"
    assert checked_host(parsed("a", "--host", "localhost")) == "localhost"
    assert checked_host(parsed("a", "--expose", *KEYS)) == "0.0.0.0"
    with pytest.raises(SpecError, match="--keys FILE"):
        checked_host(parsed("a", "--expose"))
    for host in ("0.0.0.0", "10.0.0.1", "::"):
        with pytest.raises(SpecError, match="Add --expose"):
            checked_host(parsed("a", "--host", host, *KEYS))


def test_models_are_named_by_reference_or_folder() -> None:
    found = named_bundles(parsed("cells@champion", "b/3", "--bundle", "n=/x/Y", "--bundle", "/x/y"))
    assert found == [("cells", "cells@champion"), ("b", "b/3"), ("n", "/x/Y"), ("y", "/x/y")]
    for words in ([], ["Cells"], ["--bundle", "/x/a b"], ["--bundle", "N=/x"], ["../x"]):
        with pytest.raises(SpecError):
            named_bundles(parsed(*words))


def test_what_is_served_stays_unless_only_is_said() -> None:
    before = settings("a", "b")
    assert [one.name for one in settings("b/2", "c", before=before).endpoints] == ["a", "b", "c"]
    assert [one.name for one in settings("c", "--only", before=before).endpoints] == ["c"]


def test_what_is_not_said_stays_as_it_runs() -> None:
    limits = {"queue": 5}
    before = AppSettings.model_validate(
        {
            **settings("a/1", "--own", "--min", "2", "--threads", "4", *KEYS).model_dump(),
            "limits": limits,
            "within_ms": 50,
            "cpus": 0.5,
        }
    )
    (kept,) = before.endpoints
    before = before.model_copy(update={"endpoints": (kept.model_copy(update={"alias": "good"}),)})
    found = settings("a/2", "--canary", "10%", before=before)
    (a,) = found.endpoints
    assert (a.own, a.min_replicas, a.max_replicas, a.alias) == (True, 2, 2, "good")
    assert a.bundle == "a/1"
    assert found.model_dump(exclude={"endpoints"}) == before.model_dump(exclude={"endpoints"})
    more = settings("b", "--threads", "2", before=before)
    assert (more.threads, more.at_once, more.limits.queue) == (2, 2, 5)
    assert more.endpoints[0] == before.endpoints[0]
    assert (more.endpoints[1].own, more.endpoints[1].min_replicas) == (False, 1)
    (rolled_on,) = settings("a/2", "--no-own", before=before).endpoints
    assert (rolled_on.own, rolled_on.min_replicas, rolled_on.alias) == (False, 2, None)


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        (["--min", "2"], [], (2, 2)),
        (["--min", "2"], ["--min", "3"], (3, 3)),
        (["--min", "1", "--max", "4"], ["--min", "2"], (2, 4)),
        (["--min", "1", "--max", "4"], ["--min", "5"], (5, 5)),
        (["--min", "2"], ["--max", "6"], (2, 6)),
        (["--own", "--min", "0"], [], (0, 1)),
        (["--own", "--min", "0"], ["--max", "3"], (0, 3)),
    ],
)
def test_replicas_change_as_far_as_is_said(
    first: list[str], then: list[str], expected: tuple[int, int]
) -> None:
    (found,) = settings("a/2", *then, before=settings("a/1", *first)).endpoints
    assert (found.min_replicas, found.max_replicas) == expected


def test_a_model_is_looked_up_where_it_came_from() -> None:
    before = settings("a", "--registry", "sqlite:////r/mlflow.db")
    assert settings("a", before=before).endpoints[0].registry == "sqlite:////r/mlflow.db"
    other = settings("a", "--registry", "https://m", before=before).endpoints[0]
    assert other.registry == "https://m"


def test_a_name_ends_at_the_first_equals_sign_that_is_not_in_a_path() -> None:
    found = named_bundles(parsed("--bundle", "x=/d/lr=0.1/b", "--bundle", "/d/lr=0.1/c"))
    assert found == [("x", "/d/lr=0.1/b"), ("c", "/d/lr=0.1/c")]


def test_options_are_written_out() -> None:
    for words in (["--det"], ["--detac"], ["--js"]):
        with pytest.raises(SpecError, match="unrecognized arguments"):
            parsed("a", *words)


def test_no_variable_of_the_shell_opens_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for expose, expected in ((False, "0"), (True, "1")):
        monkeypatch.setattr("os.environ", {"RAY_SERVE_ENABLE_HA_PROXY": "1", "HOME": "/none"})
        set_environment(None, expose=expose)
        assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == expected


@pytest.mark.parametrize(
    ("kind", "told"),
    [("image-classification", "input=@FILE"), ("question-answering", '"question"')],
)
def test_the_request_that_is_shown_suits_the_model(
    tmp_path: Path, kind: TaskKind, told: str
) -> None:
    labels = () if kind == "question-answering" else COLOURS
    folder = plain_bundle(tmp_path / "b", kind=kind, labels=labels).path
    assert told in " ".join(curl_body(EndpointSettings(name="a", bundle=str(folder))))


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_an_alias_stays_where_the_endpoint_cannot_be_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    names = Registry(uri, cache=tmp_path / "own")
    for version, alias in (("1", "champion"), ("2", "challenger"), ("3", "champion")):
        bundle: Bundle = plain_bundle(
            tmp_path / version, kind="image-classification", labels=COLOURS, salt=version
        )
        names.register(bundle, name="cells", alias=alias)

    served = AppSettings.model_validate(
        {"endpoints": [{"name": "cells", "bundle": "cells/3", "registry": uri}]}
    )

    def fails(settings: AppSettings, port: int) -> None:
        assert settings.endpoints[0].bundle == "cells/1"
        raise OrchestratorError("a replica does not start")

    rollback = ["rollback", "cells", "--registry", uri, "--port", "1", "--json"]
    with monkeypatch.context() as patched:
        # Where it is looked up is known from what is served.
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
        patched.setattr("jobs.rollback._served_now", lambda *_: nullcontext(served))
        patched.setattr("jobs.rollback._roll", fails)
        assert main(["rollback", "cells", "--port", "1"]) == 1
    assert names.find("cells@champion").version == 3
    assert main(rollback) == 0
    assert names.find("cells@champion").version == 1


def test_a_canary_keeps_the_version_that_is_served() -> None:
    before = settings("a/1", "b/1")
    found = settings("a", "--canary", "10%", before=before)
    a, b = found.endpoints
    assert a.bundle == "a/1"
    assert a.candidate is not None
    assert (a.candidate.bundle, a.candidate.share) == ("a", 0.1)
    assert b.candidate is None
    shadow = settings("a/1", "a/2", "--shadow").endpoints[0]
    assert shadow.candidate is not None
    assert (shadow.bundle, shadow.candidate.bundle, shadow.candidate.share) == ("a/1", "a/2", 0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a", "--canary", "10%"], "no version of it is served yet"),
        (["a/1", "a/2"], "named 2 times"),
        (["a", "--canary", "10"], "is no share"),
        (["a", "--canary", "100%"], "is no share"),
        (["a", "--min", "0", "--max", "1"], "own: true"),
        (["a", "--min", "3", "--max", "2"], "at least the first"),
        (["a", "--device", "cuda"], "own: true"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        settings(*words)


def test_a_rollback_touches_one_name_and_ends_its_canary() -> None:
    before = settings("a", "b/1", "--canary", "10%", before=settings("a/1", "b/1"))
    args = argparse.Namespace(name="a", alias="champion")
    back = RegisteredVersion("a", 3, None, "d" * 64, "", "")
    a, b = rolled(before, args, back, registry="sqlite:///r.db").endpoints
    assert a.registry == "sqlite:///r.db"
    assert (a.bundle, a.candidate, a.alias) == ("a/3", None, "champion")
    assert b == before.endpoints[1]


def test_what_cannot_be_served_is_told_before_a_cluster_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", dict(os.environ))
    code = main(["deploy", "--bundle", str(tmp_path), "--json"])
    assert code == 1
    assert "has no bundle.json" in capsys.readouterr().err
    code = main(["deploy", "a", "--registry", f"sqlite:///{tmp_path}/r.db", "--json"])
    assert code == 1
    assert "is not in the registry" in capsys.readouterr().err


def test_a_note_of_a_command_that_ended_is_no_endpoint(tmp_path: Path) -> None:
    note = tmp_path / "8000.json"
    assert found(note) is None
    note.write_text("no JSON")
    assert found(note) is None
    note.write_text(json.dumps({"address": "a", "pid": os.getpid(), "port": 8000}))
    assert found(note) == Running("a", os.getpid(), 8000)
    note.write_text(json.dumps({"address": "a", "pid": 2**22 + 1, "port": 8000}))
    assert found(note) is None


def test_a_taken_port_is_told_before_a_cluster_is_started(tmp_path: Path) -> None:
    from jobs.serving_cluster import serving_cluster

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(SpecError, match="something listens"),
            serving_cluster(None, port=port, folder=tmp_path),
        ):
            pass


def test_a_clip_is_served_under_its_name_or_another(clip_folder: Path) -> None:
    found = named_clips(parsed("--clip", str(clip_folder), "--clip", f"shapes={clip_folder}"))
    assert [name for name, _ in found] == ["coloured-shapes", "shapes"]
    (named,) = named_clips(parsed("--clip", "clip:ViT-B-32/laion2b_s34b_b79k"))
    assert named[0] == "vit-b-32-laion2b_s34b_b79k"
    assert named_bundles(parsed("--clip", str(clip_folder))) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--clip", "clip:ViT-B-33/openai"], "Did you mean 'ViT-B-32"),
        (["--clip", "A B=clip:RN50-quickgelu/openai"], "--clip: "),
        (["cells", "--labels", "a,b"], "are for --clip"),
    ],
)
def test_a_clip_that_cannot_be_served_is_told(words: list[str], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        named_clips(parsed(*words))


def test_a_clips_bundle_has_the_labels_that_are_given(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    args = parsed("--clip", str(clip_folder), "--labels", "red,blue")
    ((_, clip),) = named_clips(args)
    bundle = open_bundle(clip_bundle(args, clip, Terminal(as_json=True)))
    assert bundle.labels == ("red", "blue")
