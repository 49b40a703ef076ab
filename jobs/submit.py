"""`orchestrator submit VERB SPEC --address URL`: the same verb, as a job of a Ray cluster."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.spec_arguments import add_spec_arguments, spec_from
from jobs.submitted import JobResult, result_in
from jobs.terminal import Terminal
from orchestrator.errors import OrchestratorError
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.pretraining_job import PretrainingJob, load_pretraining
from orchestrator.spec.sweep import SweepSpec

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

    from jobs.following import Follower

VERBS = ("plan", "pretrain", "sweep", "train")
DASHBOARD = "http://127.0.0.1:8265"
PACKAGES = ("orchestrator", "jobs", "serve")
SPEC_NAME = "spec.yaml"
METADATA_KEY = "orchestrator_request"
ASIDE = {"budget", "workers", "storage", "tracking"}  # sections that no result depends on

Spec = SweepSpec | PretrainingJob

_ROOT = Path(__file__).parents[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("submitted", metavar="VERB", choices=VERBS, help=f"one of {VERBS}")
    add_spec_arguments(parser)
    parser.add_argument(
        "--address",
        default=DASHBOARD,
        help="the cluster's dashboard, which takes jobs (default: %(default)s)",
    )


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb; its exit code is the job's."""
    spec = _read(args, terminal)
    for path, key in needed_on_the_cluster(spec).items():
        terminal.say(f"the cluster's nodes need {path} ({key})")
    client = connected(args.address)
    from jobs.following import Follower

    follower = Follower(client, show=terminal.show_raw)
    job = _joined_or_started(client, args, spec, terminal)
    try:
        asyncio.run(follower.follow(job))
    except KeyboardInterrupt:
        return _detached(args, job, terminal)
    return _ended(job, client.get_job_info(job), follower, terminal)


def _read(args: argparse.Namespace, terminal: Terminal) -> Spec:
    if args.submitted == "pretrain":
        return load_pretraining(args.spec, args.overrides, base=args.relative_to)
    return spec_from(args, terminal)


def needed_on_the_cluster(spec: Spec) -> dict[str, str]:
    """The paths that a job reads and writes, which are not shipped with it: path → its key."""
    return {
        value: key
        for key, value in _leaves(spec.to_json())
        if isinstance(value, str) and Path(value).is_absolute()
    }


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value in JSON data, with the nearest key above it."""
    match value:
        case dict():
            for name, item in value.items():
                yield from _leaves(item, name)
        case list():
            for item in value:
                yield from _leaves(item, key)
        case _:
            yield key, value


def connected(address: str) -> JobSubmissionClient:
    """A client of the cluster that takes jobs at `address`.

    A token that this machine has is sent, whether or not RAY_AUTH_MODE says so: a cluster without
    one ignores it.

    Raises:
        OrchestratorError: Nothing answers there, or it wants another token.
    """
    if _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)  # uploads and closed sockets are no news
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as err:
        raise OrchestratorError(
            f"--address: no Ray dashboard takes jobs at {address}: {str(err).strip()}\n"
            "Where it wants a token, put it into RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from err


def _has_token() -> bool:
    named = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(map(os.environ.get, named)) or (Path.home() / ".ray" / "auth_token").is_file()


def job_stem(verb: str, spec: Spec) -> str:
    """What all jobs of one search have in common in their ids: what is asked, not at what price.

    Data and weights count by their places here, whose content need not be reachable; the sweep
    itself then knows them by what they hold.
    """
    content = {key: value for key, value in spec.to_json().items() if key not in ASIDE}
    name = [spec.name] if isinstance(spec, SweepSpec) else []
    return "-".join([verb, *name, digest_of(content)[:8]])


def _joined_or_started(
    client: JobSubmissionClient, args: argparse.Namespace, spec: Spec, terminal: Terminal
) -> str:
    """The running job of this search, or a new one: never two at once.

    Ray refuses an id for the second time, so that of two submissions at the same moment one joins.
    """
    stem = job_stem(args.submitted, spec)
    request = digest_of(spec.to_json())
    while True:
        jobs = _jobs_of(client, stem)
        running = [number for number, job in jobs.items() if not job.status.is_terminal()]
        if running:
            _tell_of_joining(jobs[running[-1]], request, terminal)
            return f"{stem}-{running[-1]}"
        job = f"{stem}-{max(jobs, default=0) + 1}"
        try:
            _start(client, job, args, request)
        except RuntimeError as err:
            if "already" not in str(err):
                raise OrchestratorError(f"the cluster refused the job: {err}") from err
            continue  # another submission was first
        terminal.say(f"job {job} submitted to {args.address}")
        return job


def _jobs_of(client: JobSubmissionClient, stem: str) -> dict[int, JobDetails]:
    """The jobs of one search by their numbers, in order."""
    found = {}
    for job in client.list_jobs():
        head, _, number = (job.submission_id or "").rpartition("-")
        if head == stem and number.isdecimal():
            found[int(number)] = job
    return dict(sorted(found.items()))


def _tell_of_joining(job: JobDetails, request: str, terminal: Terminal) -> None:
    terminal.say(f"job {job.submission_id} is running already; following it")
    if (job.metadata or {}).get(METADATA_KEY) != request:
        terminal.say(
            "it was submitted with another budget, workers or storage: submit again when it has "
            "ended"
        )


def _start(client: JobSubmissionClient, job: str, args: argparse.Namespace, request: str) -> None:
    words = ["python", "-m", "jobs.submitted", args.submitted, SPEC_NAME]
    words += ["--relative-to", str(args.relative_to or Path(args.spec).absolute().parent)]
    words += [word for override in args.overrides for word in ("--set", override)]
    words += ["--address", "auto"]
    with shipped(Path(args.spec)) as folder:
        client.submit_job(
            entrypoint=shlex.join(words),
            submission_id=job,
            runtime_env={"working_dir": str(folder)},
            metadata={METADATA_KEY: request},
        )


@contextmanager
def shipped(spec: Path) -> Iterator[Path]:
    """What a job runs on: this product's own code, and the spec as it was written."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-job-") as name:
        folder = Path(name)
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(_ROOT / package, folder / package, ignore=ignored)
        shutil.copyfile(spec, folder / SPEC_NAME)
        yield folder


def _detached(args: argparse.Namespace, job: str, terminal: Terminal) -> tuple[int, Any]:
    terminal.say(f"detached; job {job} goes on")
    terminal.say("to follow it: the same command again")
    terminal.say(f"to stop it:   ray job stop {job} --address {args.address}")
    return 130, {"job": job, "status": "RUNNING", "detached": True}


def _ended(
    job: str, details: JobDetails, follower: Follower, terminal: Terminal
) -> tuple[int, Any]:
    """The code and document of a job that has ended."""
    result = result_in(follower.whole_log(job))
    if result is None:
        terminal.say(f"job {job} ended without a result: {details.status}. {details.message}")
        result = JobResult(code=details.driver_exit_code or 1, document=None)
    return result.code, {"job": job, "status": str(details.status), **asdict(result)}
