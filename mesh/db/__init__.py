"""The database of a service: statements, transactions, units of work, idempotency, paging, migrations."""
