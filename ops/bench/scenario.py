"""The loads that there are."""

from enum import StrEnum


class Scenario(StrEnum):
    """What the users of a load do."""

    ORDERS = "orders"
    """Each places orders of three of many products."""
    HOT = "hot"
    """The same, with one product in every order, until its stock is sold out."""
    READS = "reads"
    """Each reads products."""
    MIXED = "mixed"
    """They think for a second between 70 % reads of products, 20 % reads of own orders and 10 % orders."""
    EVENTS = "events"
    """Nobody: a consumer that was away finds a backlog of events."""
