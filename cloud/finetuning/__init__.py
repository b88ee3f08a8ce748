"""The gradient path: fine-tune the backbone on labelled pictures, then everything that stands on it is made anew.

`graph` (the backbone under gradients) ← `tuning` (the training loop) ← `run` (the release); `examples` says on what,
`federated` trains the adapter where the pictures are.
"""
