"""What the customer service can do. Transactions begin and end here."""

from customer_svc.usecases.addresses import Addresses
from customer_svc.usecases.customers import Customers
from customer_svc.usecases.erasure import Erasure
from customer_svc.usecases.exports import Exports
from customer_svc.usecases.orders import Orders
from customer_svc.usecases.payment_methods import PaymentMethods
from customer_svc.usecases.sessions import Sessions

__all__ = ["Addresses", "Customers", "Erasure", "Exports", "Orders", "PaymentMethods", "Sessions"]
