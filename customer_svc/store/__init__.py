"""The customer service's tables and statements: the only SQL of the service."""

from customer_svc.store.customers import CustomerStore, metadata
from customer_svc.store.erasures import ErasureStore

__all__ = ["CustomerStore", "ErasureStore", "metadata"]
