"""The first stage of a sweep: backbones that go on learning from a corpus before they are tuned.

A pretraining is run once for each (backbone, corpus, settings) below a storage, whoever asks for it
first; every other trial and sweep reads its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from orchestrator.data.corpus import Corpus, corpus_of_examples, evaluated_contents, read_corpus
from orchestrator.data.examples import INDEX, Examples
from orchestrator.runtime.cluster import Cluster
from orchestrator.runtime.pretrained import PretrainedFolder
from orchestrator.runtime.pretraining_run import PretrainingTicket, run_on_cluster
from orchestrator.runtime.process_cache import initial_weights_digest
from orchestrator.spec import mirror
from orchestrator.spec.backbones import backbone_modality, facts_of
from orchestrator.spec.parts import BackboneSpec, TextContract
from orchestrator.spec.pretraining import (
    MaskedLanguage,
    Pretraining,
    SimSiam,
    pretraining_digest,
)
from orchestrator.spec.sweep import WorkersSpec
from orchestrator.training.objectives import packed_rows
from orchestrator.tuning.experiments import Adapted
from orchestrator.tuning.progress import Progress
from orchestrator.tuning.tokenizing import tokenize

COLLAPSED = 0.1  # of the spread


@dataclass(frozen=True)
class Adaptation:
    """One pretraining: what is adapted, how, and to what.

    Attributes:
        backbone: With the weights it has before.
        weights_digest: Of them.
        pretraining: The settings.
        corpus: The documents.
        storage: Whose `pretrained` folder it lies in.
    """

    backbone: BackboneSpec
    weights_digest: str
    pretraining: Pretraining
    corpus: Corpus
    storage: Path

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the adapted weights."""
        contract = facts_of(self.backbone).input
        return pretraining_digest(
            self.pretraining,
            backbone=self.backbone.name,
            weights_digest=self.weights_digest,
            tokenizer=contract.tokenizer if isinstance(contract, TextContract) else None,
            corpus_digest=self.corpus.digest,
        )

    @property
    def folder(self) -> PretrainedFolder:
        """Where the adapted backbone lies, or will."""
        return PretrainedFolder(self.storage, self.digest)

    def adapted(self) -> Adapted:
        """What experiments start from; while it has not been run, the parent stands for it.

        Raises:
            IntegrityError: The folder is damaged.
        """
        if self.folder.provenance() is None:
            return Adapted(self.backbone, f"pretraining-{self.digest}", self.digest)
        spec = self.folder.adapted(self.backbone)
        weights = initial_weights_digest(spec, size=facts_of(spec).input.size)
        return Adapted(spec, weights, self.digest)

    def n_rows(self) -> int:
        """Rows of an epoch: packed texts, or images."""
        match self.pretraining:
            case MaskedLanguage():
                learnt, _ = packed_rows(self.pretraining, self.backbone, self.corpus.examples)
                return len(learnt)
            case SimSiam():
                return len(self.corpus) - self.corpus.n_held_out
            case _:
                assert_never(self.pretraining)

    def __str__(self) -> str:
        n = len(self.corpus) - self.corpus.n_held_out
        return f"pretraining of {self.backbone.name} on {n:,} documents"


def corpus_for(
    pretraining: Pretraining,
    backbones: Sequence[BackboneSpec],
    *,
    examples: Examples | None,
    cache: Path,
    progress: Progress,
) -> Corpus:
    """The documents of a pretraining, tokenized where they are texts.

    Args:
        pretraining: Names them; without a corpus they are the training examples.
        backbones: What reads them; all of one kind.
        examples: Of the sweep; what it validates and tests on is in no corpus.
        cache: Local folder that outlives the process.
        progress: Told about them.

    Raises:
        DataError: They cannot be used.
    """
    modality = backbone_modality(backbones[0])
    fraction, seed = pretraining.held_out, pretraining.seed
    if pretraining.corpus is None:
        assert examples is not None, "the spec asks for a corpus where there are no examples"
        found = corpus_of_examples(examples, fraction=fraction, seed=seed, cache=cache)
    else:
        found = read_corpus(
            pretraining.corpus,
            modality=modality,
            fraction=fraction,
            seed=seed,
            excluded=(
                frozenset()
                if examples is None
                else evaluated_contents(examples, texts=modality == "text")
            ),
            cache=cache,
            progress=partial(progress.count, "documents read"),
        )
    for note in found.notes:
        progress.say(f"corpus: {note}")
    tokenize(found.examples, backbones, progress)
    return found


def adaptation_of(
    pretraining: Pretraining, backbone: BackboneSpec, corpus: Corpus, *, storage: Path
) -> Adaptation:
    """The pretraining of one backbone; loads it once for the digest of its weights."""
    digest = initial_weights_digest(backbone, size=facts_of(backbone).input.size)
    return Adaptation(backbone, digest, pretraining, corpus, storage)


def ensure_pretrained(
    adaptations: Sequence[Adaptation],
    cluster: Cluster,
    workers: WorkersSpec,
    *,
    seconds_left: Callable[[], float | None] = lambda: None,
    progress: Progress,
) -> bool:
    """Run the pretrainings that nobody has run yet, one after the other.

    Args:
        adaptations: What is wanted.
        cluster: Where.
        workers: What a trial occupies. Nothing else runs meanwhile, so on one machine a
            pretraining on one worker takes all CPUs.
        seconds_left: Of the budget; None without a limit.
        progress: Told how far they are.

    Returns:
        Whether all have ended; False when the time was over first. What was done is kept.

    Raises:
        OrchestratorError: What a pretraining raised.
    """
    for adaptation in adaptations:
        folder, name = adaptation.folder, str(adaptation)
        if folder.provenance() is not None:
            progress.say(f"{name}: {folder.root.name} is there already")
            continue
        waiting = partial(progress.say, f"{name}: another process runs it; waiting for it")
        with folder.locked(waiting):
            if folder.provenance() is None:
                progress.say(f"start {name}")
                ended = _run(adaptation, cluster, workers, seconds_left(), progress)
                if not ended:
                    progress.say(f"{name}: the time is over; the same command continues it")
                    return False
                for line in lines_on(folder.provenance() or {}):
                    progress.say(f"end {name}: {line}")
        folder.clear_work()
    return True


def lines_on(provenance: dict[str, Any]) -> list[str]:
    """What a pretraining brought, as sentences."""
    lines = []
    before, after = provenance["before"], provenance["after"]
    if "perplexity" in before:
        change = after["perplexity"] / before["perplexity"] - 1
        whose = "its own head" if provenance["warm_up"]["head"] == "own" else "a converged new head"
        lines.append(
            f"held-out perplexity {before['perplexity']:.2f} before (frozen encoder under "
            f"{whose}), {after['perplexity']:.2f} after ({change:+.1%})"
        )
        if change >= 0:
            lines.append("the encoder has not learnt from this corpus: the perplexity did not fall")
    if "spread" in after:
        lines.append(
            f"held-out loss {after['loss']:.3f}, spread {after['spread']:.2f} (1: all directions "
            "are used, 0: all images became one point)"
        )
        if after["spread"] < COLLAPSED:
            lines.append("the views have collapsed: what was learnt is of no use. Lower lr")
    return lines


def _run(
    adaptation: Adaptation,
    cluster: Cluster,
    workers: WorkersSpec,
    seconds: float | None,
    progress: Progress,
) -> bool:
    cpus = cluster.cpus_of_one(workers)
    corpus = adaptation.corpus.examples.folder
    mirror.publish_folder(corpus, last=INDEX)
    ticket = PretrainingTicket(
        storage=mirror.location_of(adaptation.storage),
        digest=adaptation.digest,
        backbone=adaptation.backbone,
        weights_digest=adaptation.weights_digest,
        pretraining=adaptation.pretraining,
        corpus=mirror.location_of(corpus),
        corpus_digest=adaptation.corpus.digest,
        threads=max(1, int(cpus if workers.most == 1 else workers.cpus)),
        use_gpu=workers.gpus > 0,
        seconds=seconds,
    )
    return run_on_cluster(
        ticket, workers, cpus=cpus, said=lambda text: progress.say(f"  {adaptation}: {text}")
    )


def unique(adaptations: Iterable[Adaptation]) -> list[Adaptation]:
    """Each pretraining once."""
    return list({adaptation.digest: adaptation for adaptation in adaptations}.values())
