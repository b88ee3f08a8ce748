"""Real processes, killed and cheated at random instants by a seeded plan; then a check that nothing was lost."""
