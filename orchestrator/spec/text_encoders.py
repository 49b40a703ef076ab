"""Text encoders of the Hugging Face hub, by id or local folder: what their files say. No torch.

An encoder is a folder in the hub's format: config.json, a tokenizer and weights. An id on the hub
stands for such a folder in the hub's local cache, downloaded when it is first needed. Code that a
repository brings along is never run.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from orchestrator.errors import WeightsError, listing
from orchestrator.spec.backbone_table import BackboneFacts
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import BackboneSpec, TextContract
from orchestrator.spec.pretrained import pretrained_folder

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
USUAL_LENGTH = 256  # tokens
WANTED = ("*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model.bin")

# model_type → whether positions are counted from behind the padding token's.
FAMILIES: dict[str, bool] = {
    "bert": False,
    "camembert": True,
    "deberta": False,
    "deberta-v2": False,
    "distilbert": False,
    "electra": False,
    "modernbert": False,
    "mpnet": True,
    "roberta": True,
    "xlm-roberta": True,
}
# Recommended ids on the hub and what each is best for; order is that of listings.
BEST_FOR: dict[str, str] = {
    "sentence-transformers/all-MiniLM-L6-v2": "laptop CPUs, short texts",
    "distilbert-base-uncased": "BERT at half the cost",
    "bert-base-uncased": "universal baseline",
    "roberta-base": "English text of any kind",
    "microsoft/deberta-v3-base": "accuracy",
    "answerdotai/ModernBERT-base": "long texts",
    "xlm-roberta-base": "a hundred languages",
    "nlpaueb/legal-bert-base-uncased": "contracts and law",
    "dmis-lab/biobert-v1.1": "biomedical literature",
    "emilyalsentzer/Bio_ClinicalBERT": "clinical notes",
}
TEXT_ENCODERS: tuple[str, ...] = tuple(BEST_FOR)

_ROLE_FILES = ("special_tokens_map.json", "tokenizer_config.json")
_ROLES = ("bos", "eos", "cls", "sep", "mask")  # padding is checked apart: every encoder has it
_MASKS = ("[MASK]", "<mask>")
_VOCABULARY_SLACK = 1024  # rows that a library adds to make a matrix's height round
_ROUND_TRIP = "the weather was fine on the second day"


def is_encoder_folder(path: Path) -> bool:
    """Whether a folder looks like an encoder's."""
    return (path / "config.json").is_file()


def encoder_folder(spec: BackboneSpec) -> Path:
    """The local folder with an encoder's files; an id on the hub is downloaded once.

    Raises:
        WeightsError: The hub cannot be reached, or has no such encoder.
    """
    if spec.folder is not None:
        return pretrained_folder(spec.folder)
    return _downloaded(spec.name)


@lru_cache(maxsize=64)
def encoder_facts(spec: BackboneSpec) -> BackboneFacts:
    """What is known of an encoder from its files.

    Raises:
        WeightsError: The files cannot be had, are of an architecture that is not supported, or
            tokenizer and weights do not belong together.
    """
    config = encoder_config(spec)
    n_layers = int(_first(config, "num_hidden_layers", "n_layers"))
    width = int(_first(config, "hidden_size", "dim"))
    tokenizer = encoder_tokenizer(spec)
    _check_tokenizer(spec, tokenizer, config)
    contract = TextContract(
        size=min(USUAL_LENGTH, longest_input(config)),
        tokenizer=tokenizer_digest(tokenizer),
        pad=_pad(config),
    )
    return BackboneFacts(
        name=spec.name,
        library="transformers",
        n_stages=n_layers,
        feature_width=width,
        multi_scale_width=2 * width * n_layers,
        n_parameters=_n_parameters(config, n_layers, width),
        input=contract,
        takes_adapters=True,  # of every family
    )


def encoder_config(spec: BackboneSpec) -> dict[str, Any]:
    """The content of an encoder's config.json.

    Raises:
        WeightsError: There is none, or it is of an architecture that is not supported.
    """
    path = encoder_folder(spec) / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as err:
        raise WeightsError(f"{spec.name}: {path} cannot be read ({err})") from err
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in FAMILIES:
        raise WeightsError(
            f"{spec.name}: model_type {kind!r} of {path} is not one of {listing(FAMILIES)}. "
            "Use an encoder of one of these families"
        )
    found: dict[str, Any] = config
    return found


def longest_input(config: dict[str, Any]) -> int:
    """Tokens of the longest text that an encoder has positions for."""
    positions = int(config.get("max_position_embeddings", 512))
    return positions - _pad(config) - 1 if FAMILIES[config["model_type"]] else positions


def mask_token(spec: BackboneSpec) -> int:
    """The token that stands for a hidden one in masked-language modelling.

    Raises:
        WeightsError: The tokenizer has none.
    """
    folder, tokenizer = encoder_folder(spec), encoder_tokenizer(spec)
    for word in [*_named(folder, "mask"), *_MASKS]:
        number = tokenizer.token_to_id(word) if word else None
        if number is not None:
            return number
    raise WeightsError(
        f"{spec.name}: its tokenizer has no mask token, so it cannot be pretrained on texts. Use "
        "an encoder that was trained by masked-language modelling"
    )


@lru_cache(maxsize=16)
def encoder_tokenizer(spec: BackboneSpec) -> Tokenizer:
    """An encoder's tokenizer, without any truncation or padding.

    Raises:
        WeightsError: There is none that can be read.
    """
    folder = encoder_folder(spec)
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _converted(folder)
    except Exception as err:  # both libraries raise bare Exceptions
        raise WeightsError(f"{spec.name}: no readable tokenizer in {folder} ({err})") from err
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of all that a tokenizer does to a text."""
    content = json.loads(tokenizer.to_str())
    return digest_of({k: v for k, v in content.items() if k not in ("truncation", "padding")})


def _converted(folder: Path) -> Tokenizer:
    """The tokenizer of an older repository, from its vocabulary."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer: Tokenizer = loaded.backend_tokenizer
    return tokenizer


@lru_cache(maxsize=64)
def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as err:
        reason = (str(err) or type(err).__name__).splitlines()[0]
        raise WeightsError(
            f"{name}: cannot be had from the hub ({reason}). Check the id and the network, or "
            "give a local folder in the hub's format"
        ) from err


def _check_tokenizer(spec: BackboneSpec, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Refuse a tokenizer that is another model's: by its size, special tokens, or what it does.

    One whose vocabulary is of the same size, with special tokens in the same places, cannot be told
    from the model's own.
    """
    known, rows = tokenizer.get_vocab_size(with_added_tokens=True), int(config["vocab_size"])
    if not 0 <= rows - known < _VOCABULARY_SLACK:
        raise WeightsError(
            f"{spec.name}: its tokenizer knows {known:,} tokens, its weights {rows:,}. They do not "
            "belong together: take both from the same repository"
        )
    pad = tokenizer.id_to_token(_pad(config))
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    if pad is None or (special and pad not in special):
        raise WeightsError(
            f"{spec.name}: the padding token {_pad(config)} of its config is {pad!r} in its "
            "tokenizer, no special token. They do not belong together"
        )
    if contradictions := _contradictions(encoder_folder(spec), tokenizer, config):
        raise WeightsError(
            f"{spec.name}: its config.json and its tokenizer differ in {listing(contradictions)}. "
            "They do not belong together: take both from the same repository"
        )
    ids = tokenizer.encode(_ROUND_TRIP, add_special_tokens=False).ids
    back = tokenizer.decode(ids)
    if re.sub(r"\s", "", back).casefold() != re.sub(r"\s", "", _ROUND_TRIP):
        raise WeightsError(
            f"{spec.name}: its tokenizer turns {_ROUND_TRIP!r} into {back!r}. It is damaged, or "
            "another model's"
        )


def _contradictions(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> list[str]:
    """Roles of special tokens for which both name a token, but not the same.

    Many encoders name few roles or none, in either place: what is not written is not compared.
    """
    found = []
    for role in _ROLES:
        told = config.get(f"{role}_token_id")
        for word in _named(folder, role)[:1]:
            number = tokenizer.token_to_id(word)
            if isinstance(told, int) and number is not None and number != told:
                found.append(f"the {role} token ({told}, and {word} with {number})")
    return found


def _named(folder: Path, role: str) -> list[str]:
    """The tokens that the files of a tokenizer name for a role, the first the one that counts."""
    found = []
    for name in _ROLE_FILES:
        try:
            token = json.loads((folder / name).read_bytes()).get(f"{role}_token")
        except (OSError, ValueError, AttributeError):
            continue
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found.append(content)
    return found


def _first(config: dict[str, Any], *names: str) -> Any:
    return next(config[name] for name in names if name in config)


def _pad(config: dict[str, Any]) -> int:
    pad = config.get("pad_token_id")
    return 0 if pad is None else int(pad)


def _n_parameters(config: dict[str, Any], n_layers: int, width: int) -> int:
    """Of embeddings and layers, from their shapes; the library's own count differs by little."""
    inner = int(config.get("intermediate_size") or config.get("hidden_dim") or 4 * width)
    layer = 4 * width * (width + 1) + 2 * width * inner + inner + 5 * width
    return int(config["vocab_size"]) * width + longest_input(config) * width + n_layers * layer
