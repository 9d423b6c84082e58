"""The limits of headers, shared by the edge and the services."""

MAX_HEADER_BYTES = 32 * 1024
"""The largest headers of a client's request: names and values, with the path and its query."""

MAX_METADATA_BYTES = MAX_HEADER_BYTES + 8 * 1024
"""The largest metadata of a call: names and values. The edge adds less than the difference to a client's headers."""

MAX_TRANSPORT_BYTES = MAX_METADATA_BYTES + 24 * 1024
"""The size from which gRPC itself refuses metadata, without an ErrorInfo. It counts 32 bytes more for each entry."""
