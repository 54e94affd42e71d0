"""Stage one: all input and output. Everything after it is pure."""
