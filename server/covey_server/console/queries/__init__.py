"""What the pages show, read from the tables into frozen view models. Nothing here writes, and no template sees a table."""
