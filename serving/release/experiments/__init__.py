"""A/B tests and canaries: who gets which package, what came of it, and whether an arm is stopped."""
