"""The decoder-only transformer over text and visual tokens."""
