"""What a module offers, as a flat mapping from names to how they are, read from a stub or from the module
itself.

    "sleep"                     "function, returns a coroutine"
    "sleep(duration)"           "positional only"
    "WorkerConfig(max_threads)" "keyword only, default 40"
    "Event.name"                "attribute"

Both readings give the same text for the same thing, so that a comparison is one of two mappings. A function
with overloads appears once for each: "capture#1(fn)".
"""

import ast
import collections.abc
import inspect
import textwrap
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

Surface = dict[str, str]
ANY_DEFAULT = "default ..."
"""What a stub says of a default that is nobody's business."""

_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional only",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional or keyword",
    inspect.Parameter.VAR_POSITIONAL: "the rest by position",
    inspect.Parameter.KEYWORD_ONLY: "keyword only",
    inspect.Parameter.VAR_KEYWORD: "the rest by keyword",
}
_BY_NATURE = {*dir(msgspec.Struct), *dir(BaseException), *dir(typing.Generic), *dir(object), "__weakref__"}


def same(pinned: str, found: str) -> bool:
    """Whether a description from the stub and one from the package are of the same thing."""
    if pinned.endswith(ANY_DEFAULT):
        return (
            found.partition(", default ")[0] == pinned.removesuffix(f", {ANY_DEFAULT}")
            and ", default " in found
        )
    return pinned == found


# ---------------------------------------------------------------- from a stub


def of_stub(path: Path) -> Surface:
    """What the stub at `path` promises."""
    found: Surface = {}
    tree = ast.parse(path.read_text())
    _stub_body(tree.body, "", found)
    return found


def _stub_body(body: list[ast.stmt], prefix: str, found: Surface) -> None:
    functions: dict[str, list[ast.FunctionDef | ast.AsyncFunctionDef]] = {}
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                functions.setdefault(name, []).append(statement)
            case ast.ClassDef(name=name) if not name.startswith("_"):
                bases = [
                    base for base in map(_base_name, statement.bases) if base not in {"Generic", "Protocol"}
                ]
                found[prefix + name] = f"class({', '.join(bases) or 'object'})"
                _stub_body(statement.body, f"{prefix}{name}.", found)
            case ast.AnnAssign(target=ast.Name(id=name)) if not name.startswith("_"):
                found[prefix + name] = "attribute"
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if not _is_type_variable(value):
                found[prefix + name] = "value"
            case _:
                pass
    for name, group in functions.items():
        if name.startswith("_") and not name.startswith("__"):
            continue
        _stub_function(prefix, name, group, found)


def _stub_function(
    prefix: str, name: str, group: list[ast.FunctionDef | ast.AsyncFunctionDef], found: Surface
) -> None:
    decorators = {ast.unparse(decorator) for node in group for decorator in node.decorator_list}
    if "property" in decorators:
        found[prefix + name] = "attribute"
        return
    # A constructor's parameters are the class's own, as in a call.
    called = prefix.removesuffix(".") if name == "__init__" else prefix + name
    if name != "__init__":
        kind = "class method" if "classmethod" in decorators else "function"
        waits = ", returns a coroutine" if isinstance(group[0], ast.AsyncFunctionDef) else ""
        found[called] = kind + waits
    overloaded = len(group) > 1
    for number, node in enumerate(group, start=1):
        tag = f"{called}#{number}" if overloaded else called
        parameters = _stub_parameters(node.args)
        if prefix:
            parameters = parameters[1:]
        for parameter, described in parameters:
            found[f"{tag}({parameter})"] = described


def _stub_parameters(arguments: ast.arguments) -> list[tuple[str, str]]:
    listed: list[tuple[str, str]] = []
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    for index, argument in enumerate(positional):
        kind = "positional only" if index < len(arguments.posonlyargs) else "positional or keyword"
        default = arguments.defaults[index - required] if index >= required else None
        listed.append((argument.arg, kind + _stub_default(default)))
    if arguments.vararg:
        listed.append((f"*{arguments.vararg.arg}", "the rest by position"))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        listed.append((argument.arg, "keyword only" + _stub_default(default)))
    if arguments.kwarg:
        listed.append((f"**{arguments.kwarg.arg}", "the rest by keyword"))
    return listed


def _stub_default(default: ast.expr | None) -> str:
    if default is None:
        return ""
    match default:
        case ast.Constant(value=value) if value is ...:
            return f", {ANY_DEFAULT}"
        case ast.Tuple(elts=[ast.Name(id=name)]):
            return f", default ({name},)"
        case _:
            return f", default {ast.literal_eval(default)!r}"


def _base_name(base: ast.expr) -> str:
    return ast.unparse(base).split("[")[0]


def _is_type_variable(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) in {"TypeVar", "ParamSpec"}


# ---------------------------------------------------------------- from the package


def of_module(module: ModuleType) -> Surface:
    """What the public names of `module` are: those in its `__all__`, else what it defines."""
    found: Surface = {}
    for name in getattr(module, "__all__", None) or _defined(module):
        value = getattr(module, name)
        if isinstance(value, type):
            _class(value, name, found)
        elif callable(value) and not typing.get_origin(value):
            _function(value, name, found, bound=False)
        else:
            found[name] = "value"
    return found


def _defined(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and value.__module__ == module.__name__
    ]


def _class(cls: type, name: str, found: Surface) -> None:
    bases = [base for base in cls.__bases__ if base.__module__.partition(".")[0] in {"zart", "builtins"}]
    public = [base.__name__ for base in _without_private(bases)]
    found[name] = f"class({', '.join(public) or 'object'})"
    for attribute in dir(cls):
        value = inspect.getattr_static(cls, attribute)
        if attribute == "__init__":
            if "__init__" in vars(cls) and not getattr(cls, "_is_protocol", False):
                _function(value, f"{name}.__init__", found, bound=True)
        elif attribute in _BY_NATURE or not _is_public(attribute) or not _is_own(cls, attribute):
            continue
        elif isinstance(value, classmethod):
            _function(value.__func__, f"{name}.{attribute}", found, bound=True, kind="class method")
        elif inspect.isfunction(value):
            _function(value, f"{name}.{attribute}", found, bound=True)
        else:
            found[f"{name}.{attribute}"] = "attribute"
    for attribute in [*_annotated(cls), *_set_when_made(cls)]:
        found[f"{name}.{attribute}"] = "attribute"


def _without_private(bases: list[type]) -> list[type]:
    """The bases as the public sees them: in place of a private one, its own."""
    seen: list[type] = []
    for base in bases:
        if base is object:
            continue
        if base.__name__.startswith("_") or base.__name__ == "CoroutineFunction":
            seen += _without_private([parent for parent in base.__bases__ if parent is not typing.Generic])
        else:
            seen.append(base)
    return seen


def _is_own(cls: type, attribute: str) -> bool:
    """Whether zart defined it in the class, or in a private class that it derives from."""
    for base in cls.__mro__:
        if attribute in vars(base):
            return base is cls or base.__name__.startswith("_")
    return False


def _annotated(cls: type) -> list[str]:
    names = [*vars(cls).get("__annotations__", {})]
    for base in cls.__mro__[1:]:
        if base.__name__.startswith("_") and base.__module__.startswith("zart"):
            names += vars(base).get("__annotations__", {})
    return [name for name in names if not name.startswith("_")]


def _set_when_made(cls: type) -> list[str]:
    """The attributes that the constructor sets on `self`."""
    constructor = vars(cls).get("__init__")
    if not inspect.isfunction(constructor) or constructor.__module__.partition(".")[0] != "zart":
        return []
    names: list[str] = []
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(constructor)))):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()) if not name.startswith(
                "_"
            ):
                names.append(name)
            case _:
                pass
    return names


def _is_public(attribute: str) -> bool:
    return not attribute.startswith("_") or attribute in {
        "__call__", "__get__", "__await__", "__enter__", "__exit__", "__aenter__", "__aexit__",
    }  # fmt: skip


def _function(value: Any, name: str, found: Surface, *, bound: bool, kind: str = "function") -> None:
    called = name.removesuffix(".__init__")
    signature = inspect.signature(value)
    if called == name:
        found[called] = kind + (", returns a coroutine" if _returns_coroutine(value, signature) else "")
    overloads = typing.get_overloads(value)
    for number, overload in enumerate(overloads or [value], start=1):
        tag = f"{called}#{number}" if overloads else called
        parameters = list(inspect.signature(overload).parameters.values())
        for parameter in parameters[1:] if bound else parameters:
            stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
            found[f"{tag}({stars}{parameter.name})"] = _KINDS[parameter.kind] + _default(parameter)


def _returns_coroutine(value: Any, signature: inspect.Signature) -> bool:
    if inspect.iscoroutinefunction(value):
        return True
    return typing.get_origin(signature.return_annotation) is collections.abc.Coroutine


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return ""
    if isinstance(parameter.default, tuple) and parameter.default:
        return f", default ({', '.join(member.__name__ for member in parameter.default)},)"
    return f", default {parameter.default!r}"
