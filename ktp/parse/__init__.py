"""Stage two: raw text → model. Pure: no input or output, no knowledge of what the answers are for."""
