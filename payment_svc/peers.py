"""The service that the payment service calls. Each call carries many payments."""

from __future__ import annotations

from collections.abc import Sequence

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc
from mesh.batch.group_commit import GroupCommit
from mesh.errors import Code, MeshError
from mesh.rpc import status
from mesh.rpc.clients import Peer
from payment_svc.domain import Payment


class CustomerPeer:
    """The customer service, which keeps the tokens of payment methods."""

    def __init__(self, peer: Peer, *, timeout: float) -> None:
        """`timeout` of a call is in seconds."""
        self._peer = peer
        self._timeout = timeout
        self._group = GroupCommit[Payment, str | None]("tokens of payment methods", self._tokens)

    async def token_of(self, payment: Payment) -> str | None:
        """The provider's token of the payment's method, the same at each call; none if the method does not exist.

        Raises MeshError if the customer service fails: the token is not known then.
        """
        return await self._group.submit(payment)

    async def _tokens(self, batch: Sequence[Payment]) -> list[str | Exception | None]:
        stub = self._peer.stub(customer_pb2_grpc.CustomerServiceStub)
        request = customer_pb2.ResolvePaymentMethodsRequest(
            queries=[
                customer_pb2.PaymentMethodQuery(
                    customer_id=str(payment.customer_id), payment_method_id=str(payment.payment_method_id)
                )
                for payment in batch
            ]
        )
        try:
            reply = await self._peer.ask(stub.ResolvePaymentMethods, request, timeout=self._timeout)
        except MeshError as error:
            # The failure is not that of one payment: halving the batch would only multiply the calls.
            return [error] * len(batch)
        return [_token(payment, result) for payment, result in zip(batch, reply.results, strict=True)]


def _token(payment: Payment, result: customer_pb2.PaymentMethodResult) -> str | MeshError | None:
    if result.HasField("error"):
        return None if result.error.code == Code.NOT_FOUND else status.from_status(result.error)
    # A token is for its own provider only.
    return result.payment_method.token if result.payment_method.provider == payment.provider else None
