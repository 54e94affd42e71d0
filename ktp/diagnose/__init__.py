"""Questions to a snapshot: the matrix, causes, findings, what-if. Pure."""
