"""The web page of the operations team; talks to `cloud.desk` only."""
