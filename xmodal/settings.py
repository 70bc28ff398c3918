"""Settings of components, and the recipe field that chooses a component. Does not import torch.

``Settings`` is the base of every ``Config``. ``Use[Selector]`` accepts ``gate`` or
``{use: gate, temperature: 0.5}``, imports only that class, and validates the other keys with its
``Config``. The registry arrives in pydantic's validation context under ``registry``; without one,
the process-wide registry is used.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import (
    CoreSchema,
    InitErrorDetails,
    PydanticCustomError,
    PydanticKnownError,
    core_schema,
)

from xmodal import plugins
from xmodal.errors import PluginError, UsageError, did_you_mean, nearest
from xmodal.text import shown

__all__ = [
    "NameOrPath", "Settings", "TokenCounts", "Use", "component_schema", "default", "inlined",
]  # fmt: skip

C = TypeVar("C")


class FileText(str):
    """Text of a recipe file, which knows the folder that relative paths in it start from."""

    __slots__ = ("folder",)
    folder: Path

    def __new__(cls, text: str, folder: Path = Path()) -> Self:
        made = super().__new__(cls, text)
        made.folder = folder
        return made


def _name_or_path(value: Any) -> Any:
    if isinstance(value, str) and value.startswith((".", "/", "~")):
        return str(_located("name", value, Path))
    return value


NameOrPath = Annotated[str, BeforeValidator(_name_or_path)]
"""The type of a setting that is a name somewhere else (a hub id), or a path.

It is a path if it starts with ``.``, ``/`` or ``~``, and then absolute like those of type ``Path``.
"""

_SCHEMAS_OF_VALUES = ("default", "metadata", "serialization", "expected", "ref", "schema_ref")


def _with_numbers_only(schema: Any) -> Any:
    """A schema that takes neither text nor truth values for numbers.

    Otherwise ``seed: true`` would be seed 1, and a number in quotes a number.
    """
    if isinstance(schema, list | tuple):
        return [_with_numbers_only(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("int", "float"):
        return core_schema.no_info_before_validator_function(_number, cast(CoreSchema, schema))
    return {
        key: item if key in _SCHEMAS_OF_VALUES else _with_numbers_only(item)
        for key, item in schema.items()
    }


def _number(value: Any) -> Any:
    if isinstance(value, str):
        context = {"shown": f"the text '{shown(value)}'"}
    elif isinstance(value, bool):
        context = {"shown": str(value).lower()}
    else:
        return value
    raise PydanticCustomError("not_a_number", "should be a number, not {shown}", context)


class Settings(BaseModel):
    """Base of every ``Config``: an unknown key is an error that names the nearest known key."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        strict: CoreSchema = _with_numbers_only(handler(source))
        return strict

    @model_validator(mode="wrap")
    @classmethod
    def _prepare(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, Mapping):
            fields = cls.model_fields
            # Default paths, too, start from the working directory.
            usual = {key: f.default for key, f in fields.items() if isinstance(f.default, Path)}
            value = {
                key: _located(key, item, fields[key].annotation) if key in fields else item
                for key, item in {**usual, **value}.items()
            }
        try:
            return handler(value)
        except ValidationError as error:
            raise _with_nearest_keys(cls, error) from None


def _located(key: str, value: Any, annotation: Any) -> Any:
    """The ``value`` of a setting with absolute paths, if ``annotation`` says that it holds paths.

    A path that a recipe file gives starts from the folder of the file, any other from the working
    directory.
    """
    inner = get_args(annotation)
    if isinstance(value, str | Path) and (annotation is Path or Path in inner):
        if any(get_origin(a) is Literal and value in get_args(a) for a in inner):
            return value
        folder = value.folder if isinstance(value, FileText) else Path.cwd()
        path = folder / os.path.expanduser(value)
        try:
            os.lstat(path if str(value) else "")
        except (OSError, ValueError) as error:
            if not str(value) or isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
                context = {"at": key, "shown": f"'{shown(value)}'", "reason": _why(error)}
                raise PydanticCustomError(
                    "not_a_path", "{shown} cannot be a path: {reason}", context
                ) from None
        return path
    if isinstance(value, list | tuple) and inner:
        return [_located(key, item, inner[0]) for item in value]
    return value


def _why(error: OSError | ValueError) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else str(error)


MAX_HINTS = 50


def _with_nearest_keys(model: type[BaseModel], error: ValidationError) -> ValidationError:
    """Rewrite this model's own unknown-key errors; errors of nested parts pass unchanged."""
    known = sorted(field.alias or name for name, field in model.model_fields.items())
    details: list[InitErrorDetails] = []
    for item in error.errors(include_url=False):
        if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
            # To search for the nearest key takes time, and nobody reads a thousand messages.
            hint = did_you_mean(str(item["loc"][0]), known) if len(details) < MAX_HINTS else ""
            context = {"hint": hint, "known": ", ".join(known)}
            kind = PydanticCustomError("unknown_key", "unknown setting{hint}", context)
        else:
            details.append(_same_error(item))
            continue
        details.append(InitErrorDetails(type=kind, loc=item["loc"], input=item["input"]))
    return ValidationError.from_exception_data(error.title, details)


def _same_error(item: Any) -> InitErrorDetails:
    """The error in ``item``, in the form from which pydantic builds errors."""
    details = InitErrorDetails(type=item["type"], loc=item["loc"], input=item["input"])
    if "ctx" in item:
        details["ctx"] = item["ctx"]
    try:
        PydanticKnownError(item["type"], item.get("ctx"))
    except KeyError:
        # pydantic would read braces in a message (paths, types) as template fields.
        message = item["msg"].replace("{", "(").replace("}", ")")
        details["type"] = PydanticCustomError(item["type"], message, item.get("ctx"))
    return details


@dataclass(frozen=True)
class Kind:
    """Replaces the interface of a kind in ``Use[...]`` if importing it would import torch."""

    kind: str


NAMES_ONLY = "names_only"
"""A key of the validation context: check names only, without importing any component."""


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

    def build(self, context: Any) -> C:
        """Construct the component."""
        make: Any = self.component
        built: C = make(self.config, context)
        return built

    def dump(self) -> dict[str, Any]:
        """The recipe block for this choice, with every setting."""
        return {"use": self.name, **self.config.model_dump(mode="json")}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        (interface,) = get_args(source)

        def validate(value: Any, info: core_schema.ValidationInfo) -> Use[Any]:
            return _choose(interface.kind, value, info.context or {})

        serialize = core_schema.plain_serializer_function_ser_schema(lambda use: use.dump())
        return core_schema.with_info_plain_validator_function(
            validate, serialization=serialize, metadata={"xmodal_kind": interface.kind}
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return component_schema(schema["metadata"]["xmodal_kind"])


def default(name: str) -> Any:
    """The default of a ``Use`` field: a name that is validated like any other choice."""
    return name


def _choose(kind: str, value: Any, context: Mapping[str, Any]) -> Use[Any]:
    if isinstance(value, Use):
        return value
    registry: plugins.Registry = context.get("registry") or plugins.registry()
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
        if context.get(NAMES_ONLY):
            registry.entry(kind, name)
            return Use(name, object, Settings())
        component = registry.load(kind, name)
    except UsageError as error:
        # pydantic would read braces in the message (paths, types) as template fields.
        raise PydanticCustomError(
            "component_unknown", "{message}", {"message": str(error), "at": "use"}
        ) from None
    except PluginError as error:
        raise PydanticCustomError(
            "component_broken", "{message}", {"message": str(error), "at": "use"}
        ) from None
    today, renamed = component.renamed(name, settings)
    if today != name:
        return _choose(kind, {"use": today, **renamed}, context)
    config = component.Config.model_validate(renamed, context=context)
    return Use(name, component, config)


class TokenCounts(Settings):
    """Settings that hold token counts, all in one unit."""

    unit: Literal["patches", "share"] = Field(
        "patches",
        description="patches: counts are numbers of tokens. share: counts are fractions of the "
        "tokens, 0 to 1.",
    )
    of: int | None = Field(
        None,
        ge=1,
        description="The number of tokens that counts of patches are meant for; on another grid "
        "they change in proportion. null: they are what they are, at most all tokens.",
    )

    def counts(self) -> dict[str, float]:
        """The settings that are counts, by name."""
        return {}

    def in_tokens(
        self, count: float, num_tokens: int, note: Callable[[str], None] = lambda line: None
    ) -> float:
        """A count in tokens, at most ``num_tokens``; a larger count is clipped and noted."""
        if self.unit == "share":
            return count * num_tokens
        if self.of is not None:
            return count * num_tokens / self.of
        if count > num_tokens:
            note(f"schedule: {count:g} patches, but only {num_tokens} tokens; counts are clipped")
        return min(count, float(num_tokens))

    def always_all(self, num_tokens: int) -> Iterator[str]:
        """A problem if clipping makes every count ``num_tokens``, so that no token ever stays."""
        counts = self.counts()
        if self.unit == "share" or self.of is not None or not counts or num_tokens < 1:
            return
        if min(counts.values()) >= num_tokens < max(counts.values()):
            named = " and ".join(f"{name} {count:g}" for name, count in counts.items())
            yield (
                f"{named}, but there are {num_tokens} tokens: all of them would be replaced in "
                "every epoch, and the mixed view would never hold the target or its label; set "
                "unit: share with fractions such as 0.64, or of: the number of tokens that these "
                "counts are meant for (3136 in the paper)"
            )

    @model_validator(mode="after")
    def _in_unit(self) -> Self:
        if self.unit == "share" and self.of is not None:
            raise ValueError("'of' goes with counts of patches; with unit 'share', leave it out")
        for name, value in self.counts().items():
            if self.unit == "share" and value > 1:
                raise ValueError(f"{name} is {value:g}, but with unit 'share' it must be 0 to 1")
            if self.unit == "patches" and value != int(value):
                raise ValueError(
                    f"{name} is {value:g}; for fractions of the tokens, set unit: share"
                )
            if self.of is not None and value > self.of:
                raise ValueError(f"{name} is {value:g}, more than the {self.of} tokens of 'of'")
        return self


# --- JSON Schema ---

_around: ContextVar[frozenset[str]] = ContextVar("kinds being described", default=frozenset())


def component_schema(kind: str, registry: plugins.Registry | None = None) -> dict[str, Any]:
    """``oneOf`` over every component of a kind, without those that fail to import.

    Inside a component of the same kind, it lists only names; otherwise it would never end.
    """
    registry = registry or plugins.registry()
    if kind in _around.get():
        named = {"use": {"enum": registry.names(kind)}}
        block = {"type": "object", "properties": named, "required": ["use"]}
        return {"oneOf": [{"type": "string", "enum": registry.names(kind)}, block]}
    token = _around.set(_around.get() | {kind})
    try:
        return _component_schema(kind, registry)
    finally:
        _around.reset(token)


def _component_schema(kind: str, registry: plugins.Registry) -> dict[str, Any]:
    options: list[dict[str, Any]] = []
    names = []
    for name in registry.names(kind):
        try:
            config = registry.load(kind, name).Config
        except PluginError:
            continue
        names.append(name)
        options.append(_block(name, registry.entry(kind, name), config))
    short = {"type": "string", "enum": names, "description": f"The name of a {kind}."}
    return {"oneOf": [short, *options, _partial(kind, options)]}


def _partial(kind: str, options: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings for a component named in an extended recipe: all settings of any component."""
    known = sorted({key for option in options for key in option["properties"]} - {"use"})
    return {
        "type": "object",
        "title": f"settings of the {kind} named elsewhere",
        "minProperties": 1,
        "propertyNames": {"enum": known},
    }


def _block(name: str, entry: plugins.Entry, config: type[BaseModel]) -> dict[str, Any]:
    schema = inlined(config.model_json_schema())
    properties = {"use": {"const": name}, **schema.get("properties", {})}
    return {
        "type": "object",
        "title": f"{name} ({entry.origin})",
        "properties": properties,
        # Other settings may come from an extended recipe.
        "required": ["use"],
        "additionalProperties": False,
    }


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Replace local references, which do not resolve in a schema nested in another."""
    definitions = schema.pop("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                name = node["$ref"].rpartition("/")[2]
                rest = {k: v for k, v in node.items() if k != "$ref"}
                return {**walk(definitions[name]), **rest}
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(item) for item in node]
        return node

    return walk(schema)  # type: ignore[no-any-return]
