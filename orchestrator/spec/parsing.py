"""From what was written to a SweepSpec, with every fault found in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from orchestrator.errors import Fault, SpecError, listing, nearest, shown
from orchestrator.spec.block_parsing import (
    common_parameters,
    no_such_parameter,
    parse_block,
    per_backbone,
    twin_block,
)
from orchestrator.spec.data import DataSpec
from orchestrator.spec.fault_messages import as_faults, validated
from orchestrator.spec.frozen import canonical_json
from orchestrator.spec.locations import absolute, storage_location
from orchestrator.spec.object_store import is_uri
from orchestrator.spec.parts import (
    ObjectiveSpec,
    TaskKind,
    by_position,
    is_multilabel,
    metrics_of,
)
from orchestrator.spec.reading import read_spec_file, with_overrides
from orchestrator.spec.search_space import Block, Range, is_number
from orchestrator.spec.strategy import FineTuning
from orchestrator.spec.sweep import (
    BudgetSpec,
    ScreenSpec,
    SweepSpec,
    TrackingSpec,
    TunerSpec,
    WorkersSpec,
    objective_from,
)
from orchestrator.spec.vetted import usual_ranges

SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataSpec,
    "budget": BudgetSpec,
    "objective": ObjectiveSpec,
    "tuner": TunerSpec,
    "screen": ScreenSpec,
    "workers": WorkersSpec,
    "tracking": TrackingSpec,
}
ALL_KEYS = ("name", "task", "defaults", "search", "storage", *SECTIONS)


def load_spec(
    path: str | Path, overrides: Iterable[str] = (), *, base: Path | None = None
) -> SweepSpec:
    """The resolved spec in a YAML file, with `key=value` overrides laid over it.

    Args:
        path: The file.
        overrides: As `--set` takes them, e.g. `budget.trials=4`.
        base: What relative paths in it are relative to; its own folder when not given.

    Raises:
        SpecError: With all faults at once.
    """
    file = Path(path).expanduser().absolute()
    return parse_sweep(
        with_overrides(read_spec_file(file), overrides),
        base=file.parent if base is None else base.expanduser().absolute(),
        source=str(path),
    )


def parse_sweep(raw: Any, *, base: Path, source: str = "") -> SweepSpec:
    """The resolved spec that plain data describes.

    Args:
        raw: What the YAML said.
        base: The folder that relative paths are relative to.
        source: What to call the input in errors.

    Raises:
        SpecError: With all faults at once.
    """
    if not isinstance(raw, Mapping):
        what = "empty" if raw is None else shown(raw)
        raise SpecError(f"{source or 'the spec'} is {what}. Expected keys: {listing(ALL_KEYS)}")
    faults = [
        Fault(str(key), f"unknown key. Allowed: {listing(ALL_KEYS)}.{nearest(key, ALL_KEYS)}")
        for key in raw
        if key not in ALL_KEYS
    ]
    faults += [
        Fault(key, f"missing. {hint}")
        for key, hint in (
            ("name", "Give the sweep a short name, e.g. solar-cells"),
            ("task", f"One of {listing(get_args(TaskKind))}"),
            ("data", "Say at least where `train` lies"),
            ("search", "List one block a strategy"),
        )
        if raw.get(key) is None
    ]
    sections = _sections(raw, base, faults)
    blocks, seed = _blocks(raw, base, faults)
    spec = _whole(raw, base, sections, blocks, seed, faults)
    if spec is not None:
        faults += _cross_faults(spec)
    if faults or spec is None:
        raise SpecError(dict.fromkeys(faults), source=source)
    return spec


def notes_on(spec: SweepSpec) -> list[str]:
    """One sentence for each value that is allowed and seldom meant."""
    notes, noted = [], set()
    if spec.budget.trials is not None and spec.budget.trials < len(spec.search):
        notes.append(
            f"budget.trials: {spec.budget.trials} are fewer than the search has blocks "
            f"({len(spec.search)}, twins of domain-adaptive ones included): the last get none"
        )
    if is_uri(spec.storage) and spec.tracking.mlflow is None:
        notes.append(
            "tracking.mlflow: not given, and no database can lie at a URI: runs and models are "
            "registered in a file of this machine alone. Name a server to share them"
        )
    for number, block in enumerate(spec.search):
        if block.twin_of:
            continue
        usual_here = usual_ranges(block.rung, block.modality, block.adapter)
        for name, (low, high) in usual_here.items():
            dim = block.dimensions.get(name)
            if dim is None:
                continue
            outside = [v for v in dim.extremes if is_number(v) and not low <= v <= high]
            if outside and (block.strategy, name, *outside) not in noted:
                noted.add((block.strategy, name, *outside))
                usual = f"{low:g}" if low == high else f"{low:g}–{high:g}"
                notes.append(
                    f"search[{number}].{name}: {listing(outside)} lies outside what usually works "
                    f"for {block.strategy} ({usual})"
                )
    return notes


def _sections(raw: Mapping[str, Any], base: Path, faults: list[Fault]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for key, model in SECTIONS.items():
        if raw.get(key) is None:
            continue
        value = raw[key]
        if key == "objective":
            value = objective_from(value, _task(raw.get("task")))
        if not isinstance(value, Mapping):
            fields = listing(model.model_fields)
            faults.append(Fault(key, f"{shown(value)} is no section. Expected keys: {fields}"))
            continue
        if key == "data":
            value = _absolute_data(value, base, faults)
        section = validated(model, value, prefix=key, faults=faults)
        if section is not None:
            sections[key] = section
    return sections


def _blocks(
    raw: Mapping[str, Any], base: Path, faults: list[Fault]
) -> tuple[tuple[Block, ...], Any]:
    """The blocks that could be read, and the seed of the search as it was written."""
    defaults = {} if raw.get("defaults") is None else raw["defaults"]
    if not isinstance(defaults, Mapping):
        faults.append(Fault("defaults", f"{shown(defaults)} is no section of parameter: value"))
        defaults = {}
    task = _task(raw.get("task"))
    allowed = common_parameters(task)
    faults += [
        Fault(f"defaults.{k}", no_such_parameter(k, allowed, task))
        for k in defaults
        if k not in allowed
    ]
    search = raw.get("search")
    if search is None:
        return (), 0
    if not isinstance(search, list) or not search:
        faults.append(Fault("search", f"{shown(search)} is no list of blocks, one a strategy"))
        return (), 0
    blocks = [
        parse_block(
            item,
            task=task,
            defaults=defaults,
            key=f"search[{n}]",
            base=base,
            faults=faults,
        )
        for n, item in enumerate(search)
    ]
    seed = defaults.get("seed", 0)
    if isinstance(seed, list | Mapping):
        seed = 0  # each trial has its own then, and the search starts from 0
    found = [per_backbone(block) for block in blocks if block is not None]
    written = [first for first, *_ in found]  # as the spec numbers them
    others = [block for _, *more in found for block in more]
    twins = [twin_block(b) for b in (*written, *others) if b.pretraining is not None]
    return (*written, *others, *twins), seed


def _task(task: Any) -> TaskKind:
    """The task as written; while it is not known, the first of all."""
    kinds: tuple[TaskKind, ...] = get_args(TaskKind)
    return task if task in kinds else kinds[0]


def _whole(
    raw: Mapping[str, Any],
    base: Path,
    sections: dict[str, Any],
    blocks: tuple[Block, ...],
    seed: Any,
    faults: list[Fault],
) -> SweepSpec | None:
    content = {
        "objective": {"metric": metrics_of(_task(raw.get("task")))[0]},
        **{k: raw[k] for k in ("name", "task") if raw.get(k) is not None},
        **sections,
        "search": blocks,
        "seed": seed,
        "storage": parse_storage(raw.get("storage"), base, faults),
    }
    known = {f.key for f in faults} | set(SECTIONS)
    try:
        return SweepSpec.model_validate(content)
    except ValidationError as err:
        told = as_faults(err, SweepSpec, prefix="")
        told = [Fault("defaults.seed", f.message) if f.key == "seed" else f for f in told]
        faults.extend(f for f in told if f.key not in known)
        return None


def parse_storage(raw: Any, base: Path, faults: list[Fault]) -> str:
    """The storage that plain data names, `runs` when it names none; faults as for a sweep."""
    if raw is None:
        return absolute("runs", base)
    if not isinstance(raw, str) or not raw.strip():
        told = f"{shown(raw)} is no folder. Use a path, e.g. runs, or a URI, e.g. s3://bucket/runs"
        faults.append(Fault("storage", told))
        return ""
    try:
        return storage_location(raw, base)
    except SpecError as err:
        faults.append(Fault("storage", str(err)))
        return ""


def _cross_faults(spec: SweepSpec) -> list[Fault]:
    """Faults that lie between sections."""
    faults = []
    measured = metrics_of(spec.task)
    if spec.objective.metric not in measured:
        told = f"{spec.objective.metric} is not measured for {spec.task}"
        faults.append(Fault("objective.metric", f"{told}. Use one of {listing(measured)}"))
    if spec.tuner.searcher == "grid":
        faults += [
            Fault(
                f"search[{n}].{name}",
                f"a {dim.kind} range has no grid. List the values, or use searcher: random",
            )
            for n, block in enumerate(spec.search)
            for name, dim in block.searched.items()
            if isinstance(dim, Range) and dim.kind != "int"
        ]
    faults += _zero_shot_faults(spec)
    tuned = {
        canonical_json(value)
        for block in spec.search
        if issubclass(block.params_class, FineTuning)
        for value in block.dimensions["backbone"].extremes
    }
    if spec.screen is not None and by_position(spec.task):
        told = f"ranks backbones by features of whole texts, which {spec.task} has none of"
        faults.append(Fault("screen", f"{told}. Leave it out: every backbone is fine-tuned"))
    elif spec.screen is not None and spec.screen.keep >= len(tuned):
        faults.append(
            Fault(
                "screen.keep",
                f"{spec.screen.keep} drops nothing: this search fine-tunes {len(tuned)} in all. "
                "Keep fewer, or leave screen out",
            )
        )
    return faults


def _zero_shot_faults(spec: SweepSpec) -> list[Fault]:
    """Blocks that the task cannot have: texts stand for one label an image."""
    faults = []
    for n, block in enumerate(spec.search):
        zero_shot = block.strategy == "zero-shot"
        head = block.dimensions.get("head")
        texts = zero_shot or (head is not None and "text" in head.extremes)
        if texts and is_multilabel(spec.task):
            told = "a head of texts says which one label an image has. Use another task, or head"
            faults.append(Fault(f"search[{n}].{'strategy' if zero_shot else 'head'}", told))
        if spec.task == "zero-shot-image-classification" and not zero_shot:
            told = f"{block.strategy} trains, and task {spec.task} does not. Use strategy"
            faults.append(
                Fault(f"search[{n}].strategy", f"{told}: zero-shot, or task: image-classification")
            )
    return faults


def _absolute_data(value: Mapping[str, Any], base: Path, faults: list[Fault]) -> dict[str, Any]:
    return {
        key: _located(v, base, f"data.{key}", faults)
        if key in ("train", "validation", "test") and isinstance(v, str)
        else v
        for key, v in value.items()
    }


def _located(location: str, base: Path, key: str, faults: list[Fault]) -> str:
    """`location` made absolute, or as it was with what is wrong added to `faults`."""
    try:
        return absolute(location, base)
    except SpecError as err:
        faults.append(Fault(key, str(err)))
        return location
