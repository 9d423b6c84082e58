"""The payment service: what orders are charged, once, and what is given back."""
