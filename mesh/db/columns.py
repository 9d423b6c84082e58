"""Types of columns that the services' tables share."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

TIME = pg.TIMESTAMP(timezone=True)
"""A point in time, to the microsecond."""
AMOUNT = sa.Numeric(28, 9)
"""An amount of money in whole units of its currency, exact to the nano."""
CURRENCY = sa.String(3)
"""The ISO 4217 code of a currency."""
