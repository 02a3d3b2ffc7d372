"""Token shards: what tokenize writes and training reads."""
