"""What `orchestrator pretrain` reads: a spec of a pretraining alone, or a sweep's own ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import Fault, SpecError, listing, nearest
from orchestrator.spec.backbone_parsing import Written, parse_backbones
from orchestrator.spec.backbone_table import is_image_backbone
from orchestrator.spec.fault_messages import validated
from orchestrator.spec.frozen import Frozen
from orchestrator.spec.parsing import parse_storage, parse_sweep
from orchestrator.spec.parts import BackboneSpec, Modality
from orchestrator.spec.pretraining import Pretraining
from orchestrator.spec.pretraining_parsing import parse_pretraining
from orchestrator.spec.reading import read_spec_file, with_overrides
from orchestrator.spec.strategy import DOMAIN_ADAPTIVE
from orchestrator.spec.sweep import SweepSpec, WorkersSpec

KEYS = ("pretraining", "workers", "storage")


class PretrainingJob(Frozen):
    """Pretrainings to run alone, resolved: one for each backbone, with the same settings."""

    backbones: tuple[BackboneSpec, ...]
    pretraining: Pretraining
    workers: WorkersSpec = WorkersSpec()
    storage: str = "runs"


def load_pretraining(
    path: str | Path, overrides: Iterable[str] = (), *, base: Path | None = None
) -> PretrainingJob | SweepSpec:
    """The pretraining in a YAML file, or the sweep whose blocks have some.

    Args:
        path: The file.
        overrides: As `--set` takes them.
        base: What relative paths in it are relative to; its own folder when not given.

    Raises:
        SpecError: With all faults at once.
    """
    file = Path(path).expanduser().absolute()
    folder = file.parent if base is None else base.expanduser().absolute()
    raw = with_overrides(read_spec_file(file), overrides)
    if not isinstance(raw, Mapping) or "search" not in raw:
        return parse_job(raw, base=folder, source=str(path))
    spec = parse_sweep(raw, base=folder, source=str(path))
    if not any(block.pretraining for block in spec.search):
        raise SpecError(
            [Fault("search", f"no block of strategy {DOMAIN_ADAPTIVE}: nothing to pretrain")],
            source=str(path),
        )
    return spec


def parse_job(raw: Any, *, base: Path, source: str = "") -> PretrainingJob:
    """The pretraining that plain data describes.

    Args:
        raw: What the YAML said.
        base: The folder that relative paths are relative to.
        source: What to call the input in errors.

    Raises:
        SpecError: With all faults at once.
    """
    section = raw.get("pretraining") if isinstance(raw, Mapping) else None
    if not isinstance(section, Mapping):
        told = "Expected the section `pretraining` with backbone and corpus, or a sweep's spec"
        raise SpecError(f"{source or 'the spec'} has nothing to pretrain. {told}")
    faults = [
        Fault(str(key), f"unknown key. Allowed: {listing(KEYS)}.{nearest(key, KEYS)}")
        for key in raw
        if key not in KEYS
    ]
    backbones = _backbones(section.get("backbone"), base, faults)
    modality: Modality = "image" if _is_image(section.get("backbone")) else "text"
    if section.get("corpus") is None:
        faults.append(Fault("pretraining.corpus", "missing. Say what to learn from"))
    settings = {key: value for key, value in section.items() if key != "backbone"}
    pretraining = parse_pretraining(
        settings,
        modality=modality,
        backbones=backbones,
        key="pretraining",
        base=base,
        faults=faults,
    )
    workers = validated(WorkersSpec, raw.get("workers") or {}, prefix="workers", faults=faults)
    storage = parse_storage(raw.get("storage"), base, faults)
    if faults or pretraining is None or workers is None:
        raise SpecError(dict.fromkeys(faults), source=source)
    return PretrainingJob(
        backbones=backbones,
        pretraining=pretraining,
        workers=workers,
        storage=storage,
    )


def _backbones(raw: Any, base: Path, faults: list[Fault]) -> tuple[BackboneSpec, ...]:
    modality: Modality = "image" if _is_image(raw) else "text"
    written = Written("pretraining.backbone", DOMAIN_ADAPTIVE, modality, base)
    found = parse_backbones(raw, written, faults)
    values = found.extremes if found is not None else []
    return tuple(BackboneSpec.model_validate(value) for value in values)


def _is_image(raw: Any) -> bool:
    """Whether the first backbone that was written is an image backbone's name."""
    first = raw[0] if isinstance(raw, list) and raw else raw
    name = first.get("name") if isinstance(first, Mapping) else first
    return isinstance(name, str) and is_image_backbone(name)
