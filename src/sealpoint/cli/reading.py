"""The one decorator of commands that read a checkpoint, and the one way in which they open it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from sealpoint.cli import keyring, notice, options
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.checkpoint import OpenedCheckpoint, Opening
    from sealpoint.inspect.source import Access, Source
    from sealpoint.keys import Identity, TrustPolicy


@dataclass(frozen=True)
class Reading:
    """What the command line says about the checkpoint to be read; the fields are the options of their names."""

    identities: tuple[str, ...] = ()
    passphrase_file: str | None = None
    trust: tuple[str, ...] = ()
    allow_unsigned: bool = False
    allow_expired: bool = False
    workloads: tuple[str, ...] = ()
    expect: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    max_size: int | None = None

    @functools.cached_property
    def _hardened(self) -> bool:
        notice.protect()
        return True

    @functools.cached_property
    def _keys(self) -> list[Identity]:
        self.harden()
        passphrases = keyring.Passphrases(self.passphrase_file)
        return keyring.load_identities(self.identities, passphrases, keyring.configured())

    def harden(self) -> None:
        """Harden this process, once, before it holds keys or plaintext."""
        assert self._hardened

    def keys(self) -> list[Identity]:
        """The private keys; loaded once.  Raises IdentityError, UsageError."""
        return self._keys

    @property
    def names_trust(self) -> bool:
        """Whether the options or the configuration say whom to believe."""
        return bool(self.trust or keyring.configured().names_trust)

    def policy(self, *, anyone: bool = False, names_only: bool = False) -> TrustPolicy:
        """Whom to believe: the options, else the configuration.

        anyone: the question is what a file says, not whether it is to be believed.  names_only: where neither the
        options nor the configuration name anybody, find out who signed instead of refusing.
        """
        policy = keyring.configured().policy(
            self.trust,
            allow_unsigned=self.allow_unsigned or anyone,
            allow_expired=self.allow_expired or anyone,
            names_only=names_only,
        )
        notice.warn_ownership(self.trust)
        return policy

    def opening(self, policy: TrustPolicy | None = None, **how: Any) -> Opening:
        """How this command opens checkpoints; `how`: see Opening.

        policy: None for that of the options, which then must trust somebody.  Raises PolicyError, UsageError.
        """
        from sealpoint.checkpoint import Expectation, Opening

        told = {
            "parents": self.parents,
            "stores": self.stores,
            "limit": self.max_size,
            "expected": Expectation.of(self.workloads, self.expect),
        }
        if policy is not None:
            return Opening(policy, self.keys, **(told | how))
        self.harden()
        found = Opening(self.policy(), self.keys, **(told | how))
        found.require_trust()
        return found

    def opening_of(self, file: str, policy: TrustPolicy | None = None, **how: Any) -> Opening:
        """The same for `file`, "-" for standard input, which the passphrase must leave free."""
        keyring.check_standard_input(file, self.passphrase_file)
        return self.opening(policy, **how)

    def open(self, file: str, policy: TrustPolicy | None = None, **how: Any) -> OpenedCheckpoint:
        """The sealed file itself.  Raises what `opening` and Opening.open raise."""
        return self.opening_of(file, policy, **how).open(file)

    def access(self) -> Access:
        """Keys and policy for readers, loaded when they meet the first sealed file."""
        from sealpoint.inspect.source import Access

        policy = functools.cache(self.policy)
        return Access(self.keys, policy, self.stores, self.parents, self.max_size)

    def source(self, file: str) -> AbstractContextManager[Source]:
        """A checkpoint of any kind, sealed or plain, as a context manager."""
        from sealpoint.inspect import finding

        keyring.check_standard_input(file, self.passphrase_file)
        self.harden()
        return finding.open_source(file, self.access())

    def refuse_expectation(self, file: str) -> None:
        """Raises UsageError: a CRIUsec dump has nothing signed by which it could be told from another one."""
        if self.workloads or self.expect:
            raise UsageError(
                f"{file} is a dump in the CRIUsec format: nothing in it says which checkpoint it is",
                hint="--workload and --expect are for sealed files",
            )


_FIELDS: Final = tuple(field.name for field in fields(Reading))
_PARTS: Final = {
    "expect": options.expect_options,
    "parents": options.parents_option,
    "stores": options.store_option,
    "max_size": options.max_size_option,
}
# Of readers that take any kind of checkpoint.
ANY_KIND: Final = ("parents", "stores", "max_size")


def reads_checkpoint(
    *parts: str, keys: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the options of a command that reads a checkpoint, which it gets as `reading`.

    parts: of `_PARTS`, what more than keys and trust it needs.  keys: False where no private key has a use.  Where the
    command seals as well, this decorator stands above that one: they share --passphrase-file.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        shared = options.has(command, "passphrase_file")

        @functools.wraps(command)
        def run(*args: Any, **given: Any) -> Any:
            told = {name: given[name] for name in _FIELDS if name in given}
            for name in told:
                if not (shared and name == "passphrase_file"):
                    del given[name]
            return command(*args, reading=Reading(**told), **given)

        wanted = [_PARTS[part] for part in parts]
        own = [options.identity_option] if keys else []
        if keys and not shared:
            own.append(options.passphrase_file)
        if not options.has(command, "plain_http"):
            wanted.append(options.plain_http_option)
        return options.stack(*own, options.trust_options, *wanted)(run)

    return decorate
