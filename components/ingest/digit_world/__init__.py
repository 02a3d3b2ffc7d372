"""The built-in data: scenes of real handwritten digits, with captions, written as a user's own data would come."""
