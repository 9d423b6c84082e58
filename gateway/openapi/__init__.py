"""The OpenAPI 3.1 document of the edge, made from the contracts and their comments.

    comments    the comments of the contracts, as text for JSON clients
    rules       validation rules → keywords of JSON Schema
    schemas     messages and enums → schemas of what the edge sends and accepts
    samples     an example for each message
    reasons     error reasons → responses
    operations  methods → paths

`mesh contracts generate` runs `python -m gateway.openapi`, which writes `gen/commerce/openapi.json`.
"""
