"""The search as data: blocks of conditional parameters, each a constant or a range."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.spec.frozen import Frozen, digest_of
from orchestrator.spec.parts import Modality
from orchestrator.spec.pretraining import Pretraining
from orchestrator.spec.strategy import STRATEGIES, Adapter, StrategyParams, Then
from orchestrator.spec.vetted import defaults_for


class Constant(Frozen):
    """One value."""

    kind: Literal["constant"] = "constant"
    value: Any

    def clamp(self, _: Any) -> Any:
        """The value, whatever was wished for."""
        return self.value

    @property
    def extremes(self) -> list[Any]:
        """Values such that if all are valid, every member is."""
        return [self.value]


class Choice(Frozen):
    """One of several values."""

    kind: Literal["choice"] = "choice"
    values: tuple[Any, ...]

    def clamp(self, wish: Any) -> Any:
        """`wish` if it is a member, else the closest number, else the first value."""
        if wish in self.values:
            return wish
        numbers = [v for v in self.values if is_number(v)]
        if is_number(wish) and len(numbers) == len(self.values):
            return min(numbers, key=lambda v: abs(v - wish))
        return self.values[0]

    @property
    def extremes(self) -> list[Any]:
        """Values such that if all are valid, every member is."""
        return list(self.values)


class Range(Frozen):
    """A number from `low` to `high`, both included: log-uniform, uniform, or whole."""

    kind: Literal["log", "uniform", "int"]
    low: float
    high: float

    def clamp(self, wish: Any) -> Any:
        """The member closest to `wish`; without a wish the middle of the range."""
        if not is_number(wish):
            middle = (self.low * self.high) ** 0.5 if self.kind == "log" else None
            wish = (self.low + self.high) / 2 if middle is None else middle
        value = min(max(wish, self.low), self.high)
        return round(value) if self.kind == "int" else float(value)

    @property
    def extremes(self) -> list[Any]:
        """Values such that if all are valid, every member is."""
        return [int(v) if self.kind == "int" else v for v in (self.low, self.high)]


Dimension = Annotated[Constant | Choice | Range, Field(discriminator="kind")]


class Block(Frozen):
    """One strategy's part of the search: only its own parameters, `backbone` among them.

    What is not a dimension has its vetted default, which depends on the kind of input.

    Attributes:
        then: How a domain-adaptive block fine-tunes what its pretraining left.
        pretraining: Of a domain-adaptive block.
        twin_of: Digest of the domain-adaptive block whose default this block repeats without
            pretraining, so that the gain is measured on equal terms; empty for all others.
    """

    strategy: str
    dimensions: dict[str, Dimension]
    modality: Modality = "image"
    then: Then | None = None
    pretraining: Pretraining | None = None
    twin_of: str = ""

    def to_json(self) -> dict[str, Any]:
        """The data as plain JSON types, without what only other blocks have."""
        absent = {"then": None, "pretraining": None, "twin_of": ""}
        return {k: v for k, v in super().to_json().items() if k not in absent or v != absent[k]}

    @property
    def digest(self) -> str:
        """What tells this block from the others of a sweep, wherever it stands among them."""
        return digest_of(self.to_json())[:12]

    @property
    def params_class(self) -> type[StrategyParams]:
        """The class whose fields this block sets."""
        return STRATEGIES[self.rung]

    @property
    def rung(self) -> str:
        """The strategy whose parameters it has: what comes `then`, or its own."""
        return self.then or self.strategy

    @property
    def searched(self) -> dict[str, Choice | Range]:
        """The dimensions that leave something to search."""
        return {name: dim for name, dim in self.dimensions.items() if not isinstance(dim, Constant)}

    def vetted(self) -> dict[str, Any]:
        """The block's trial 0: the vetted default of every dimension, clamped to its range."""
        defaults = self.defaults()
        return {name: dim.clamp(defaults.get(name)) for name, dim in self.dimensions.items()}

    @property
    def adapter(self) -> Adapter:
        """The adapter of all its trials; `none` where only some of them have one."""
        dim = self.dimensions.get("adapter")
        return "lora" if dim is not None and dim.extremes == ["lora"] else "none"

    def defaults(self) -> dict[str, Any]:
        """The vetted default of each of the strategy's parameters."""
        return defaults_for(self.rung, self.modality, self.adapter)


def is_number(value: Any) -> bool:
    """Whether `value` is a number; booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
