"""What the generator is trained to predict."""
