"""SimSiam as the objective of a pretraining: two views of an image predict each other.

Chen & He, Exploring Simple Siamese Representation Learning, CVPR 2021: a projector of three layers,
a predictor with a bottleneck, negative cosine similarity, and no gradient through the target.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from orchestrator.data.augmenting import contrasted_pixels, example_rng
from orchestrator.data.batches import Indices
from orchestrator.data.examples import Examples
from orchestrator.data.transforms import decode_side
from orchestrator.features.network_inputs import network_inputs
from orchestrator.models.backbone import Backbone
from orchestrator.spec.parts import InputContract
from orchestrator.training.param_groups import ParamGroup
from orchestrator.training.pretraining import Measures, Told
from orchestrator.training.workers import Workers

PROJECTED, BOTTLENECK = 2048, 512  # the paper's
WEIGHTS = "model.safetensors"
EVALUATION_BATCH = 64
AHEAD = 2  # batches that are decoded before they are wanted

Views = tuple[Tensor, Tensor]


class SiameseNetwork(nn.Module):
    """A backbone with a projector and a predictor."""

    def __init__(self, backbone: Backbone, *, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.feature_width("last")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.projector = nn.Sequential(
                *_layer(width, PROJECTED),
                *_layer(PROJECTED, PROJECTED),
                nn.Linear(PROJECTED, PROJECTED, bias=False),
                nn.BatchNorm1d(PROJECTED, affine=False),
            )
            self.predictor = nn.Sequential(
                *_layer(PROJECTED, BOTTLENECK), nn.Linear(BOTTLENECK, PROJECTED)
            )

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each image float [n], and its projections [2 n, D] without gradient."""
        z1, z2 = self.projector(self.backbone(one)), self.projector(self.backbone(other))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        losses = -(F.cosine_similarity(p1, z2.detach()) + F.cosine_similarity(p2, z1.detach())) / 2
        return losses, torch.cat([z1, z2]).detach()


class SimSiamObjective:
    """Views of the images of a corpus.

    Args:
        network: On the workers' device.
        corpus: Images; the validation split is only measured on.
        contract: How they are prepared.
        crop_scale: Least share of an image's area that a view shows.
        seed: Of the views.
        workers: Who share the measuring.
        threads: Decoding threads.
    """

    def __init__(
        self,
        network: SiameseNetwork,
        corpus: Examples,
        contract: InputContract,
        *,
        crop_scale: float,
        seed: int,
        workers: Workers,
        threads: int,
    ) -> None:
        self.network: SiameseNetwork = network
        self.module: nn.Module = network
        self._corpus, self._contract = corpus, contract
        self._learnt, self._held_out = corpus.indices("train"), corpus.indices("validation")
        self.n_rows = len(self._learnt)
        self._crop_scale, self._seed = crop_scale, seed
        self._workers, self._threads = workers, threads

    def warm_up(self, told: Told, stopped: Callable[[], bool]) -> dict[str, Any] | None:
        """Nothing: projector and predictor are thrown away in the end, and prove nothing."""
        return {}

    def warm_up_seconds(self) -> float:
        """None."""
        return 0.0

    def n_units(self, rows: Indices) -> int:
        """One an image."""
        return len(rows)

    def batches(self, batches: Sequence[Indices], epoch: int) -> Iterator[Views]:
        """Two views of each image that (seed, epoch, image) draws."""
        return self._decoded([self._learnt[rows] for rows in batches], epoch)

    def loss(self, module: nn.Module, batch: Views) -> Tensor:
        """Summed over the images; a lone image has no statistics, and takes the running ones."""
        lone = len(batch[0]) == 1 and module.training
        if lone:
            module.eval()
        losses: Tensor = module(*batch)[0].sum()
        if lone:
            module.train()
        return losses

    def optimizer(self, groups: tuple[ParamGroup, ...]) -> Optimizer:
        """SGD with momentum."""
        params: list[dict[str, Any]] = [
            {"params": list(g.parameters), "lr": g.lr, "weight_decay": g.weight_decay}
            for g in groups
        ]
        return torch.optim.SGD(params, momentum=0.9, fused=True)

    @torch.inference_mode()
    def measure(self) -> Measures:
        """The loss on the held-out images, and the spread of what they are projected to.

        The spread is the standard deviation of normalised projections times the root of their
        width: about 1 where they fill the sphere, 0 where all images became one point.
        """
        self.network.eval()
        mine = self._held_out[self._workers.share(len(self._held_out))]
        blocks = [mine[i : i + EVALUATION_BATCH] for i in range(0, len(mine), EVALUATION_BATCH)]
        device = self._workers.device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        moments = torch.zeros(2, PROJECTED, dtype=torch.float64, device=device)
        for views in self._decoded(blocks, 0):
            # In full precision: once prepared for training, calling it computes in half.
            losses, projected = SiameseNetwork.forward(self.network, *views)
            unit = F.normalize(projected.double(), dim=1)
            sums += torch.tensor([float(losses.sum()), len(losses)], device=device)
            moments += torch.stack([unit.sum(0), unit.square().sum(0)])
        loss, n = self._workers.total(sums).tolist()
        mean, squares = self._workers.total(moments) / (2 * n)
        spread = (squares - mean.square()).clamp(min=0).sqrt().mean() * PROJECTED**0.5
        return {"loss": loss / n, "spread": float(spread)}

    def save(self, folder: Path) -> None:
        """Write the backbone's tensors under the library's names."""
        backbone = self.network.backbone
        own = backbone.state_dict()
        tensors = {
            library: own[name].detach().cpu().contiguous().clone()
            for name, library in backbone.library_names.items()
        }
        save_file(tensors, folder / WEIGHTS)

    def _decoded(self, batches: Sequence[Indices], epoch: int) -> Iterator[Views]:
        """Batches on the device, decoded by threads ahead of whoever consumes them."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="views")
        waiting: deque[list[Future[list[npt.NDArray[np.uint8]]]]] = deque()
        view = partial(self._views, epoch=epoch)
        try:
            for rows in batches:
                waiting.append([pool.submit(view, int(row)) for row in rows])
                if len(waiting) > AHEAD:
                    yield self._on_device(waiting.popleft())
            while waiting:
                yield self._on_device(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _views(self, row: int, epoch: int) -> list[npt.NDArray[np.uint8]]:
        image = self._corpus.image(row, least_side=decode_side(self._contract))
        content = self._corpus.content(row)
        return [
            contrasted_pixels(
                image,
                self._contract,
                example_rng(self._seed, 2 * epoch + number, content),
                least_share=self._crop_scale,
            )
            for number in range(2)
        ]

    def _on_device(self, futures: list[Future[list[npt.NDArray[np.uint8]]]]) -> Views:
        pairs = [future.result() for future in futures]
        one, other = (
            network_inputs(np.stack(pixels), self._contract, self._workers.device)
            for pixels in zip(*pairs, strict=True)
        )
        assert isinstance(one, Tensor)
        assert isinstance(other, Tensor)
        return one, other


def _layer(n_in: int, n_out: int) -> tuple[nn.Module, ...]:
    return nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out), nn.ReLU()
