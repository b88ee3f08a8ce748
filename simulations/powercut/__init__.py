"""The spool on a disk that loses power: unsynced writes are kept, lost or torn, and what was accepted must be there."""
