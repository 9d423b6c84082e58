"""Write the OpenAPI document: `python -m gateway.openapi IMAGE DOCUMENT`.

It is a process of its own, because it imports the code that was just generated. IMAGE is a descriptor set of the
contracts with comments.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from gateway.openapi.operations import document

image, target = map(Path, sys.argv[1:])
try:
    made = document(FileDescriptorSet.FromString(image.read_bytes()))
except ValueError as error:
    sys.exit(str(error))
target.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", "utf-8")
