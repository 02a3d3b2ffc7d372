"""From an answer back to its data: a package's lineage, with every digest that can be checked on the way."""
