"""Use cases, a command each: the one place that joins collecting, parsing, asking and showing."""
