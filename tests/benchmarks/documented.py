"""The baseline: what a competent user writes from Ray's documentation.

A Tuner whose trial function starts a TorchTrainer; every worker loads the data with torchvision's
transforms and a DataLoader and runs the usual loop: a frozen backbone under a new head, then, if
asked, the last stages unfrozen. Nothing is done to slow it.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ray import train, tune
from ray.train.torch import TorchTrainer
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from orchestrator.models.building import build_backbone
from orchestrator.spec.backbone_table import facts_for
from orchestrator.spec.parts import BackboneSpec


@dataclass(frozen=True)
class Work:
    """One trial: 0 images for a trial that does nothing."""

    images: str
    backbone: str
    weights: str
    n_images: int
    warm_up_epochs: int
    epochs: int
    unfreeze: int
    lr: float
    batch_size: int = 32
    threads: int = 1


def run_documented(works: list[Work], *, folder: Path, workers: int, at_once: int) -> list[float]:
    """Run the trials as documented.

    Returns:
        The last validation loss of each.
    """
    results = tune.Tuner(
        _trial,
        param_space={
            "work": tune.grid_search([asdict(work) for work in works]),
            "workers": workers,
            "folder": str(folder),
        },
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
        run_config=tune.RunConfig(storage_path=str(folder), name="documented", verbose=0),
    ).fit()
    return [float(result.metrics["loss"]) for result in results]


def _trial(config: dict[str, Any]) -> None:
    """A Tune trial is a TorchTrainer's driver (Ray's user guide on Tune with Train)."""
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config["work"],
        scaling_config=train.ScalingConfig(
            num_workers=config["workers"], resources_per_worker={"CPU": 1}
        ),
        run_config=train.RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}", storage_path=config["folder"]
        ),
    )
    result = trainer.fit()
    metrics = result.metrics or {}
    tune.report({"loss": metrics.get("loss", 0.0)})


def _worker(config: dict[str, Any]) -> None:
    work = Work(**config)
    torch.set_num_threads(work.threads)
    if not work.n_images:
        train.report({"loss": 0.0})
        return
    contract = facts_for(work.backbone).input
    side = round(contract.size / contract.crop_fraction)
    transform = transforms.Compose(
        [
            transforms.Lambda(lambda image: image.convert("RGB")),
            transforms.Resize(side),
            transforms.CenterCrop(contract.size),
            transforms.ToTensor(),
            transforms.Normalize(contract.mean, contract.std),
        ]
    )
    data = ImageFolder(work.images, transform)
    n_train = int(0.85 * len(data))
    split = torch.Generator().manual_seed(0)
    parts = torch.utils.data.random_split(data, [n_train, len(data) - n_train], generator=split)
    loaders = [DataLoader(part, work.batch_size, shuffle=n == 0) for n, part in enumerate(parts)]
    backbone = build_backbone(BackboneSpec(name=work.backbone, weights=work.weights))
    head = nn.Linear(backbone.feature_width("last"), len(data.classes))
    model = train.torch.prepare_model(
        nn.Sequential(_Pooled(backbone), head).to(memory_format=torch.channels_last)
    )
    backbone.requires_grad_(False)
    loss = _epochs(model, backbone, loaders, work.warm_up_epochs, 0, work.lr)
    if work.unfreeze:
        for stage in list(backbone.stages)[-work.unfreeze :]:
            stage.requires_grad_(True)
        loss = _epochs(model, backbone, loaders, work.epochs, work.unfreeze, work.lr)
    checkpoint = Path(train.get_context().get_trial_dir()) / f"model-{os.getpid()}.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save(head.state_dict(), checkpoint)
    train.report({"loss": loss})


class _Pooled(nn.Module):
    """The backbone's features."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.backbone.features(images, pooling="last")
        return features


def _epochs(
    model: nn.Module, backbone: nn.Module, loaders: list[Any], n: int, unfreeze: int, lr: float
) -> float:
    """Train and validate `n` epochs; the last validation loss. Frozen stages stay in eval mode."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    loss = float("nan")
    for _ in range(n):
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
    return loss
