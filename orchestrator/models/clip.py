"""A CLIP at work: open_clip's model, its tokenizer and its logit scale.

Zero-shot as its authors do it: every prompt of a label is embedded and scaled to length one, the
mean over the label's prompts is scaled to length one again, and an image's probabilities are the
softmax of the model's own scale times the cosines (Radford et al., ICML 2021, section 3.1).
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub.errors import HfHubHTTPError
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer
from safetensors.torch import load, save
from torch import Tensor, nn

from orchestrator.errors import Fault, IntegrityError, SpecError, WeightsError, shown
from orchestrator.models.backbone import Backbone
from orchestrator.models.clip_visual import split_visual
from orchestrator.models.label_embeddings import (
    LabelEmbeddings,
    embeddings_key,
    read_embeddings,
    write_embeddings,
)
from orchestrator.spec.backbone_table import BackboneFacts
from orchestrator.spec.clip_models import HUB, PREFIX, clip_config, clip_contract
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import BackboneSpec, InputContract
from orchestrator.spec.stopping import go_on

TEXT_BATCH = 64
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_VISUAL = "visual."
# Files that open_clip would read with NumPy, which may unpickle.
_REFUSED = (".npz", ".npy")
_MOST_SHOWN = 20
_LOADING = threading.RLock()  # filters of warnings and torch's generator are the process's


@dataclass(frozen=True)
class Clip:
    """A whole CLIP in eval mode that nothing trains.

    Attributes:
        spec: What it was loaded from.
        model: open_clip's.
        tokenizer: open_clip's.
        input: How its images are prepared.
        digest: Of all that decides its answers: both towers, scale, configuration, tokenizer.
    """

    spec: BackboneSpec
    model: Any
    tokenizer: Any
    input: InputContract
    digest: str

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        found: torch.device = self.model.logit_scale.device
        return found

    @property
    def context_length(self) -> int:
        """Tokens of the longest prompt, the special ones included."""
        return int(self.tokenizer.context_length)

    def n_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, the special ones included, before anything is cut off."""
        match self.tokenizer:
            case SimpleTokenizer():
                return len(self.tokenizer.encode(prompt)) + 2
            case HFTokenizer() if self.tokenizer.tokenizer_mode == "clips":
                ids = self.tokenizer.tokenizer(
                    self.tokenizer.clean_fn(prompt), add_special_tokens=False
                ).input_ids
                return len(ids) + 3
            case HFTokenizer():
                return len(self.tokenizer.tokenizer(self.tokenizer.clean_fn(prompt)).input_ids)
            case SigLipTokenizer():
                clean = open_clip.tokenizer.canonicalize_text(
                    open_clip.tokenizer.basic_clean(prompt)
                )
                return len(self.tokenizer.tokenizer(clean).input_ids)
        raise AssertionError(f"an unknown tokenizer: {type(self.tokenizer).__name__}")

    @torch.inference_mode()
    def label_embeddings(self, prompts: Mapping[str, Sequence[str]]) -> LabelEmbeddings:
        """Embed labels.

        Args:
            prompts: The prompts of every label, in the labels' order.

        Raises:
            SpecError: Prompts are longer than the model reads; all of them are listed.
        """
        texts = list(dict.fromkeys(text for some in prompts.values() for text in some))
        self._refuse_long(texts)
        starts = range(0, len(texts), TEXT_BATCH)
        embedded = torch.cat([self._embedded(texts[at : at + TEXT_BATCH]) for at in starts])
        row = {text: number for number, text in enumerate(texts)}
        means = [embedded[[row[text] for text in some]].mean(0) for some in prompts.values()]
        bias = getattr(self.model, "logit_bias", None)
        return LabelEmbeddings(
            directions=F.normalize(torch.stack(means), dim=1).clone(),
            scale=float(self.model.logit_scale.exp()),
            bias=0.0 if bias is None else float(bias),
        )

    @torch.inference_mode()
    def image_features(self, images: Tensor) -> Tensor:
        """Features of length one, float32 [N, D], of prepared images."""
        found: Tensor = self.model.encode_image(images, normalize=True)
        return found.float()

    def _embedded(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of a few texts: float32 [N, D]."""
        go_on()
        tokens = self.tokenizer(list(texts)).to(self.device)
        found: Tensor = self.model.encode_text(tokens, normalize=True).float()
        return found

    def _refuse_long(self, texts: Sequence[str]) -> None:
        counts = [(text, self.n_tokens(text)) for text in texts]
        most = self.context_length
        long = [
            Fault(
                "prompts",
                f"{shown(text)} has {n} tokens; {self.spec.name} reads {most}, and nothing is cut "
                "off. Shorten the label or the template",
            )
            for text, n in counts
            if n > most
        ]
        if len(long) > _MOST_SHOWN:
            rest = len(long) - _MOST_SHOWN
            long = [*long[:_MOST_SHOWN], Fault("prompts", f"{rest} more are too long")]
        if long:
            raise SpecError(long)


def load_clip(spec: BackboneSpec, *, device: str = "cpu", seed: int = 0) -> Clip:
    """A CLIP with its weights, from safetensors or a weights-only checkpoint; no code is run.

    Args:
        spec: As `parse_clip` gives it; with weights `none` its architecture alone.
        device: Where it computes.
        seed: Of the initialisation of whatever the weights do not cover.

    Raises:
        WeightsError: Model, weights or tokenizer cannot be had, are refused, or do not fit.
    """
    contract = clip_contract(spec)
    name, pretrained = _library_names(spec)
    if pretrained is not None and Path(pretrained).suffix in _REFUSED:
        raise WeightsError(
            f"{spec.name}: {pretrained} is refused, because reading it could run code (pickle). "
            "Give open_clip's weights as safetensors"
        )
    with _loading(spec), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: Any = open_clip.create_model(
            name,
            pretrained,
            load_weights=spec.weights != "none",
            require_pretrained=spec.weights != "none",
            pretrained_text=False,
            weights_only=True,
        )
        tokenizer = _tokenizer(name, spec)
    model.eval().requires_grad_(False)
    return Clip(spec, model.to(device), tokenizer, contract, _digest(spec, model, tokenizer))


def build_clip_backbone(
    spec: BackboneSpec, facts: BackboneFacts, *, size: int | None, seed: int
) -> Backbone:
    """A CLIP's visual tower with its weights, in eval mode, everything trainable.

    Its `origin` is the digest of the whole CLIP: what a head made of texts says depends on both
    towers.

    Args:
        spec: The CLIP.
        facts: Of it.
        size: Pixels a side; position embeddings are resampled as open_clip does.
        seed: Of the initialisation of whatever the weights do not cover.

    Raises:
        SpecError: The tower does not take images of this size.
        WeightsError: The weights cannot be had, or do not fit.
    """
    assert isinstance(facts.input, InputContract)
    size = facts.input.size if size is None else size
    visual, origin = _visual(spec, size=size, native=facts.input.size, seed=seed)
    backbone = Backbone(
        split_visual(visual.requires_grad_(True)),
        spec=spec,
        contract=facts.input.model_copy(update={"size": size}),
        library=visual,
    )
    backbone.origin = origin
    return backbone


def text_side(clip: Clip) -> tuple[dict[str, Any], dict[str, bytes]]:
    """All of a CLIP but its visual tower: its configuration, and files by name.

    `load_text_side` makes a CLIP of them that embeds labels.
    """
    config = deepcopy(clip_config(clip.spec))
    state = clip.model.state_dict()
    tensors = {name: t for name, t in state.items() if not name.startswith(_VISUAL)}
    files = {"text.safetensors": save({k: t.cpu().contiguous() for k, t in tensors.items()})}
    inner = getattr(clip.tokenizer, "tokenizer", None)
    if inner is not None:
        text = config["model_cfg"]["text_cfg"]
        text["hf_tokenizer_name"] = text.get("hf_tokenizer_name") or "tokenizer"
        if isinstance(clip.tokenizer, SigLipTokenizer):
            text["tokenizer_kwargs"] = {"clean": "canonicalize"}
        with tempfile.TemporaryDirectory() as folder:
            inner.save_pretrained(folder)
            for name in TOKENIZER_FILES:
                files[name] = (Path(folder) / name).read_bytes()
    return config, files


def load_text_side(name: str, files: Mapping[str, bytes], *, digest: str) -> Clip:
    """A CLIP without visual tower, from what `text_side` gave; it embeds labels and nothing else.

    Args:
        name: Of the CLIP, for messages.
        files: Configuration, tensors and tokenizer by name.
        digest: Of the whole CLIP.

    Raises:
        WeightsError: They do not belong together.
    """
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            if file != "text.safetensors":
                (Path(folder) / file).write_bytes(content)
        spec = BackboneSpec(name=name, weights="none", folder=folder)
        clip = load_clip(spec)
    clip.model.visual = nn.Identity()
    with _loading(spec):
        clip.model.load_state_dict(load(files["text.safetensors"]), strict=True)
    return replace(clip, digest=digest)


def ensure_embeddings(
    folder: Path,
    spec: BackboneSpec,
    model_digest: str,
    prompts: Mapping[str, Sequence[str]],
    *,
    device: str = "cpu",
) -> LabelEmbeddings:
    """Label embeddings from a folder, where they are made and kept if they are not there.

    Args:
        folder: Keeps them by content.
        spec: The CLIP.
        model_digest: Its digest.
        prompts: The prompts of every label, in order.
        device: Where the text tower runs.

    Raises:
        IntegrityError: The weights are not those of the digest.
        SpecError: A prompt is too long.
        WeightsError: The weights cannot be had.
    """
    key = embeddings_key(model_digest, prompts)
    found = read_embeddings(folder, key)
    if found is not None:
        return found
    clip = load_clip(spec, device=device)
    if clip.digest != model_digest:
        raise IntegrityError(
            f"the weights of {spec.name} have changed since the sweep was planned. Restore them, "
            "or start another sweep with --fresh"
        )
    made = clip.label_embeddings(prompts)
    write_embeddings(folder, key, made)
    return made


def _visual(
    spec: BackboneSpec, *, size: int, native: int, seed: int
) -> tuple[nn.Module, str | None]:
    """The visual tower for images of some size, and the digest of the CLIP that it is part of."""
    if spec.weights == "none":
        return _empty_visual(spec, size, seed), None
    clip = load_clip(spec, seed=seed)
    if size == native:
        visual: nn.Module = clip.model.visual
        return visual, clip.digest
    resized = _empty_visual(spec, size, seed)
    holder = nn.Module()
    holder.visual = resized
    tensors = {f"visual.{name}": t for name, t in clip.model.visual.state_dict().items()}
    try:
        open_clip.model.resize_pos_embed(tensors, holder)
        holder.load_state_dict(tensors)
    except RuntimeError as err:
        raise _wrong_size(spec, size, native, err) from err
    return resized.eval(), clip.digest


def _empty_visual(spec: BackboneSpec, size: int, seed: int) -> nn.Module:
    model = clip_config(spec)["model_cfg"]
    vision = {**model["vision_cfg"], "image_size": size}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            visual: nn.Module = open_clip.model._build_vision_tower(
                model["embed_dim"], vision, bool(model.get("quick_gelu"))
            )
        except (AssertionError, RuntimeError, ValueError, TypeError) as err:
            native = int(model["vision_cfg"].get("image_size", 224))
            raise _wrong_size(spec, size, native, err) from err
    return visual.eval()


def _wrong_size(spec: BackboneSpec, size: int, native: int, err: Exception) -> SpecError:
    message = (
        f"{spec.name} does not take images of {size} pixels ({str(err).splitlines()[0]}). "
        f"Use its own size, {native}, or another backbone"
    )
    return SpecError([Fault("image_size", message)])


def _library_names(spec: BackboneSpec) -> tuple[str, str | None]:
    """What open_clip calls a CLIP: the model's name, and its pretrained weights' name or path."""
    inner = spec.name.removeprefix(PREFIX)
    if spec.folder is not None:
        return f"local-dir:{spec.folder}", None
    if inner.startswith(HUB):
        return f"hf-hub:{inner.removeprefix(HUB)}", None
    architecture, _, tag = inner.partition("/")
    if spec.weights == "none":
        return architecture, None
    return architecture, tag or spec.weights


def _tokenizer(name: str, spec: BackboneSpec) -> Any:
    """open_clip's tokenizer; what a repository says of running its code is not heeded."""
    text = clip_config(spec)["model_cfg"]["text_cfg"]
    extra = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
    return open_clip.get_tokenizer(name, **extra)


@contextmanager
def _loading(spec: BackboneSpec) -> Iterator[None]:
    """open_clip's log kept quiet, and what it raises told as ours; one thread at a time."""
    try:
        with _LOADING, _quiet_root(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    except pickle.UnpicklingError as err:
        raise WeightsError(
            f"{spec.name}: its weights are refused, because reading them could run code (pickle). "
            "Save them as safetensors where you trust them"
        ) from err
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, HfHubHTTPError) as err:
        lines = [line for line in str(err).splitlines() if line.strip()]
        reason = " ".join(lines[:3])[:600] or type(err).__name__
        raise WeightsError(
            f"{spec.name}: cannot be loaded ({reason}). Without a network, give a local folder "
            "with open_clip_config.json, weights and tokenizer"
        ) from err


@contextmanager
def _quiet_root() -> Iterator[None]:
    """What this thread tells the root logger, as open_clip does, is left out for the block.

    Other threads are heard as ever.
    """
    root, silent = logging.getLogger(), _AsIfNone()
    thread = threading.get_ident()

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.thread != thread

    root.addHandler(silent)  # else its first message would configure logging for everybody
    root.addFilter(is_wanted)
    try:
        yield
    finally:
        root.removeFilter(is_wanted)
        root.removeHandler(silent)


class _AsIfNone(logging.Handler):
    """A handler that changes nothing: where it is alone, warnings go where they go without any."""

    def emit(self, record: logging.LogRecord) -> None:
        last = logging.lastResort
        alone = all(isinstance(one, _AsIfNone) for one in logging.getLogger().handlers)
        if alone and last is not None and record.levelno >= last.level:
            last.handle(record)


def _digest(spec: BackboneSpec, model: nn.Module, tokenizer: Any) -> str:
    """SHA-256 over tensors, configuration and tokenizer."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(memoryview(flat.view(torch.uint8).numpy()))
    config = deepcopy(clip_config(spec)["model_cfg"])
    return digest_of(
        {"tensors": total.hexdigest(), "config": config, "tokenizer": _tokenizer_text(tokenizer)}
    )


def _tokenizer_text(tokenizer: Any) -> str:
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return f"simple {tokenizer.vocab_size} {tokenizer.context_length}"
    backend = getattr(inner, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else str(sorted(inner.get_vocab().items()))
