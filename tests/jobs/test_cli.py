"""The command line: quick help, one JSON document, exit codes that mean something."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cli import VERBS, main
from tests.conftest import write_tree

HEAVY = {"torch", "ray", "mlflow", "pandas", "sklearn", "timm", "optuna", "datasets"}
LIMIT_S = 2.5  # well under a second on a machine that does nothing else

FIVE_MISTAKES = """\
name: Solar Cells
task: image-clasification
data: {train: train, validation: 1.5}
search:
  - strategy: partial
    backbone: tf_efficientnet_lite0
    unfreeze: 9
  - strategy: full
    backbone: tf_eficientnet_lite0
"""


def quick(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process of its own that must end soon and import nothing heavy."""
    best_s = float("inf")
    for _ in range(3):
        start_s = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "jobs", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
        )
        best_s = min(best_s, time.perf_counter() - start_s)
        if best_s < LIMIT_S:
            break
    imported = set(re.findall(r"^import time:.*\|\s+([A-Za-z_]\w*)$", done.stderr, re.MULTILINE))
    assert "argparse" in imported, "the listing of imports was not understood"
    assert not imported & HEAVY
    assert best_s < LIMIT_S
    return done


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_answers_at_once(verb: str) -> None:
    done = quick(*[verb] * bool(verb), "--help")

    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: orchestrator {verb}".rstrip())
    for line in VERBS if not verb else (VERBS[verb], "--json"):
        assert line in done.stdout


def test_a_bad_spec_fails_at_once_with_all_its_faults(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(FIVE_MISTAKES)
    root = Path(__file__).parents[2]
    done = quick("sweep", str(tmp_path / "bad.yaml"), "--json", cwd=root)

    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["error"] == "SpecError"
    assert sorted(fault["key"] for fault in document["faults"]) == [
        "data.validation",
        "name",
        "search[0].unfreeze",
        "search[1].backbone",
        "task",
    ]
    assert document["message"] in done.stderr
    assert not list(tmp_path.glob("runs*")), "nothing was started"


@pytest.mark.parametrize("verb", ["sweep", "train", "plan"])
def test_every_verb_with_a_spec_refuses_a_bad_one(
    verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(FIVE_MISTAKES)

    assert main([verb, str(tmp_path / "bad.yaml")]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "5 faults in" in captured.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["swep", "spec.yaml"], "invalid choice: 'swep'"),
        ([], "VERB"),
        (["sweep"], "SPEC"),
        (["sweep", "a.yaml", "--no-such"], "--no-such"),
        (["predict", "bundle", "image", "--top", "0"], "'0' is no number of classes"),
        (["predict", "bundle", "image", "--top", "-1"], "--top"),
        (["init", "data", "--task", "guessing"], "guessing"),
        (["sweep", "none.yaml"], "no such file"),
        (["sweep", "none.yaml", "--set", "x"], "no such file"),
        (["report", "nowhere"], "no sweep's folder"),
        (["promote", "nowhere", "--name", "a"], "no sweep's folder"),
        (["init", "/nowhere/at/all"], "no such file or folder"),
        (["advise", "data", "--backbone", "resnet81"], "no backbone 'resnet81'"),
        (["advise", "data", "--backbone", "resnet18=none.pt"], "no weights file 'none.pt'"),
        (["advise", "data", "--backbone", "clip:ViT-B-33/openai"], "Did you mean 'ViT-B-32"),
    ],
)  # fmt: skip
def test_a_bad_command_line_is_exit_code_2_and_one_document(
    words: list[str],
    told: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(words) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert told in captured.err

    assert main([*words, "--json"]) == 2
    captured = capfd.readouterr()
    document = json.loads(captured.out)
    assert document["error"] == "SpecError"
    assert told in document["message"]
    assert told in captured.err


def test_a_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])

    assert capsys.readouterr().out.strip()


def test_whatever_a_verb_prints_stays_out_of_the_document() -> None:
    code = (
        "import os, sys, jobs.backbones as verb\n"
        "from jobs.cli import main\n"
        "def run(args, terminal):\n"
        "    print('from python'); os.system('echo from a child'); terminal.say('progress')\n"
        "    terminal.show('a result')\n"
        "    return 0, {'answer': 1}\n"
        "verb.run = run\n"
        "sys.exit(main(['backbones', '--json']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == {"answer": 1}
    assert "from python" in done.stderr
    assert "from a child" in done.stderr
    assert "progress" in done.stderr
    assert "a result" not in done.stderr


def test_a_file_that_cannot_be_written_is_named_without_a_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path / "images", 3, seed=0)
    blocker = tmp_path / "file"
    blocker.write_text("")
    code = main(["init", str(tmp_path / "images"), "--out", str(blocker / "sweep.yaml"), "--json"])
    out, err = capfd.readouterr()
    assert code == 1
    assert "Traceback" not in err
    assert str(blocker) in json.loads(out)["message"]
    assert str(blocker) in err
