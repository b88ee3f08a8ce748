"""The agent on a gateway: video in, hard samples up, better models in. Needs no torch."""
