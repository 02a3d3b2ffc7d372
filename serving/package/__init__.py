"""Model packages: what is exported, signed, verified before every load, and run by Triton."""
