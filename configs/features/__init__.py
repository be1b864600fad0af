"""One kind of feature per file: its keys in a recipe, and what the reader and a server have to know of it."""
