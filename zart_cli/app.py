"""`--app module:attribute`: finds the user's registry, and says in one line why it cannot."""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import click

import zart

_FORM: Final = "--app takes module:attribute, such as myapp:registry, or a module that holds one Registry"

app_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--app",
    envvar="ZART_APP",
    metavar="MODULE[:ATTRIBUTE]",
    help="Where the registry is; ZART_APP says it too. The working directory is on Python's path.",
)


def load_registry(app: str | None) -> zart.Registry:
    """The registry that `app` names.

    Raises UsageError in one line: nothing named, no such module, an import that fails (with the innermost place),
    no such attribute, not a Registry.
    """
    if not app:
        raise zart.UsageError(f"no app is named: {_FORM}; ZART_APP in the environment says it too")
    module_name, _, attribute = app.partition(":")
    if module_name.endswith(".py") or "/" in module_name or os.sep in module_name:
        name = module_name.removesuffix(".py").strip("./").replace(os.sep, ".").replace("/", ".")
        raise zart.UsageError(
            f"--app {app}: give the module's name, not its file: {name}{':' + attribute if attribute else ''}"
        )
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise zart.UsageError(f"--app {app}: {module_name!r} is no module's name. {_FORM}")
    module = _import(module_name, app)
    if not attribute:
        return _registry_of(module, app)
    found = _look_up(module, attribute, app)
    if isinstance(found, ModuleType):
        return _registry_of(found, app)
    if isinstance(found, zart.Registry):
        return found
    members = attribute if isinstance(found, (zart.Durable, zart.Step)) else "..."
    raise zart.UsageError(
        f"--app {app}: {attribute} is a {_kind(found)}, not a Registry: "
        f"write registry = zart.Registry({members}) and name that"
    )


def _kind(value: Any) -> str:
    return type(value).__name__


def _import(name: str, app: str) -> ModuleType:
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise zart.UsageError(
                f"--app {app}: there is no module {error.name!r} in {directory} or on Python's path"
            ) from None
        raise _failed_import(name, app, error) from error
    except zart.UsageError as error:
        # Decorators say by themselves which function they refuse, and where it is.
        raise zart.UsageError(f"--app {app}: {error}") from error
    except (Exception, SystemExit) as error:
        raise _failed_import(name, app, error) from error


def _failed_import(name: str, app: str, error: BaseException) -> zart.UsageError:
    text = " ".join(str(error).split())
    told = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        told = f"{type(error).__name__}: {error.msg}"
    return zart.UsageError(f"--app {app}: importing {name} failed at {_innermost(error)}: {told}")


def _innermost(error: BaseException) -> str:
    """Where it was raised, as `file:line in function`; the import machinery's own frames do not count."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and frame.filename not in (__file__, importlib.__file__)
    ]
    if not frames:
        return "its beginning"
    inner = frames[-1]
    place = f"{_short(inner.filename)}:{inner.lineno}"
    return place if inner.name == "<module>" else f"{place} in {inner.name}"


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def _look_up(module: ModuleType, attribute: str, app: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise zart.UsageError(
                f"--app {app}: {module.__name__} has no {attribute!r}{_suggestion(module, attribute)}"
            ) from None
    return found


def _suggestion(module: ModuleType, attribute: str) -> str:
    registries = list(_registries(module))
    if registries:
        return f"; its registries: {', '.join(registries)}"
    close = get_close_matches(attribute, [name for name in vars(module) if not name.startswith("_")], n=1)
    return f"; did you mean {close[0]!r}?" if close else ": it holds no Registry at all"


def _registry_of(module: ModuleType, app: str) -> zart.Registry:
    registries = _registries(module)
    distinct = {id(registry): registry for registry in registries.values()}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    if distinct:
        choices = " or ".join(f"{module.__name__}:{name}" for name in registries)
        raise zart.UsageError(f"--app {app}: {module.__name__} holds several registries: name one, {choices}")
    durables = [name for name, value in vars(module).items() if isinstance(value, zart.Durable)]
    hint = f"write registry = zart.Registry({', '.join(durables) or '...'}) in it"
    raise zart.UsageError(f"--app {app}: {module.__name__} holds no Registry: {hint}")


def _registries(module: ModuleType) -> dict[str, zart.Registry]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, zart.Registry) and re.match(r"[^_]", name)
    }
