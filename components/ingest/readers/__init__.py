"""One reader for each form that data comes in; all give the same parts of a sample, or the reason why not."""
