"""Output: answers → terminal, JSON, YAML. Draws what it is given and asks nothing."""
