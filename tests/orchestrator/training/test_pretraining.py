"""Pretraining of text encoders: what it learns, what it is compared with, and its interruptions."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import start_processes

from orchestrator.data.corpus import Corpus, corpus_of_examples, read_corpus
from orchestrator.data.examples import Examples
from orchestrator.data.tokens import ensure_tokens
from orchestrator.errors import DivergedError, IntegrityError
from orchestrator.models.masked_language import MaskedLanguageModel
from orchestrator.models.text_backbone import build_text_backbone
from orchestrator.models.weights import tensors_digest
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.parts import BackboneSpec, TaskKind
from orchestrator.spec.pretraining import CorpusSpec, MaskedLanguage
from orchestrator.spec.text_encoders import encoder_tokenizer, tokenizer_digest
from orchestrator.tasks.annotations import Question
from orchestrator.training.masked_language import MaskedLanguageObjective
from orchestrator.training.objectives import build_objective, packed_rows
from orchestrator.training.pretraining import Objective, PretrainingResult, run_pretraining
from orchestrator.training.workers import Workers
from tests.orchestrator.text_material import write_encoder, write_phrases
from tests.orchestrator.training.span_material import Material

ALONE = Workers(rank=0, world_size=1, device=torch.device("cpu"))
PARAMS = MaskedLanguage(epochs=2, lr=3e-3, batch_size=8, max_length=32, held_out=0.2, seed=3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> BackboneSpec:
    folder = write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")
    return BackboneSpec(name="tiny", folder=str(folder))


@pytest.fixture(scope="module")
def corpus(encoder: BackboneSpec, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus")
    return corpus_of(root, encoder)


@pytest.fixture(scope="module")
def headed(
    encoder: BackboneSpec, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> BackboneSpec:
    """The encoder with a head of its own, which needs no warm-up."""
    folder = tmp_path_factory.mktemp("headed")
    objective_of(PARAMS, encoder, corpus).save(folder)
    return BackboneSpec(name="tiny", folder=str(folder))


def corpus_of(root: Path, encoder: BackboneSpec) -> Corpus:
    write_phrases(root / "texts", 80, seed=0)
    found = read_corpus(
        CorpusSpec(files=(str(root / "texts"),)),
        modality="text",
        fraction=PARAMS.held_out,
        seed=PARAMS.seed,
        cache=root / "cache",
    )
    tokenizer = encoder_tokenizer(encoder)
    ensure_tokens(found.examples, tokenizer, tokenizer_digest(tokenizer))
    return found


def objective_of(
    params: MaskedLanguage, encoder: BackboneSpec, corpus: Corpus
) -> MaskedLanguageObjective:
    found = build_objective(params, encoder, corpus.examples, workers=ALONE, threads=1)
    assert isinstance(found, MaskedLanguageObjective)
    return found


def run(
    objective: MaskedLanguageObjective,
    params: MaskedLanguage,
    root: Path,
    *,
    stopped: Callable[[], bool] = lambda: False,
    checkpoint_s: float = 1e9,
) -> PretrainingResult | None:
    return run_pretraining(
        objective,
        params,
        digest="d",
        workers=ALONE,
        checkpoints=root,
        told=lambda _: None,
        stopped=stopped,
        checkpoint_s=checkpoint_s,
    )


def tensors(model: MaskedLanguageModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("kind", ["token-classification", "question-answering"])
def test_the_passages_of_an_annotated_task_are_packed_each_once(
    tmp_path: Path, kind: TaskKind
) -> None:
    material = Material(tmp_path, kind, n=24)
    examples, encoder = material.examples, material.encoder
    corpus = corpus_of_examples(examples, fraction=0.3, seed=0, cache=tmp_path / "cache")
    tokenizer = encoder_tokenizer(encoder)
    table = ensure_tokens(corpus.examples, tokenizer, tokenizer_digest(tokenizer))
    told = [examples.annotation(int(i)) for i in examples.indices("train")]
    passages = [t.context if isinstance(t, Question) else t.text for t in told]
    assert isinstance(told[0], Question) is (len(set(passages)) < len(passages))
    corpus_texts = [corpus.examples.text(i) for i in range(len(corpus))]
    assert sorted(corpus_texts) == sorted(set(passages))

    rows = packed_rows(PARAMS, encoder, corpus.examples)
    for split, packed in zip(("train", "validation"), rows, strict=True):
        texts = corpus.examples.indices(split)  # type: ignore[arg-type]
        assert len(texts) > 0
        stream = [t for i in texts for t in [*table[int(i)].tolist(), table.frame.after[-1]]]
        inner = packed.ids[:, 1:-1].ravel()[: len(stream)].tolist()
        assert inner == stream
        assert packed.n_tokens == len(stream) + 2 * len(packed)
    result = run(objective_of(PARAMS, encoder, corpus), PARAMS, tmp_path / "run")
    assert result is not None


def test_the_encoder_learns_beyond_its_converged_head(
    encoder: BackboneSpec, corpus: Corpus, tmp_path: Path
) -> None:
    params = PARAMS.model_copy(update={"epochs": 6})
    objective = objective_of(params, encoder, corpus)
    initial = tensors(objective.model)
    result = run(objective, params, tmp_path)
    assert result is not None
    assert result.warm_up["head"] == "new"
    assert result.after["perplexity"] < 0.9 * result.before["perplexity"]
    assert result.before["perplexity"] == pytest.approx(np.exp(result.before["loss"]))
    assert [row.epoch for row in result.epochs] == list(range(1, 7))
    moved = [n for n, t in tensors(objective.model).items() if not torch.equal(t, initial[n])]
    assert any(".encoder.layer.0." in name for name in moved)


def test_before_the_first_step_only_the_head_is_new_and_it_has_converged(
    encoder: BackboneSpec, corpus: Corpus
) -> None:
    objective = objective_of(PARAMS, encoder, corpus)
    initial, untrained = tensors(objective.model), objective.measure()["loss"]
    head = {id(p) for p in objective.model.head_parameters()}
    names = {name for name, p in objective.model.named_parameters() if id(p) in head}
    told = objective.warm_up(lambda _: None, lambda: False)
    after = tensors(objective.model)
    assert {n for n in after if not torch.equal(after[n], initial[n])} == names
    assert all(p.requires_grad and p.grad is None for p in objective.model.parameters())
    losses, reached = told["held_out_losses"], objective.measure()["loss"]
    assert reached == pytest.approx(min(losses), rel=1e-4)
    assert reached < untrained
    again = objective.warm_up(lambda _: None, lambda: False)["held_out_losses"]
    assert min(again) == pytest.approx(reached, rel=5e-3)


def test_what_a_new_head_will_take_is_measured_without_touching_it(
    encoder: BackboneSpec, corpus: Corpus
) -> None:
    objective = objective_of(PARAMS, encoder, corpus)
    initial = tensors(objective.model)
    forecast_s = objective.warm_up_seconds()
    assert all(torch.equal(t, initial[n]) for n, t in tensors(objective.model).items())
    assert all(p.requires_grad and p.grad is None for p in objective.model.parameters())
    assert 0 < forecast_s < 60  # a tiny encoder on a few rows


@pytest.mark.parametrize("asked", [1, 5])
def test_a_limit_of_time_holds_while_the_new_head_is_trained(
    encoder: BackboneSpec, corpus: Corpus, tmp_path: Path, asked: int
) -> None:
    times = itertools.count(1)
    objective = objective_of(PARAMS, encoder, corpus)
    assert run(objective, PARAMS, tmp_path, stopped=lambda: next(times) == asked) is None
    assert not list(tmp_path.iterdir())
    assert next(times) == asked + 1, "it is asked no more"


def test_weights_with_a_head_of_their_own_keep_it(headed: BackboneSpec, corpus: Corpus) -> None:
    objective = objective_of(PARAMS, headed, corpus)
    initial = tensors(objective.model)
    assert objective.warm_up(lambda _: None, lambda: False) == {"head": "own"}
    assert objective.warm_up_seconds() == 0
    assert all(torch.equal(t, initial[n]) for n, t in tensors(objective.model).items())


def test_what_is_saved_is_a_backbone_and_loads_in_the_library(
    encoder: BackboneSpec, corpus: Corpus, tmp_path: Path
) -> None:
    objective = objective_of(PARAMS, encoder, corpus)
    objective.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    spec = BackboneSpec(name="other", folder=str(tmp_path))
    built = build_text_backbone(spec, facts_of(spec), size=None, seed=5)
    parent = build_text_backbone(encoder, facts_of(encoder), size=None, seed=0)
    assert tensors_digest(built) == tensors_digest(parent)
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    assert torch.equal(
        loaded.embeddings.word_embeddings.weight,
        objective.model.library.bert.embeddings.word_embeddings.weight,
    )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_stopped_anywhere_it_ends_bit_equal(
    headed: BackboneSpec, corpus: Corpus, tmp_path: Path, accumulate: int
) -> None:
    params = PARAMS.model_copy(update={"accumulate": accumulate})
    whole = objective_of(params, headed, corpus)
    expected = run(whole, params, tmp_path / "whole")
    assert expected is not None

    steps = itertools.count(1)
    for _ in range(20):
        parts = objective_of(params, headed, corpus)
        result = run(parts, params, tmp_path / "parts", stopped=lambda: next(steps) % 4 == 0)
        if result is not None:
            break
    assert result is not None
    assert next(steps) > 8
    assert result.before == expected.before
    assert [replace(r, seconds=0.0) for r in result.epochs] == [
        replace(r, seconds=0.0) for r in expected.epochs
    ]
    for name, tensor in tensors(whole.model).items():
        assert torch.equal(tensor, tensors(parts.model)[name]), name


def test_a_batch_in_parts_is_the_batch(
    headed: BackboneSpec, corpus: Corpus, tmp_path: Path
) -> None:
    losses = []
    for accumulate in (1, 4):
        params = PARAMS.model_copy(update={"accumulate": accumulate, "epochs": 1})
        objective = objective_of(params, headed, corpus)
        for module in objective.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        result = run(objective, params, tmp_path / str(accumulate))
        assert result is not None
        losses.append(result.after["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_checkpoints_within_an_epoch_come_with_time_and_two_are_kept(
    headed: BackboneSpec, corpus: Corpus, tmp_path: Path
) -> None:
    run(objective_of(PARAMS, headed, corpus), PARAMS, tmp_path, checkpoint_s=0.0)
    kept = sorted(path.name for path in tmp_path.iterdir())
    n_steps = -(-objective_of(PARAMS, headed, corpus).n_rows // PARAMS.batch_size)
    last = 1 + PARAMS.epochs * n_steps
    assert kept == [f"epoch-{last - 1:04d}", f"epoch-{last:04d}"]


def test_the_checkpoints_of_another_pretraining_are_refused(
    headed: BackboneSpec, corpus: Corpus, tmp_path: Path
) -> None:
    run(objective_of(PARAMS, headed, corpus), PARAMS, tmp_path)
    with pytest.raises(IntegrityError, match="another pretraining"):
        run_pretraining(
            objective_of(PARAMS, headed, corpus),
            PARAMS,
            digest="other",
            workers=ALONE,
            checkpoints=tmp_path,
            told=lambda _: None,
        )


def test_a_loss_that_is_no_number_says_which_rate_to_lower(
    headed: BackboneSpec, corpus: Corpus, tmp_path: Path
) -> None:
    params = PARAMS.model_copy(update={"lr": 10.0, "clip_norm": 0.0, "epochs": 30})
    objective = objective_of(params, headed, corpus)
    with torch.no_grad():
        objective.model.library.bert.embeddings.word_embeddings.weight.mul_(float("inf"))
    with pytest.raises(DivergedError, match=r"pretraining\.lr \(10\)"):
        run(objective, params, tmp_path)


SCRIPT = """
import sys
from pathlib import Path
from tests.orchestrator.training import test_pretraining as t
from orchestrator.spec.parts import BackboneSpec
root = Path(sys.argv[1])
encoder = BackboneSpec(name="tiny", folder=sys.argv[2])
objective = t.objective_of(t.PARAMS, encoder, t.corpus_of(root, encoder))
result = t.run(objective, t.PARAMS, root / "checkpoints", checkpoint_s=0.0)
(root / "out").mkdir()
objective.save(root / "out")
(root / "done").write_text("1")
"""


def test_killed_it_ends_bit_equal(headed: BackboneSpec, corpus: Corpus, tmp_path: Path) -> None:
    whole = objective_of(PARAMS, headed, corpus)
    assert run(whole, PARAMS, tmp_path / "whole") is not None
    (tmp_path / "expected").mkdir()
    whole.save(tmp_path / "expected")

    for wanted in (2, 4):  # checkpoints to wait for before each kill
        process = started(tmp_path, headed)
        deadline_s = time.monotonic() + 120
        while newest_number(tmp_path / "checkpoints") < wanted:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline_s, "no checkpoint came"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "done").exists()
    assert started(tmp_path, headed).wait(timeout=120) == 0
    expected = load_file(tmp_path / "expected" / "model.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def started(root: Path, encoder: BackboneSpec) -> subprocess.Popen[bytes]:
    top = str(Path(__file__).parents[3])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), str(encoder.folder)],
        env={**os.environ, "PYTHONPATH": top, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        cwd=top,
    )


def newest_number(root: Path) -> int:
    manifests = [path.parent.name for path in root.glob("epoch-*/manifest.json")]
    return max((int(name.removeprefix("epoch-")) for name in manifests), default=0)


def test_a_result_is_plain_json(headed: BackboneSpec, corpus: Corpus, tmp_path: Path) -> None:
    result = run(objective_of(PARAMS, headed, corpus), PARAMS, tmp_path)
    assert result is not None
    content = json.loads(json.dumps(result.to_json()))
    assert content["epochs"][0]["held_out"].keys() == {"loss", "perplexity"}


PAIRED = PARAMS.model_copy(update={"batch_size": 4, "accumulate": 2, "epochs": 1})


def work(rank: int, root: Path, encoder: BackboneSpec, corpus: Path) -> None:
    """What each of two workers does: the first is told to stop in mid-epoch, then both go on."""
    torch.set_num_threads(1)
    rendezvous = f"file://{root / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    workers = Workers(rank=rank, world_size=2, device=torch.device("cpu"))
    steps = itertools.count(1)
    for attempt in range(2):
        objective = build_objective(
            PAIRED, encoder, Examples.open(corpus), workers=workers, threads=1
        )
        stopped = (lambda: next(steps) == 2 and rank == 0) if attempt == 0 else lambda: False
        result = run_pretraining(
            objective,
            PAIRED,
            digest="d",
            workers=workers,
            checkpoints=root / "checkpoints",
            told=lambda _: None,
            stopped=stopped,
        )
        assert (result is None) == (attempt == 0)
    assert result is not None
    (root / f"result-{rank}.json").write_text(json.dumps(result.to_json()))
    save_file(dict(tensors_of(objective)), root / f"weights-{rank}.safetensors")
    dist.destroy_process_group()


def tensors_of(objective: Objective) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in objective.module.named_parameters()}


def test_two_workers_are_one(headed: BackboneSpec, corpus: Corpus, tmp_path: Path) -> None:
    assert headed.folder is not None
    plain = tmp_path / "plain"
    shutil.copytree(headed.folder, plain)
    config = json.loads((plain / "config.json").read_text())
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (plain / "config.json").write_text(json.dumps({**config, **rates}))
    encoder = BackboneSpec(name="tiny", folder=str(plain))
    alone = objective_of(PAIRED, encoder, corpus)
    assert alone.n_rows % PAIRED.batch_size == 1, "of the last batch one worker has no row"
    expected = run(alone, PAIRED, tmp_path / "alone")
    assert expected is not None

    args = (tmp_path, encoder, corpus.examples.folder)
    start_processes(work, args=args, nprocs=2, start_method="spawn")
    for rank in range(2):
        found = json.loads((tmp_path / f"result-{rank}.json").read_text())
        assert found["before"] == pytest.approx(expected.before, rel=1e-6)
        assert found["after"] == pytest.approx(expected.after, rel=1e-3)
        (row,) = found["epochs"]
        assert row["train_loss"] == pytest.approx(expected.epochs[0].train_loss, rel=1e-3)
    one, other = (load_file(tmp_path / f"weights-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
