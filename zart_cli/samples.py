"""A value that a durable function would take, for a command that can be pasted."""

import datetime as dt
import inspect
import uuid
from typing import Any

import msgspec
from msgspec import inspect as types

import zart

_DEEPEST = 6


def sample_data(durable: "zart.Durable[..., Any]") -> str | None:
    """JSON for --data; None when the function takes no input, "{}" where its type does not tell."""
    parameters = list(inspect.signature(durable.fn).parameters.values())
    if not parameters:
        return None
    try:
        annotation = inspect.get_annotations(durable.fn, eval_str=True).get(parameters[0].name, Any)
        sample = _sample(types.type_info(annotation), 0)
    except Exception:  # noqa: BLE001 (any type may stand there; without a sample the command is still of use)
        sample = {}
    return msgspec.json.encode(sample).decode()


def _sample(type: types.Type, depth: int) -> Any:  # noqa: C901 (one case for each kind of type)
    match type:
        case types.Metadata(type=inner):
            return _sample(inner, depth)
        case types.UnionType(types=members):
            return _sample(members[0], depth)
        case (
            types.StructType(fields=fields)
            | types.DataclassType(fields=fields)
            | types.TypedDictType(fields=fields)
        ):
            return {
                field.encode_name: _sample(field.type, depth + 1)
                for field in fields
                if field.required and depth < _DEEPEST
            }
        case types.StrType():
            return "text"
        case types.BoolType():
            return True
        case types.IntType():
            return 1
        case types.FloatType():
            return 1.5
        case types.DecimalType():
            return "1.50"
        case types.NoneType():
            return None
        case types.DateTimeType():
            return dt.datetime.now(dt.UTC).replace(microsecond=0)
        case types.DateType():
            return dt.datetime.now(dt.UTC).date()
        case types.UUIDType():
            return uuid.UUID(int=1)
        case types.EnumType(cls=enum):
            return next(iter(enum))
        case types.LiteralType(values=values):
            return values[0]
        case types.ListType(item_type=item) | types.VarTupleType(item_type=item):
            return [_sample(item, depth + 1)] if depth < _DEEPEST else []
        case types.TupleType(item_types=items):
            return [_sample(item, depth + 1) for item in items]
        case _:
            return {}
