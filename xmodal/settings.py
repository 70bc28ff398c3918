"""``Use[Selector]``: the recipe field that picks a component.

Accepts ``gate`` or ``{use: gate, temperature: 0.5}``, imports only that class, and validates the
other keys with its ``Config``. The registry arrives in pydantic's validation context under
``registry``; without one, the process-wide registry is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from xmodal import plugins
from xmodal.errors import PluginError, UsageError, nearest
from xmodal.interfaces import Component, Context, Settings

C = TypeVar("C", bound=Component)


class Use(Generic[C]):
    """A chosen component: its registered name, its class and its validated settings."""

    def __init__(self, name: str, component: type[C], config: Settings) -> None:
        self.name = name
        self.component = component
        self.config: Any = config

    def __repr__(self) -> str:
        return f"Use({self.name!r}, {self.config!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Use) and self.dump() == other.dump()

    def __hash__(self) -> int:
        return hash((self.name, self.component))

    def build(self, context: Context) -> C:
        """Construct the component."""
        return self.component(self.config, context)

    def dump(self) -> dict[str, Any]:
        """The recipe block that selects exactly this, with every setting spelled out."""
        return {"use": self.name, **self.config.model_dump(mode="json")}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        (interface,) = get_args(source)

        def validate(value: Any, info: core_schema.ValidationInfo) -> Use[Any]:
            context = info.context or {}
            return _choose(interface.kind, value, context.get("registry"), info.context)

        serialize = core_schema.plain_serializer_function_ser_schema(lambda use: use.dump())
        return core_schema.with_info_plain_validator_function(
            validate, serialization=serialize, metadata={"xmodal_kind": interface.kind}
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        from xmodal.recipe.schema import component_schema

        return component_schema(schema["metadata"]["xmodal_kind"])


def default(name: str) -> Any:
    """The default of a ``Use`` field: a name, validated like any other choice."""
    return name


def _choose(kind: str, value: Any, registry: plugins.Registry | None, context: Any) -> Use[Any]:
    if isinstance(value, Use):
        return value
    registry = registry or plugins.registry()
    names = ", ".join(registry.names(kind)) or "none"
    if isinstance(value, str):
        value = {"use": value}
    if not isinstance(value, Mapping):
        raise PydanticCustomError(
            "component_form",
            "expected the name of a {kind}, or a block with 'use:'",
            {"kind": kind, "known": names},
        )
    settings = dict(value)
    name = settings.pop("use", None)
    if not isinstance(name, str):
        misspelt = nearest("use", settings)
        raise PydanticCustomError(
            "component_missing",
            "missing 'use'; pick a {kind}",
            {"kind": kind, "known": names, **({"at": misspelt} if misspelt else {})},
        )
    try:
        component = registry.load(kind, name)
    except UsageError as error:
        # The message may hold braces (paths, types), which a template would read as fields.
        raise PydanticCustomError(
            "component_unknown", "{message}", {"message": str(error), "at": "use"}
        ) from None
    except PluginError as error:
        raise PydanticCustomError(
            "component_broken", "{message}", {"message": str(error), "at": "use"}
        ) from None
    config = component.Config.model_validate(settings, context=context)
    return Use(name, component, config)
