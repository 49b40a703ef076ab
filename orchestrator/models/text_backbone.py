"""Text encoders as backbones: the embeddings are the stem, every layer is a stage."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from orchestrator.errors import WeightsError
from orchestrator.models.backbone import Backbone
from orchestrator.models.split import Split, UnsupportedFamilyError
from orchestrator.models.tokens import Hidden, Tokens
from orchestrator.spec.backbone_table import BackboneFacts
from orchestrator.spec.parts import BackboneSpec, TextContract
from orchestrator.spec.text_encoders import encoder_folder

_TOLERANCE = 1e-4
# Where the families keep their layers: a path to the module that runs them, and its list.
_LAYERS = (("encoder", "layer"), ("transformer", "layer"), ("", "layers"))
_LAST_NORM = "final_norm"
_FIRST_LAYER_ONLY = "conv"  # of DeBERTa v2: runs beside its first layer


class TextBackbone(Backbone):
    """A Backbone from `Tokens` to features; between two stages there is `Hidden`."""

    def is_map(self, activations: Any) -> bool:
        return False

    def activation_shape(self, cut: int) -> tuple[int, ...]:
        """Of the longest text."""
        self._assert_cut(cut)
        return (self.input.size, self.widths[cut])

    def share_before(self, cut: int) -> float:
        """All layers cost alike; looking embeddings up costs next to nothing."""
        self._assert_cut(cut)
        return cut / self.n_stages

    def to_stored(self, values: Any) -> npt.NDArray[Any]:
        """Hidden states padded to the longest text that may come: [N, size, C], padding zero."""
        if isinstance(values, Tensor):
            return values.cpu().numpy()
        states = torch.where(values.mask[..., None], values.states, 0)
        return nn.functional.pad(states, (0, 0, 0, self.input.size - states.shape[1])).cpu().numpy()

    def from_stored(self, values: npt.NDArray[Any], device: torch.device) -> Hidden:
        """A batch of stored hidden states, cut to its longest text; only padding is all zero."""
        mask: npt.NDArray[np.bool_] = np.any(values != 0, axis=-1, keepdims=False)
        longest = int(mask.sum(axis=1).max(initial=1))
        states = torch.from_numpy(np.ascontiguousarray(values[:, :longest]))
        return Hidden(
            states.to(device, non_blocking=True).float(),
            torch.from_numpy(mask[:, :longest]).to(device),
        )

    def _positions(self, output: Any) -> tuple[Tensor, Tensor | None]:
        return output.states.float(), output.mask

    def _measure(self) -> tuple[tuple[int, ...], int]:
        width = int(self.stages[0].width)  # type: ignore[arg-type]
        return (width,) * (self.n_stages + 1), width


def build_text_backbone(
    spec: BackboneSpec, facts: BackboneFacts, *, size: int | None, seed: int
) -> TextBackbone:
    """An encoder with its weights, in eval mode, everything trainable.

    Args:
        spec: The encoder; with weights `none` its architecture alone.
        facts: Of the encoder.
        size: Tokens of the longest text; the usual most when None.
        seed: Of the initialisation of whatever the weights do not cover.

    Raises:
        WeightsError: The weights cannot be had, do not fit, or cannot be cut into stages.
    """
    assert isinstance(facts.input, TextContract)
    model = _library_model(spec, seed)
    try:
        split = split_encoder(model)
    except UnsupportedFamilyError as err:
        raise WeightsError(f"{spec.name}: {err}. Use another encoder") from err
    return TextBackbone(
        split,
        spec=spec,
        contract=facts.input.model_copy(update={"size": size or facts.input.size}),
        library=model,
    )


def split_encoder(model: nn.Module) -> Split:
    """Takes an encoder of transformers apart, sharing its tensors.

    Raises:
        UnsupportedFamilyError: The parts in a row do not compute what the whole does.
    """
    owner_name, list_name = next(
        (place for place in _LAYERS if _has_list(model, *place)), (None, None)
    )
    if owner_name is None or list_name is None or not hasattr(model, "embeddings"):
        raise UnsupportedFamilyError(f"{type(model).__name__} has no embeddings and list of layers")
    owner = model.get_submodule(owner_name)
    layers: nn.ModuleList = getattr(owner, list_name)
    shared = [
        child
        for name, child in owner.named_children()
        if owner is not model
        and name not in (list_name, _FIRST_LAYER_ONLY)
        and any(True for _ in child.parameters())
    ]
    stages: list[nn.Module] = [_Embeddings(model, shared)]
    for number in range(len(layers)):
        stages.append(_Layer(model, owner_name, list_name, number))
    split = Split(tuple(stages), _FirstToken())
    _assert_equal(model, split)
    return split


class _Embeddings(nn.Module):
    """The stem: tokens to hidden states. What all layers share belongs to it."""

    def __init__(self, model: Any, shared: list[nn.Module]) -> None:
        super().__init__()
        self.embeddings = model.embeddings
        self.project = getattr(model, "embeddings_project", None)  # of ELECTRA
        self.shared = nn.ModuleList(shared)
        self.width = int(model.config.hidden_size)
        self._takes_mask = model.config.model_type.startswith("deberta")
        self._takes_types = getattr(model.config, "type_vocab_size", 0) > 1

    def forward(self, tokens: Tokens) -> Hidden:
        extra = {"mask": tokens.mask.long()} if self._takes_mask else {}
        if tokens.types is not None and self._takes_types:
            extra["token_type_ids"] = tokens.types
        states = self.embeddings(input_ids=tokens.ids, **extra)
        return Hidden(states if self.project is None else self.project(states), tokens.mask)


class _Layer(nn.Module):
    """One layer, run by the library's own model with its embeddings and other layers left out.

    The model builds the attention mask and the relative positions that its layers want.
    """

    def __init__(self, model: Any, owner_name: str, list_name: str, number: int) -> None:
        super().__init__()
        shell = shallow(model)
        owner = shell
        if owner_name:
            owner = shallow(shell._modules[owner_name])
            shell._modules[owner_name] = owner
        layers = owner._modules[list_name]
        is_last = number == len(layers) - 1
        self.layer = layers[number]
        owner._modules[list_name] = nn.ModuleList([self.layer])
        shell._modules["embeddings"] = _PassThrough()
        shell._modules.pop("embeddings_project", None)
        if "pooler" in shell._modules:
            shell._modules["pooler"] = None
        if _LAST_NORM in owner._modules:
            self.norm = owner._modules[_LAST_NORM] if is_last else nn.Identity()
            owner._modules[_LAST_NORM] = self.norm
        if owner._modules.get(_FIRST_LAYER_ONLY) is not None:
            self.conv = owner._modules[_FIRST_LAYER_ONLY] if number == 0 else None
            owner._modules[_FIRST_LAYER_ONLY] = self.conv
        self.__dict__["_shell"] = shell  # no child: some of its tensors belong to other stages

    def forward(self, hidden: Hidden) -> Hidden:
        found = self.__dict__["_shell"](
            inputs_embeds=hidden.states, attention_mask=hidden.mask.long()
        )
        return Hidden(found.last_hidden_state, hidden.mask)


class _PassThrough(nn.Module):
    """In place of the embeddings: hands on what has been embedded."""

    def forward(self, *args: Any, inputs_embeds: Any = None, **_: Any) -> Any:
        if inputs_embeds is not None:
            return inputs_embeds
        return next(a for a in args if isinstance(a, Tensor) and a.is_floating_point())


class _FirstToken(nn.Module):
    """The first token's state, which BERT's classifiers read."""

    def forward(self, hidden: Hidden) -> Tensor:
        return hidden.states[:, 0]


def shallow(module: Any) -> Any:
    """A copy that shares all tensors and has its own dictionary of children."""
    twin = copy.copy(module)
    object.__setattr__(twin, "_modules", dict(module._modules))
    return twin


def _has_list(model: nn.Module, owner_name: str, list_name: str) -> bool:
    owner = getattr(model, owner_name, None) if owner_name else model
    return isinstance(getattr(owner, list_name, None), nn.ModuleList)


@torch.no_grad()
def _assert_equal(model: Any, split: Split) -> None:
    """The stages in a row must compute what the whole model does."""
    training = model.training
    model.eval()
    vocabulary = int(model.config.vocab_size)
    ids = (torch.arange(16).reshape(2, 8) * 7 + 11) % vocabulary
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 5:] = False
    expected = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]
    x: Any = Tokens(ids, mask)
    for stage in split.stages:
        x = stage.eval()(x)
    model.train(training)
    gap = float((x.states[mask] - expected).abs().max())
    if not gap <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UnsupportedFamilyError(
            f"{type(model).__name__} cannot be cut into layers: in a row they differ from the "
            f"whole by up to {gap:.3g}"
        )


def _library_model(spec: BackboneSpec, seed: int) -> Any:
    """The library's model, with its weights or seeded ones."""
    import transformers

    model, _ = library_encoder(spec, seed, transformers.AutoModel)
    return model.eval()


def library_encoder(spec: BackboneSpec, seed: int, architecture: Any) -> tuple[Any, set[str]]:
    """An encoder as one of the library's auto classes builds it; the global random state stays.

    Args:
        spec: The encoder; with weights `none` its architecture alone.
        seed: Of the initialisation of whatever the weights do not cover.
        architecture: `AutoModel`, or one with a head.

    Returns:
        The model, and the names of the tensors outside of the encoder that its files lack.

    Raises:
        WeightsError: The weights cannot be had, are refused, or do not fit the encoder.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what is missing is told below, or meant
    folder = encoder_folder(spec)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            config = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if spec.weights == "none":
                model = architecture.from_config(config)
                return model, {name for name, _ in model.named_parameters()}
            model, info = architecture.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except pickle.UnpicklingError as err:
            raise WeightsError(
                f"{spec.name}: the weights in {folder} are refused, because reading them could run "
                "code (pickle). Save the model as safetensors where you trust it"
            ) from err
        except (OSError, ValueError, RuntimeError, KeyError) as err:
            raise WeightsError(f"{spec.name}: {folder} cannot be loaded ({err})") from err
    encoder = {f"{model.base_model_prefix}.{name}" for name in model.base_model.state_dict()}
    if model.base_model is model:
        encoder = set(model.state_dict())
    absent = {name for name in info["missing_keys"] if "pooler" not in name.split(".")[:2]}
    missing = sorted(absent & encoder)
    if missing or info["mismatched_keys"]:
        raise WeightsError(
            f"{spec.name}: the weights in {folder} do not fit its config.json: "
            f"{len(missing)} tensors are missing ({', '.join(missing[:3])}), "
            f"{len(info['mismatched_keys'])} have another shape. Fetch the folder again"
        )
    return model, absent - encoder
