"""The Backbone: a pretrained feature extractor as ordered stages that can be cut anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.models.split import Split
from orchestrator.models.tokens import Hidden, Tokens
from orchestrator.spec.parts import BackboneSpec, Contract

Pooling = Literal["last", "mean", "multi-scale", "none"]

# Prepared images [N, 3, H, W] or tokenized texts.
Inputs = Tensor | Tokens
Activations = Tensor | Hidden

# An output of a forward pass: pooled features, or the activations after a stage.
Output = Pooling | int


@dataclass(frozen=True)
class Prefix:
    """What a frozen prefix hands on: all that later stages and the pooling need of it.

    Attributes:
        activations: Output of stage `cut`.
        pooled: float32 `[N, 2 * sum(widths[1 : cut + 1])]`, the multi-scale columns of the stages
            up to the cut; no columns for other poolings.
    """

    activations: Activations
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.activations)

    def tensor_split(self, n_parts: int) -> tuple[Prefix, ...]:
        """As `Tensor.tensor_split`, of both."""
        activations: tuple[Activations, ...] = self.activations.tensor_split(n_parts)
        pairs = zip(activations, self.pooled.tensor_split(n_parts), strict=True)
        return tuple(Prefix(*pair) for pair in pairs)


class Backbone(nn.Module):
    """A pretrained feature extractor: stem, S stages, pooling.

    A frozen stage is in eval mode whatever `train()` says; see `freezing.set_trainable`, which owns
    `trainable` and `batch_norm_adapts`. A new backbone is in eval mode with everything trainable.
    Where it has adapters (`adapters.add_adapters`), nothing else of it can train.

    Attributes:
        stages: Stage 0 is the stem, 1 … S the stages; closing conv and norm are inside the last.
        closing: Pools the last stage for `pooling: last`; its parameters count with that stage.
        n_stages: S.
        widths: Channels of the output of each stage 0 … S.
        cuts: Stages after which one tensor carries all that follows; every stage but for a pyramid.
        input: How inputs must be prepared, at the size that this backbone was built for.
        library_names: The library's name of each own parameter and buffer.
        origin: Digest of the model that it is a part of, where that is more than its own tensors.

    Args:
        split: The library's model, taken apart.
        spec: What it was built from.
        contract: Its input contract.
        library: The library's model itself, for the names of its tensors; it is not kept.
    """

    def __init__(
        self, split: Split, *, spec: BackboneSpec, contract: Contract, library: nn.Module
    ) -> None:
        super().__init__()
        self.spec = spec
        self.input = contract
        self.stages = nn.ModuleList(split.stages)
        self.closing = split.closing
        self.n_stages = len(split.stages) - 1
        self.cuts = split.cuts or tuple(range(self.n_stages + 1))
        self.trainable = frozenset(range(self.n_stages + 1))
        self.batch_norm_adapts = True
        self.origin: str | None = None
        self.adapted = False
        self._channels_last = split.channels_last
        self._n_prefix_tokens = split.n_prefix_tokens
        names = {id(tensor): name for name, tensor in library.state_dict(keep_vars=True).items()}
        own = self.state_dict(keep_vars=True)
        self.library_names = {name: names[id(tensor)] for name, tensor in own.items()}
        self._assert_partition()
        self.eval()
        self.widths, self._last_width = self._measure()

    def modules_of(self, stage: int) -> tuple[nn.Module, ...]:
        """The modules that stage 0 … S is made of; the last has the closing ones."""
        modules: tuple[nn.Module, ...] = (self.stages[stage],)
        return (*modules, self.closing) if stage == self.n_stages else modules

    def parameters_of(self, stage: int) -> Iterator[nn.Parameter]:
        """The parameters of stage 0 … S."""
        for module in self.modules_of(stage):
            yield from module.parameters()

    def movable_parameters_of(self, stage: int) -> Iterator[nn.Parameter]:
        """Those that training may move: all of a stage, or its adapters where there are some."""
        for module in self.modules_of(stage):
            for name, parameter in module.named_parameters():
                if not self.adapted or is_adapter(name):
                    yield parameter

    def feature_width(self, pooling: Pooling = "last") -> int:
        """Columns of `features` under a pooling."""
        match pooling:
            case "last":
                return self._last_width
            case "mean" | "none":
                return self.widths[-1]
            case "multi-scale":
                return 2 * sum(self.widths[1:])

    def deepest_cut(self, n_trainable: int) -> int | None:
        """The last cut before the stages that train, or None if the stem trains as well.

        Args:
            n_trainable: How many stages train, counted from the output.
        """
        below = [cut for cut in self.cuts if cut <= self.n_stages - n_trainable]
        return below[-1] if below else None

    def features(self, inputs: Inputs, pooling: Pooling = "last") -> Tensor:
        """Pooled features of prepared inputs.

        `last` is what the library's own classifier sees, of a text the first token's state; `mean`
        is the mean over the positions (tokens, patch tokens) of the last stage; `multi-scale` is
        mean and max over the positions of every stage 1 … S, in a row; `none` leaves the positions
        of the last stage as they are.

        Args:
            inputs: Prepared as `input` says.
            pooling: Which features.

        Returns:
            float32 `[N, feature_width(pooling)]`, or `[N, P, feature_width(pooling)]`.
        """
        return self._features(inputs, first=0, pooling=pooling, pooled=[])

    def forward(self, inputs: Inputs) -> Tensor:
        """`features` under pooling `last`."""
        return self.features(inputs)

    def forward_prefix(self, inputs: Inputs, cut: int) -> Activations:
        """The output of stage `cut`."""
        return self.prefix(inputs, cut).activations

    def prefix(self, inputs: Inputs, cut: int, pooling: Pooling = "last") -> Prefix:
        """Runs stages 0 … `cut`; with pooling `multi-scale`, pools them on the way.

        Args:
            inputs: Prepared as `input` says.
            cut: One of `cuts`.
            pooling: What `features_from` will be asked for.
        """
        self._assert_cut(cut)
        x: Any = inputs
        pooled: list[Tensor] = []
        for stage in range(cut + 1):
            x = self.stages[stage](x)
            if pooling == "multi-scale" and stage > 0:
                pooled.append(self._pool_stage(x))
        empty = torch.zeros(len(inputs), 0, device=inputs.device)
        return Prefix(x, torch.cat(pooled, dim=1) if pooled else empty)

    def forward_suffix(self, activations: Activations, cut: int) -> Activations:
        """The output of the last stage, from the output of stage `cut`."""
        self._assert_cut(cut)
        x: Any = activations
        for stage in range(cut + 1, self.n_stages + 1):
            x = self.stages[stage](x)
        last: Activations = x
        return last

    def outputs(self, inputs: Inputs, wanted: Sequence[Output]) -> list[Activations]:
        """Several outputs of one forward pass, which goes no further than they need.

        Args:
            inputs: Prepared as `input` says.
            wanted: Poolings, or cuts whose activations are wanted.

        Returns:
            For each: features float32 `[N, D]`, or the activations after that stage.
        """
        last = self.n_stages if set(wanted) - set(self.cuts) else max(map(int, wanted))
        x: Any = inputs
        found: dict[Output, Activations] = {}
        pooled: list[Tensor] = []
        for stage in range(last + 1):
            x = self.stages[stage](x)
            if stage in wanted:
                self._assert_cut(stage)
                found[stage] = x
            if "multi-scale" in wanted and stage > 0:
                pooled.append(self._pool_stage(x))
        if "multi-scale" in wanted:
            found["multi-scale"] = torch.cat(pooled, dim=1)
        if "last" in wanted:
            found["last"] = self.pooled(x)
        if "mean" in wanted:
            found["mean"] = self.pooled(x, "mean")
        return [found[output] for output in wanted]

    def n_pooled(self, cut: int, pooling: Pooling) -> int:
        """Columns of `Prefix.pooled`: the first ones of the features `multi-scale`."""
        return 2 * sum(self.widths[1 : cut + 1]) if pooling == "multi-scale" else 0

    @torch.no_grad()
    def activation_shape(self, cut: int) -> tuple[int, ...]:
        """The shape of one image's activations after a stage, by a run on the meta device."""
        self._assert_cut(cut)
        x: Any = torch.empty(2, 3, self.input.size, self.input.size, device="meta")
        for stage in self.stages[: cut + 1]:
            x = on_meta(stage, x)
        return tuple(x.shape[1:])

    @torch.no_grad()
    def share_before(self, cut: int) -> float:
        """Share of a forward pass's arithmetic in stages 0 … `cut`, counted on the meta device."""
        self._assert_cut(cut)
        x: Any = torch.empty(2, 3, self.input.size, self.input.size, device="meta")
        counts = []
        for stage in self.stages:
            with FlopCounterMode(display=False) as counter:
                x = on_meta(stage, x)
            counts.append(counter.get_total_flops())
        return float(sum(counts[: cut + 1]) / max(1, sum(counts)))

    def is_map(self, activations: Any) -> bool:
        """Whether activations are `[N, C, H, W]`, rather than tokens or channels last."""
        return bool(activations.ndim == 4) and not self._channels_last

    def pooled(self, activations: Any, pooling: Literal["last", "mean", "none"] = "last") -> Tensor:
        """Features float32 `[N, D]` or `[N, P, D]` from the output of the last stage alone."""
        if pooling == "none":
            return self._positions(activations)[0]
        if pooling == "mean":
            return self._pool_stage(activations)[:, : self.widths[-1]]
        features: Tensor = self.closing(activations)
        return features.float()

    def to_stored(self, values: Any) -> npt.NDArray[Any]:
        """An output as it is stored: maps channels last, as convolutions leave them in memory."""
        laid_out = values.permute(0, 2, 3, 1) if self.is_map(values) else values
        found: npt.NDArray[Any] = laid_out.contiguous().cpu().numpy()
        return found

    def from_stored(self, values: npt.NDArray[Any], device: torch.device) -> Activations:
        """Stored activations as the next stage takes them: float32, maps as [N, C, H, W]."""
        tensor = torch.from_numpy(values).to(device, non_blocking=True).float()
        return tensor.permute(0, 3, 1, 2) if self.is_map(tensor) else tensor

    def features_from(
        self,
        activations: Activations,
        cut: int,
        pooling: Pooling = "last",
        earlier: Tensor | None = None,
    ) -> Tensor:
        """`features`, from what a prefix handed on; equal to those of the whole.

        Args:
            activations: Output of stage `cut`.
            cut: One of `cuts`.
            pooling: Which features.
            earlier: `Prefix.pooled` of the same images; needed for `multi-scale` at a cut above 0.

        Returns:
            float32 `[N, feature_width(pooling)]`.
        """
        self._assert_cut(cut)
        n_earlier = self.n_pooled(cut, pooling)
        given = 0 if earlier is None else earlier.shape[1]
        assert given == n_earlier, f"{given} pooled columns of earlier stages, not {n_earlier}"
        pooled = [earlier.float()] if earlier is not None and n_earlier else []
        if pooling == "multi-scale" and cut == self.n_stages:
            return pooled[0]
        return self._features(activations, first=cut + 1, pooling=pooling, pooled=pooled)

    def train(self, mode: bool = True) -> Backbone:
        """Train mode for the trainable stages only; a frozen one stays in eval mode.

        With frozen statistics, every batch norm stays in eval mode as well.
        """
        super().train(mode)
        if mode:
            for stage in set(range(self.n_stages + 1)) - self.trainable:
                for module in self.modules_of(stage):
                    module.eval()
            if not self.batch_norm_adapts:
                for module in batch_norms(self):
                    module.eval()
        return self

    def _features(self, x: Any, *, first: int, pooling: Pooling, pooled: list[Tensor]) -> Tensor:
        for stage in range(first, self.n_stages + 1):
            x = self.stages[stage](x)
            if pooling == "multi-scale" and stage > 0:
                pooled.append(self._pool_stage(x))
        return torch.cat(pooled, dim=1) if pooling == "multi-scale" else self.pooled(x, pooling)

    def _pool_stage(self, output: Any) -> Tensor:
        """Mean and max over the positions of a stage's output: float32 `[N, 2 C]`."""
        x, mask = self._positions(output)
        if mask is None:
            return torch.cat([x.mean(1), x.amax(1)], dim=1)
        present = mask[..., None]
        mean = torch.where(present, x, 0).sum(1) / present.sum(1).clamp(min=1)
        return torch.cat([mean, torch.where(present, x, -torch.inf).amax(1)], dim=1)

    def _positions(self, output: Any) -> tuple[Tensor, Tensor | None]:
        """A stage's output as float32 `[N, P, C]`, and which positions count, if not all."""
        x = (output if isinstance(output, Tensor) else output[-1]).float()
        if x.ndim == 3:
            return x[:, self._n_prefix_tokens :], None
        return x.flatten(1, 2) if self._channels_last else x.flatten(2).transpose(1, 2), None

    def _assert_cut(self, cut: int) -> None:
        assert cut in self.cuts, f"{self.spec.name} has no cut at {cut}, only at {self.cuts}"

    def _assert_partition(self) -> None:
        """Every parameter belongs to exactly one stage."""
        owned = [id(p) for stage in range(self.n_stages + 1) for p in self.parameters_of(stage)]
        assert len(owned) == len(set(owned)), f"{self.spec.name}: two stages share a parameter"
        assert set(owned) == {id(p) for p in self.parameters()}

    @torch.no_grad()
    def _measure(self) -> tuple[tuple[int, ...], int]:
        """Widths of stages 0 … S and of the features, by a run on the meta device (no memory)."""
        size = self.input.size
        x: Any = torch.empty(2, 3, size, size, device="meta")
        widths = []
        for stage in self.stages:
            x = on_meta(stage, x)
            newest = x if isinstance(x, Tensor) else x[-1]
            by_map = newest.ndim == 4 and not self._channels_last
            widths.append(newest.shape[1 if by_map else -1])
        features = on_meta(self.closing, x)
        assert features.ndim == 2, f"{self.spec.name}: features of shape {tuple(features.shape)}"
        return tuple(widths), features.shape[1]


def on_meta(module: nn.Module, x: Any) -> Any:
    """The shapes of a module's output: runs it on the meta device with its tensors' shapes."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    return functional_call(module, shapes, (x,))


def is_adapter(tensor_name: str) -> bool:
    """Whether a tensor of a module is an adapter's, by peft's name for it."""
    return ".lora_" in tensor_name


def batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    """The batch norms in a module, timm's fused and the synchronised ones included."""
    return (child for child in module.modules() if isinstance(child, _BatchNorm))
