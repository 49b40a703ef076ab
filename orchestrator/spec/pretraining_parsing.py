"""A `pretraining` section, from what was written to its settings."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import Fault, SpecError, WeightsError, shown
from orchestrator.spec.backbone_table import library_of
from orchestrator.spec.backbones import backbone_modality
from orchestrator.spec.fault_messages import validated
from orchestrator.spec.locations import absolute
from orchestrator.spec.parts import BackboneSpec, Modality
from orchestrator.spec.pretraining import METHODS, CorpusSpec, MaskedLanguage, Pretraining
from orchestrator.spec.text_encoders import encoder_config, longest_input, mask_token

USUAL_LENGTH = 512  # tokens


def parse_pretraining(
    raw: Any,
    *,
    modality: Modality,
    backbones: Sequence[BackboneSpec],
    key: str,
    base: Path,
    faults: list[Fault],
) -> Pretraining | None:
    """The settings that `raw` describes, or None with what is wrong added to `faults`.

    Args:
        raw: What stands under `pretraining`; all of it has defaults.
        modality: What the backbones read.
        backbones: That are to be pretrained.
        key: Where it stands, for messages.
        base: The folder that the corpus's paths are relative to.
        faults: Collects what is wrong.
    """
    raw = {} if raw is None else raw
    if not isinstance(raw, Mapping):
        faults.append(Fault(key, f"{shown(raw)} is no section. Expected e.g. corpus: FILES"))
        return None
    before = len(faults)
    corpus = _corpus(raw.get("corpus"), base, f"{key}.corpus", faults)
    settings = {name: value for name, value in raw.items() if name != "corpus"}
    found = validated(METHODS[modality], settings, prefix=key, faults=faults)
    if found is None:
        return None
    found = found.model_copy(update={"corpus": corpus})
    for backbone in backbones:
        if isinstance(found, MaskedLanguage):
            faults += _encoder_faults(found, backbone, key)
        elif library_of(backbone.name) == "orchestrator":
            told = f"{backbone.name} cannot be pretrained: its pyramid has no weights of its own"
            faults.append(Fault(key, f"{told}. Pretrain its trunk, resnet50"))
    return found if len(faults) == before else None


def row_length(pretraining: MaskedLanguage, backbone: BackboneSpec) -> int:
    """Tokens of a row of an encoder's pretraining."""
    most = longest_input(encoder_config(backbone))
    return pretraining.max_length or min(USUAL_LENGTH, most)


def _corpus(raw: Any, base: Path, key: str, faults: list[Fault]) -> CorpusSpec | None:
    """The corpus that was written, as a section or as its files alone."""
    if raw is None:
        return None
    if isinstance(raw, str | list):
        raw = {"files": raw}
    if isinstance(raw, Mapping) and isinstance(raw.get("files"), str):
        raw = {**raw, "files": [raw["files"]]}
    corpus = validated(CorpusSpec, raw, prefix=key, faults=faults)
    return None if corpus is None else _located(corpus, base, key, faults)


def _located(corpus: CorpusSpec, base: Path, key: str, faults: list[Fault]) -> CorpusSpec:
    """The corpus with absolute paths; a local place where nothing lies is a fault."""
    files = []
    for location in corpus.files:
        try:
            place = absolute(location, base)
        except SpecError as err:
            faults.append(Fault(key, str(err)))
            continue
        local = "://" not in place and not place.startswith("hub:")
        if local and not Path(place).exists() and not glob.glob(place, recursive=True):  # noqa: PTH207
            faults.append(
                Fault(key, f"{shown(location)} matches no file. Paths are relative to {base}")
            )
        files.append(place)
    return corpus.model_copy(update={"files": tuple(files)})


def _encoder_faults(pretraining: MaskedLanguage, backbone: BackboneSpec, key: str) -> list[Fault]:
    """What one encoder cannot do."""
    if backbone_modality(backbone) != "text":
        return []
    faults = []
    most = longest_input(encoder_config(backbone))
    if (pretraining.max_length or 0) > most:
        told = f"{pretraining.max_length} is more than the {most} tokens that {backbone.name} takes"
        faults.append(Fault(f"{key}.max_length", f"{told}. Use at most {most}"))
    try:
        mask_token(backbone)
    except WeightsError as err:
        faults.append(Fault(key, str(err)))
    return faults
