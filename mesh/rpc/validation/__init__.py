"""Validation of requests by the rules of their contract.

protovalidate evaluates every rule and decides. Its work is limited in three steps:

1. Compiled checks accept most valid requests at a tenth of the cost (`compiled`, ADR 20).
2. A request that such a check does not accept is reduced to its first invalid items (`sample`, ADR 30).
3. The sizes of what is left are compared with the contract. If a list or a text is too large, the violations name only
   such fields (`sizes`, ADR 30).

Amounts of money have rules of their own, in every contract (`money`, ADR 32).

The work is therefore linear in the number of parsed values, plus a few microseconds for each reported violation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import protovalidate

from mesh.errors import Violation
from mesh.rpc.validation.compiled import check_of
from mesh.rpc.validation.money import Amounts
from mesh.rpc.validation.paths import Fault, Path, text_of
from mesh.rpc.validation.sample import Sample, lists_of
from mesh.rpc.validation.sizes import Sizes, Unbounded

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

__all__ = ["MAX_VIOLATIONS", "Unbounded", "violations_of"]

MAX_VIOLATIONS = 50
"""The greatest number of violations that are reported for a request."""


def violations_of(message_type: Descriptor) -> Callable[[Message], Sequence[Violation]]:
    """Compile the validation of a message type: a function that returns the violations of a message, at most 50.

    Raises Unbounded if the contract does not limit the size of such a message.
    """
    sizes = Sizes(message_type)
    amounts = Amounts(message_type)
    valid = check_of(message_type)
    lists = lists_of(message_type) if valid is not None else {}

    def faults(message: Message, too_long: Iterable[Fault] = ()) -> list[Fault]:
        """Those of size alone, or all others."""
        of_size = list(islice(chain(too_long, sizes.exceeded(message)), MAX_VIOLATIONS))
        return of_size or list(islice(chain(_evaluate(message), amounts.faults(message)), MAX_VIOLATIONS))

    def violations(message: Message) -> Sequence[Violation]:
        if valid is not None:
            if valid(message):
                return ()
            sample = Sample(message, lists, max_items=MAX_VIOLATIONS, max_len=sizes.max_len)
            if found := faults(sample.message, sample.too_long):
                return [Violation(text_of(sample.original(path)), description) for path, description in found]
        return [Violation(text_of(path), description) for path, description in faults(message)]

    return violations


def _evaluate(message: Message) -> Iterator[Fault]:
    for violation in protovalidate.collect_violations(message):
        yield _path(violation.proto), violation.proto.message


def _path(violation: Any) -> Path:
    """The field of a violation.

    A violation of a rule for a whole message has no field. The contracts name such a rule `<field>.<rule>`.
    """
    if violation.field is None or not violation.field.elements:
        return tuple(str(violation.rule_id).split(".")[:-1])
    path: list[str | int] = []
    for element in violation.field.elements:
        path.append(element.field_name)
        if element.subscript is not None and element.subscript.field == "index":
            path.append(element.subscript.value)
    return tuple(path)
