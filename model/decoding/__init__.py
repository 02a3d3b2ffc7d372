"""The one decode loop, in numpy: training, benchmarks and the served package run these same samplers.

This folder imports numpy and itself only, by relative imports: export copies it into every model package.
"""
