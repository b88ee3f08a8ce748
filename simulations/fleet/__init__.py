"""Thousands of virtual sites on the code that learns: many sites in one task, the same result whatever the batching."""
