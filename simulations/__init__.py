"""Many virtual sites on the real edge and cloud code, the demo, and the benchmarks."""
