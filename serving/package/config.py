"""`config.pbtxt` of a package: what Triton must know of the model, and the request that warms it up."""

import struct

WARMUP_NAME = "prompt"
_WARMUP_PROMPT = b"a"

# Without a batch size above 0 Triton skips the warm-up without a word, also where max_batch_size is 0.
_TEMPLATE = """\
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }

input [
  { name: "prompt" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "seed" data_type: TYPE_INT64 dims: [ 1 ] optional: true },
  { name: "coarse_steps" data_type: TYPE_INT32 dims: [ 1 ] optional: true },
  { name: "temperature" data_type: TYPE_FP32 dims: [ 1 ] optional: true },
  { name: "guidance" data_type: TYPE_FP32 dims: [ 1 ] optional: true },
  { name: "size" data_type: TYPE_INT32 dims: [ 2 ] optional: true },
  { name: "format" data_type: TYPE_STRING dims: [ 1 ] optional: true },
  { name: "deadline_ms" data_type: TYPE_INT64 dims: [ 1 ] optional: true }
]
output [
  { name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] },
  { name: "encoded" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "stage" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "final" data_type: TYPE_BOOL dims: [ 1 ] },
  { name: "package_digest" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "seed" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "timings" data_type: TYPE_STRING dims: [ 1 ] }
]

instance_group [ { kind: KIND_CPU count: %(instances)d } ]
model_warmup [
  {
    name: "one prompt"
    batch_size: 1
    count: %(warmup_requests)d
    inputs { key: "prompt" value: { data_type: TYPE_STRING dims: [ 1 ] input_data_file: "%(warmup_name)s" } }
  }
]
"""


def config_pbtxt(*, instances: int, warmup_requests: int) -> str:
    """The text of `config.pbtxt`. It has no name: a package takes the name of the folder it is materialised in."""
    return _TEMPLATE % {"instances": instances, "warmup_requests": warmup_requests, "warmup_name": WARMUP_NAME}


def warmup_data() -> bytes:
    """The content of `warmup/prompt`: one string in Triton's BYTES layout (length as uint32, then the bytes)."""
    return struct.pack("<I", len(_WARMUP_PROMPT)) + _WARMUP_PROMPT
