"""Values of a database that are kept in Redis as well, for reads."""
