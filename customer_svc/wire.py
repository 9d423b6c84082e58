"""Customers, payment methods, addresses and sessions ↔ the messages of the contract."""

from __future__ import annotations

from dataclasses import asdict
from uuid import UUID

from google.type import postal_address_pb2

from commerce.customer.v1 import customer_pb2, events_pb2, session_pb2
from customer_svc.domain import (
    Address,
    Customer,
    CustomerCreated,
    CustomerErased,
    CustomerUpdate,
    CustomerUpdated,
    NewCustomer,
    PaymentMethod,
    PaymentMethodQuery,
    PaymentMethodSecret,
    PostalAddress,
    Selection,
    Session,
    SessionPeriod,
)
from mesh.errors import MeshError
from mesh.events.cloudevents import Event
from mesh.ids import parse_id
from mesh.rpc import status, wire


def named(customer_id: str) -> UUID | None:
    """The customer whom a request names; none for `me`."""
    return None if customer_id == "me" else parse_id(customer_id)


def new_customer(request: customer_pb2.CreateCustomerRequest) -> NewCustomer:
    """What somebody gives to sign up, without the white space around the name."""
    return NewCustomer(request.email, request.name.strip(), request.phone, request.password)


def customer_update(request: customer_pb2.UpdateCustomerRequest) -> CustomerUpdate:
    """The fields that the mask names; without a mask, all that are not empty."""
    new = request.customer
    values = {"email": new.email, "name": new.name.strip(), "phone": new.phone}
    masked = set(request.update_mask.paths)
    return CustomerUpdate(**{field: value for field, value in values.items() if (field in masked if masked else value)})


def customer(value: Customer) -> customer_pb2.Customer:
    """A customer as they see themselves."""
    return customer_pb2.Customer(
        id=str(value.id),
        email=value.email,
        name=value.name,
        phone=value.phone,
        create_time=wire.timestamp(value.create_time),
        update_time=wire.timestamp(value.update_time),
        etag=str(value.version),
    )


def payment_method(value: PaymentMethod) -> customer_pb2.PaymentMethod:
    """A payment method as its owner sees it."""
    return customer_pb2.PaymentMethod(
        id=str(value.id),
        customer_id=str(value.customer_id),
        provider=value.provider,
        brand=value.brand,
        last4=value.last4,
        expire_month=value.expire_month,
        expire_year=value.expire_year,
        is_default=value.is_default,
        create_time=wire.timestamp(value.create_time),
    )


def postal_address(message: postal_address_pb2.PostalAddress) -> PostalAddress:
    """The postal address of a request."""
    return PostalAddress(
        message.region_code,
        message.language_code,
        message.postal_code,
        message.sorting_code,
        message.administrative_area,
        message.locality,
        message.sublocality,
        tuple(message.address_lines),
        tuple(message.recipients),
        message.organization,
    )


def _postal_address(value: PostalAddress) -> postal_address_pb2.PostalAddress:
    return postal_address_pb2.PostalAddress(**asdict(value))


def address(value: Address) -> customer_pb2.Address:
    """An address as its owner sees it."""
    return customer_pb2.Address(
        id=str(value.id),
        customer_id=str(value.customer_id),
        postal_address=_postal_address(value.postal_address),
        create_time=wire.timestamp(value.create_time),
    )


def payment_method_query(message: customer_pb2.PaymentMethodQuery) -> PaymentMethodQuery:
    """A question of a service."""
    return PaymentMethodQuery(
        parse_id(message.customer_id),
        wire.uuid_or_none(message.payment_method_id),
        wire.uuid_or_none(message.address_id),
    )


def selection(value: Selection) -> customer_pb2.SelectedPaymentMethodResult:
    """The payment method without its token, or why there is none, and the address."""
    method = value.payment_method
    if isinstance(method, MeshError):
        result = customer_pb2.SelectedPaymentMethodResult(error=status.to_status(method))
    else:
        result = customer_pb2.SelectedPaymentMethodResult(
            payment_method=customer_pb2.SelectedPaymentMethod(id=str(method.id), provider=method.provider)
        )
    if value.postal_address is not None:
        result.postal_address.CopyFrom(_postal_address(value.postal_address))
    return result


def payment_method_secret(outcome: PaymentMethodSecret | MeshError) -> customer_pb2.PaymentMethodResult:
    """What it takes to charge, or why there is nothing."""
    if isinstance(outcome, MeshError):
        return customer_pb2.PaymentMethodResult(error=status.to_status(outcome))
    return customer_pb2.PaymentMethodResult(
        payment_method=customer_pb2.PaymentMethodSecret(
            id=str(outcome.id),
            customer_id=str(outcome.customer_id),
            provider=outcome.provider,
            token=outcome.token,
        )
    )


def session(value: Session) -> session_pb2.Session:
    """What a customer gets who signs in."""
    return session_pb2.Session(
        access_token=value.access_token,
        refresh_token=value.refresh_token,
        expire_time=wire.timestamp(value.expire_time),
        customer_id=str(value.customer_id),
    )


def session_period(value: SessionPeriod) -> customer_pb2.ExportedSession:
    """An open session as an export shows it."""
    return customer_pb2.ExportedSession(
        id=str(value.id),
        create_time=wire.timestamp(value.create_time),
        expire_time=wire.timestamp(value.expire_time),
    )


def event(fact: CustomerCreated | CustomerUpdated | CustomerErased) -> Event:
    """The event of what has happened to a customer."""
    value = fact.customer
    # No name, email, phone or address: streams and outboxes keep events after a customer is erased.
    if isinstance(fact, CustomerCreated):
        created = events_pb2.CustomerCreated(customer_id=str(value.id), create_time=wire.timestamp(value.create_time))
        return Event.of(value.id, value.version, created)
    if isinstance(fact, CustomerErased):
        erased = events_pb2.CustomerErased(customer_id=str(value.id), erase_time=wire.timestamp(fact.time))
        return Event.of(value.id, value.version + 1, erased)
    updated = events_pb2.CustomerUpdated(
        customer_id=str(value.id), update_time=wire.timestamp(value.update_time), etag=str(value.version)
    )
    return Event.of(value.id, value.version, updated)
