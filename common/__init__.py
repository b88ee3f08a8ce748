"""The contract between gateway and centre: words, messages, formats. Imports no other package of ours."""

AGENT_VERSION = "0.1.0"
