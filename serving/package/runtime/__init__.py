"""The runtime that travels inside every model package: numpy and onnxruntime only, relative imports only.

`decoding` is a link to `model/decoding`: the builder copies what it points to, so that each package carries its
own decode loop and two packages in one server never share code.
"""
