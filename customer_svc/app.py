"""The customer service, wired: settings in, service out. Read it as the table of contents."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from pydantic import Field, FilePath

from customer_svc import wire
from customer_svc.access_tokens import AccessTokens
from customer_svc.domain import Customer
from customer_svc.passwords import Passwords
from customer_svc.peers import OrderPeer, PaymentPeer
from customer_svc.providers import Bounded
from customer_svc.providers.catalog import PROVIDERS, Names, ProviderSettings
from customer_svc.rpc import CustomerService, SessionService
from customer_svc.session_store import SessionStore
from customer_svc.store import CustomerStore, ErasureStore
from customer_svc.usecases import Addresses, Customers, Erasure, Exports, Orders, PaymentMethods, Sessions
from mesh.cache.versioned import VersionedCache
from mesh.db.database import Database
from mesh.db.housekeeping import housekeeping
from mesh.db.paging import Pages
from mesh.db.unit_of_work import UnitsOfWork
from mesh.events.bus import Bus
from mesh.events.relay import Relay
from mesh.jobs import Periodic
from mesh.lifecycle import Service
from mesh.rpc.clients import Peer
from mesh.rpc.revocations import Revocations
from mesh.rpc.server import Server
from mesh.settings import ServiceSettings, Target, secret_bytes


class Settings(ServiceSettings, ProviderSettings):
    """The customer service's settings."""

    order_target: Target
    """Where the order service is."""
    payment_target: Target
    """Where the payment service is."""
    payment_providers: Names = ("sandbox",)
    """The payment providers that are switched on. A payment method is of the first one unless another one is named."""
    provider_timeout: float = Field(default=3.0, gt=0)
    """Seconds after which a provider's answer is no longer waited for."""
    provider_calls: int = Field(default=64, gt=0)
    """Calls that are at each provider at a time."""
    signing_key: FilePath
    """The private key that signs access tokens, a JSON Web Key on P-256 whose public half is in the JWKS."""
    access_token_seconds: int = Field(default=15 * 60, ge=10)
    """How long an access token is good."""
    session_seconds: int = Field(default=30 * 24 * 3600, ge=60)
    """How long a session is kept after it was opened."""
    sign_in_failures: int = Field(default=10, ge=1)
    """Sign-ins with one email address from one client IP (IPv6: from one /64 network) that may fail in a window."""
    sign_in_failures_per_email: int = Field(default=100, ge=1)
    """Sign-ins with one email address from all clients that may fail in a window. A client IP from which the customer
    has signed in during the last `session_seconds` is exempt: strangers cannot lock the customer out there."""
    sign_in_window_seconds: int = Field(default=15 * 60, ge=1)
    """How long a failed sign-in counts."""
    sign_in_rate_per_address: float = Field(default=10.0, ge=0)
    """Sign-ins per second, and as many sign-ups per second, that one client IP (IPv6: one /64 network) may send in the
    long run, counted over all workers, whether or not they succeed. After a pause it may send 50 of each at once. 0 is
    no limit. A call that does not come through the edge is not limited, nor is a sign-up while Redis does not answer.
    """
    erasure_retry_seconds: float = Field(default=30.0, gt=0)
    """Seconds after which an erasure that has begun and was interrupted is continued."""
    password_memory_kib: int = Field(default=19 * 1024, ge=8)
    """Memory of a password's hash. OWASP's minimum for argon2id: 19 MiB, 2 passes, 1 lane."""
    password_passes: int = Field(default=2, ge=1)
    """Passes over that memory."""
    password_lanes: int = Field(default=1, ge=1)
    """Lanes of that memory, each a thread."""
    password_hashes_at_once: int = Field(default=1, ge=1)
    """Passwords that this process hashes at a time; each takes its memory and a thread for each lane."""
    password_cores: float = Field(default=1.0, gt=0)
    """Cores that hashing in this process takes at most, on average: of several workers on one machine, each gets a
    part of one. With fewer cores than threads, a thread pauses after each hash."""
    password_hashes_waiting: int = Field(default=200, ge=0)
    """Passwords that wait for that, in turns between client IPs. With more, calls are refused as OVERLOADED, first
    those of the client with the most."""


def build(settings: Settings) -> Service:
    """Wire the service."""
    database = Database(settings.database_url.get_secret_value(), max_connections=settings.database_connections)
    bus = Bus(settings.nats_url.get_secret_value(), name="customer", replicas=settings.nats_replicas)
    relay = Relay("customer", database, bus)
    revocations = Revocations(settings.redis_url.get_secret_value())
    units = UnitsOfWork(database, relay, event_of=wire.event)
    orders_peer = Peer("order", settings.order_target, settings)
    payments_peer = Peer("payment", settings.payment_target, settings)
    cache = VersionedCache("customers", Customer, settings.redis_url.get_secret_value())
    store = CustomerStore(cache)
    pages = Pages(secret_bytes(settings.page_secret))
    passwords = Passwords(
        memory_kib=settings.password_memory_kib,
        passes=settings.password_passes,
        lanes=settings.password_lanes,
        at_once=settings.password_hashes_at_once,
        cores=settings.password_cores,
        max_waiting=settings.password_hashes_waiting,
    )
    token_lifetime = timedelta(seconds=settings.access_token_seconds)
    session_store = SessionStore(
        settings.redis_url.get_secret_value(),
        lifetime=timedelta(seconds=settings.session_seconds),
        token_lifetime=token_lifetime,
        failures=settings.sign_in_failures,
        failures_per_email=settings.sign_in_failures_per_email,
        window=timedelta(seconds=settings.sign_in_window_seconds),
        rate=settings.sign_in_rate_per_address,
    )
    tokens = AccessTokens(settings.signing_key, token_lifetime)

    customers = Customers(units, store, passwords, session_store, pages)
    providers = {
        name: Bounded(
            name, PROVIDERS[name](settings), at_a_time=settings.provider_calls, timeout=settings.provider_timeout
        )
        for name in settings.payment_providers
    }
    payment_methods = PaymentMethods(units, store, pages, providers)
    addresses = Addresses(units, store, pages)
    orders = Orders(units, store, OrderPeer(orders_peer))
    exports = Exports(units, store, session_store, OrderPeer(orders_peer), PaymentPeer(payments_peer))
    erasure = Erasure(units, ErasureStore(cache), session_store, OrderPeer(orders_peer))
    erasure_retry = timedelta(seconds=settings.erasure_retry_seconds)
    sessions = Sessions(units, store, passwords, session_store, tokens)

    return Service(
        "customer",
        [
            database,
            bus,
            orders_peer,
            payments_peer,
            *providers.values(),
            relay,
            passwords,
            session_store,
            cache,
            *housekeeping(database),
            Periodic("erasures", settings.erasure_retry_seconds, partial(erasure.finish, erasure_retry)),
            revocations,
            Server(
                settings,
                {
                    "commerce.customer.v1.CustomerService": CustomerService(
                        customers, payment_methods, addresses, orders, exports, erasure
                    ),
                    "commerce.customer.v1.SessionService": SessionService(sessions),
                },
                # Not Redis: without it customers and their payment methods are still served.
                checks=[database.check],
                revoked=revocations.ids,
            ),
        ],
    )
