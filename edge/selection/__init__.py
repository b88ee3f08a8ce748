"""Which frames are worth sending: a ranking under a budget, not a threshold.

- `rules` score a frame: how little the heads explain of it, how torn they are, and the rules of others to compare with;
- `ranks` make scores of any scale comparable: the share of the gateway's recent frames that score lower;
- `normal` is what a camera usually shows, so that rules can ask how far a frame is from it;
- `selector` spends the budget: a window's frames compete, and the chosen cover the window best;
- `keeping` carries budget, what was sent and what is normal over a restart: the one module here that touches files.
"""

from edge.selection.candidate import Candidate, Chosen, Sight
from edge.selection.rules import Rule, uncertainty
from edge.selection.selector import Selector

__all__ = ["Candidate", "Chosen", "Rule", "Selector", "Sight", "uncertainty"]
