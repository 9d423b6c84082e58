"""The payment service, wired: settings in, service out. Read it as the table of contents."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from pydantic import Field

from mesh.batch.group_commit import GroupCommit
from mesh.db.database import Database
from mesh.db.housekeeping import housekeeping
from mesh.db.paging import Pages
from mesh.db.unit_of_work import UnitsOfWork
from mesh.events.bus import Bus
from mesh.events.consumers import Consumer
from mesh.events.relay import Relay
from mesh.jobs import Periodic
from mesh.lifecycle import Service
from mesh.rpc.clients import Peer
from mesh.rpc.revocations import Revocations
from mesh.rpc.server import Server
from mesh.settings import ServiceSettings, Target, secret_bytes
from payment_svc import wire
from payment_svc.charger import Charger, ProviderAnswer
from payment_svc.consumers import order_events
from payment_svc.domain import Payment, Refund, WalkName
from payment_svc.peers import CustomerPeer
from payment_svc.providers import Bounded
from payment_svc.providers.catalog import PROVIDERS, Names, ProviderSettings
from payment_svc.refunder import RefundAnswer, Refunder
from payment_svc.rpc import PaymentService
from payment_svc.store import APPEND_HISTORY, PaymentStore, ReconciliationStore, RefundStore, WebhookStore
from payment_svc.usecases import Orders, Outcomes, Payments, Reconciliation, RefundOutcomes, Refunds, Webhooks

WEBHOOK_PURGE_S = 3600.0
"""How often old webhooks are deleted."""


class Settings(ServiceSettings, ProviderSettings):
    """The payment service's settings."""

    customer_target: Target
    """Where the customer service is. It keeps the tokens that are charged."""
    payment_providers: Names = ("sandbox",)
    """The payment providers that are switched on."""
    provider_timeout: float = Field(default=3.0, gt=0)
    """Seconds after which a provider's answer is no longer waited for, and looked up instead."""
    provider_calls: int = Field(default=256, gt=0)
    """Calls that are at each provider at a time."""
    payment_queue: int = Field(default=4096, gt=0)
    """Payments of each provider that the process holds, being charged or waiting for it. More are left to the sweep."""
    payment_lease: float = Field(default=10.0, gt=0)
    """Seconds that a process keeps a payment to itself; after that it counts as dead. Several provider time-outs."""
    payment_sweep_seconds: float = Field(default=0.5, gt=0)
    """How often payments are looked for whose retry is due, or whose process has died."""
    reconciliation_seconds: float = Field(default=1.0, gt=0)
    """How often a portion of payments is compared with the records of their providers."""
    reconciliation_portion: int = Field(default=5, ge=1, le=500)
    """The payments of a portion. Each costs the provider one request or several, of which it limits the number."""
    reconciliation_recent_seconds: float = Field(default=600.0, gt=0)
    """How often the payments of the last day are compared, all of them if there is enough time."""
    reconciliation_all_seconds: float = Field(default=86_400.0, gt=0)
    """How often all payments are compared that are not final, if there is enough time."""


def build(settings: Settings) -> Service:
    """Wire the service."""
    url = settings.database_url.get_secret_value()
    database = Database(url, max_connections=settings.database_connections)
    bus = Bus(settings.nats_url.get_secret_value(), name="payment", replicas=settings.nats_replicas)
    relay = Relay("payment", database, bus)
    revocations = Revocations(settings.redis_url.get_secret_value())
    units = UnitsOfWork(database, relay, event_of=wire.event, history=APPEND_HISTORY)

    store, refund_store = PaymentStore(), RefundStore()

    customers = Peer("customer", settings.customer_target, settings)
    providers = {
        name: Bounded(
            name, PROVIDERS[name](settings), at_a_time=settings.provider_calls, timeout=settings.provider_timeout
        )
        for name in settings.payment_providers
    }

    lease = timedelta(seconds=settings.payment_lease)
    pages = Pages(secret_bytes(settings.page_secret))
    refund_outcomes = GroupCommit[RefundAnswer, Refund](
        "refund outcomes", RefundOutcomes(units, store, refund_store).record
    )
    refunder = Refunder(
        providers, refund_outcomes.submit, most=settings.payment_queue, timeout=settings.provider_timeout
    )
    refunds = Refunds(units, store, refund_store, refunder, pages, providers=providers.keys(), lease=lease)
    recorder = Outcomes(units, store, refund_store, refunder, lease=lease)
    outcomes = GroupCommit[ProviderAnswer, Payment]("outcomes", recorder.record)
    charger = Charger(
        providers,
        CustomerPeer(customers, timeout=settings.provider_timeout).token_of,
        outcomes.submit,
        most=settings.payment_queue,
        timeout=settings.provider_timeout,
    )
    reconciliation = Reconciliation(
        units,
        store,
        refund_store,
        ReconciliationStore(),
        charger,
        refunder,
        providers=providers,
        rounds={
            WalkName.RECENT: timedelta(seconds=settings.reconciliation_recent_seconds),
            WalkName.ALL: timedelta(seconds=settings.reconciliation_all_seconds),
        },
        timeout=settings.provider_timeout,
    )
    webhooks = Webhooks(units, WebhookStore(), store, refund_store, reconciliation, providers=providers, lease=lease)
    payments = Payments(units, store, charger, pages, providers=providers.keys(), lease=lease)
    orders = Orders(units, store, refund_store, charger, refunder, providers=providers.keys(), lease=lease)

    return Service(
        "payment",
        [
            database,
            *providers.values(),
            bus,
            customers,
            relay,
            *housekeeping(database),
            charger,
            refunder,
            Periodic("payment sweep", settings.payment_sweep_seconds, payments.sweep),
            Periodic("refund sweep", settings.payment_sweep_seconds, refunds.sweep),
            *(
                Periodic(f"webhooks of {name}", settings.payment_sweep_seconds, partial(webhooks.apply, name))
                for name in providers
            ),
            *(
                Periodic(
                    f"reconciliation {name}",
                    settings.reconciliation_seconds,
                    partial(reconciliation.sweep, name, most=settings.reconciliation_portion),
                )
                for name in WalkName
            ),
            Periodic("purge of webhooks", WEBHOOK_PURGE_S, webhooks.purge),
            Consumer(
                "payment", "order", order_events(orders), bus=bus, units=units, max_attempts=settings.event_attempts
            ),
            revocations,
            Server(
                settings,
                {"commerce.payment.v1.PaymentService": PaymentService(payments, refunds, webhooks)},
                checks=[database.check],
                revoked=revocations.ids,
            ),
        ],
    )
