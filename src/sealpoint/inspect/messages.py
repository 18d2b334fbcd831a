"""CRIU's messages, built from the table of field facts in crit.json (scripts/crit-table makes it).

All fields are optional here, enumerations are numbers and strings are bytes: so a message of any version of CRIU, and
one with names that are no UTF-8, can be read and written back without loss.  What a number or a byte means is said by
the facts.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from sealpoint.errors import FileError

_PLAIN: Final = {"string": "bytes"}  # how a type is read, where not as itself


@dataclass(frozen=True, slots=True)
class Field:
    """What is known of a field.  kind: type of protobuf, or the name of a message or an enumeration.

    flags, words, conv: how `crit` shows it: names of bits, names of numbers, quoting of bytes.
    """

    number: int
    name: str
    kind: str
    repeated: bool = False
    required: bool = False
    packed: bool = False
    is_message: bool = False
    enum: dict[str, int] | None = None
    hex: bool = False
    ip: bool = False
    dev: bool = False
    old_dev: bool = False
    flags: str = ""
    words: str = ""
    conv: str = ""


@functools.cache
def table() -> dict[str, Any]:
    """The facts as they are stored."""
    text = resources.files("sealpoint.inspect").joinpath("crit.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@functools.cache
def fields(message: str) -> dict[int, Field]:
    """Fields of a message by number."""
    return {raw[0]: _field(*raw) for raw in table()["messages"][message]}


@functools.cache
def by_name(message: str) -> dict[str, Field]:
    """Fields of a message by name."""
    return {field.name: field for field in fields(message).values()}


def _field(number: int, name: str, kind: str, *marks: str) -> Field:
    values = dict(mark.partition("=")[::2] for mark in marks)
    return Field(
        number,
        name,
        kind,
        repeated="repeated" in values,
        required="required" in values,
        packed="packed" in values,
        is_message=kind in table()["messages"],
        enum=table()["enums"].get(kind),
        hex="hex" in values,
        ip="ipadd" in values,
        dev="dev" in values,
        old_dev="odev" in values,
        flags=values.get("flags", ""),
        words=values.get("dict", ""),
        conv=values.get("conv", ""),
    )


@functools.cache
def _pool() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool

    file = descriptor_pb2.FileDescriptorProto(
        name="sealpoint/crit.proto", package="crit", syntax="proto2"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for message in table()["messages"]:
        descriptor = file.message_type.add(name=_class_name(message))
        for fact in fields(message).values():
            field = descriptor.field.add(name=fact.name, number=fact.number)
            field.label = kinds.LABEL_REPEATED if fact.repeated else kinds.LABEL_OPTIONAL
            if fact.packed:
                field.options.packed = True
            if fact.is_message:
                field.type = kinds.TYPE_MESSAGE
                field.type_name = f".crit.{_class_name(fact.kind)}"
            else:
                kind = "int32" if fact.enum is not None else _PLAIN.get(fact.kind, fact.kind)
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _class_name(message: str) -> str:
    return message.replace(".", "_")


@functools.cache
def message_class(message: str) -> Any:
    """The class of a message: protobuf's, so with FromString, ListFields and so on."""
    from google.protobuf import message_factory

    descriptor = _pool().FindMessageTypeByName(f"crit.{_class_name(message)}")
    return message_factory.GetMessageClass(descriptor)


def parse(message: str, data: bytes | memoryview, where: str) -> Any:
    """A message from its bytes.  Raises FileError, saying where it stood."""
    from google.protobuf.message import DecodeError

    try:
        return message_class(message).FromString(bytes(data))
    except DecodeError:
        raise FileError(f"{where}: not a well-formed {message}") from None


def image_name(magic: int) -> str | None:
    """The name of an image type by its magic number, None if no version known has it."""
    return _names().get(magic)


@functools.cache
def _names() -> dict[int, str]:
    return {number: name for name, number in table()["magics"].items()}


def flag_bits(flags: str) -> dict[str, int] | None:
    """Names of bits, in the order in which they are shown; None if the numbers have no names."""
    bits: dict[str, int] | None = table()["flags"].get(flags)
    return bits


def words(kind: str, field: str) -> dict[str, int]:
    """Names of the values of a field that is shown by `kind`."""
    found: dict[str, int] = table()["words"].get(kind, {}).get(field, {})
    return found
