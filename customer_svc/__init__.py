"""The customer service: who the customers are, how they pay, and their sessions."""
