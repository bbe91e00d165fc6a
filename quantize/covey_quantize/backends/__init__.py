"""One module a file format: how its float and reduced variants are made."""
