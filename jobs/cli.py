"""The command line. Verbs are parsed before anything heavy is imported."""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jobs.terminal import Terminal, json_stdout, write_json_document
from orchestrator.errors import OrchestratorError, SpecError
from orchestrator.spec.release import release

VERBS: dict[str, str] = {
    "init": "write a commented spec for this data",
    "advise": "inspect data and recommend strategy and backbones",
    "plan": "trials, shared work and forecast, before anything is spent",
    "sweep": "run or continue a search",
    "train": "run one experiment",
    "submit": "run a verb as a job of a Ray cluster",
    "pretrain": "adapt a backbone to a domain's own texts or images",
    "evaluate": "metrics of a bundle on a labelled set",
    "report": "make a sweep's HTML report",
    "promote": "bundle, verify and register a trial",
    "predict": "answers of a bundle, one JSON line an input",
    "deploy": "serve models over HTTP, or roll those that are served to other versions",
    "undeploy": "take models out of service, or end all of it",
    "rollback": "move a model's alias back, and what is served with it",
    "backbones": "what can be named in a spec",
}


class _Parser(argparse.ArgumentParser):
    """A parser that raises what is wrong instead of exiting, so that `--json` can tell it.

    Options are written out: what looks for one among the words must find it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Show the usage and raise SpecError."""
        self.print_usage(sys.stderr)
        raise SpecError(message)


def build_parser(verbs: Sequence[str] = tuple(VERBS)) -> argparse.ArgumentParser:
    """The parser; only the named verbs' modules are imported."""
    parser = _Parser(
        prog="orchestrator",
        description="From labelled images or texts to a ranked, registered, usable model.",
        epilog="exit codes: 0 success, 1 failed run, 2 bad command line or spec, 3 bad data, "
        "130 interrupted (everything ended is kept)",
    )
    parser.add_argument("--version", action="version", version=release())
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, summary in VERBS.items():
        command = commands.add_parser(verb, help=summary, description=summary)
        if verb in verbs:
            importlib.import_module(f"jobs.{verb}").add_arguments(command)
        command.add_argument(
            "--json", action="store_true", help="exactly one JSON document on stdout"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = [word for word in words if word in VERBS][:1]
    try:
        args = build_parser(chosen).parse_args(words)
    except SpecError as err:
        print(f"orchestrator: {err}", file=sys.stderr)
        if "--json" in words:
            write_json_document(_error_document(err), sys.stdout)
        return err.exit_code
    with json_stdout(enabled=args.json) as stream:
        code, document = run_verb(args)
        if args.json:
            write_json_document(document, stream)
    return code


def run_verb(args: argparse.Namespace) -> tuple[int, Any]:
    """The exit code and the document of a verb; what it raises on purpose is told on stderr."""
    verb = importlib.import_module(f"jobs.{args.verb}")
    try:
        result: tuple[int, Any] = verb.run(args, Terminal(as_json=args.json))
    except OrchestratorError as err:
        print(f"orchestrator {args.verb}: {err}", file=sys.stderr)
        return err.exit_code, _error_document(err)
    except OSError as err:
        if err.filename is None and err.errno != errno.ENOSPC:
            raise
        print(f"orchestrator {args.verb}: {err.strerror}: {err.filename}", file=sys.stderr)
        return 1, {"error": type(err).__name__, "message": str(err)}
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130, {"error": "interrupted"}
    return result


def _error_document(err: OrchestratorError) -> dict[str, Any]:
    document: dict[str, Any] = {"error": type(err).__name__, "message": str(err)}
    if isinstance(err, SpecError):
        document["faults"] = [{"key": f.key, "message": f.message} for f in err.faults]
    return document
