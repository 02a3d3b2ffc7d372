"""What every part of Emuflow shares: errors, files, settings, progress. It imports no other part."""
