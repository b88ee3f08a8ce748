"""The ledger on disk: read what is new, add lines, and notice when somebody else has added some meanwhile.

The centre and a person's command are different processes; whoever adds a line must have read all before it.
"""

from collections.abc import Sequence

from cloud.rollout.entries import (
    Aborted,
    Completed,
    Entry,
    Replaced,
    RolledBack,
    Superseded,
    decode_entry,
    encode_entry,
)
from cloud.store import LedgerLine, Store


class Ledger:
    """A reader's place in it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read = 0

    def news(self) -> list[Entry]:
        """Lines since the last call, in order."""
        lines = self._store.ledger(self._read)
        if lines:
            self._read = lines[-1].number
        return [decode_entry(line.line) for line in lines]

    def add(self, entries: Sequence[Entry], statuses: dict[str, str] | None = None) -> bool:
        """Write lines, and what follows from them for the releases, in one commit.

        Args:
            statuses: of releases that change with them.

        Returns:
            False when there are news to be read first; nothing was written.
        """
        lines = [
            LedgerLine(number, entry.rollout_id, _kind(entry), entry.actor, entry.at_ns, encode_entry(entry), entry.why)
            for number, entry in enumerate(entries, self._read + 1)
        ]
        activate = ""
        for entry in entries:
            if isinstance(entry, Completed | RolledBack | Replaced):
                activate = entry.release_id
        if not self._store.append_ledger(lines, activate=activate, statuses=statuses or {}):
            return False
        self._read += len(lines)
        return True


def ended_status(entry: Entry) -> str:
    """What becomes of a release by this line; empty: nothing."""
    return "aborted" if isinstance(entry, Aborted) else "superseded" if isinstance(entry, Superseded) else ""


def _kind(entry: Entry) -> str:
    return str(entry.__struct_config__.tag)
