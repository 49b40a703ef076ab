"""MODEL_CARD.md: what a person should know before trusting a bundle's answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.bundle.manifest import Evaluation, Scores
from orchestrator.errors import listing
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import (
    LOWER_IS_BETTER,
    TaskSpec,
    TextContract,
    by_position,
    is_multilabel,
    modality_of,
)
from orchestrator.spec.record import Record
from orchestrator.tasks.question_answering import NO_ANSWER

_ALIKE = {
    "image": "the same subject, labels, kind of camera and preparation",
    "text": "the same language, subject, labels and kind of writing",
}

_OF_LABELS = (
    "It answers with one of its labels even for {article} {modality} that has none of them; it has "
    'no label for "something else" unless one is listed.'
)
_SCOPE: dict[str, str] = {
    "token-classification": "It finds entities of these kinds only, and tags words as its "
    "tokenizer splits them.",
    "question-answering": "It answers with words of the context only, and cannot tell whether "
    "these are true.",
}

_OF_CLASSES = {"precision": "precision", "recall": "recall", "F1": "f1", "ROC AUC": "roc_auc"}
_OF_ANSWERS = {"exact match": "exact_match", "F1": "f1"}

_USE = """\
## Intended use and limits

- Meant for {modality}s like those it was trained and tested on: {alike}. On others its accuracy \
is unknown.
- {scope}
- Probabilities are the model's own. `ece` says how far they were from observed frequencies on the \
data above; elsewhere they can be further off.
- Metrics are averages. A class with few examples has an uncertain score, and groups that are not \
labelled in the data were not examined.
- Do not let it decide alone where an error harms a person. Measure it on your own data first \
(`orchestrator evaluate`) and keep measuring it in use.
- The licences of the training data and of the initial weights hold for this model too; they are \
not recorded here."""

_LOADING = """\
## How to load it

The folder is opened only if every file has the digest that `bundle.json` names. It holds no \
pickle and needs no download.

```sh
orchestrator predict PATH_OF_THIS_FOLDER {file}
```

```python
from pathlib import Path

from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.predictor import load_predictor

predictor = load_predictor(open_bundle("PATH_OF_THIS_FOLDER"))
for answer in predictor.predict([{inputs}]):
    print(answer)
```"""


def model_card(experiment: Experiment, record: Record, scores: Scores) -> str:
    """The card as Markdown; equal arguments give equal text."""
    kind = experiment.task.kind
    modality = modality_of(kind)
    file = "image.jpg" if modality == "image" else "text.txt"
    words = {
        "modality": modality,
        "scope": _SCOPE.get(kind, _OF_LABELS).format(
            modality=modality, article="an" if modality == "image" else "a"
        ),
        "alike": _ALIKE[modality],
        "file": "questions.jsonl" if kind == "question-answering" else file,
        "inputs": '{"question": "…", "context": "…"}'
        if kind == "question-answering"
        else f'Path("{file}")',
    }
    several = "Multi-label " if is_multilabel(kind) else ""
    what = f"{several}{modality} classification"
    if by_position(kind):
        what = kind.replace("-", " ")
    title = f"# {what.capitalize()} with {_code(experiment.backbone.name)}"
    parts = [
        title,
        _task(experiment.task),
        _data(experiment, scores),
        _training(experiment, record),
        _metrics(experiment, scores),
        *_classes(scores),
        _USE.format_map(words),
        _provenance(experiment, record),
        _LOADING.format_map(words),
    ]
    return "\n\n".join(parts) + "\n"


def _task(task: TaskSpec) -> str:
    modality = modality_of(task.kind)
    rule = f"Every {modality} has exactly one of these labels"
    if is_multilabel(task.kind):
        rule = f"Every {modality} has any number of these labels"
    if task.kind == "question-answering":
        none = ", or has none" if NO_ANSWER in task.labels else ""
        return f"## Task\n\nEvery question has its answer in a context, as a span of it{none}."
    if task.kind == "token-classification":
        rule = "Every word of a text is part of an entity of one of these kinds, or of none"
    labels = ", ".join(_code(label) for label in task.labels)
    return f"## Task\n\n{rule} ({len(task.labels)}): {labels}."


def _data(experiment: Experiment, scores: Scores) -> str:
    rows = [("training", scores.n_train_examples), ("validation", scores.validation.n_examples)]
    if scores.test:
        rows.append(("test", scores.test.n_examples))
    counted = [[name, _count(n)] for name, n in rows]
    return (
        f"## Data\n\n{_table(['set', 'examples'], counted)}\n\n"
        f"Digest of the data: `{experiment.data_digest}`.\n\n{_preparation(experiment)}"
    )


def _preparation(experiment: Experiment) -> str:
    contract, n_read = experiment.input, experiment.strategy.predict_views
    if isinstance(contract, TextContract) and contract.overlap is not None:
        return (
            f"Texts longer than {contract.size} tokens of the tokenizer in this folder (digest "
            f"`{contract.tokenizer[:12]}`) are seen in windows that share {contract.overlap}."
        )
    if isinstance(contract, TextContract):
        read = f"The first {n_read} windows" if n_read > 1 else "The first window"
        return (
            f"{read} of {contract.size} tokens of a text are read, by the tokenizer in this folder "
            f"(digest `{contract.tokenizer[:12]}`)."
        )
    return (
        f"Images are resized ({contract.interpolation}, {contract.crop_fraction:.3g} of the "
        f"shorter side kept) to {contract.size} x {contract.size} pixels."
    )


def _training(experiment: Experiment, record: Record) -> str:
    params = [
        [key, _code(value)] for key, value in sorted(record.params.items()) if value is not None
    ]
    phases = [
        [phase.name, str(phase.epochs), f"{phase.trainable:,} of {phase.total:,}", rates]
        for phase in record.phases
        for rates in [", ".join(f"{group.name} {group.lr:.3g}" for group in phase.groups)]
    ]
    if experiment.strategy.strategy == "zero-shot":
        lead = (
            "## Training\n\nNone: strategy `zero-shot`. The head is what the text tower makes of "
        )
        return f"{lead}the labels.\n\n{_table(['parameter', 'value'], params)}"
    text = (
        f"## Training\n\nStrategy `{experiment.strategy.strategy}`, chosen by validation "
        f"`{experiment.objective.metric}`; the weights are those of epoch "
        f"{record.best_epoch or 'unknown'}."
    )
    if record.interpolation is not None:
        text += (
            f" They were then moved back towards zero-shot: {record.interpolation.alpha:g} of each "
            "weight is the fine-tuned one's (WiSE-FT), chosen by the same metric."
        )
    if phases:
        heads = ["phase", "epochs", "trained parameters", "peak rates"]
        text += f"\n\n{_table(heads, phases)}"
    return f"{text}\n\n{_table(['parameter', 'value'], params)}"


def _metrics(experiment: Experiment, scores: Scores) -> str:
    sets = {"validation": scores.validation} | ({"test": scores.test} if scores.test else {})
    names = sorted({name for evaluation in sets.values() for name in evaluation.metrics})
    rows = [[_metric_name(name), *(_score(e, name) for e in sets.values())] for name in names]
    chosen = "The model was chosen by its validation scores, so they flatter it"
    judged = (
        "The test set was read once, after the search." if scores.test else "No test set was given."
    )
    return (
        f"## Metrics\n\n{_table(['metric', *sets], rows)}\n\n{chosen}. {judged} Brackets are 95 % "
        "intervals; for accuracy by Wilson's score. They cover the chance of drawing these "
        "examples, not a change of the data."
    )


def _metric_name(name: str) -> str:
    return f"{name} (lower is better)" if name in LOWER_IS_BETTER else name


def _score(evaluation: Evaluation, name: str) -> str:
    if name not in evaluation.metrics:
        return "–"
    value = f"{evaluation.metrics[name]:.4f}"
    if name not in evaluation.intervals:
        return value
    low, high = evaluation.intervals[name]
    return f"{value} [{low:.4f}, {high:.4f}]"


def _classes(scores: Scores) -> Iterable[str]:
    """The per-class table of the test, or else of the validation, where one was made."""
    name, evaluation = (
        ("test", scores.test)
        if scores.test and scores.test.per_class
        else ("validation", scores.validation)
    )
    if evaluation.per_class:
        of_answers = any(row.exact_match is not None for row in evaluation.per_class)
        columns = _OF_ANSWERS if of_answers else _OF_CLASSES
        shown = {
            title: [getattr(row, field) for row in evaluation.per_class]
            for title, field in columns.items()
        }
        rows = [
            [
                _code(row.label),
                *("–" if values[i] is None else f"{values[i]:.3f}" for values in shown.values()),
                str(row.support),
            ]
            for i, row in enumerate(evaluation.per_class)
        ]
        yield f"### By class, on {name}\n\n{_table(['label', *shown, 'examples'], rows)}"


def _provenance(experiment: Experiment, record: Record) -> str:
    rows = [
        ["experiment", _code(experiment.digest)],
        ["trial", _code(record.trial)],
        ["data", _code(experiment.data_digest)],
        ["initial weights", _code(experiment.weights_digest)],
        *(
            [f"parent: {role}", _code(digest)]
            for role, digest in sorted(experiment.parents.items())
        ),
        ["trained with", listing(f"{name} {v}" for name, v in sorted(record.versions.items()))],
    ]
    return (
        f"## Provenance\n\n{_table(['what', 'digest or name'], rows)}\n\n"
        "`experiment.json` and `record.json` hold all of it; `bundle.json` has every file's digest."
    )


def _count(n: int | None) -> str:
    return "not recorded" if n is None else f"{n:,}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _code(value: object) -> str:
    """`value` as inline code that no table, line break or backtick in a label can leave."""
    text = " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
    return f"`{text}`"
