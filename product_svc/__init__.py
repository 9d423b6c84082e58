"""The product service: the catalogue, and the stock that can be held, sold and returned."""
