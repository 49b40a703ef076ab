"""The baseline: what a competent user writes from Ray's documentation.

A Tuner whose trial function starts a TorchTrainer; every worker loads the data with torchvision's
transforms and a DataLoader and runs the usual loop: a frozen backbone under a new head, then, if
asked, the last stages or all of them unfrozen; each epoch is reported with a checkpoint. It runs
on a cluster with Ray's own settings. Nothing is done to slow it, and three things spare it trouble:
its trial functions ask for no CPU, so that they cannot starve their workers, reports reach Tune by
a queue that cannot deadlock, and the placement group of a trial that Tune stops, which Ray 2.60
leaves behind, is removed, so that the trials after it have a place.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.nn.functional as F
from ray import PlacementGroupID, train, tune
from ray.train.torch import TorchTrainer
from ray.tune.schedulers import ASHAScheduler
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.queue import Queue
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from orchestrator.models.building import build_backbone
from orchestrator.runtime.cluster import KEEP_FREED_MEMORY, RAY_SETTINGS
from orchestrator.spec.backbone_table import facts_for
from orchestrator.spec.parts import BackboneSpec

ALL_STAGES = -1
POLL_S = 0.1


@dataclass(frozen=True)
class Work:
    """One trial; without images one that does nothing.

    Attributes:
        train: A class-per-folder tree.
        validation: The files of that tree that are held out, by their names.
        unfreeze: Stages from the output that move after the warm-up; ALL_STAGES for all.
        size: Pixels a side; the backbone's own when 0.
    """

    train: str = ""
    validation: tuple[str, ...] = ()
    backbone: str = ""
    weights: str = "none"
    warm_up_epochs: int = 0
    epochs: int = 0
    unfreeze: int = 0
    head_lr: float = 1e-3
    backbone_lr: float = 1e-4
    batch_size: int = 32
    size: int = 0


@dataclass(frozen=True)
class Report:
    """One epoch of one trial, and when Tune had heard of it (seconds since the epoch)."""

    trial: str
    epoch: int
    loss: float
    at_s: float


@contextmanager
def plain_cluster(cpus: int) -> Iterator[None]:
    """A local Ray cluster without any setting of ours."""
    settings = [*RAY_SETTINGS, *KEEP_FREED_MEMORY]
    ours = {name: os.environ.pop(name) for name in settings if name in os.environ}
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
        os.environ.update(ours)


def run_documented(
    works: Mapping[str, Work], *, folder: Path, workers: int, at_once: int, asha: bool = False
) -> list[Report]:
    """Run the trials as documented, on the cluster that this process has joined.

    Args:
        works: The trials by name, which has no underscore.
        folder: Where Tune and Train write.
        workers: Of each trial.
        at_once: Trials side by side.
        asha: Whether ASHA stops trials early, after the shortest warm-up at the soonest.

    Returns:
        Every epoch that Tune heard of.
    """
    heard = folder / "heard"
    heard.mkdir(parents=True)
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="loss",
        mode="min",
        max_t=max(1, *(work.warm_up_epochs + work.epochs for work in works.values())),
        grace_period=max(1, min(work.warm_up_epochs for work in works.values())),
    )
    results = tune.Tuner(
        tune.with_resources(_trial, {"memory": 1e6}),
        param_space={
            "name": tune.grid_search(list(works)),
            "works": {name: asdict(work) for name, work in works.items()},
            "workers": workers,
            "folder": str(folder),
        },
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once, scheduler=scheduler if asha else None
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            name="documented",
            verbose=0,
            callbacks=[_RemoveGroup(folder)],
        ),
    ).fit()
    assert not results.errors, results.errors
    found = []
    for path in sorted(heard.iterdir(), key=lambda path: path.stat().st_mtime):
        trial, epoch, loss = path.name.split("_")
        found.append(Report(trial, int(epoch), float(loss), path.stat().st_mtime))
    return found


class _ForwardReports(train.UserCallback):
    """Puts rank 0's reports into a queue without bound."""

    def __init__(self, reports: Queue) -> None:
        self._reports = reports

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        self._reports.put_nowait(metrics[0])


class _RemoveGroup(tune.Callback):
    """Removes the placement group of a trial that has ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for path in self._folder.glob(f"group_{trial.config['name']}_*"):
            group = PlacementGroup(PlacementGroupID.from_hex(path.name.rpartition("_")[2]))
            remove_placement_group(group)


def _trial(config: dict[str, Any]) -> None:
    """A Tune trial is a TorchTrainer's driver (Ray's user guide on Tune with Train)."""
    name, folder = config["name"], Path(config["folder"])
    reports = Queue(actor_options={"num_cpus": 0})
    callbacks: list[Any] = [_ForwardReports(reports)]
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config["works"][name],
        scaling_config=train.ScalingConfig(
            num_workers=config["workers"], resources_per_worker={"CPU": 1}
        ),
        run_config=train.RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}",
            storage_path=str(folder),
            callbacks=callbacks,
        ),
    )
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as err:  # noqa: BLE001  (raised below, in the trial's own thread)
            errors.append(err)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive() or not reports.empty():
        try:
            metrics = reports.get(timeout=POLL_S)
        except queue.Empty:
            continue
        (folder / f"group_{name}_{metrics.pop('group')}").touch()
        (folder / "heard" / f"{name}_{metrics['epoch']}_{metrics['loss']}").touch()
        tune.report(metrics)
    if errors:
        raise errors[0]


def _worker(config: dict[str, Any]) -> None:
    work = Work(**config)
    torch.set_num_threads(1)
    if not work.train:
        train.report({"epoch": 1, "loss": 0.0, "group": _group()})
        return
    loaders, n_classes = _loaders(work)
    spec = BackboneSpec(name=work.backbone, weights=work.weights)
    backbone = build_backbone(spec, size=work.size or facts_for(work.backbone).input.size)
    head = nn.Linear(backbone.feature_width("last"), n_classes)
    backbone.requires_grad_(False)
    network = nn.Sequential(_Pooled(backbone), head).to(memory_format=torch.channels_last)
    model = train.torch.prepare_model(network)
    _epochs(model, backbone, loaders, [(head, work.head_lr)], range(work.warm_up_epochs))
    if work.epochs:
        first = 0 if work.unfreeze == ALL_STAGES else -work.unfreeze
        moving = [*[*backbone.stages][first:], backbone.closing]
        for stage in moving:
            stage.requires_grad_(True)
        model = train.torch.prepare_model(network)
        groups = [(head, work.head_lr), *((stage, work.backbone_lr) for stage in moving)]
        span = range(work.warm_up_epochs, work.warm_up_epochs + work.epochs)
        _epochs(model, backbone, loaders, groups, span)


def _group() -> str:
    """The placement group that this worker is in."""
    return str(ray.get_runtime_context().get_placement_group_id())


def _loaders(work: Work) -> tuple[list[DataLoader[Any]], int]:
    """Loaders of the training and the held-out images, and the number of classes."""
    contract = facts_for(work.backbone).input
    size = work.size or contract.size
    transform = transforms.Compose(
        [
            transforms.Lambda(lambda image: image.convert("RGB")),
            transforms.Resize(round(size / contract.crop_fraction)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(contract.mean, contract.std),
        ]
    )
    data = ImageFolder(work.train, transform)
    held = set(work.validation)
    is_held = [Path(path).name in held for path, _ in data.samples]
    parts = [Subset(data, [i for i, h in enumerate(is_held) if h == want]) for want in (0, 1)]
    loaders = [DataLoader(part, work.batch_size, shuffle=n == 0) for n, part in enumerate(parts)]
    return [train.torch.prepare_data_loader(loader) for loader in loaders], len(data.classes)


class _Pooled(nn.Module):
    """The backbone's features."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.backbone.features(images, pooling="last")
        return features


def _epochs(
    model: nn.Module,
    backbone: nn.Module,
    loaders: list[Any],
    groups: list[tuple[nn.Module, float]],
    epochs: range,
) -> None:
    """Train, validate, report with a checkpoint. Frozen statistics stay as they are."""
    optimizer = torch.optim.AdamW(
        [{"params": list(module.parameters()), "lr": lr} for module, lr in groups],
        weight_decay=1e-2,
    )
    for epoch in epochs:
        model.train()
        backbone.eval()
        for images, targets in loaders[0]:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images.to(memory_format=torch.channels_last)), targets).backward()
            optimizer.step()
        model.eval()
        total = 0.0
        with torch.inference_mode():
            for images, targets in loaders[1]:
                outputs = model(images.to(memory_format=torch.channels_last))
                total += float(F.cross_entropy(outputs, targets, reduction="sum"))
        loss = total / len(loaders[1].dataset)
        metrics = {"epoch": epoch + 1, "loss": loss, "group": _group()}
        with tempfile.TemporaryDirectory() as scratch:
            torch.save(model.state_dict(), Path(scratch) / "model.pt")
            train.report(metrics, checkpoint=train.Checkpoint.from_directory(scratch))
