"""Messages as JSON values and back, as CRIU's `crit` has them: plain, or pretty with names, bits and hexadecimal.

A field that the table does not know is kept in the member "@unknown" (base64 of the fields as stored), which `crit`
would lose.  A number that an enumeration does not know stays a number.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import quopri
import struct
from collections.abc import Callable
from typing import Any, Final

from sealpoint.errors import FileError
from sealpoint.inspect import messages
from sealpoint.inspect.messages import Field

UNKNOWN: Final = "@unknown"
_MINOR_BITS: Final = 20  # of a device number in the kernel's new format
_IPV6_WORDS: Final = 4


def to_json(
    message: Any, name: str, *, pretty: bool = False, in_hex: bool = False
) -> dict[str, Any]:
    """A message as a JSON object, members in the order of field numbers.

    name: of the message in the table.  pretty: with names of bits and numbers.
    """
    facts = messages.fields(name)
    result: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        field = facts[descriptor.number]
        if field.repeated:
            result[field.name] = _list(field, value, pretty=pretty, in_hex=in_hex)
        else:
            result[field.name] = _value(field, value, pretty=pretty, in_hex=in_hex)
    unknown = _unknown(message)
    if unknown:
        result[UNKNOWN] = base64.b64encode(unknown).decode()
    return result


def shown(message: Any, name: str, field: str) -> Any:
    """One field of a message as `crit` shows it, also if it is not set."""
    return _value(
        messages.by_name(name)[field], getattr(message, field), pretty=False, in_hex=False
    )


def _list(field: Field, values: Any, *, pretty: bool, in_hex: bool) -> list[Any]:
    if pretty and field.ip and len(values) in (1, _IPV6_WORDS):
        packed = struct.pack(f"={len(values)}I", *(v & 0xFFFFFFFF for v in values))
        return [ipaddress.ip_address(packed).compressed]
    return [_value(field, v, pretty=pretty, in_hex=in_hex) for v in values]


def _value(field: Field, value: Any, *, pretty: bool, in_hex: bool) -> Any:
    in_hex = in_hex or field.hex
    if field.is_message:
        return to_json(value, field.kind, pretty=pretty, in_hex=in_hex)
    if field.kind == "bytes":
        return _bytes(field, value)
    if field.kind == "string":
        return value.decode(errors="surrogateescape")
    if field.kind == "bool":
        return bool(value)
    if field.enum is not None:
        return next((word for word, number in field.enum.items() if number == value), value)
    return _pretty_number(field, value, in_hex=in_hex) if pretty else value


def _bytes(field: Field, value: bytes) -> str:
    if field.conv == "unix_name":
        quoted = quopri.encodestring(value)
        return quoted.decode(errors="surrogateescape")
    return base64.encodebytes(value).decode()


def _pretty_number(field: Field, value: int, *, in_hex: bool) -> Any:
    if in_hex:
        return f"0x{value:x}" if value >= 0 else f"0x-{-value:x}"
    if field.dev or field.old_dev:
        if field.old_dev:
            return f"{os.major(value)}:{os.minor(value)}"
        return f"{value >> _MINOR_BITS}:{value & ((1 << _MINOR_BITS) - 1)}"
    if field.flags:
        bits = messages.flag_bits(field.flags)
        return f"0x{value:x}" if bits is None else _bits(value, bits)
    if field.words:
        known = messages.words(field.words, field.name)
        return next((word for word, number in known.items() if number == value), value)
    return value


def _bits(value: int, bits: dict[str, int]) -> str:
    shown = [name for name, bit in bits.items() if value & bit]
    rest = value & ~sum(bits.values())
    return " | ".join([*shown, f"0x{rest:x}"] if rest else shown)


def _unknown(message: Any) -> bytes:
    from google.protobuf.unknown_fields import UnknownFieldSet

    found: Any = UnknownFieldSet(message)
    return b"".join(_wire(field) for field in found) if len(found) else b""


def _wire(field: Any) -> bytes:
    number, kind, data = field.field_number, field.wire_type, field.data
    tag = _varint(number << 3 | kind)
    if kind == 0:
        return tag + _varint(data & 0xFFFFFFFFFFFFFFFF)
    if kind == 1:
        return tag + struct.pack("<Q", data)
    if kind == 2:
        return tag + _varint(len(data)) + bytes(data)
    if kind == 3:
        return tag + b"".join(_wire(f) for f in data) + _varint(number << 3 | 4)
    return tag + struct.pack("<I", data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def from_json(value: Any, name: str, where: str, *, ignore: tuple[str, ...] = ()) -> Any:
    """The message that a JSON object stands for, plain or pretty.

    ignore: members that are no fields.  Raises FileError, saying in which member and where the fault is.
    """
    message = messages.message_class(name)()
    if not isinstance(value, dict):
        raise FileError(f"{where}: a {name} is a JSON object")
    facts = messages.by_name(name)
    for key, item in value.items():
        if key in ignore:
            continue
        if key == UNKNOWN:
            _merge_unknown(message, item, where)
            continue
        field = facts.get(key)
        if field is None:
            raise FileError(f"{where}: {name} has no field {key!r}")
        try:
            _set(message, field, item, f"{where}, {key}")
        except (ValueError, TypeError, KeyError, OverflowError, struct.error, AttributeError):
            raise FileError(f"{where}: {key} cannot be {str(item)[:80]!r}") from None
    missing = [f.name for f in facts.values() if f.required and not message.HasField(f.name)]
    if missing:
        raise FileError(f"{where}: {name} needs {missing[0]}")
    return message


def _set(message: Any, field: Field, item: Any, where: str) -> None:
    if not field.repeated:
        if field.is_message:
            part = getattr(message, field.name)
            part.SetInParent()  # also if it is empty
            part.CopyFrom(from_json(item, field.kind, where))
        else:
            setattr(message, field.name, _number_or_bytes(field, item))
        return
    if not isinstance(item, list):
        raise TypeError
    target = getattr(message, field.name)
    if field.ip and item and isinstance(item[0], str) and not item[0].startswith("0x"):
        packed = ipaddress.ip_address(item[0]).packed
        target.extend(struct.unpack(f"={len(packed) // 4}I", packed))
    elif field.is_message:
        for n, part in enumerate(item):
            target.append(from_json(part, field.kind, f"{where} {n}"))
    else:
        target.extend(_number_or_bytes(field, part) for part in item)


def _number_or_bytes(field: Field, item: Any) -> Any:
    if field.kind == "bytes":
        if field.conv == "unix_name":
            return quopri.decodestring(item.encode(errors="surrogateescape"))
        return from_base64(item)
    if field.kind == "string":
        return item.encode(errors="surrogateescape")
    if field.kind == "bool":
        if not isinstance(item, bool):
            raise TypeError
        return item
    if isinstance(item, bool) or not isinstance(item, int | str):
        raise TypeError
    if isinstance(item, int):
        return item
    return _from_text(field)(item)


def from_base64(text: str) -> bytes:
    """Base64 with or without the line breaks of MIME, and nothing else.  Raises ValueError."""
    return binascii.a2b_base64("".join(text.split("\n")), strict_mode=True)


def _from_text(field: Field) -> Callable[[str], int]:
    if field.enum is not None:
        return field.enum.__getitem__
    if field.dev or field.old_dev:
        return lambda text: _device(text, old=field.old_dev)
    bits = messages.flag_bits(field.flags) if field.flags else None
    if bits is not None:
        return lambda text: sum(
            bits[word] if word in bits else int(word, 0) for word in _split_bits(text)
        )
    known = messages.words(field.words, field.name) if field.words else {}
    return lambda text: known[text] if text in known else int(text.replace("0x-", "-0x"), 0)


def _split_bits(text: str) -> list[str]:
    return [word.strip() for word in text.split("|")] if text else []


def _device(text: str, *, old: bool) -> int:
    major, colon, minor = text.partition(":")
    if not colon:
        return int(text, 0)
    if old:
        return os.makedev(int(major), int(minor))
    return int(major) << _MINOR_BITS | int(minor)


def _merge_unknown(message: Any, item: Any, where: str) -> None:
    from google.protobuf.message import DecodeError

    try:
        message.MergeFromString(base64.b64decode(item, validate=True))
    except (DecodeError, binascii.Error, TypeError, ValueError):
        raise FileError(f"{where}: {UNKNOWN} is not what was stored") from None
