"""T1 – T3: texts. Our loop against transformers' Trainer, against padding, and against no store."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from scipy import stats

from jobs.bbc_news import write_encoder
from orchestrator.data.examples import Examples
from orchestrator.data.preparing import prepare_data
from orchestrator.data.tokens import ensure_tokens
from orchestrator.features.store import FeatureStore
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.data import DataSpec
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.strategy import FeatureExtraction, Full, Partial, Strategy
from orchestrator.spec.text_encoders import encoder_tokenizer, tokenizer_digest
from orchestrator.spec.vetted import with_defaults
from orchestrator.tasks.losses import Loss
from orchestrator.training.phase_run import PhaseRun
from orchestrator.training.phases import compile_phases
from orchestrator.training.trial import TrialResult, build_network, run_trial
from orchestrator.training.workers import Workers
from tests.benchmarks.harness import Measured, paired
from tests.benchmarks.heads import trained
from tests.benchmarks.material import Kind, write_news
from tests.orchestrator.training.library_trainer import (
    MeanClassifier,
    OnOurCourse,
    padding_collator,
    settings_of,
    trainer_rows,
)
from tests.orchestrator.training.small_texts import text_experiment_of
from tests.orchestrator.training.small_trials import CPU, MakeIO, MemoryIO

LENGTH, BATCH, EPOCHS, RATE, THREADS = 256, 16, 1, 1e-4, 2
N_TEXTS: dict[Kind, int] = {"paragraphs": 480, "articles": 160}
N_HEADS, HEAD_EPOCHS = 16, 2
PAIRS = 3
CONFIDENCE = 0.99  # that a difference within the tolerance is one of seeds


def t1_and_t2(folder: Path) -> list[Measured]:
    """Texts a second of our loop over those of the Trainer, padding by batch and padding to 256.

    All of MiniLM is fine-tuned: mean over tokens, standardised, one linear layer, AdamW fused, 10 %
    linear warm-up then cosine, clipping at 1; each run trains EPOCHS epochs under a seed of its
    own. With batches made alike, the last losses must be equal within what the seeds make of them.
    """
    values = {"epochs": EPOCHS, "batch_size": BATCH, "backbone_lr": RATE, "head_lr": RATE}
    values |= {"stage_decay": 1.0, "warm_up_epochs": 0}
    strategy = Full.model_validate(with_defaults("full", "text", values))
    rows = []
    for name, kind, what, padding in (
        ("T1", "paragraphs", "our text loop against transformers.Trainer, texts/s", "longest"),
        ("T1", "articles", "the same on articles, nearly all of full length", "longest"),
        ("T2", "paragraphs", f"our text loop against padding to {LENGTH}, texts/s", "max_length"),
    ):
        bench = TextBench.written(folder / name / kind, kind)
        ours, theirs = OurTraining(bench, strategy), TrainerTraining(bench, strategy, padding)
        ratio, a, b = paired(ours.run, theirs.run, pairs=PAIRS)
        rows.append(
            Measured(
                id=name,
                what=what,
                value=1 / ratio,
                goal="≥ 1.0×",
                beside={
                    "seconds_of_ours": a,
                    "seconds_of_the_trainer": b,
                    "last_losses_of_ours": list(ours.losses),
                    "last_losses_of_the_trainer": list(theirs.losses),
                },
            )
        )
        if padding == "longest":
            rows.append(losses_compared(ours.losses, theirs.losses))
    return rows


def losses_compared(ours: list[float], theirs: list[float]) -> Measured:
    """How far the mean last losses lie apart, as a share of what seeds alone explain.

    That is the half-width of the difference's CONFIDENCE interval: Student's t of two samples.
    """
    n = len(ours)
    difference = statistics.mean(ours) - statistics.mean(theirs)
    error = ((statistics.variance(ours) + statistics.variance(theirs)) / n) ** 0.5
    tolerance = float(stats.t.ppf((1 + CONFIDENCE) / 2, 2 * n - 2)) * error
    return Measured(
        id="T1",
        what="our last loss less transformers.Trainer's, of what their seeds explain",
        value=abs(difference) / tolerance,
        goal="≤ 1×",
        beside={
            "seeds": n,
            "mean_of_ours": statistics.mean(ours),
            "mean_of_the_trainer": statistics.mean(theirs),
            "difference": difference,
            "tolerance": tolerance,
            "confidence": CONFIDENCE,
        },
    )


def t3(folder: Path) -> list[Measured]:
    """What the store saves texts: the last layer on hidden states, heads on features.

    Encoders have no dropout here: the order of draws alone would tell the two ways apart.
    """
    bench = TextBench.written(folder, "paragraphs", dropout=0.0)
    tuned: dict[str, Any] = {"epochs": HEAD_EPOCHS, "batch_size": BATCH, "warm_up_epochs": 0}
    tuned |= {"unfreeze": 1, "stored_precision": "fp32"}
    trials = Stored(bench, Partial.model_validate(with_defaults("partial", "text", tuned)))
    ratio, a, b = paired(trials.read, trials.computed, pairs=PAIRS)
    head = FeatureExtraction(epochs=HEAD_EPOCHS, batch_size=BATCH, pooling="mean")
    read, seen = Phases(bench, head, stored=True), Phases(bench, head, stored=False)
    head_ratio, head_a, head_b = paired(read.run, seen.run, pairs=PAIRS)
    bank = Bank(bench, head)
    bank_ratio, bank_a, bank_b = paired(bank.run, seen.run, pairs=PAIRS)
    return [
        Measured(
            id="T3",
            what="fine-tuning the last of six layers on stored hidden states against computing",
            value=1 / ratio,
            goal="≥ 1.5×",
            beside={
                "seconds_stored": a,
                "seconds_computed": b,
                "log_loss_stored": trials.results["stored"].validation["log_loss"],
                "log_loss_computed": trials.results["computed"].validation["log_loss"],
            },
        ),
        Measured(
            id="T3",
            what="a head on stored features against computing them in every epoch",
            value=1 / head_ratio,
            goal="≥ 5×",
            beside={
                "seconds_stored": head_a,
                "seconds_computed": head_b,
                "last_loss_stored": statistics.mean(read.losses),
                "last_loss_computed": statistics.mean(seen.losses),
            },
        ),
        Measured(
            id="T3",
            what=f"{N_HEADS} heads as one bank on stored features against computing them for each",
            value=N_HEADS / bank_ratio,
            goal="≥ 40×",
            beside={
                "seconds_of_the_bank": bank_a,
                "seconds_of_one_computed": bank_b,
                "validation_log_losses": [result.validation["log_loss"] for result in bank.results],
            },
        ),
    ]


@dataclass(frozen=True)
class TextBench:
    """Texts of BBC News, MiniLM, and a place for trials."""

    encoder: BackboneSpec
    examples: Examples
    make_io: MakeIO
    scratch: Path

    @classmethod
    def written(cls, folder: Path, kind: Kind, *, dropout: float = 0.1) -> TextBench:
        torch.set_num_threads(THREADS)
        made = write_encoder(folder)
        settings = json.loads((made / "config.json").read_text())
        settings |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        (made / "config.json").write_text(json.dumps(settings))
        encoder = BackboneSpec(name="minilm", folder=str(made))
        write_news(folder / "train", kind, n=N_TEXTS[kind])
        spec = DataSpec(train=str(folder / "train"), validation=0.2)
        task = "text-classification"
        found = prepare_data(spec, task=task, seed=0, cache=folder / "cache").examples
        tokenizer = encoder_tokenizer(encoder)
        ensure_tokens(found, tokenizer, tokenizer_digest(tokenizer))
        trials = folder / "trials"
        return cls(encoder, found, MakeIO(found, FeatureStore(folder / "features"), trials), trials)

    def experiment(self, strategy: Strategy) -> Experiment:
        found = text_experiment_of(strategy, self.examples, self.encoder)
        contract = facts_of(self.encoder).input.model_copy(update={"size": LENGTH})
        return found.model_copy(update={"input": contract})

    def io(self, experiment: Experiment, name: str) -> MemoryIO:
        io = self.make_io(experiment, name)
        io.threads = THREADS
        return io


class OurTraining:
    """The phase of a trial, from its initial weights, under one seed after the other."""

    def __init__(self, bench: TextBench, strategy: Full) -> None:
        self._bench, self._strategy = bench, strategy
        self.losses: list[float] = []

    def run(self) -> None:
        strategy = self._strategy.model_copy(update={"seed": len(self.losses)})
        phases = Phases(self._bench, strategy, stored=False)
        phases.run()
        self.losses += phases.losses


@dataclass
class Phases:
    """The only phase of a strategy, with what is frozen read from the store or computed."""

    bench: TextBench
    strategy: Strategy
    stored: bool
    losses: list[float] = field(default_factory=list)

    def run(self) -> None:
        """All epochs, from the initial weights; keeps the last one's mean loss."""
        experiment = self.bench.experiment(self.strategy)
        io = self.bench.io(experiment, "phases")
        network = build_network(experiment, io)
        (phase,) = compile_phases(self.strategy, network.backbone.n_stages)
        loss = Loss(experiment.task, self.strategy, class_weights=None)
        workers = Workers(rank=0, world_size=1, device=CPU)
        phase = phase if self.stored else replace(phase, same_inputs=False)
        run = PhaseRun(experiment, phase, network, loss, io, workers)
        means = [run.train(epoch, phase.epochs)[0] for epoch in range(1, phase.epochs + 1)]
        self.losses.append(means[-1])


class Stored:
    """A fine-tuning trial on stored hidden states, and the same trial without a store."""

    def __init__(self, bench: TextBench, strategy: Partial) -> None:
        self._bench, self._experiment = bench, bench.experiment(strategy)
        self._n = 0
        self.results: dict[str, TrialResult] = {}

    def read(self) -> None:
        self._run("stored", stores=True)

    def computed(self) -> None:
        self._run("computed", stores=False)

    def _run(self, name: str, *, stores: bool) -> None:
        self._n += 1  # a trial of the same folder would go on from its checkpoint
        io = self._bench.io(self._experiment, f"{name}-{self._n}")
        io.stores_cuts = stores
        self.results[name] = run_trial(self._experiment, io)


class Bank:
    """Heads at rates of their own on stored features, trained as one model."""

    def __init__(self, bench: TextBench, head: FeatureExtraction) -> None:
        rates = [1e-4 * 1.4**i for i in range(N_HEADS)]
        self._heads = [bench.experiment(head.model_copy(update={"head_lr": r})) for r in rates]
        self._bench = bench
        self.results: list[TrialResult] = []

    def run(self) -> None:
        """All of its epochs."""
        self.results = trained(self._heads, self._bench.io(self._heads[0], "bank"))


class TrainerTraining:
    """The Trainer on the same texts, from the same initial weights, on the same course of rates.

    Args:
        bench: The texts and the encoder.
        strategy: What ours trains by.
        padding: `longest` of each batch, whose texts are then of like length, or `max_length`.
    """

    def __init__(self, bench: TextBench, strategy: Full, padding: str) -> None:
        self._bench, self._strategy, self._padding = bench, strategy, padding
        tokenizer = encoder_tokenizer(bench.encoder)
        rows = trainer_rows(bench.examples, tokenizer, size=LENGTH)
        self._rows = [rows[i] for i in bench.examples.indices("train")]
        self._collate = padding_collator(tokenizer, size=LENGTH, padding=padding)
        self.losses: list[float] = []

    def run(self) -> None:
        """EPOCHS epochs; keeps the last one's mean loss."""
        seed = len(self.losses)
        experiment = self._bench.experiment(self._strategy.model_copy(update={"seed": seed}))
        network = build_network(experiment, self._bench.io(experiment, "phases"))
        (phase,) = compile_phases(self._strategy, network.backbone.n_stages)
        encoder = transformers.AutoModel.from_pretrained(self._bench.encoder.folder)
        grouped = self._padding == "longest"
        trainer = OnOurCourse(
            phase,
            model=MeanClassifier(encoder, network.head),
            args=settings_of(
                phase,
                self._bench.scratch / "trainer",
                batch_size=BATCH,
                lr=RATE,
                seed=seed,
                train_sampling_strategy="group_by_length" if grouped else "random",
                logging_strategy="epoch",
            ),
            train_dataset=self._rows,
            data_collator=self._collate,
        )
        trainer.train()
        self.losses.append(trainer.losses[-1])
