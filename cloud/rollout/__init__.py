"""Moving the fleet from one release to the next: by plan, wave after wave, stopped by a gate before it hurts many."""
