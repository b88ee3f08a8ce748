"""The central service: samples, labels and updates in; learning; signed releases out."""
