"""A package's graphs as Triton models of their own, for a server with a GPU; the package's Python model asks them."""
