"""Prompts: the sentences that stand for a class when a CLIP reads them. No torch.

A class is its label, or phrases that describe it, each put into every template; or whole prompts
of its own, which need no template. Its embedding is the mean over all of them.

Templates: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
ICML 2021, section 3.1.4.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from orchestrator.errors import Fault, SpecError, listing, nearest, shown
from orchestrator.spec.fault_messages import as_faults
from orchestrator.spec.frozen import Frozen
from orchestrator.spec.reading import read_yaml

HOLE = "{}"
MOST_LABELS = 100_000

TemplateSet = Literal["default", "plain", "simple", "none"]
TEMPLATES: dict[str, tuple[str, ...]] = {
    "default": (
        "a photo of a {}.",
        "a photo of the {}.",
        "a close-up photo of a {}.",
        "a close-up photo of the {}.",
        "a photo of a {} in the field.",
        "a cropped photo of a {}.",
        "a good photo of a {}.",
    ),
    "plain": ("a photo of a {}.",),
    # The subset that CLIP's authors chose for ImageNet (notebooks/Prompt_Engineering_for_ImageNet).
    "simple": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "none": (HOLE,),
}


def _with_hole(template: str) -> str:
    if template in TEMPLATES:
        raise ValueError(
            f"{template!r} is a set of templates. Write {{choice: […]}} to try several"
        )
    if template.count(HOLE) != 1:
        raise ValueError(f"{template!r} needs one {HOLE}, where the class goes")
    return template


def _some(templates: Any) -> Any:
    if not templates:
        raise ValueError("no templates. Give at least one, or none by its name: templates: none")
    return templates


def _as_tuple(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[str, Field(min_length=1)]
Template = Annotated[str, AfterValidator(_with_hole)]
Templates = Annotated[TemplateSet | tuple[Template, ...], AfterValidator(_some)]
Phrases = Annotated[tuple[Text, ...], Field(min_length=1), BeforeValidator(_as_tuple)]


class WholePrompts(Frozen):
    """Prompts of one class that go into no template."""

    prompts: Phrases


Description = WholePrompts | Phrases
Descriptions = dict[str, Description]


class LabelSet(Frozen):
    """Classes by name or by description, and the templates that they are put into."""

    labels: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST_LABELS)]
    templates: Templates = "default"
    descriptions: Descriptions = Field(default_factory=dict, description="label → what it means")

    def prompts(self) -> dict[str, tuple[str, ...]]:
        """The prompts of every label, in the labels' order."""
        return class_prompts(self.labels, self.templates, self.descriptions)

    def completed_by(self, own: LabelSet) -> LabelSet:
        """The same labels; what this set does not say of them is as another set has it.

        That is the templates, where none are given, and what a label means that both have.
        """
        shared = {name: own.descriptions[name] for name in self.labels if name in own.descriptions}
        return LabelSet(
            labels=self.labels,
            templates=self.templates if "templates" in self.model_fields_set else own.templates,
            descriptions={**shared, **self.descriptions},
        )


def class_prompts(
    labels: Sequence[str], templates: Templates, descriptions: Mapping[str, Description] | None
) -> dict[str, tuple[str, ...]]:
    """The prompts of every label, in the labels' order.

    Raises:
        SpecError: A description is of no label, or two labels are the same.
    """
    described = descriptions or {}
    faults = [
        Fault("descriptions", f"{label!r} is not among the labels.{nearest(label, labels)}")
        for label in described.keys() - set(labels)
    ]
    repeated = sorted(label for label, count in Counter(labels).items() if count > 1)
    faults += [Fault("labels", f"{label!r} appears twice. Keep one") for label in repeated]
    if faults:
        raise SpecError(faults)
    filled = TEMPLATES[templates] if isinstance(templates, str) else templates
    return {label: _prompts(label, filled, described.get(label)) for label in labels}


def _prompts(
    label: str, templates: tuple[str, ...], description: Description | None
) -> tuple[str, ...]:
    if isinstance(description, WholePrompts):
        return description.prompts
    phrases = description or (label.replace("_", " "),)
    return tuple(t.replace(HOLE, phrase) for phrase in phrases for t in templates)


def read_label_set(path: Path) -> LabelSet:
    """The labels in a YAML or JSON file.

    It is a list of names, or `labels:` with a list, or a mapping from each name to a phrase, to
    several, or to `{prompts: […]}`; and optionally `templates:`.

    Raises:
        SpecError: It cannot be read, or is something else.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8-sig"), source=str(path))
    except (OSError, UnicodeDecodeError) as err:
        raise SpecError(f"{path}: cannot be read ({err}). Give a YAML or JSON file") from err
    return parse_label_set(content, source=str(path))


def parse_label_set(content: Any, *, source: str) -> LabelSet:
    """The labels that plain data describes; see `read_label_set`."""
    if isinstance(content, list):
        content = {"labels": content}
    if not isinstance(content, Mapping) or "labels" not in content:
        raise SpecError(
            f"{source}: {shown(content)} names no labels. Write `labels: [red circle, …]`, or "
            "`labels: {name: a description, …}`"
        )
    try:
        found = LabelSet.model_validate_json(json.dumps(_normal(content)))
    except ValidationError as err:
        raise SpecError(dict.fromkeys(as_faults(err, LabelSet, prefix="")), source=source) from err
    found.prompts()
    return found


def _normal(content: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of names to what they mean as a list of names, and descriptions."""
    labels = content["labels"]
    if not isinstance(labels, Mapping):
        return dict(content)
    described = {name: value for name, value in labels.items() if value is not None}
    return {**content, "labels": [*labels], "descriptions": described}


def label_set(labels: str, *, templates: Sequence[str] = ()) -> LabelSet:
    """The labels that a command line names: a file, or names with commas between them.

    Args:
        labels: The path of a labels file, or `red circle,blue square`.
        templates: Template sets or templates, which replace the file's.

    Raises:
        SpecError: They are no labels, or no templates.
    """
    if labels.endswith((".yaml", ".yml", ".json")):
        found = read_label_set(Path(labels).expanduser())
    else:
        names = [name.strip() for name in labels.split(",") if name.strip()]
        found = parse_label_set(names, source="--labels")
    return with_templates(found, templates)


def with_templates(labels: LabelSet, templates: Sequence[str]) -> LabelSet:
    """The same labels under other templates: the name of a set, or templates themselves.

    Raises:
        SpecError: A template has no place for the class.
    """
    if not templates:
        return labels
    if len(templates) == 1 and HOLE not in templates[0]:
        if templates[0] not in TEMPLATES:
            raise SpecError(
                f"templates: {templates[0]!r} is none of {listing(TEMPLATES)}, and as a template "
                f"it needs one {HOLE}, where the class goes.{nearest(templates[0], TEMPLATES)}"
            )
        chosen: Any = templates[0]
    else:
        chosen = list(templates)
    content = {**labels.to_json(), "templates": chosen}
    try:
        return LabelSet.model_validate_json(json.dumps(content))
    except ValidationError as err:
        raise SpecError(dict.fromkeys(as_faults(err, LabelSet, prefix=""))) from err
