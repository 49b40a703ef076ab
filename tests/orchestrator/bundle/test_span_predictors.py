"""Exported models answer as transformers does with the same weights: 100 inputs of each task.

What is compared is what a user sees: entities of the token-classification pipeline, and the spans
of a plain decode of AutoModelForQuestionAnswering under SQuAD's rules, on short texts and on those
that need windows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from jobs.templated import passages, tagged_sentences
from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.predictor import NOT_FINITE, Outputs, load_predictor, load_predictors
from orchestrator.bundle.shared_trunk import SharedTrunk
from orchestrator.bundle.torch_predictor import TorchPredictor
from orchestrator.bundle.writing import write_bundle
from orchestrator.data.pieces import pieces_of
from orchestrator.errors import BundleError
from orchestrator.features.store import FeatureStore
from orchestrator.models.classifier import Classifier
from orchestrator.spec.record import Record
from orchestrator.tasks.question_answering import MOST_TOKENS
from orchestrator.tasks.squad import exact_match
from orchestrator.training.evaluation import trained_network
from orchestrator.training.sources import iterate_judged
from orchestrator.training.trial import run_trial
from tests.orchestrator.training.small_trials import MakeIO
from tests.orchestrator.training.span_material import MINILM, Material, minilm

N = 100
TINY: dict[str, Any] = {"strategy": "scratch", "lr": 2e-3, "epochs": 6}
TUNED: dict[str, Any] = {"strategy": "full", "epochs": 3, "backbone_lr": 1e-4, "head_lr": 1e-3}


class Exported:
    """A trial's bundle, and the weights in it as a model of transformers.

    Attributes:
        size: Tokens of a window, the special ones too.
        overlap: Tokens that a window shares with the next.
    """

    def __init__(self, material: Material, root: Path, params: dict[str, Any]) -> None:
        given = {name: value for name, value in params.items() if name != "strategy"}
        experiment = material.experiment(params["strategy"], size=material.size, **given)
        io = MakeIO(material.examples, FeatureStore(root / "store"), root)(experiment)
        io.used, io.stores_cuts = material.backbone(), False
        self.size, self.overlap = material.size, material.size // 4
        self.result = run_trial(experiment, io)
        assert self.result.checkpoint is not None
        network = trained_network(
            experiment, material.backbone(), io.checkpoints / Path(self.result.checkpoint).name
        )
        rows = pieces_of(material.examples, experiment.input).indices("validation")[:4]
        record = Record(
            trial=experiment.id,
            status="finished",
            experiment=experiment,
            best_epoch=self.result.best_epoch,
            validation=self.result.validation,
            objective=self.result.objective,
        )
        self.bundle: Bundle = write_bundle(
            root / "bundle",
            experiment=experiment,
            record=record,
            backbone=network.backbone,
            head=network.head,
            test=None,
            samples=next(iterate_judged(material.examples, [rows], experiment, threads=1)),
            created_at="2026-01-31T12:00:00Z",
        )
        self.tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(self.bundle.path / "tokenizer.json"),
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            model_max_length=material.size,
        )

    def model(self, auto: Any, **labels: Any) -> Any:
        """The bundle's weights in one of transformers' models, its classifier replaced by ours."""
        config = transformers.AutoConfig.from_pretrained(self.bundle.path, **labels)
        model = auto.from_config(config).eval()
        predictor = load_predictor(self.bundle, runtime="torch", threads=1)
        assert isinstance(predictor, TorchPredictor)
        classifier: Classifier = predictor._classifier
        names = classifier.backbone.library_names
        tensors = {names[name]: t for name, t in classifier.backbone.state_dict().items()}
        missing, unexpected = model.base_model.load_state_dict(tensors, strict=False)
        assert not [name for name in missing if not name.startswith("pooler")]
        assert not [name for name in unexpected if not name.startswith("pooler")]
        place = "classifier" if hasattr(model, "classifier") else "qa_outputs"
        setattr(model, place, classifier.head)
        return model


def entities_agree(exported: Exported, texts: list[str], *, share: float = 1.0) -> None:
    """The same entities as the pipeline's, or a share of them where texts need windows.

    The pipeline cuts them by `stride`, its last window is short, and of what windows say otherwise
    it takes the longer entity; ours takes each word where it has most context.
    """
    outputs = exported.bundle.task.outputs
    model = exported.model(
        transformers.AutoModelForTokenClassification,
        id2label=dict(enumerate(outputs)),
        label2id={tag: i for i, tag in enumerate(outputs)},
    )
    tagger = transformers.pipeline(
        "token-classification",
        model=model,
        tokenizer=exported.tokenizer,
        aggregation_strategy="first",
        stride=exported.overlap,
    )
    answers = load_predictor(exported.bundle, threads=1).predict(texts)
    either, both = 0, 0
    for text, answer, theirs in zip(texts, answers, tagger(texts), strict=True):
        ours = [(e["label"], e["start"], e["end"]) for e in answer["entities"]]
        others = [(e["entity_group"], e["start"], e["end"]) for e in theirs]
        if share == 1:
            assert ours == others, text
            np.testing.assert_allclose(
                [e["score"] for e in answer["entities"]], [e["score"] for e in theirs], atol=1e-3
            )
        either += len({*ours, *others})
        both += len({*ours} & {*others})
    assert both >= share * either
    assert both > len(texts), "a model that finds nothing would agree with any other"


def spans_agree(exported: Exported, asked: list[dict[str, str]]) -> None:
    model = exported.model(transformers.AutoModelForQuestionAnswering)
    answers = list(load_predictor(exported.bundle, threads=1).predict(asked))
    spans = []
    for one, answer in zip(asked, answers, strict=True):
        text, span = plain_decode(model, exported, one["question"], one["context"])
        assert (answer["start"], answer["end"]) == span
        assert exact_match(answer["answer"], [text]) == 1
        spans.append(span)
    assert len(set(spans)) > N // 4, "a model that always answers alike would agree as well"


@torch.inference_mode()
def plain_decode(
    model: Any, exported: Exported, question: str, context: str
) -> tuple[str, tuple[int | None, int | None]]:
    """The best of all spans of a context, or none: transformers' logits, SQuAD's official rules.

    A context that is too long is read in windows, the last of which ends with it. The best span is
    the best of any window; no answer counts as where it is least likely.
    """
    lead = exported.tokenizer(question, add_special_tokens=False).input_ids
    whole = exported.tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    own, offsets = whole.input_ids, whole.offset_mapping
    room = exported.size - len(lead) - 3
    starts = range(0, max(1, len(own) - room), max(1, room - min(exported.overlap, room // 2)))
    best, nothing, span = -np.inf, np.inf, (None, None)
    for start in {*starts, max(0, len(own) - room)}:
        part = own[start : start + room]
        tokenizer = exported.tokenizer
        before = [tokenizer.cls_token_id, *lead, tokenizer.sep_token_id]
        ids = torch.tensor([[*before, *part, tokenizer.sep_token_id]])
        types = torch.tensor([[0] * len(before) + [1] * (len(part) + 1)])
        found = model(input_ids=ids, token_type_ids=types)
        firsts, lasts = found.start_logits[0].tolist(), found.end_logits[0].tolist()
        nothing = min(nothing, firsts[0] + lasts[0])
        for i in range(len(part)):
            for j in range(i, min(i + MOST_TOKENS, len(part))):
                score = firsts[len(before) + i] + lasts[len(before) + j]
                if score > best:
                    best, span = score, (offsets[start + i][0], offsets[start + j][1])
    if nothing >= best:
        return "", (None, None)
    return context[span[0] : span[1]], span


def natural(text: str) -> str:
    """Without the spaces before punctuation."""
    return re.sub(r" ([,.;:?!])", r"\1", text)


def texts(*, second_half: bool, together: int = 1) -> list[str]:
    """Sentences as they are written, some in quotation marks, brackets or before a dash."""
    written = []
    for i, sentence in enumerate(tagged_sentences(N * together, seed=7, second_half=second_half)):
        text = natural(" ".join(word for word, _ in sentence))
        written.append((text, f"“{text}”", f"({text})", f"{text[:-1]} – or not?")[i % 4])
    return [" ".join(written[i : i + together]) for i in range(0, len(written), together)]


def questions(*, second_half: bool, n_things: int, together: int = 1) -> list[dict[str, str]]:
    """Questions on a passage, or on several of them one after the other."""
    n = N // 3 * together
    file = passages(n, seed=7, second_half=second_half, none=0.1, n_things=n_things)
    told = file["data"][0]["paragraphs"]
    return [
        {
            "question": asked["question"],
            "context": natural(" ".join(other["context"] for other in told[i : i + together])),
        }
        for i in range(0, len(told), together)
        for asked in told[i]["qas"]
    ][:N]


def test_a_tagger_finds_what_the_pipeline_finds(tmp_path: Path) -> None:
    material = Material(tmp_path, "token-classification", n=240)
    exported = Exported(material, tmp_path, TINY)
    assert {"model.onnx", "tokenizer.json"} <= set(exported.bundle.manifest.files)
    entities_agree(exported, texts(second_half=False))


def test_an_answerer_answers_as_a_plain_decode_does(tmp_path: Path) -> None:
    material = Material(tmp_path, "question-answering", n=240, size=128)
    exported = Exported(material, tmp_path, TINY)
    assert {"model.onnx", "tokenizer.json"} <= set(exported.bundle.manifest.files)
    spans_agree(exported, questions(second_half=False, n_things=1))
    spans_agree(exported, questions(second_half=False, n_things=1, together=6))


def overflowing(run: Callable[[Any], Outputs]) -> Callable[[Any], Outputs]:
    """A network whose numbers overflow."""

    def overflown(prepared: Any) -> Outputs:
        found = run(prepared)
        return Outputs(np.full_like(found.logits, np.nan), found.features)

    return overflown


def test_a_tagger_and_an_answerer_of_one_encoder_have_no_trunk_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question's tokens have types, which a trunk cut from a tagger does not take."""
    encoder = Material(tmp_path, "question-answering", n=24).encoder
    params = {"strategy": "feature-extraction", "epochs": 1}
    exported = {}
    for kind, asked in (
        ("token-classification", ["alice met bob"]),
        ("question-answering", questions(second_half=False, n_things=1)[:4]),
    ):
        (root := tmp_path / kind).mkdir()
        material = Material(root, kind, n=24, encoder=encoder)  # type: ignore[arg-type]
        exported[kind] = Exported(material, root, params).bundle, asked
    bundles = [bundle for bundle, _ in exported.values()]
    digests = {bundle.manifest.trunk.digest for bundle in bundles if bundle.manifest.trunk}
    assert len(digests) == 1
    alone = [
        list(load_predictor(bundle, threads=1).predict(asked))
        for bundle, asked in exported.values()
    ]
    for order in (1, -1):
        found = load_predictors(bundles[::order], threads=1)[::order]
        answers = [
            list(one.predict(asked))
            for one, (_, asked) in zip(found, exported.values(), strict=True)
        ]
        assert answers == alone
        for one, (_, asked) in zip(found, exported.values(), strict=True):
            monkeypatch.setattr(one, "run", overflowing(one.run))  # type: ignore[attr-defined]
            assert [answer["error"] for answer in one.predict(asked)] == [NOT_FINITE] * len(asked)
    with pytest.raises(BundleError, match="fed other inputs"):
        SharedTrunk(bundles[0], threads=1).predictor(bundles[1])


@pytest.mark.slow
@pytest.mark.skipif(MINILM is None, reason="needs the extra demo")
def test_minilm_tags_unseen_names_and_agrees_with_the_pipeline(tmp_path: Path) -> None:
    material = Material(
        tmp_path, "token-classification", n=600, unseen=True, encoder=minilm(tmp_path), size=64
    )
    exported = Exported(material, tmp_path, {**TUNED, "warm_up_epochs": 3})
    assert exported.result.objective is not None
    assert exported.result.objective >= 0.95
    entities_agree(exported, texts(second_half=True))
    entities_agree(exported, texts(second_half=True, together=8), share=0.98)


@pytest.mark.slow
@pytest.mark.skipif(MINILM is None, reason="needs the extra demo")
def test_minilm_answers_questions_on_unseen_names_and_agrees_with_a_plain_decode(
    tmp_path: Path,
) -> None:
    material = Material(
        tmp_path,
        "question-answering",
        n=900,
        n_things=2,
        unseen=True,
        encoder=minilm(tmp_path),
        size=192,
    )
    exported = Exported(material, tmp_path, {**TUNED, "epochs": 4, "warm_up_epochs": 1})
    assert exported.result.objective is not None
    assert exported.result.objective >= 0.8
    spans_agree(exported, questions(second_half=True, n_things=2))
    spans_agree(exported, questions(second_half=True, n_things=2, together=6))


def test_a_question_may_come_as_an_object_a_mapping_or_json(tmp_path: Path) -> None:
    from orchestrator.tasks.annotations import Question

    material = Material(tmp_path, "question-answering", n=24, size=64)
    exported = Exported(material, tmp_path, {**TINY, "epochs": 1})
    one = questions(second_half=False, n_things=1)[0]
    forms: list[Any] = [
        one,
        json.dumps(one),
        json.dumps(one).encode(),
        Question(one["question"], one["context"], ()),
    ]
    predictor = load_predictor(exported.bundle, threads=1)
    answers = [{**answer, "uri": ""} for answer in predictor.predict(forms)]
    assert answers == [answers[0]] * 4
    assert len(predictor.embeddings(predictor.preparer.batch([]))) == 0
    wrong: list[Any] = ["no JSON", {"question": "Who?"}, {"question": " ", "context": "x"}]
    errors = [answer["error"] for answer in predictor.predict(wrong)]
    told = ("is not JSON", "has no question and context", "has a question or context that is empty")
    assert [error.startswith(words) for error, words in zip(errors, told, strict=True)] == [
        True
    ] * 3


def test_a_long_text_is_answered_in_windows_and_has_one_embedding(tmp_path: Path) -> None:
    material = Material(tmp_path, "token-classification", n=60, size=32)
    exported = Exported(material, tmp_path, TINY)
    predictor = load_predictor(exported.bundle, threads=1)
    sentences = texts(second_half=False)
    long = " ".join(sentences[:20])
    (answer,) = predictor.predict([long])
    assert all(e["text"] == long[e["start"] : e["end"]] for e in answer["entities"])
    assert max((e["end"] for e in answer["entities"]), default=0) > len(long) // 2
    preparer = predictor.preparer
    read = [preparer.read(text) for text in (sentences[0], long)]
    batch = preparer.batch(read)
    assert len(batch[0]) > 2
    assert preparer.merged(read, predictor.embeddings(batch)).shape == (2, 32)
