"""Customers, how they pay, and what they hold while signed in.

A customer with payment methods has exactly one default among them: the first one, until another takes its place.
No message of an error here holds an email address, a token or a password: messages are logged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from mesh.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MeshError,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Violation,
)

MAX_ADDRESSES = 50
"""Postal addresses of one customer."""


class CustomerNotFound(NotFound):
    """There is no such customer, or it is not the caller."""

    reason = "CUSTOMER_NOT_FOUND"

    def __init__(self, customer_id: UUID | None) -> None:
        """`customer_id` is none when a caller who is no customer asks for themselves."""
        named = str(customer_id) if customer_id else "me"
        super().__init__(f"there is no customer {named}", metadata={"customerId": named})


class EmailTaken(AlreadyExists):
    """Another customer has this email address, in whatever case it is written."""

    reason = "EMAIL_TAKEN"

    def __init__(self) -> None:
        super().__init__("another customer has this email address")


class CustomerHasOpenOrders(FailedPrecondition):
    """The customer has orders that are not final, so their data is still needed."""

    reason = "CUSTOMER_HAS_OPEN_ORDERS"

    def __init__(self, customer_id: UUID) -> None:
        super().__init__(
            "the customer has open orders: they must be delivered or cancelled first",
            metadata={"customerId": str(customer_id)},
        )


class EtagMismatch(Aborted):
    """The customer has changed since the caller read the etag that they sent."""

    def __init__(self, customer_id: UUID) -> None:
        super().__init__(
            "the customer has changed since they were read: read them again",
            metadata={"customerId": str(customer_id)},
        )


class CredentialsInvalid(Unauthenticated):
    """No customer has this email address and password; which of the two is wrong is not told."""

    reason = "CREDENTIALS_INVALID"

    def __init__(self) -> None:
        super().__init__("no customer has this email address and password")


class SessionRevoked(Unauthenticated):
    """The refresh token is unknown, expired or revoked, or it was used before."""

    reason = "SESSION_REVOKED"

    def __init__(self) -> None:
        super().__init__("the session has ended: sign in again")


class SignInLimited(ResourceExhausted):
    """Too many sign-ins with this email address have failed of late, whether or not a customer has it."""

    reason = "RATE_LIMITED"

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many sign-ins with this email address have failed", retry_after=retry_after)


class ClientLimited(ResourceExhausted):
    """Too many sign-ins, or too many sign-ups, come from the client's IP address."""

    reason = "RATE_LIMITED"

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many requests of this kind come from this IP address", retry_after=retry_after)


class PaymentMethodNotFound(NotFound):
    """The customer has no such payment method; somebody else may."""

    reason = "PAYMENT_METHOD_NOT_FOUND"

    def __init__(self, payment_method_id: UUID) -> None:
        super().__init__(
            f"the customer has no payment method {payment_method_id}",
            metadata={"paymentMethodId": str(payment_method_id)},
        )


class PaymentMethodMissing(FailedPrecondition):
    """The default payment method is asked for, and the customer has none at all."""

    reason = "PAYMENT_METHOD_MISSING"

    def __init__(self, customer_id: UUID) -> None:
        super().__init__("the customer has no payment method", metadata={"customerId": str(customer_id)})


class AddressNotFound(NotFound):
    """The customer has no such address; another customer may have it."""

    reason = "ADDRESS_NOT_FOUND"

    def __init__(self, address_id: UUID) -> None:
        super().__init__(f"the customer has no address {address_id}", metadata={"addressId": str(address_id)})


class AddressLimitReached(FailedPrecondition):
    """The customer has `MAX_ADDRESSES` addresses."""

    reason = "ADDRESS_LIMIT_REACHED"

    def __init__(self, customer_id: UUID) -> None:
        super().__init__(
            f"the customer has {MAX_ADDRESSES} addresses, and no more are allowed",
            metadata={"customerId": str(customer_id)},
        )


class ProviderTokenUnknown(InvalidArgument):
    """The payment provider does not know the token."""

    reason = "PROVIDER_TOKEN_UNKNOWN"

    def __init__(self, provider: str) -> None:
        super().__init__(
            f"the payment provider {provider} does not know this token",
            metadata={"provider": provider},
            violations=[Violation("token", "is not a token of the payment provider")],
        )


class ProviderNotFound(NotFound):
    """No payment provider of this name is switched on."""

    reason = "PROVIDER_NOT_FOUND"

    def __init__(self, provider: str) -> None:
        super().__init__(f"there is no payment provider {provider}", metadata={"provider": provider})


class ProviderUnavailable(Unavailable):
    """The payment provider has not said what is behind a token. Nothing has changed."""

    def __init__(self, provider: str) -> None:
        super().__init__(f"the payment provider {provider} does not answer", metadata={"provider": provider})


def same_email(email: str) -> str:
    """The form in which two spellings of one email address are equal. The contract lets ASCII in only."""
    return email.lower()


@dataclass(frozen=True, slots=True)
class NewCustomer:
    """What somebody gives to sign up."""

    email: str
    name: str
    phone: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CustomerUpdate:
    """New values for a customer; a value of None stays as it is. An empty phone removes the phone number."""

    email: str | None = None
    name: str | None = None
    phone: str | None = None


@dataclass(frozen=True, slots=True)
class Customer:
    """A person who can sign in and order. `version` grows with every change of them or of what they have here."""

    id: UUID
    email: str
    name: str
    phone: str
    create_time: datetime
    update_time: datetime
    version: int

    def changed(self, now: datetime) -> Customer:
        """The customer after a change at `now`."""
        return replace(self, update_time=now, version=self.version + 1)

    def updated(self, update: CustomerUpdate, now: datetime) -> Customer:
        """The customer with new values; the same object when no value differs."""
        new = replace(
            self,
            email=self.email if update.email is None else update.email,
            name=self.name if update.name is None else update.name,
            phone=self.phone if update.phone is None else update.phone,
        )
        return self if new == self else new.changed(now)

    def require_etag(self, etag: str) -> None:
        """Raise EtagMismatch when the caller names another version than this one."""
        if etag and etag != str(self.version):
            raise EtagMismatch(self.id)


class CustomerCreated(NamedTuple):
    """A customer has signed up."""

    customer: Customer


class CustomerUpdated(NamedTuple):
    """A customer has changed, or what belongs to them."""

    customer: Customer


class CustomerErased(NamedTuple):
    """The personal data of a customer was erased. `customer` is their last version."""

    customer: Customer
    time: datetime


class BegunErasure(NamedTuple):
    """The erasure of a customer that has begun."""

    customer_id: UUID
    email: str
    begun: datetime


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a customer's password is checked against."""

    customer_id: UUID
    password_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Card:
    """What a payment provider tells of the card behind a token."""

    provider: str
    brand: str
    last4: str
    expire_month: int
    expire_year: int
    token: str = field(repr=False)
    """The token to keep, which the payment service charges. It may differ from the one that was described."""


@dataclass(frozen=True, slots=True)
class PaymentMethod:
    """A way a customer pays, as they see it: everything but the token."""

    id: UUID
    customer_id: UUID
    provider: str
    brand: str
    last4: str
    expire_month: int
    expire_year: int
    is_default: bool
    create_time: datetime

    @classmethod
    def of(cls, card: Card, method_id: UUID, customer_id: UUID, *, is_default: bool, now: datetime) -> PaymentMethod:
        """A new payment method for a card."""
        return cls(
            method_id,
            customer_id,
            card.provider,
            card.brand,
            card.last4,
            card.expire_month,
            card.expire_year,
            is_default,
            now,
        )


@dataclass(frozen=True, slots=True)
class PaymentMethodSecret:
    """What it takes to charge a payment method. For services only; never logged, never in an event."""

    id: UUID
    customer_id: UUID
    provider: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PaymentMethodQuery:
    """Asks how a customer pays: with a payment method that they named, or with their default one."""

    customer_id: UUID
    payment_method_id: UUID | None
    address_id: UUID | None = None
    """None for the customer's only address."""


@dataclass(frozen=True, slots=True)
class Wallet:
    """The payment methods and addresses of a customer, as far as they were asked for."""

    customer_id: UUID
    methods: Sequence[PaymentMethodSecret]
    default_id: UUID | None
    """The default payment method."""
    addresses: Mapping[UUID, PostalAddress] = field(default_factory=dict, repr=False)
    """Several if the customer has several, but not all of them."""

    def pick(self, payment_method_id: UUID | None) -> PaymentMethodSecret:
        """The one with this id, or the default one. Raises PaymentMethodNotFound, or PaymentMethodMissing."""
        wanted = payment_method_id or self.default_id
        if wanted is None:
            raise PaymentMethodMissing(self.customer_id)
        for method in self.methods:
            if method.id == wanted:
                return method
        raise PaymentMethodNotFound(wanted)

    def address(self, address_id: UUID | None) -> PostalAddress | None:
        """The address with this id, or the only one; None if there is none, or several. Raises AddressNotFound."""
        if address_id is None:
            return next(iter(self.addresses.values())) if len(self.addresses) == 1 else None
        try:
            return self.addresses[address_id]
        except KeyError:
            raise AddressNotFound(address_id) from None


@dataclass(frozen=True, slots=True)
class PostalAddress:
    """A postal address, with the fields of `google.type.PostalAddress`. Fields that a region does not use are empty."""

    region_code: str
    language_code: str
    postal_code: str
    sorting_code: str
    administrative_area: str
    locality: str
    sublocality: str
    address_lines: Sequence[str]
    recipients: Sequence[str]
    organization: str


@dataclass(frozen=True, slots=True)
class Selection:
    """A customer's payment method for an order, or the reason why there is none, and the address to ship to."""

    payment_method: PaymentMethodSecret | MeshError
    postal_address: PostalAddress | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Selections:
    """The selections of several queries, in their order."""

    selections: Sequence[Selection]
    currencies: Mapping[str, Collection[str]]
    """The currencies that the providers of the payment methods take, for those that do not take all."""


@dataclass(frozen=True, slots=True)
class Address:
    """A postal address of a customer."""

    id: UUID
    customer_id: UUID
    postal_address: PostalAddress = field(repr=False)
    create_time: datetime


@dataclass(frozen=True, slots=True)
class SessionPeriod:
    """A session that is open, without its tokens."""

    id: UUID
    create_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Session:
    """What a customer holds while signed in. `expire_time` is that of the access token."""

    customer_id: UUID
    expire_time: datetime
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
