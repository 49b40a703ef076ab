"""One search block, from what was written to its dimensions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import Fault, SpecError, listing, nearest, shown
from orchestrator.spec.backbone_parsing import Written, parse_backbones, repeats
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.clip_models import BEST_FOR as CLIPS
from orchestrator.spec.clip_models import is_clip
from orchestrator.spec.fault_messages import as_faults, sentence
from orchestrator.spec.locations import absolute
from orchestrator.spec.parts import BackboneSpec, Modality, TaskKind, modality_of
from orchestrator.spec.pretraining import Pretraining
from orchestrator.spec.pretraining_parsing import parse_pretraining
from orchestrator.spec.prompts import read_label_set
from orchestrator.spec.search_space import Block, Choice, Constant, Dimension, Range, is_number
from orchestrator.spec.strategy import (
    DOMAIN_ADAPTIVE,
    STRATEGIES,
    STRATEGY_NAMES,
    FineTuning,
    StrategyParams,
    Then,
)
from orchestrator.spec.text_encoders import (
    encoder_config,
    longest_input,
)
from orchestrator.spec.vetted import (
    ONCE_A_TEXT,
    ONLY_FOR,
    belongs_to,
    with_defaults,
)

RANGE_KINDS = ("log", "uniform", "int")
MOST = 1e300  # no bound of a range is larger; infinities are not
INPUT_SHAPE = frozenset({"image_size", "crop_fraction", "max_length", "overlap"})
FORMS = "a value, a list, {choice: […]}, {log: [a, b]}, {uniform: [a, b]} or {int: [a, b]}"

# The parameters that a StrategyParams checks against each other.
TOGETHER = (
    ("accumulate", "batch_size"),
    ("stage_decay", "thirds"),
    ("adapter", "lora_rank", "lora_alpha", "lora_dropout", "batch_norm"),
    ("head", "pooling", "wise_ft"),
)


def common_parameters(task: TaskKind) -> set[str]:
    """Every parameter that some strategy has for a task, the ones `defaults` may set."""
    return {name for cls in STRATEGIES.values() for name in _parameters(cls, task)}


def no_such_parameter(name: object, allowed: Collection[str], task: TaskKind) -> str:
    """Why `defaults` may not set `name`."""
    elsewhere = of_another_task(name, task)
    return elsewhere or f"no strategy has this parameter.{nearest(name, allowed)}"


def of_another_task(name: object, task: TaskKind) -> str:
    """Why a parameter that other tasks have is refused; empty where it is none."""
    modality = modality_of(task)
    owner = ONLY_FOR.get(str(name), modality)
    if owner != modality:
        return f"{name} is for {owner} tasks, and this one is for {modality}s. Leave it out"
    if not belongs_to(str(name), task):
        answered = "once for each input" if name in ONCE_A_TEXT else "for every token"
        return f"{name} is for tasks that answer {answered}. Leave it out"
    return ""


def parse_block(
    raw: Any,
    *,
    task: TaskKind,
    defaults: Mapping[str, Any],
    key: str,
    base: Path,
    faults: list[Fault],
) -> Block | None:
    """The block that `raw` describes, or None with what is wrong added to `faults`.

    Args:
        raw: What stands under `search`.
        task: What is predicted.
        defaults: The spec's `defaults`: parameters of every block that has them.
        key: Where it stands, for messages.
        base: The folder that weights paths are relative to.
        faults: Collects what is wrong.
    """
    if not isinstance(raw, Mapping):
        faults.append(
            Fault(key, f"{shown(raw)} is no block. Expected `strategy:` and its parameters")
        )
        return None
    name = raw.get("strategy")
    if not isinstance(name, str) or name not in STRATEGY_NAMES:
        told = f"{shown(name)} is not one of" if name is not None else "missing. One of"
        hint = nearest(name, STRATEGY_NAMES) if name is not None else ""
        faults.append(Fault(f"{key}.strategy", f"{told} {listing(STRATEGY_NAMES)}.{hint}"))
        return None
    before, modality = len(faults), modality_of(task)
    then = _then(raw, key, faults) if name == DOMAIN_ADAPTIVE else None
    if name == DOMAIN_ADAPTIVE and then is None:
        return None
    cls, own = STRATEGIES[then or name], ("then", "pretraining") if then else ()
    allowed = ["backbone", *own, *_parameters(cls, task)]
    faults += [
        Fault(f"{key}.{k}", _unknown(name, k, allowed, task))
        for k in raw
        if k not in ("strategy", *allowed)
    ]
    dims: dict[str, Dimension] = {}
    written = Written(f"{key}.backbone", name, modality, base)
    backbone = parse_backbones(raw.get("backbone"), written, faults)
    if backbone is not None:
        dims["backbone"] = backbone
    for parameter in _parameters(cls, task):
        if parameter in raw:
            where, value = f"{key}.{parameter}", raw[parameter]
        elif parameter in defaults:
            where, value = f"defaults.{parameter}", defaults[parameter]
        else:
            continue
        if parameter == "descriptions":
            value = _described(value, base, where, faults)
        dim = _dimension(cls, parameter, value, where, faults)
        wrong = _wrong_pooling(parameter, dim, modality)
        if wrong:
            faults.append(Fault(where, wrong))
        elif dim is not None:
            dims[parameter] = dim
    pretraining = _pretraining(raw, dims, modality, key, base, faults) if then else None
    block = Block(
        strategy=name, dimensions=dims, modality=modality, then=then, pretraining=pretraining
    )
    if len(faults) == before:
        faults += _depth_faults(block, key) + _length_faults(block, key)
        faults += _adapter_faults(block, key)
        faults += _text_head_faults(block, key)
        faults += _overlap_faults(block, key)
        faults += _combination_faults(block, key)
    return block if len(faults) == before else None


def per_backbone(block: Block) -> list[Block]:
    """A domain-adaptive block of several backbones as one for each; any other as it is.

    So each backbone has a default of its own, and a twin to compare it with.
    """
    backbones = block.dimensions["backbone"]
    if block.pretraining is None or not isinstance(backbones, Choice):
        return [block]
    return [
        block.model_copy(
            update={"dimensions": {**block.dimensions, "backbone": Constant(value=value)}}
        )
        for value in backbones.values
    ]


def twin_block(block: Block) -> Block:
    """The default of a domain-adaptive block without its pretraining, as a block of one point."""
    assert block.then is not None
    point = {name: Constant(value=value) for name, value in block.vetted().items()}
    return Block(
        strategy=block.then, dimensions=point, modality=block.modality, twin_of=block.digest
    )


def _then(raw: Mapping[str, Any], key: str, faults: list[Fault]) -> Then | None:
    """How a domain-adaptive block fine-tunes, or None with what is wrong added to `faults`."""
    then: Any = raw.get("then")
    allowed = get_args(Then)
    if then in allowed:
        found: Then = then
        return found
    told = "missing. Say how the adapted backbone is fine-tuned: one of"
    if then is not None:
        told = f"{shown(then)} is not one of"
    faults.append(Fault(f"{key}.then", f"{told} {listing(allowed)}.{nearest(then or '', allowed)}"))
    return None


def _pretraining(
    raw: Mapping[str, Any],
    dims: Mapping[str, Dimension],
    modality: Modality,
    key: str,
    base: Path,
    faults: list[Fault],
) -> Pretraining | None:
    values = dims["backbone"].extremes if "backbone" in dims else []
    return parse_pretraining(
        raw.get("pretraining"),
        modality=modality,
        backbones=[BackboneSpec.model_validate(value) for value in values],
        key=f"{key}.pretraining",
        base=base,
        faults=faults,
    )


def _parameters(cls: type[StrategyParams], task: TaskKind) -> list[str]:
    return [
        name
        for name in cls.model_fields
        if name != "strategy" and belongs_to(name, task) and (cls.only is None or name in cls.only)
    ]


def _wrong_pooling(parameter: str, dim: Dimension | None, modality: Modality) -> str:
    """Why a pooling cannot be had for a kind of input; empty where it can."""
    if parameter != "pooling" or dim is None:
        return ""
    if "none" in dim.extremes:
        return "none is what tasks have that answer for every token. Use last, mean or multi-scale"
    if modality == "image" and "mean" in dim.extremes:
        return "mean is for text tasks. Use last or multi-scale"
    return ""


def _unknown(strategy: str, name: object, allowed: Sequence[str], task: TaskKind) -> str:
    if elsewhere := of_another_task(name, task):
        return elsewhere
    owners = [s for s, cls in STRATEGIES.items() if name in _parameters(cls, task)]
    belongs = f" It belongs to {listing(owners)}." if owners else ""
    return f"{strategy} has no such parameter.{nearest(name, allowed)}{belongs}"


def _dimension(
    cls: type[StrategyParams], name: str, raw: Any, key: str, faults: list[Fault]
) -> Dimension | None:
    """A parameter's dimension, each of its extreme values checked against the field."""
    field = _field(cls, name)
    dim: Dimension | None
    if isinstance(raw, Mapping):
        dim = _explicit(raw, key, faults)
    elif isinstance(raw, list) and not (
        field.takes_lists and not any(isinstance(v, list) for v in raw)
    ):
        dim = _choice(raw, key, faults)
    else:
        dim = Constant(value=raw)
    if dim is None:
        return None
    if isinstance(dim, Range) and field.words:
        faults.append(Fault(key, f"no range, but some of {listing(field.words)}. List them"))
        return None
    if isinstance(dim, Range) and _is_shared(cls, name):
        shared = "no range: trials share what is computed once for each value. List the values"
        faults.append(Fault(key, shared))
        return None
    wrong = [told for value in dim.extremes if (told := _refusal(field, value)) is not None]
    faults += [Fault(key, told) for told in wrong]
    return None if wrong else dim


def _is_shared(cls: type[StrategyParams], name: str) -> bool:
    """Whether trials of equal values share stored outputs, or the head that they start from."""
    return name in INPUT_SHAPE or (name == "hidden" and issubclass(cls, FineTuning))


def _described(raw: Any, base: Path, key: str, faults: list[Fault]) -> Any:
    """The descriptions that a labels file has, or as they are written; always one value."""
    if isinstance(raw, Mapping):
        return {"choice": [dict(raw)]}
    if not isinstance(raw, str):
        return raw
    try:
        found = read_label_set(Path(absolute(raw, base)))
    except SpecError as err:
        faults.append(Fault(key, str(err)))
        return None
    return {"choice": [found.to_json()["descriptions"]]}


def _explicit(raw: Mapping[str, Any], key: str, faults: list[Fault]) -> Choice | Range | None:
    kind = next(iter(raw), None)
    if len(raw) != 1 or kind not in ("choice", *RANGE_KINDS):
        near = nearest(kind, ("choice", *RANGE_KINDS))
        faults.append(Fault(key, f"{shown(dict(raw))} is not a form of search. Use {FORMS}.{near}"))
        return None
    body = raw[kind]
    if kind == "choice":
        return _choice(body, key, faults)
    numbers = isinstance(body, list) and all(is_number(v) and abs(v) < MOST for v in body)
    if not numbers or len(body) != 2 or body[0] >= body[1]:
        told = f"{{{kind}: {shown(body)}}} needs two numbers, the lower one first"
        faults.append(Fault(key, told))
        return None
    if kind == "log" and body[0] <= 0:
        faults.append(Fault(key, f"{{log: {body}}} must start above 0"))
        return None
    if kind == "int" and any(isinstance(v, float) for v in body):
        faults.append(Fault(key, f"{{int: {body}}} needs whole numbers"))
        return None
    return Range(kind=kind, low=body[0], high=body[1])


def _choice(body: Any, key: str, faults: list[Fault]) -> Choice | None:
    if not isinstance(body, list) or not body:
        faults.append(Fault(key, f"{shown(body)} is no list of at least one value"))
        return None
    return None if repeats(body, key, faults) else Choice(values=tuple(body))


@dataclass(frozen=True)
class _Field:
    """What a parameter takes.

    Attributes:
        adapter: Its validator.
        takes_lists: Whether its values are themselves lists.
        words: The allowed values, where they are listed; else empty.
    """

    adapter: TypeAdapter[Any]
    takes_lists: bool
    words: tuple[Any, ...]


@cache
def _field(cls: type[StrategyParams], name: str) -> _Field:
    """What the parameter `name` takes."""
    field = cls.model_fields[name]
    annotation: Any = field.annotation
    if field.metadata:
        annotation = Annotated[annotation, *field.metadata]
    members = getattr(field.annotation, "__args__", ())
    takes_lists = any(get_origin(m) is tuple for m in (field.annotation, *members))
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return _Field(TypeAdapter(annotation), takes_lists, words)


def _refusal(field: _Field, value: Any) -> str | None:
    """Why the field does not take `value`, or None when it does."""
    if field.words and not any(value == w and type(value) is type(w) for w in field.words):
        near = nearest(value, [str(word) for word in field.words])
        return f"{shown(value)} is not one of {listing(field.words)}.{near}"
    try:
        field.adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as err:
        errors = [e for e in err.errors() if e["type"] != "none_required"] or err.errors()
        if errors[0]["type"] == "missing":
            return f"{shown(value)} has too few values"
        told = next((e for e in errors if e["type"] == "value_error"), errors[0])
        return sentence({**told, "input": value})
    except (TypeError, ValueError):
        return f"{shown(value)} is no value of a parameter"
    return None


def _depth_faults(block: Block, key: str) -> list[Fault]:
    """`unfreeze` deeper than a backbone has stages."""
    depth = block.dimensions.get("unfreeze")
    if depth is None:
        return []
    deepest = max(depth.extremes)
    faults = []
    for spec in block.dimensions["backbone"].extremes:
        stages = facts_of(BackboneSpec.model_validate(spec)).n_stages
        if deepest >= stages:
            faults.append(
                Fault(
                    f"{key}.unfreeze",
                    f"{deepest} is {'more than' if deepest > stages else 'all that'} "
                    f"{spec['name']} has ({stages} stages). Use 1–{stages - 1}, "
                    "or strategy: full",
                )
            )
    return faults


def _adapter_faults(block: Block, key: str) -> list[Fault]:
    """Adapters beside an attention that a backbone does not have."""
    dim = block.dimensions.get("adapter")
    if dim is None or "lora" not in dim.extremes:
        return []
    lacking = [
        spec.name
        for content in block.dimensions["backbone"].extremes
        if not facts_of(spec := BackboneSpec.model_validate(content)).takes_adapters
    ]
    told = (
        "lora needs query and value projections in every stage, which {} does not have. Use a "
        "vision transformer of timm, such as vit_base_patch16_224, or adapter: none"
    )
    return [Fault(f"{key}.adapter", told.format(name)) for name in lacking]


def _text_head_faults(block: Block, key: str) -> list[Fault]:
    """A head that starts from texts, over a backbone that knows none."""
    head = block.dimensions.get("head")
    always = block.params_class.model_fields["head"].default == "text"
    if not always and (head is None or "text" not in head.extremes):
        return []
    faults = []
    for content in block.dimensions["backbone"].extremes:
        spec = BackboneSpec.model_validate(content)
        if not is_clip(spec.name):
            what = "zero-shot" if always else "head: text"
            told = f"{what} needs a CLIP, which {spec.name} is not"
            faults.append(Fault(f"{key}.backbone", f"{told}. Use {listing(CLIPS)}, or a folder"))
        elif spec.weights == "none":
            told = f"{spec.name} with weights: none understands no text. Leave weights out"
            faults.append(Fault(f"{key}.backbone", told))
    return faults


def _length_faults(block: Block, key: str) -> list[Fault]:
    """`max_length` beyond an encoder's positions."""
    length = block.dimensions.get("max_length")
    longest = [value for value in length.extremes if value is not None] if length else []
    faults = []
    for content in block.dimensions["backbone"].extremes if longest else ():
        spec = BackboneSpec.model_validate(content)
        most = longest_input(encoder_config(spec))
        if max(longest) > most:
            told = f"{max(longest)} is more than the {most} tokens that {spec.name} takes"
            faults.append(Fault(f"{key}.max_length", f"{told}. Use at most {most}"))
    return faults


def _overlap_faults(block: Block, key: str) -> list[Fault]:
    """`overlap` beyond half of the shortest windows."""
    overlap, length = block.dimensions.get("overlap"), block.dimensions.get("max_length")
    shared = [value for value in overlap.extremes if value is not None] if overlap else []
    if not shared:
        return []
    backbones = map(BackboneSpec.model_validate, block.dimensions["backbone"].extremes)
    sizes = [value for value in length.extremes if value is not None] if length else []
    if length is None or None in length.extremes:
        sizes += [facts_of(spec).input.size for spec in backbones]
    if max(shared) <= min(sizes) // 2:
        return []
    told = f"{max(shared)} is more than half of the {min(sizes)} tokens of a window"
    return [Fault(f"{key}.overlap", f"{told}. Use at most {min(sizes) // 2}")]


def _combination_faults(block: Block, key: str) -> list[Fault]:
    """Parameters that are each allowed and that the search could not have together."""
    vetted = {k: v for k, v in block.vetted().items() if k != "backbone"}
    for names in TOGETHER:
        dims = {name: block.dimensions[name] for name in names if name in block.dimensions}
        for extremes in itertools.product(*(dim.extremes for dim in dims.values())):
            given = vetted | dict(zip(dims, extremes, strict=True))
            values = with_defaults(block.rung, block.modality, given)
            try:
                block.params_class.model_validate(values)
            except ValidationError as err:
                return as_faults(err, block.params_class, prefix=key)
    return []
