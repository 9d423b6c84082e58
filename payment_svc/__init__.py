"""The payment service: captures the money of an order once, and refunds it."""
