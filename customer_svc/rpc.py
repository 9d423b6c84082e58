"""The customer service's contracts: request → use case → reply."""

from __future__ import annotations

from commerce.customer.v1 import customer_pb2 as customer
from commerce.customer.v1 import session_pb2 as session
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2
from customer_svc import wire
from customer_svc.domain import Address, Customer, PaymentMethod
from customer_svc.usecases import Addresses, Customers, Erasure, Exports, Orders, PaymentMethods, Sessions
from mesh.ids import parse_id
from mesh.rpc.call import Call
from mesh.rpc.replies import Change, Reply
from mesh.rpc.wire import timestamp


class CustomerService:
    """`commerce.customer.v1.CustomerService`."""

    def __init__(
        self,
        customers: Customers,
        payment_methods: PaymentMethods,
        addresses: Addresses,
        orders: Orders[order_pb2.Order],
        exports: Exports[order_pb2.Order, payment_pb2.Payment],
        erasure: Erasure,
    ) -> None:
        self._customers = customers
        self._payment_methods = payment_methods
        self._addresses = addresses
        self._orders = orders
        self._exports = exports
        self._erasure = erasure

    async def CreateCustomer(self, request: customer.CreateCustomerRequest, call: Call) -> Reply[Customer]:
        change: Change[Customer] = Change(
            call, lambda made: customer.CreateCustomerResponse(customer=wire.customer(made))
        )
        return await self._customers.create_customer(change, wire.new_customer(request))

    async def GetCustomer(self, request: customer.GetCustomerRequest, call: Call) -> customer.GetCustomerResponse:
        found = await self._customers.get_customer(call.caller, wire.named(request.customer_id))
        return customer.GetCustomerResponse(customer=wire.customer(found))

    async def ListCustomers(self, request: customer.ListCustomersRequest, call: Call) -> customer.ListCustomersResponse:
        found, token = await self._customers.list_customers(
            email=request.email, page_size=request.page_size, page_token=request.page_token
        )
        return customer.ListCustomersResponse(customers=[wire.customer(each) for each in found], next_page_token=token)

    async def UpdateCustomer(self, request: customer.UpdateCustomerRequest, call: Call) -> Reply[Customer]:
        change: Change[Customer] = Change(
            call, lambda made: customer.UpdateCustomerResponse(customer=wire.customer(made))
        )
        return await self._customers.update_customer(
            change, wire.named(request.customer.id), wire.customer_update(request), etag=request.customer.etag
        )

    async def DeleteCustomer(self, request: customer.DeleteCustomerRequest, call: Call) -> Reply[None]:
        change: Change[None] = Change(call, lambda _: customer.DeleteCustomerResponse())
        return await self._erasure.delete_customer(change, wire.named(request.customer_id), etag=request.etag)

    async def ExportCustomer(
        self, request: customer.ExportCustomerRequest, call: Call
    ) -> customer.ExportCustomerResponse:
        export = await self._exports.export_customer(call, wire.named(request.customer_id))
        return customer.ExportCustomerResponse(
            customer=wire.customer(export.customer),
            payment_methods=[wire.payment_method(each) for each in export.payment_methods],
            addresses=[wire.address(each) for each in export.addresses],
            sessions=[wire.session_period(each) for each in export.sessions],
            orders=export.orders,
            payments=export.payments,
            export_time=timestamp(export.export_time),
        )

    async def ListCustomerOrders(
        self, request: customer.ListCustomerOrdersRequest, call: Call
    ) -> customer.ListCustomerOrdersResponse:
        found, token = await self._orders.list_customer_orders(
            call, wire.named(request.customer_id), page_size=request.page_size, page_token=request.page_token
        )
        return customer.ListCustomerOrdersResponse(orders=found, next_page_token=token)

    async def AddPaymentMethod(self, request: customer.AddPaymentMethodRequest, call: Call) -> Reply[PaymentMethod]:
        change: Change[PaymentMethod] = Change(
            call, lambda made: customer.AddPaymentMethodResponse(payment_method=wire.payment_method(made))
        )
        return await self._payment_methods.add_payment_method(
            change, wire.named(request.customer_id), request.provider, request.token, make_default=request.make_default
        )

    async def ListPaymentMethods(
        self, request: customer.ListPaymentMethodsRequest, call: Call
    ) -> customer.ListPaymentMethodsResponse:
        found, token = await self._payment_methods.list_payment_methods(
            call.caller,
            wire.named(request.customer_id),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return customer.ListPaymentMethodsResponse(
            payment_methods=[wire.payment_method(each) for each in found], next_page_token=token
        )

    async def DeletePaymentMethod(self, request: customer.DeletePaymentMethodRequest, call: Call) -> Reply[None]:
        change: Change[None] = Change(call, lambda _: customer.DeletePaymentMethodResponse())
        return await self._payment_methods.delete_payment_method(
            change, wire.named(request.customer_id), parse_id(request.payment_method_id)
        )

    async def SetDefaultPaymentMethod(
        self, request: customer.SetDefaultPaymentMethodRequest, call: Call
    ) -> Reply[PaymentMethod]:
        change: Change[PaymentMethod] = Change(
            call, lambda made: customer.SetDefaultPaymentMethodResponse(payment_method=wire.payment_method(made))
        )
        return await self._payment_methods.set_default_payment_method(
            change, wire.named(request.customer_id), parse_id(request.payment_method_id)
        )

    async def AddAddress(self, request: customer.AddAddressRequest, call: Call) -> Reply[Address]:
        change: Change[Address] = Change(call, lambda made: customer.AddAddressResponse(address=wire.address(made)))
        return await self._addresses.add_address(
            change, wire.named(request.customer_id), wire.postal_address(request.postal_address)
        )

    async def ListAddresses(self, request: customer.ListAddressesRequest, call: Call) -> customer.ListAddressesResponse:
        found, token = await self._addresses.list_addresses(
            call.caller,
            wire.named(request.customer_id),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return customer.ListAddressesResponse(addresses=[wire.address(each) for each in found], next_page_token=token)

    async def DeleteAddress(self, request: customer.DeleteAddressRequest, call: Call) -> Reply[None]:
        change: Change[None] = Change(call, lambda _: customer.DeleteAddressResponse())
        return await self._addresses.delete_address(
            change, wire.named(request.customer_id), parse_id(request.address_id)
        )

    async def SelectPaymentMethods(
        self, request: customer.SelectPaymentMethodsRequest, call: Call
    ) -> customer.SelectPaymentMethodsResponse:
        found = await self._payment_methods.select([wire.payment_method_query(each) for each in request.queries])
        return customer.SelectPaymentMethodsResponse(
            results=[wire.selection(each) for each in found.selections],
            limited_providers=[
                customer.ProviderCurrencies(provider=provider, currency_codes=currencies)
                for provider, currencies in found.currencies.items()
            ],
        )

    async def ResolvePaymentMethods(
        self, request: customer.ResolvePaymentMethodsRequest, call: Call
    ) -> customer.ResolvePaymentMethodsResponse:
        outcomes = await self._payment_methods.resolve([wire.payment_method_query(each) for each in request.queries])
        return customer.ResolvePaymentMethodsResponse(results=[wire.payment_method_secret(each) for each in outcomes])


class SessionService:
    """`commerce.customer.v1.SessionService`. Its replies hold secrets, so none of them is remembered under a key."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def CreateSession(self, request: session.CreateSessionRequest, call: Call) -> session.CreateSessionResponse:
        opened = await self._sessions.create_session(call, request.email, request.password)
        return session.CreateSessionResponse(session=wire.session(opened))

    async def RefreshSession(
        self, request: session.RefreshSessionRequest, call: Call
    ) -> session.RefreshSessionResponse:
        refreshed = await self._sessions.refresh_session(request.refresh_token)
        return session.RefreshSessionResponse(session=wire.session(refreshed))

    async def DeleteSession(self, request: session.DeleteSessionRequest, call: Call) -> session.DeleteSessionResponse:
        await self._sessions.delete_session(request.refresh_token)
        return session.DeleteSessionResponse()
